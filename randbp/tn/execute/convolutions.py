"""Steps that join two tensors through the patterns of a convolution: PyTorch's convolutions and their gradients."""

from typing import Any

from ..nodes import Pattern
from ..planning import machine
from ..planning.relations import Windows
from ..planning.steps import Cost, Join
from . import convolution_kernels
from .kernel import Kernel, Kind, Lowered
from .pattern_steps import place, windows
from .registers import Axes, Builder, Value

Legs = tuple[str, ...]


class Sides:
    """The two tensors of a step as native kernels take them: with up to three patterns, and legs by what they do.

    Patterns beyond the third are applied to the input before, or to the result after the kernel.

    Attributes:
        patterns: The kernel's patterns.
        groups: Legs of both tensors and the result.
        summed: Legs of both tensors alone.
        own: Legs of one tensor and the result, by the tensor's role.
    """

    def __init__(self, builder: Builder, join: Join, values: list[Value]) -> None:
        relation = join.relation
        assert isinstance(relation, Windows) and join.sides is not None
        holders = dict(zip(join.sides, values, strict=True))
        self._builder, self._holders = builder, holders
        self.patterns, self.beyond = relation.patterns[:3], relation.patterns[3:]
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

    joins = (2, Windows)
    given: frozenset[tuple[str, str]]

    def fits(self, join: Join) -> Any:
        """Whether the tensors have these roles."""
        return join.sides in self.given

    def cost(self, join: Join, form: Any) -> Cost:
        """Multiply-adds that meet no zero of the patterns."""
        relation = join.relation
        assert isinstance(relation, Windows)
        left, right = join.tensors
        rest = join.volume((left | right) & ~join.roles.all)
        return Cost(rest * self.multiplications(relation, join), self.moved(join, rest), join.size)

    def multiplications(self, relation: Windows, join: Join) -> int:
        """Multiply-adds for each value of the legs that no pattern has."""
        return relation.nonzeros

    def moved(self, join: Join, rest: int) -> float:
        """Elements read and written."""
        return join.touched


class Forward(Convolution):
    """``x [n, g·c], w [g·d, c]``, with positions."""

    kind, given = Kind.NATIVE_FORWARD, frozenset((("i", "k"), ("k", "i")))

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """A native convolution."""
        sides = Sides(builder, join, values)
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
        sides = Sides(builder, join, values)
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
    """``x [n, g·c], y [n, g·d]``, with positions."""

    kind, given = Kind.NATIVE_GRADIENT, frozenset((("i", "o"), ("o", "i")))
    name = "convolution_backward (weight)"

    def moved(self, join: Join, rest: int) -> float:
        """Windows that do not overlap are a reshaped tensor, whose product a native kernel does not reach."""
        relation, roles = join.relation, join.roles
        assert isinstance(relation, Windows) and join.sides is not None
        if not _are_blocks(relation.patterns):
            return join.touched
        x, y = join.tensors if join.sides[0] == "i" else join.tensors[::-1]
        rows, columns = join.volume(x & ~(y | roles.i) | roles.k), join.volume(y & ~(x | roles.o))
        small = 2 * rows * columns <= join.volume(roles.o) * (rows + columns)  # products of each image
        if small or not (join.legs.target.fast_products and convolution_kernels.has_avx512()):
            cpu = machine.cpu
            return join.touched + int((cpu.blocks - 1) * rest * relation.nonzeros / cpu.stream)
        return join.touched

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """Lay the tensors out, and hand them to the kernel."""
        sides = Sides(builder, join, values)
        n, c, d = sides.summed, sides.own["i"], sides.own["o"]
        registers = sides.laid("i", n, sides.groups + c), sides.laid("o", n, sides.groups + d)
        shape = builder.shape(sides.axes("k", sides.groups + d, c))
        register = self._made(builder, registers, sides, shape)
        return Lowered(Value(register, sides.axes("k", sides.groups + d, c)), self.name)

    def _made(self, builder: Builder, registers: tuple[int, int], sides: Sides, shape: tuple[int, ...]) -> int:
        target = builder.target
        static = sides.geometry, sides.count, shape, target.dtype, target.device
        return builder.program.emit(convolution_kernels.weight_gradient, registers, *static)


class WeightProducts(WeightGradient):
    """A weight gradient without groups by matrix products, where these pay.

    Args:
        name: Printed name.
        pay: Whether they do, for patterns, numbers of examples, and of input and output channels.
        make: Makes the function of ``x [N, C, *I]`` and ``y [N, D, *O]`` for some patterns.
    """

    kind = Kind.LAID_OUT_PRODUCTS

    def __init__(self, name: str, pay: Any, make: Any) -> None:
        self.name, self.pay, self.make = name, pay, make  # type: ignore[misc]

    def fits(self, join: Join) -> Any:
        """Whether products pay."""
        if not super().fits(join) or not join.legs.target.fast_products:
            return False
        relation, roles = join.relation, join.roles
        assert isinstance(relation, Windows) and join.sides is not None
        x, y = join.tensors if join.sides[0] == "i" else join.tensors[::-1]
        encode, beyond = join.legs.encode, relation.patterns[3:]
        x = x & ~roles.i | encode(leg for p in beyond for leg in (p.o, p.k))
        y = y & ~encode(p.o for p in relation.patterns[:3])
        if join.volume(x & y & join.out) > 1:
            return False
        geometry = tuple(p.pattern for p in relation.patterns[:3])
        return self.pay(geometry, join.volume(x & y), (join.volume(x & ~y), join.volume(y & ~x)))

    def _made(self, builder: Builder, registers: tuple[int, int], sides: Sides, shape: tuple[int, ...]) -> int:
        return builder.program.emit(self.make, registers, sides.geometry)


def _are_blocks(patterns: tuple[Pattern, ...]) -> bool:
    """Whether windows of several entries do not overlap, so that they are a reshaped tensor."""
    apart = all(p.pattern.dilation == 1 and p.pattern.kernel_size <= p.pattern.stride for p in patterns)
    return apart and any(p.pattern.kernel_size > 1 for p in patterns)
