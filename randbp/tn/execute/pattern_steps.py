"""Steps that apply patterns to one tensor: windows, their transpose, and sums."""

from typing import Any

from ..nodes import Pattern
from ..planning.relations import Windows
from ..planning.steps import Cost, Join
from . import banded, dense
from .kernel import Kernel, Kind, Lowered
from .registers import Builder, Value, Windowed


class BandedSums(Kernel):
    """Patterns of which one leg is held, one is wanted, and the third is summed on its own: a small band is left."""

    kind, joins = Kind.RELATION, (1, Windows)

    def fits(self, join: Join) -> Any:
        """The roles that the tensor holds and that the result holds."""
        roles = join.roles
        source, target = roles.held(join.tensors[0]), roles.held(join.out)
        return source + target if source and target and source != target else None

    def cost(self, join: Join, form: Any) -> Cost:
        """The tensors are read and written once."""
        return Cost(0, join.touched, join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """Contract each pattern with ones on its third leg."""
        patterns, value = patterns_of(join), without_private(builder, join, values[0])
        held, reached = (tuple(getattr(p, role) for p in patterns) for role in form)
        rest = tuple(leg for leg in value.legs if leg not in held)
        value = builder.convert(value, (rest[:1], rest[1:], *((leg,) for leg in held)))
        static = tuple(p.pattern for p in patterns), form, builder.volume(value.legs)
        kind = builder.target
        register = builder.program.emit(banded.banded, (value.register,), *static, kind.dtype, kind.device)
        name = "box sums" if form[1] == "k" else "banded sums"
        return Lowered(Value(register, (rest[:1], rest[1:], reached)), name)


class WindowsOrPlaces(Kernel):
    """Any other patterns on a tensor: inputs become windows, and windows are added up into inputs."""

    kind, joins = Kind.RELATION, (1, Windows)

    def fits(self, join: Join) -> Any:
        """Always."""
        return True

    def cost(self, join: Join, form: Any) -> Cost:
        """What is expanded is written, unless it is a view that the next step copies."""
        roles, tensor, out = join.roles, join.tensors[0], join.out
        if roles.i & tensor and not roles.i & out and not roles.free & ~out:
            return Cost(0, join.touched + join.size, join.size)
        needed = roles.free & (out | tensor) if not (roles.i & tensor) and not (roles.i & out) else roles.free
        return Cost(0, join.touched + join.volume(tensor & ~roles.all | needed), join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """Windows where the tensor holds inputs, places where the result does, and sums over what is left."""
        value, patterns, out = without_private(builder, join, values[0]), patterns_of(join), join.legs.names(join.out)
        name = "place"
        held = {p.i for p in patterns if p.i in value.legs}
        if held:
            value, name = windows(builder, value, patterns), "windows"
        gone: list[str] = []
        for pattern in patterns:
            lonely = pattern.i not in held and pattern.i not in out  # Σ_i Π: which pairs (o, k) miss the padding
            if pattern.i in out or lonely:
                value = place(builder, value, pattern, out)
                name = "windows + place" if held else "place"
                gone += [pattern.i] if lonely else []
            else:
                gone += [leg for leg in (pattern.o, pattern.k) if leg not in out]
        return Lowered(builder.sum(value, gone), f"{name} + sum" if gone else name)


def patterns_of(join: Join) -> tuple[Pattern, ...]:
    """The patterns that a step applies."""
    assert isinstance(join.relation, Windows)
    return join.relation.patterns


def without_private(builder: Builder, join: Join, value: Value) -> Value:
    """The tensor summed over legs that neither the relation nor the result has."""
    private = join.legs.names(join.tensors[0] & ~(join.out | join.roles.all))
    return builder.sum(value, [leg for leg in value.legs if leg in private])


def windows(builder: Builder, value: Value, patterns: tuple[Pattern, ...]) -> Value:
    """Strided views: each leg ``i`` that the value holds becomes ``o`` and ``k``."""
    patterns = tuple(p for p in patterns if p.i in value.legs)
    value = builder.convert(value, tuple((leg,) for leg in value.legs))
    origin = Windowed(value.register, value.legs, patterns)
    plain = not any(leg in value.legs for p in patterns for leg in (p.o, p.k))
    legs = list(value.legs)
    dims = tuple((legs.index(p.i), p.pattern) for p in patterns)
    register = builder.program.emit(dense.windows, (value.register,), dims)
    for number, (dim, _) in enumerate(dims):
        legs[dim] = f"o{number}*"
    legs += [f"k{number}*" for number in range(len(patterns))]
    for number, p in enumerate(patterns):
        for star, leg in ((f"o{number}*", p.o), (f"k{number}*", p.k)):
            if leg in legs:
                ends = sorted((legs.index(star), legs.index(leg)))
                register = builder.program.emit(dense.view, (register,), "diagonal", 0, *ends)
                legs = [other for other in legs if other not in (star, leg)] + [leg]
            else:
                legs[legs.index(star)] = leg
    return Value(register, tuple((leg,) for leg in legs), origin if plain else None)


def place(builder: Builder, value: Value, pattern: Pattern, out: frozenset[str]) -> Value:
    """The transpose of a window: ``o`` and ``k`` are added up into ``i``; legs that are still needed are kept."""
    rest = tuple(leg for leg in value.legs if leg not in (pattern.o, pattern.k))
    ends = tuple((leg,) if leg in value.legs else () for leg in (pattern.o, pattern.k))
    value = builder.convert(value, (*((leg,) for leg in rest), *ends))
    kept = tuple(leg for leg in (pattern.o, pattern.k) if leg in out)
    static = pattern.pattern, pattern.o in out, pattern.k in out
    register = builder.program.emit(dense.place, (value.register,), *static)
    return Value(register, tuple((leg,) for leg in (*rest, pattern.i, *kept)))
