"""Steps that join two tensors through the patterns of a convolution: PyTorch's convolutions and their gradients."""

from collections.abc import Callable
from math import prod
from typing import Any

from ..planning import machine
from ..planning.relations import Windows
from ..planning.steps import Cost, Join
from . import convolution_kernels
from .kernel import Kernel, Kind, Lowered
from .pattern_steps import patterns_of, place, windows
from .program import TensorFunction
from .registers import Axes, Builder, Value

Legs = tuple[str, ...]


class Sides:
    """The two tensors of a step as kernels take them: with some patterns, mostly three, and legs by what they do.

    Patterns beyond these are applied to the input before, or to the result after the kernel.

    Attributes:
        patterns: The kernel's patterns.
        groups: Legs of both tensors and the result.
        summed: Legs of both tensors alone.
        own: Legs of one tensor and the result, by the tensor's role.
    """

    def __init__(self, builder: Builder, join: Join, values: list[Value], dims: int) -> None:
        assert join.sides is not None
        patterns = patterns_of(join)
        holders = dict(zip(join.sides, values, strict=True))
        self._builder, self._holders = builder, holders
        self.patterns, self.beyond = patterns[:dims], patterns[dims:]
        open_legs = join.legs.names(join.out)
        if "i" not in holders:
            open_legs |= {leg for p in self.beyond for leg in (p.o, p.k)}
        elif self.beyond:
            holders["i"] = windows(builder, holders["i"], self.beyond)
        self._spatial = {role: tuple(getattr(p, role) for p in self.patterns) for role in "iok"}
        first, second = ([leg for leg in v.legs if leg not in self._spatial[role]] for role, v in holders.items())
        shared = [leg for leg in first if leg in second]
        self.groups = tuple(leg for leg in shared if leg in open_legs)
        self.summed = tuple(leg for leg in shared if leg not in open_legs)
        both = zip(holders, (first, second), strict=True)
        self.own = {role: tuple(leg for leg in plain if leg not in shared) for role, plain in both}
        self.geometry = tuple(p.pattern for p in self.patterns)
        self.count = builder.volume(self.groups)

    def laid(self, role: str, *channels: Legs) -> int:
        """The register of a tensor ``[*channels, *positions]``."""
        return self._builder.convert(self._holders[role], self.axes(role, *channels)).register

    def axes(self, role: str, *channels: Legs) -> Axes:
        """Channels, and the positions of a role."""
        return (*channels, *((leg,) for leg in self._spatial[role]))


class Convolution(Kernel):
    """One of PyTorch's convolutions, or a gradient of one; ``given`` are roles of the tensors that it joins."""

    joins, dims = (2, Windows), 3
    given: frozenset[tuple[str, str]]

    def fits(self, join: Join) -> Any:
        """Whether the tensors have these roles."""
        return join.sides in self.given

    def cost(self, join: Join, form: Any) -> Cost:
        """Multiply-adds that meet no zero of the patterns."""
        left, right = join.tensors
        rest = join.volume((left | right) & ~join.roles.all)
        return Cost(rest * self.multiplications(join, form), self.moved(join, rest), join.size)

    def multiplications(self, join: Join, form: Any) -> int:
        """Multiply-adds for each value of the legs that no pattern has."""
        return prod(p.pattern.nonzeros for p in patterns_of(join))

    def moved(self, join: Join, rest: int) -> float:
        """Elements read and written."""
        return join.touched


class Forward(Convolution):
    """``x [n, g·c], w [g·d, c]``, with positions."""

    kind, given = Kind.NATIVE_FORWARD, frozenset((("i", "k"), ("k", "i")))

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """A native convolution."""
        sides = Sides(builder, join, values, self.dims)
        n, c, d = sides.own["i"], sides.summed, sides.own["k"]
        registers = sides.laid("i", n, sides.groups + c), sides.laid("k", sides.groups + d, c)
        register = builder.program.emit(convolution_kernels.forward, registers, sides.geometry, sides.count)
        return Lowered(Value(register, sides.axes("o", n, sides.groups + d)), f"conv{len(sides.patterns)}d")


class InputGradient(Convolution):
    """``w [g·d, c], y [n, g·d]``, with positions."""

    kind, given = Kind.NATIVE_GRADIENT, frozenset((("k", "o"), ("o", "k")))

    def moved(self, join: Join, rest: int) -> float:
        """Native kernels reorder their tensors."""
        return int(machine.cpu.reorder * join.touched)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """A native input gradient."""
        sides = Sides(builder, join, values, self.dims)
        n, c, d = sides.own["o"], sides.own["k"], sides.summed
        registers = sides.laid("k", sides.groups + d, c), sides.laid("o", n, sides.groups + d)
        leading = builder.volume(n), builder.volume(sides.groups + c)
        static = sides.geometry, sides.count, leading
        register = builder.program.emit(convolution_kernels.input_gradient, registers, *static)
        value = Value(register, sides.axes("i", n, sides.groups + c))
        out = join.legs.names(join.out)
        for pattern in sides.beyond:
            value = place(builder, value, pattern, out)
        return Lowered(value, "convolution_backward (input)")


class WeightGradient(Convolution):
    """``x [n, g·c], y [n, g·d]``, with positions.

    Attributes:
        make: Makes the function of ``x`` and ``y``.
        depthwise: Whether the result has all channels in one dimension.
        native: Whether `make` takes groups, shape and data type after the patterns.
    """

    kind, given = Kind.NATIVE_GRADIENT, frozenset((("i", "o"), ("o", "i")))
    name = "convolution_backward (weight)"
    make: Callable[..., TensorFunction] = staticmethod(convolution_kernels.weight_gradient)
    depthwise, native = False, True

    def moved(self, join: Join, rest: int) -> float:
        """Windows that do not overlap are a reshaped tensor, whose product a native kernel does not reach."""
        roles, patterns = join.roles, [p.pattern for p in patterns_of(join)]
        apart = all(p.dilation == 1 and p.kernel_size <= p.stride for p in patterns)
        if not apart or all(p.kernel_size == 1 for p in patterns):
            return join.touched
        x, y = self.ordered(join)
        rows, columns = join.volume(x & ~(y | roles.i) | roles.k), join.volume(y & ~(x | roles.o))
        small = 2 * rows * columns <= join.volume(roles.o) * (rows + columns)  # products of each image
        if small or not (join.legs.target.fast_products and convolution_kernels.has_avx512()):
            cpu = machine.cpu
            return join.touched + int((cpu.blocks - 1) * rest * self.multiplications(join, None) / cpu.stream)
        return join.touched

    @staticmethod
    def ordered(join: Join) -> tuple[int, ...]:
        """Legs of the input, and of the output gradient."""
        return join.tensors if join.sides == ("i", "o") else join.tensors[::-1]

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """Lay the tensors out, and hand them to the kernel."""
        sides = Sides(builder, join, values, self.dims)
        n, c, d = sides.summed, sides.own["i"], sides.own["o"]
        registers = sides.laid("i", n, sides.groups + c), sides.laid("o", n, sides.groups + d)
        axes = sides.axes("k", *((sides.groups + c + d,) if self.depthwise else (sides.groups + d, c)))
        kind = builder.target
        static = (sides.count, builder.shape(axes), kind.dtype, kind.device) if self.native else ()
        return Lowered(Value(builder.program.emit(self.make, registers, sides.geometry, *static), axes), self.name)
