"""PyTorch's modules as layers of :mod:`randbp.tn`: their specs, and their parameters as one matrix per group."""

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tn import ConvSpec, ConvTransposeSpec, LayerSpec, linear_spec, transposed_spec
from ..tn.layers import as_sequence

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def layer_input(module: Any, input: Tensor, output: Tensor) -> tuple[LayerSpec, Tensor]:
    """The layer that one call of a module is, and its input ``[N, C, *I]``.

    Args:
        module: One of ``LAYERS``.
        input: What it was called with.
        output: What it returned: the size of a transposed convolution's may be an argument of the call.

    Example:
        >>> layer, x = nn.Linear(3, 4), torch.zeros(8, 5, 3)
        >>> spec, seen = layer_input(layer, x, layer(x))
        >>> spec.input_shape, seen.shape
        ((8, 3, 5), torch.Size([8, 3, 5]))
    """
    if isinstance(module, nn.Linear):
        return _linear_spec(tuple(input.shape), module.out_features), channels_second(module, input)
    input, output = channels_second(module, input), channels_second(module, output)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, TRANSPOSED):
        geometry = zip(input.shape[2:], output.shape[2:], stride, module.padding, dilation, kernel, strict=True)
        extra = tuple(out - ((i - 1) * s - 2 * p + d * (k - 1) + 1) for i, out, s, p, d, k in geometry)
        shape = tuple(input.shape)
        arguments = (shape, module.out_channels, kernel, stride, module.padding, dilation, module.groups, extra)
        return _transposed_spec(*arguments), input
    padding = module.padding
    if module.padding_mode != "zeros" and padding != "valid":
        input, padding = F.pad(input, pad_widths(module), mode=module.padding_mode), 0
    spec = _conv_spec(tuple(input.shape), module.out_channels, kernel, stride, padding, dilation, module.groups)
    return spec, input


def pad_widths(module: Any) -> list[int]:
    """Widths for ``F.pad``, last dimension first, of a convolution that does not pad with zeros.

    Example:
        >>> pad_widths(nn.Conv2d(2, 2, (3, 2), padding="same", padding_mode="circular"))
        [0, 1, 1, 1]
    """
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for width in reversed(module.padding) for side in (width, width)]


def channels_second(module: nn.Module, tensor: Tensor) -> Tensor:
    """A module's input or output as ``[N, C, *positions]``; a call without a batch is a batch of one."""
    if not isinstance(module, nn.Linear):
        return tensor if tensor.dim() == module.weight.dim() else tensor.unsqueeze(0)  # type: ignore[operator]
    return as_sequence(tensor)


def as_matrices(module: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight and bias, or their gradients, as ``[G, D / G, C / G·ΠK (+ 1)]``: the bias is the last column.

    Rows and columns are in the order of :func:`~randbp.curvature.output_grad_factor` and
    :func:`~randbp.curvature.input_factor`.
    """
    matrices = _grouped(module, weight).flatten(2)
    return matrices if bias is None else torch.cat([matrices, bias.view(*matrices.shape[:2], 1)], 2)


def trained_bias(module: Any) -> Tensor | None:
    """The bias, if there is one and it is not frozen."""
    return module.bias if module.bias is not None and module.bias.requires_grad else None


def from_matrices(module: Any, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
    """Inverse of :func:`as_matrices`."""
    shape = _grouped(module, module.weight).shape
    weight, bias = matrices.tensor_split([prod(shape[2:])], dim=2)
    grouped = weight.reshape(shape)
    if isinstance(module, TRANSPOSED):
        grouped = grouped.transpose(1, 2)
    return grouped.reshape(module.weight.shape), bias.reshape(-1) if bias.shape[2] else None


def _grouped(module: Any, weight: Tensor) -> Tensor:
    """``[G, D / G, C / G, *K]``."""
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    grouped = weight.unflatten(0, (groups, -1))
    return grouped.transpose(1, 2) if isinstance(module, TRANSPOSED) else grouped


_conv_spec = lru_cache(maxsize=1024)(ConvSpec)
_linear_spec = lru_cache(maxsize=1024)(linear_spec)


@lru_cache(maxsize=1024)
def _transposed_spec(*arguments: Any) -> ConvTransposeSpec:
    return ConvTransposeSpec(transposed_spec(*arguments))
