"""The layers whose VJPs can be estimated: PyTorch's forward pass, and the shapes that an estimator sees."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..estimators.text import register
from ..layers.layer_specs import as_sequence
from ..tn import ConvSpec, ConvTransposeSpec, LayerSpec, linear_spec, transposed_spec

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A layer call's hyper-parameters, without its tensors.

    Estimators see every layer as a convolution along positions: channels are the second dimension of the input and of
    the output, kernel positions the last dimensions of the weight. Where PyTorch has another order, the methods below
    give views in this one, and back.
    """

    title: ClassVar[str]

    def __init_subclass__(cls) -> None:
        register(cls)

    def spec(self, input_shape: Shape, weight_shape: Shape) -> LayerSpec:
        """Check the layer's shapes and hyper-parameters, and return them as a spec.

        Raises:
            ValueError: One line that names the argument, its value and what is allowed.
        """
        raise NotImplementedError

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Call PyTorch's function."""
        raise NotImplementedError

    def channels_second(self, tensor: Tensor) -> Tensor:
        """View an input or output as ``[N, C, *positions]``."""
        return tensor

    def channels_back(self, tensor: Tensor, like: Shape) -> Tensor:
        """Undo :meth:`channels_second`; the result has the shape ``like``."""
        return tensor

    def kernel(self, weight: Tensor) -> Tensor:
        """The weight in the spec's shape."""
        return weight


@dataclass(frozen=True)
class Convolution(Operation):
    """A convolution.

    Args:
        geometry: Stride, padding, dilation and groups as PyTorch's function takes them, sequences as tuples.
    """

    geometry: tuple[Any, ...]
    title = "randbp convolution"

    def spec(self, input_shape: Shape, weight_shape: Shape) -> ConvSpec:
        """As a :class:`randbp.tn.ConvSpec`."""
        shape = _batched(input_shape, weight_shape, "D, C / groups")
        spec = _conv_spec(shape, weight_shape[0], tuple(weight_shape[2:]), *self.geometry)
        if spec.weight_shape != tuple(weight_shape):
            raise ValueError(
                f"weight: shape {tuple(weight_shape)}, expected {spec.weight_shape} "
                f"for {spec.in_channels} input channels in groups={spec.groups}"
            )
        return spec

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's convolution of as many dimensions as the weight."""
        return _CONVOLUTION[weight.dim() - 2](x, weight, bias, *self.geometry)


@dataclass(frozen=True)
class TransposedConvolution(Operation):
    """A transposed convolution.

    Args:
        geometry: Stride, padding, output padding, groups and dilation as PyTorch's function takes them, sequences as
            tuples.
    """

    geometry: tuple[Any, ...]
    title = "randbp transposed convolution"

    def spec(self, input_shape: Shape, weight_shape: Shape) -> ConvTransposeSpec:
        """As a :class:`randbp.tn.ConvTransposeSpec`."""
        stride, padding, output_padding, groups, dilation = self.geometry
        shape = _batched(input_shape, weight_shape, "C, D / groups")
        if isinstance(padding, str):
            raise ValueError(f"padding={padding!r}: expected an integer or one per dimension")
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups={groups!r}: expected a positive integer")
        if shape[1] != weight_shape[0] or shape[1] % groups:
            raise ValueError(
                f"weight: shape {tuple(weight_shape)}, expected (C, D / groups, *K) "
                f"with C = {shape[1]} input channels, a multiple of groups={groups}"
            )
        channels, kernel = weight_shape[1] * groups, tuple(weight_shape[2:])
        return _conv_transpose_spec(shape, channels, kernel, stride, padding, dilation, groups, output_padding)

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's transposed convolution of as many dimensions as the weight."""
        return _TRANSPOSED[weight.dim() - 2](x, weight, bias, *self.geometry)


@dataclass(frozen=True)
class Linear(Operation):
    """A linear layer: a convolution along the flattened sequence, without a copy where the sequence is contiguous."""

    title = "randbp linear layer"

    def spec(self, input_shape: Shape, weight_shape: Shape) -> ConvSpec:
        """As a :class:`randbp.tn.LinearSpec`."""
        return _linear_spec(tuple(input_shape), weight_shape[0])

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's linear layer."""
        return F.linear(x, weight, bias)

    def channels_second(self, tensor: Tensor) -> Tensor:
        """``[C]``, ``[N, C]`` or ``[N, *sequence, C]`` as ``[N, C, T]``."""
        return as_sequence(tensor)

    def channels_back(self, tensor: Tensor, like: Shape) -> Tensor:
        """``[N, C, T]`` as the input or output that it came from."""
        return tensor.transpose(1, 2).reshape(like)

    def kernel(self, weight: Tensor) -> Tensor:
        """``[D, C]`` as ``[D, C, 1]``."""
        return weight.unsqueeze(2)


@dataclass(frozen=True)
class Product(Linear):
    """A linear layer by ``torch.addmm`` or ``torch.matmul``, which take its weight as ``[C, D]``."""

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Call PyTorch's matrix product, which may round differently from ``F.linear``."""
        return torch.matmul(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _batched(input_shape: Shape, weight_shape: Shape, weight_axes: str) -> Shape:
    """Shape of a convolution's input, with a batch of one if it has none.

    Raises:
        ValueError: If the dimensions of input and weight do not fit a convolution.
    """
    dims = len(weight_shape) - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"weight: shape {tuple(weight_shape)}, expected ({weight_axes}, *K) with 1 to 3 kernel sizes")
    if len(input_shape) not in (dims + 1, dims + 2):
        raise ValueError(
            f"x: shape {tuple(input_shape)}, expected {dims + 2} dimensions, or {dims + 1} without a batch"
        )
    return tuple(input_shape) if len(input_shape) == dims + 2 else (1, *input_shape)


_conv_spec = lru_cache(maxsize=1024)(ConvSpec)
_linear_spec = lru_cache(maxsize=1024)(linear_spec)


@lru_cache(maxsize=1024)
def _conv_transpose_spec(*arguments: object) -> ConvTransposeSpec:
    return ConvTransposeSpec(transposed_spec(*arguments))  # type: ignore[arg-type]
