"""The layers that can be estimated: PyTorch's own forward pass, and how their tensors look to an estimator."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..tn import ConvSpec, ConvTransposeSpec, LayerSpec, LinearSpec

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Operation:
    """A layer call of checked arguments, without its tensors.

    Estimators see every layer as a convolution along positions: channels are the second dimension of the input and of
    the output, kernel positions the last dimensions of the weight. Where PyTorch has another order, the methods below
    give views in this one, and back.

    Args:
        spec: The layer's shapes and hyper-parameters.
    """

    spec: LayerSpec
    title: ClassVar[str]

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's function."""
        raise NotImplementedError

    def channels_second(self, tensor: Tensor) -> Tensor:
        """An input or output as ``[N, C, *positions]``."""
        return tensor

    def channels_back(self, tensor: Tensor, like: tuple[int, ...]) -> Tensor:
        """Inverse of :meth:`channels_second`, in the shape ``like``."""
        return tensor

    def kernel(self, weight: Tensor) -> Tensor:
        """The weight in the spec's shape."""
        return weight


@dataclass(frozen=True)
class Convolution(Operation):
    """A convolution.

    Args:
        spec: The layer's shapes and hyper-parameters.
        geometry: Stride, padding, dilation and groups as PyTorch's function takes them.
    """

    spec: ConvSpec
    geometry: tuple[Any, ...]
    title = "randbp convolution"

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's convolution of as many dimensions as the weight."""
        return _CONVOLUTION[weight.dim() - 2](x, weight, bias, *self.geometry)


@dataclass(frozen=True)
class TransposedConvolution(Operation):
    """A transposed convolution.

    Args:
        spec: The layer's shapes and hyper-parameters.
        geometry: Stride, padding, output padding, groups and dilation as PyTorch's function takes them.
    """

    spec: ConvTransposeSpec
    geometry: tuple[Any, ...]
    title = "randbp transposed convolution"

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's transposed convolution of as many dimensions as the weight."""
        return _TRANSPOSED[weight.dim() - 2](x, weight, bias, *self.geometry)


@dataclass(frozen=True)
class Linear(Operation):
    """A linear layer: a convolution along the flattened sequence, without a copy where the sequence is contiguous."""

    spec: LinearSpec
    title = "randbp linear layer"

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's linear layer."""
        return F.linear(x, weight, bias)

    def channels_second(self, tensor: Tensor) -> Tensor:
        """``[C]``, ``[N, C]`` or ``[N, *sequence, C]`` as ``[N, C, T]``."""
        examples = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
        length = prod(examples.shape[1:-1])
        return examples.reshape(examples.shape[0], length, examples.shape[-1]).transpose(1, 2)

    def channels_back(self, tensor: Tensor, like: tuple[int, ...]) -> Tensor:
        """``[N, C, T]`` as the input or output that it came from."""
        return tensor.transpose(1, 2).reshape(like)

    def kernel(self, weight: Tensor) -> Tensor:
        """``[D, C]`` as ``[D, C, 1]``."""
        return weight.unsqueeze(2)
