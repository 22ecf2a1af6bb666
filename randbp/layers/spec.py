"""Specs: the hyper-parameters of a convolution, normalised and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from .integers import as_integer, as_integers
from .pattern import IndexPattern

IntPerDimension = int | tuple[int, ...]


@dataclass(frozen=True, init=False)
class ConvSpec:
    """Shapes and hyper-parameters of one convolution with any number of spatial dimensions, zero included.

    Args:
        input_shape: ``(N, C, *I)``, batch, channels, spatial sizes.
        out_channels: Number of output channels ``D`` (over all groups).
        kernel_size: Kernel size per dimension.
        stride: Stride per dimension.
        padding: Zeros on both sides per dimension, a pair ``(left, right)`` per dimension, ``"valid"`` or
            ``"same"``. A negative right side leaves that many inputs at the end out.
        dilation: Dilation per dimension.
        groups: Number of groups; divides both channel numbers.

    A plain integer means the same number in every dimension.

    Raises:
        ValueError: If a value is out of range, names the argument, the value and what is allowed.

    Example:
        >>> spec = ConvSpec(input_shape=(8, 3, 32, 32), out_channels=16, kernel_size=3, stride=2, padding=1)
        >>> spec.output_shape
        (8, 16, 16, 16)
        >>> spec.weight_shape
        (16, 3, 3, 3)
    """

    input_shape: tuple[int, ...]
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        input_shape: tuple[int, ...],
        out_channels: int,
        kernel_size: IntPerDimension,
        stride: IntPerDimension = 1,
        padding: IntPerDimension | str | tuple[tuple[int, int], ...] = 0,
        dilation: IntPerDimension = 1,
        groups: int = 1,
    ) -> None:
        shape = as_integers(input_shape)
        if shape is None or len(shape) < 2 or min(shape[1:]) < 1 or shape[0] < 0:
            raise ValueError(
                f"input_shape={input_shape!r}: expected (batch, channels, *spatial) with positive integer sizes"
            )
        dims = len(shape) - 2
        kernel = per_dimension("kernel_size", kernel_size, dims, minimum=1)
        steps = per_dimension("stride", stride, dims, minimum=1)
        dilations = per_dimension("dilation", dilation, dims, minimum=1)
        if isinstance(padding, str):
            pads = _padding_by_name(padding, kernel, steps, dilations)
        else:
            pads = padding_pairs(padding, dims)
        parts = as_integer(groups)
        if parts is None or parts < 1:
            raise ValueError(f"groups={groups!r}: expected a positive integer")
        for name, given in (("input channels", shape[1]), ("out_channels", out_channels)):
            channels = as_integer(given)
            if channels is None or channels < 1 or channels % parts:
                raise ValueError(f"{name}={given!r}: expected a positive multiple of groups={parts}")
        vars(self).update(input_shape=shape, out_channels=channels, kernel_size=kernel, stride=steps)
        vars(self).update(padding=pads, dilation=dilations, groups=parts)
        if min(self.output_size, default=1) < 1:
            raise ValueError(
                f"kernel_size={kernel} with dilation={dilations}: larger than the padded input {shape[2:]} + {pads}"
            )

    @cached_property
    def batch_size(self) -> int:
        """Number of examples ``N``."""
        return self.input_shape[0]

    @cached_property
    def in_channels(self) -> int:
        """Number of input channels over all groups."""
        return self.input_shape[1]

    @cached_property
    def input_size(self) -> tuple[int, ...]:
        """Spatial input sizes ``I``."""
        return self.input_shape[2:]

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        """Spatial output sizes ``O = ⌊(I + left + right - d(K - 1) - 1) / s⌋ + 1``."""
        sizes = zip(self.input_size, self._geometry, strict=True)
        return tuple((i + sum(p) - d * (k - 1) - 1) // s + 1 for i, (k, s, d, p) in sizes)

    @property
    def _geometry(self) -> list[tuple[int, int, int, tuple[int, int]]]:
        """Kernel size, stride, dilation and padding per dimension."""
        return list(zip(self.kernel_size, self.stride, self.dilation, self.padding, strict=True))

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """``(N, D, *O)``."""
        return (self.batch_size, self.out_channels, *self.output_size)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """``(D, C / groups, *K)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @cached_property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.input_size)

    @cached_property
    def patterns(self) -> tuple[IndexPattern, ...]:
        """One index pattern per spatial dimension."""
        return tuple(
            IndexPattern(i, o, k, s, d, left)
            for i, o, (k, s, d, (left, _)) in zip(self.input_size, self.output_size, self._geometry, strict=True)
        )

    @cached_property
    def multiply_adds(self) -> int:
        """Multiply-adds of the convolution, and of each of its VJPs, that do not meet a zero of the
        padding."""
        channels = self.out_channels * self.in_channels // self.groups
        return self.batch_size * channels * prod(pattern.nonzeros for pattern in self.patterns)


def per_dimension(name: str, value: object, dims: int, minimum: int) -> tuple[int, ...]:
    """One integer per spatial dimension from an integer or a sequence; a sequence of one is repeated, as in
    PyTorch.

    Raises:
        ValueError: If these are not integers from ``minimum`` on, or not as many; without a spatial dimension an
            integer that would not be the default is refused, too.
    """
    number = as_integer(value)
    values = as_integers(value) if number is None else (number,)
    if values is not None and len(values) == 1 and (dims or values[0] == minimum):
        values = values * dims
    if values is None or len(values) != dims or min(values, default=minimum) < minimum:
        allowed = f"one integer >= {minimum}, or {dims} of them" if dims else "() without spatial dimensions"
        raise ValueError(f"{name}={value!r}: expected {allowed}")
    return values


def _padding_by_name(
    padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding not in ("same", "valid"):
        raise ValueError(f"padding={padding!r}: expected 'same', 'valid', an integer or one per dimension")
    if padding == "same" and any(s != 1 for s in stride):
        raise ValueError(f"padding='same': needs stride 1, got stride={stride}")
    totals = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def padding_pairs(padding: Any, dims: int) -> tuple[tuple[int, int], ...]:
    """Padding ``(left, right)`` per dimension, of an integer, one per dimension, or such pairs; or ``ValueError``."""
    if not isinstance(padding, Sequence) or not any(isinstance(pair, Sequence) for pair in padding):
        return tuple((p, p) for p in per_dimension("padding", padding, dims, minimum=0))
    read = [as_integers(pair) for pair in padding]
    pairs = tuple((pair[0], pair[1]) for pair in read if pair is not None and len(pair) == 2 and pair[0] >= 0)
    if len(pairs) != dims or len(read) != dims:
        raise ValueError(f"padding={padding!r}: expected {dims} pairs (left, right) of integers, left >= 0")
    return pairs


def transposed_spec(
    input_shape: tuple[int, ...],
    out_channels: int,
    kernel_size: IntPerDimension,
    stride: IntPerDimension = 1,
    padding: IntPerDimension = 0,
    dilation: IntPerDimension = 1,
    groups: int = 1,
    output_padding: IntPerDimension = 0,
) -> ConvSpec:
    """The convolution whose adjoint is a transposed convolution with these arguments of PyTorch's.

    A transposed convolution exchanges the roles of input and output, so the operations
    ``tn.conv_transpose…`` take the spec of that convolution: it maps the transposed convolution's output
    shape to its input shape.

    Args:
        input_shape: ``(N, C, *I)`` of the transposed convolution's input.
        out_channels: Number of output channels of the transposed convolution.
        kernel_size: Kernel size per dimension.
        stride: Stride per dimension.
        padding: Padding per dimension (it makes the output smaller).
        dilation: Dilation per dimension.
        groups: Number of groups.
        output_padding: Rows added to one side of the output; less than the stride or the dilation.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> spec = transposed_spec((2, 3, 5, 5), out_channels=4, kernel_size=3, stride=2, output_padding=1)
        >>> spec.input_shape, spec.output_shape, spec.weight_shape
        ((2, 4, 12, 12), (2, 3, 5, 5), (3, 4, 3, 3))
    """
    shape = as_integers(input_shape)
    if shape is None or len(shape) < 2:
        raise ValueError(f"input_shape={input_shape!r}: expected (batch, channels, *spatial), integers")
    dims = len(shape) - 2
    kernel = per_dimension("kernel_size", kernel_size, dims, minimum=1)
    steps = per_dimension("stride", stride, dims, minimum=1)
    pads = per_dimension("padding", padding, dims, minimum=0)
    dilations = per_dimension("dilation", dilation, dims, minimum=1)
    extra = per_dimension("output_padding", output_padding, dims, minimum=0)
    for e, s, d in zip(extra, steps, dilations, strict=True):
        if e >= max(s, d):
            raise ValueError(f"output_padding={extra}: must be less than stride={steps} or dilation={dilations}")
    geometry = zip(shape[2:], kernel, steps, pads, dilations, extra, strict=True)
    sizes = tuple((i - 1) * s - 2 * p + d * (k - 1) + e + 1 for i, k, s, p, d, e in geometry)
    if min(sizes, default=1) < 1:
        raise ValueError(f"padding={pads}: leaves no output for input_shape={shape}, kernel_size={kernel}")
    spec = ConvSpec((shape[0], out_channels, *sizes), shape[1], kernel, steps, pads, dilations, groups)
    if spec.output_size != shape[2:]:  # with output_padding >= stride the convolution has further outputs: pad unevenly
        uneven = tuple((p, p - e) for p, e in zip(pads, extra, strict=True))
        spec = ConvSpec((shape[0], out_channels, *sizes), shape[1], kernel, steps, uneven, dilations, groups)
    return spec
