"""PyTorch's layer functions with their hyper-parameters: what a call runs, and how an estimator sees its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from .integers import as_integer, as_integers
from .layer_specs import ConvTransposeSpec, LayerSpec, as_sequence, linear_spec
from .spec import ConvSpec, transposed_spec

Kind = Literal["convolution", "transposed convolution", "linear"]
Shape = tuple[int, ...]

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

MOST = 2**63
"""PyTorch takes integers below this size only."""


@dataclass(frozen=True)
class LayerFunction:
    """One of PyTorch's layer functions with hyper-parameters, but without tensors.

    Estimators see every layer as a convolution along positions: channels are the second dimension of the input and of
    the output, kernel positions the last dimensions of the weight. Where PyTorch has another order, the methods below
    give views in this one, and back.

    Args:
        geometry: The function's arguments after the bias, in PyTorch's order, sequences as tuples.
    """

    geometry: tuple[Any, ...] = ()
    kind: ClassVar[Kind]
    title: ClassVar[str]
    usual: ClassVar[Mapping[str, Any]] = {}
    """Names and defaults of these arguments."""

    @classmethod
    def of(cls, **geometry: Any) -> Self:
        """Check each hyper-parameter by itself; together they are checked once shapes are known, by :meth:`spec`.

        Raises:
            ValueError: If one is neither an integer nor a name nor a sequence of integers, or if ``groups`` is not a
                positive integer.

        Example:
            >>> Convolution.of(stride=[2, 1], padding="valid", dilation=1, groups=1)
            Convolution(geometry=((2, 1), 'valid', 1, 1))
        """
        checked = []
        for name, value in geometry.items():
            if type(value) is not int or not -MOST < value < MOST or (name == "groups" and value < 1):
                value = _checked(name, value)
            checked.append(value)
        return cls(tuple(checked))

    @property
    def groups(self) -> int:
        """Number of groups."""
        groups: int = self.geometry[3] if self.geometry else 1
        return groups

    @classmethod
    def of_module(cls, module: Any, weight: Tensor, input: Tensor) -> tuple[Self, Tensor] | None:
        """The function that a call of one of PyTorch's layer modules, or of a class derived from it, runs; its input.

        ``None`` if PyTorch's own forward pass should run: nothing is estimated, or PyTorch should raise its error.
        """
        raise NotImplementedError

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

    def bias_vjp(self, output_grad: Tensor) -> Tensor:
        """Exact bias VJP, from an output gradient as PyTorch's function returned the output.

        For linear layers it is PyTorch's bit for bit. Of a convolution in single precision PyTorch's processor kernel
        makes it along with the weight VJP, at that price; a sum of its own may differ in the last bit.
        """
        return output_grad.sum([dim for dim in range(output_grad.dim()) if dim != 1])

    def is_channels_last(self, tensor: Tensor) -> bool:
        """Whether an input or weight is in ``torch.channels_last`` memory format."""
        if tensor.dim() != 4 or tensor.is_contiguous():
            return False
        return tensor.is_contiguous(memory_format=torch.channels_last)


class Convolution(LayerFunction):
    """A convolution, by stride, padding, dilation and groups."""

    kind, title = "convolution", "randbp convolution"
    usual = MappingProxyType({"stride": 1, "padding": 0, "dilation": 1, "groups": 1})

    @classmethod
    def of_module(cls, module: Any, weight: Tensor, input: Tensor) -> tuple[Self, Tensor]:
        """Padding of another mode than zeros is done here."""
        padding = module.padding
        if module.padding_mode != "zeros" and padding != "valid":
            input = F.pad(input, pad_widths(module), mode=module.padding_mode)
            padding = (0,) * len(module.kernel_size)
        return cls.of(stride=module.stride, padding=padding, dilation=module.dilation, groups=module.groups), input

    def spec(self, input_shape: Shape, weight_shape: Shape) -> LayerSpec:
        """As a :class:`randbp.tn.ConvSpec`."""
        shape = _batched(input_shape, weight_shape, "D, C / groups")
        spec = ConvSpec(shape, weight_shape[0], tuple(weight_shape[2:]), *self.geometry)
        if spec.weight_shape != tuple(weight_shape):
            raise ValueError(
                f"weight: shape {tuple(weight_shape)}, expected {spec.weight_shape} "
                f"for {spec.in_channels} input channels in groups={spec.groups}"
            )
        return spec

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's convolution of as many dimensions as the weight."""
        return _CONVOLUTION[weight.dim() - 2](x, weight, bias, *self.geometry)


class TransposedConvolution(LayerFunction):
    """A transposed convolution, by stride, padding, output padding, groups and dilation."""

    kind, title = "transposed convolution", "randbp transposed convolution"
    usual = MappingProxyType({"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1})

    @classmethod
    def of_module(
        cls, module: Any, weight: Tensor, input: Tensor, output_size: list[int] | None = None
    ) -> tuple[Self, Tensor] | None:
        """With the output padding that leads to ``output_size``."""
        extra: tuple[int, ...] = module.output_padding
        if output_size is not None:
            dims = len(module.kernel_size)
            geometry = zip(
                input.shape[-dims:], module.stride, module.padding, module.dilation, module.kernel_size, strict=True
            )
            least = [(i - 1) * s - 2 * p + d * (k - 1) + 1 for i, s, p, d, k in geometry]
            extra = tuple(wanted - size for wanted, size in zip(list(output_size)[-dims:], least, strict=True))
            sizes = len(output_size) in (dims, input.dim())
            if not sizes or not all(0 <= e < s for e, s in zip(extra, module.stride, strict=True)):
                return None
        made = cls.of(
            stride=module.stride,
            padding=module.padding,
            output_padding=extra,
            groups=module.groups,
            dilation=module.dilation,
        )
        return made, input

    def spec(self, input_shape: Shape, weight_shape: Shape) -> LayerSpec:
        """As a :class:`randbp.tn.ConvTransposeSpec`."""
        stride, padding, output_padding, groups, dilation = self.geometry
        shape = _batched(input_shape, weight_shape, "C, D / groups")
        if isinstance(padding, str):
            raise ValueError(f"padding={padding!r}: expected an integer or one per dimension")
        if shape[1] != weight_shape[0] or shape[1] % groups:
            raise ValueError(
                f"weight: shape {tuple(weight_shape)}, expected (C, D / groups, *K) "
                f"with C = {shape[1]} input channels, a multiple of groups={groups}"
            )
        channels, kernel = weight_shape[1] * groups, tuple(weight_shape[2:])
        return ConvTransposeSpec(
            transposed_spec(shape, channels, kernel, stride, padding, dilation, groups, output_padding)
        )

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's transposed convolution of as many dimensions as the weight."""
        return _TRANSPOSED[weight.dim() - 2](x, weight, bias, *self.geometry)


class Linear(LayerFunction):
    """A linear layer: a convolution along the flattened sequence, without a copy where the sequence is contiguous."""

    kind, title = "linear", "randbp linear layer"

    @classmethod
    def of_module(cls, module: Any, weight: Tensor, input: Tensor) -> tuple[Self, Tensor] | None:
        """Nothing is estimated of an empty input, nor of one of the wrong size."""
        if not input.numel() or not weight.numel() or input.shape[-1] != weight.shape[1]:
            return None
        return cls(), input

    def spec(self, input_shape: Shape, weight_shape: Shape) -> LayerSpec:
        """As a :class:`randbp.tn.LinearSpec`."""
        return linear_spec(tuple(input_shape), weight_shape[0])

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

    def bias_vjp(self, output_grad: Tensor) -> Tensor:
        """PyTorch's, bit for bit."""
        return output_grad.reshape(-1, output_grad.shape[-1]).sum(0)

    def is_channels_last(self, tensor: Tensor) -> bool:
        """Never: that memory format is one of images."""
        return False


class Product(Linear):
    """A linear layer by ``torch.addmm`` or ``torch.matmul``, which take its weight as ``[C, D]``."""

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Call PyTorch's matrix product, which may round differently from ``F.linear``."""
        return torch.matmul(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


@lru_cache(maxsize=1024)
def spec_of(function: LayerFunction, input_shape: Shape, weight_shape: Shape) -> LayerSpec:
    """:meth:`LayerFunction.spec`, made once."""
    return function.spec(input_shape, weight_shape)


def pad_widths(module: Any) -> list[int]:
    """Widths for ``F.pad`` (last dimension first) that pad as a convolution with a non-zero padding mode does."""
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for width in reversed(module.padding) for side in (width, width)]


def _checked(name: str, value: object) -> Any:
    number = as_integer(value)
    if name == "groups":
        if number is None or not 1 <= number < MOST:
            raise ValueError(f"groups={value!r}: expected a positive integer")
        return number
    if isinstance(value, str):
        return value
    found = as_integers(value) if number is None else number
    if found is None or any(abs(one) >= MOST for one in ([found] if isinstance(found, int) else found)):
        raise ValueError(f"{name}={value!r}: expected an integer or one per dimension")
    return found


def _batched(input_shape: Shape, weight_shape: Shape, weight_axes: str) -> Shape:
    """Shape of a convolution's input, with a batch of one if it has none."""
    dims = len(weight_shape) - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"weight: shape {tuple(weight_shape)}, expected ({weight_axes}, *K) with 1 to 3 kernel sizes")
    if len(input_shape) not in (dims + 1, dims + 2):
        raise ValueError(
            f"x: shape {tuple(input_shape)}, expected {dims + 2} dimensions, or {dims + 1} without a batch"
        )
    return tuple(input_shape) if len(input_shape) == dims + 2 else (1, *input_shape)
