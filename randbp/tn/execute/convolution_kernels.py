"""Factories of PyTorch's native convolution kernels, for a pattern between two given tensors."""

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d
from torch.nn.functional import pad as pad_zeros

from ...layers.pattern import IndexPattern
from ..planning import machine
from . import batch_parts
from .program import TensorFunction

_FORWARD = {1: conv1d, 2: conv2d, 3: conv3d}
_BACKWARD = torch.ops.aten.convolution_backward.default


def has_avx512() -> bool:
    """Whether the processor has AVX-512: native weight gradients then nearly reach the speed of matrix products."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class Geometry:
    """Native padding for index patterns: symmetric where PyTorch's output size agrees, explicit zeros elsewhere."""

    def __init__(self, patterns: tuple[IndexPattern, ...]) -> None:
        self.stride = [p.stride for p in patterns]
        self.dilation = [p.dilation for p in patterns]
        self.no_output_padding = [0] * len(patterns)
        self.padding: list[int] = []
        margins: list[tuple[int, int]] = []
        padded = []
        for p in patterns:
            reach = p.dilation * (p.kernel_size - 1) + 1
            agrees = (p.input_size + 2 * p.padding - reach) // p.stride + 1 == p.output_size
            length = p.input_size if agrees else p.stride * (p.output_size - 1) + reach
            self.padding.append(p.padding if agrees else 0)
            margins.append((0, 0) if agrees else (p.padding, length - p.padding - p.input_size))
            padded.append(length)
        self.explicit = any(margin != (0, 0) for margin in margins)
        self.pad = tuple(side for margin in reversed(margins) for side in margin)
        self.crop = tuple(-side for side in self.pad)
        self.padded = tuple(padded)


def forward(patterns: tuple[IndexPattern, ...], groups: int) -> TensorFunction:
    """``(x [N, G·C, *I], w [G·D, C, *K]) → y [N, G·D, *O]``."""
    geometry = Geometry(patterns)
    conv = _FORWARD[len(patterns)]
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    outputs = tuple(p.output_size for p in patterns)
    positions = prod(outputs)

    def kernel(x: Tensor, w: Tensor) -> Tensor:
        if geometry.explicit:
            x = pad_zeros(x, geometry.pad)
        elements = max(x.numel(), x.shape[0] * w.shape[0] * positions)
        together = batch_parts.examples_at_once((x, w), elements)
        if together >= x.shape[0]:
            return conv(x, w, None, stride, padding, dilation, groups)
        result = x.new_empty((len(x), len(w), *outputs))
        for part, place in zip(x.split(together), result.split(together), strict=True):
            place.copy_(conv(part, w, None, stride, padding, dilation, groups))
        return result

    return kernel


def weight_gradient(
    patterns: tuple[IndexPattern, ...],
    groups: int,
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> TensorFunction:
    """``(x [N, G·C, *I], y [N, G·D, *O]) → w [G·D, C, *K]``."""
    geometry = Geometry(patterns)
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    none, mask = geometry.no_output_padding, [False, True, False]
    small = prod(weight_shape) <= machine.cpu.placeholder
    held = torch.empty(weight_shape, dtype=dtype, device=device) if small else None
    sums = dtype in (torch.float32, torch.float64)  # other types would round every part
    # Entries that meet only padding: kernels for 16-bit types leave their gradients unwritten with AMX (PyTorch 2.13).
    all_entries = [(dim, k, p) for dim, p in enumerate(patterns, 2) for k in range(p.kernel_size)]
    unmet = [(dim, k) for dim, k, p in all_entries if not sums and not p.met(k)[0]]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        if geometry.explicit:
            x = pad_zeros(x, geometry.pad)
        w = x.new_empty(weight_shape) if held is None or type(x) is not Tensor else held  # only its shape is read
        together = batch_parts.examples_at_once((x, y), max(x.numel(), y.numel()))
        if together >= x.shape[0] or not sums:
            grad: Tensor = _BACKWARD(y, x, w, None, stride, padding, dilation, False, none, groups, mask)[1]
            for dim, entry in unmet:
                grad.select(dim, entry).zero_()
            return grad
        total: Tensor | None = None
        for part, met in zip(x.split(together), y.split(together), strict=True):
            each: Tensor = _BACKWARD(met, part, w, None, stride, padding, dilation, False, none, groups, mask)[1]
            total = each if total is None else total.add_(each)
        assert total is not None
        return total

    return kernel


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """The memory format that native kernels would infer for a tensor.

    Example:
        >>> memory_format_of(torch.empty(2, 3, 4, 4, memory_format=torch.channels_last))
        torch.channels_last
    """
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if channels_last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=channels_last):
        return torch.contiguous_format
    return channels_last


def placeholder(
    tensor: Tensor,
    shape: tuple[int, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
    dense: bool = True,
) -> Tensor:
    """Stands for a tensor of which a native kernel reads the shape and the memory format, but no entry."""
    count = prod(shape)
    if memory_format != torch.contiguous_format:
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
    if not dense and count:
        return tensor.new_empty(1).expand(shape)
    if type(tensor) is Tensor and tensor.is_contiguous() and tensor.numel() >= count:
        return tensor.detach().view(-1)[:count].view(shape)
    return tensor.new_empty(shape)


def input_gradient(patterns: tuple[IndexPattern, ...], groups: int, leading: tuple[int, int]) -> TensorFunction:
    """``(w [G·D, C, *K], y [N, G·D, *O]) → x [N, G·C, *I]``, with ``leading = (N, G·C)``."""
    geometry = Geometry(patterns)
    shape = (*leading, *geometry.padded)
    elements = prod(shape)
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    none, mask = geometry.no_output_padding, [True, False, False]

    def kernel(w: Tensor, y: Tensor) -> Tensor:
        together = batch_parts.examples_at_once((y, w), max(elements, y.numel()))
        if together < y.shape[0]:
            x = y.new_empty(shape)
            for part, place in zip(y.split(together), x.split(together), strict=True):
                grads = _BACKWARD(part, place, w, None, stride, padding, dilation, False, none, groups, mask)
                place.copy_(grads[0])
        else:
            x = _BACKWARD(y, placeholder(y, shape), w, None, stride, padding, dilation, False, none, groups, mask)[0]
        return pad_zeros(x, geometry.crop) if geometry.explicit else x

    return kernel
