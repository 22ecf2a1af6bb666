"""Values in registers with the legs their dimensions stand for, and the conversions between layouts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from ..nodes import Axis, Operand, Pattern
from ..planning.steps import Target
from . import dense
from .program import Program

Axes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Windowed:
    """Where a view of windows comes from: the register before, its legs, and the patterns that made the windows."""

    register: int
    legs: tuple[str, ...]
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True)
class Value:
    """A register and, per dimension, the legs that it groups row-major; ``windows`` if it is a view of windows."""

    register: int
    axes: Axes
    windows: "Windowed | None" = None

    @property
    def legs(self) -> tuple[str, ...]:
        """All legs, outermost first."""
        return tuple(leg for axis in self.axes for leg in axis)


class Builder:
    """Emits layout conversions into a program, and counts the elements that they copy (``copied``).

    Sums of entries that lie apart in memory count, too: they read what lies between as well.

    Args:
        program: The program to which instructions are appended.
        sizes: Leg sizes.
        target: Data type and device of the operands.
        indices: Register of each slot.
        result: Legs of the network's result in order; products that grow follow it.

    Attributes:
        scale: What the next step's result is to be multiplied by; a kernel that does so sets it to one.
    """

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        target: Target,
        indices: Mapping[str, int],
        result: tuple[str, ...] = (),
    ) -> None:
        self.program, self.sizes, self.target, self.indices = program, sizes, target, indices
        self.rank = {leg: index for index, leg in enumerate(result)}
        self.copied, self.scale = 0, 1.0
        self._apart: dict[int, int] = {}

    def volume(self, legs: Iterable[str]) -> int:
        """Number of index tuples of some legs."""
        return prod(self.sizes[leg] for leg in legs)

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """Shape of a layout."""
        return tuple(self.volume(axis) for axis in axes)

    def load(self, register: int, operand: Operand) -> Value:
        """The operand in a register, read through its axes."""
        if all(axis.is_plain(self.sizes) for axis in operand.axes):
            return Value(register, tuple(axis.legs for axis in operand.axes))
        affine = self._affine(operand.axes)
        register = self.program.emit(dense.sliced, (register,), affine)
        steps = [step for _, terms in affine[-1:] for _, step in terms[-1:]]
        self._apart[register] = max(steps, default=1)
        return Value(register, tuple((leg,) for leg in operand.legs))

    def store(self, value: Value, axes: tuple[Axis, ...]) -> int:
        """The value in a result layout; legs it lacks are repeated, positions no leg reaches are zero."""
        legs = tuple(leg for axis in axes for leg in axis.legs)
        if all(axis.is_plain(self.sizes) for axis in axes):
            return self.convert(value, tuple(axis.legs for axis in axes)).register
        flat = self.convert(value, tuple((leg,) for leg in legs))
        shape = tuple(axis.size for axis in axes)
        return self.program.emit(dense.embedded, (flat.register,), shape, self._affine(axes))

    def _affine(self, axes: tuple[Axis, ...]) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        return tuple((a.start, tuple((self.sizes[leg], step) for leg, step in a.terms)) for a in axes)

    def convert(self, value: Value, axes: Axes) -> Value:
        """The value with other axes; legs may be added (repeated); only legs of size one may be lost."""
        wanted = tuple(leg for axis in axes for leg in axis)
        extra = tuple(leg for leg in wanted if leg not in value.legs and self.sizes[leg] > 1)
        if extra:
            value = self._repeat(value, extra)
        have, want = (tuple(leg for leg in legs if self.sizes[leg] > 1) for legs in (value.legs, wanted))
        shape, target = self.shape(value.axes), self.shape(axes)
        if have == want:
            return Value(self._reshaped(value.register, shape, target), axes)
        runs = _runs(have, want)
        split = tuple(self.volume(run) for run in runs)
        position = {run[0]: index for index, run in enumerate(runs)}
        order = tuple(position[leg] for leg in want if leg in position)
        moved = tuple(split[index] for index in order)
        if moved == tuple(size for size in target if size > 1):  # nothing is merged, so nothing is copied
            register = self._reshaped(value.register, shape, split)
            register = self.program.emit(dense.view, (register,), "permute", order)
            return Value(self._reshaped(register, moved, target), axes)
        before = self.program.count
        register = self.program.emit(dense.arrange, (value.register,), () if split == shape else split, order, target)
        if self.program.count > before:
            self.copied += self.volume(wanted)
        return Value(register, axes)

    def _reshaped(self, register: int, shape: tuple[int, ...], wanted: tuple[int, ...]) -> int:
        return register if shape == wanted else self.program.emit(dense.view, (register,), "reshape", wanted)

    def moving(self, value: Value, legs: tuple[str, ...]) -> tuple[int, int]:
        """How many neighbours in memory stay so if the value's legs are put in another order; the pieces that move."""
        have, want = (tuple(leg for leg in order if self.sizes[leg] > 1) for order in (value.legs, legs))
        runs = _runs(have, want)
        return self.volume(runs[-1]) if runs and runs[-1][-1] == want[-1] else 1, len(runs)

    def _repeat(self, value: Value, extra: tuple[str, ...]) -> Value:
        axes = (*((leg,) for leg in extra), *value.axes)
        shape = self.shape(axes)
        ones = (1,) * len(extra) + shape[len(extra) :]
        register = self.program.emit(dense.view, (value.register,), "reshape", ones)
        return Value(self.program.emit(dense.view, (register,), "expand", shape), axes)

    def sum(self, value: Value, legs: Iterable[str]) -> Value:
        """The value summed over some legs; legs it lacks count as repeated."""
        gone = set(legs)
        if not gone:
            return value
        keep = tuple(leg for leg in value.legs if leg not in gone)
        missing = self.volume(gone - set(value.legs))
        if missing > 1:
            value = Value(self.program.emit(dense.view, (value.register,), "mul", missing), value.axes)
        if len(keep) == len(value.legs) or all(self.sizes[leg] == 1 for leg in gone & set(value.legs)):
            return Value(self.convert(value, tuple((leg,) for leg in keep)).register, tuple((leg,) for leg in keep))
        if self._apart.get(value.register, 1) > 1:
            self.copied += self.volume(value.legs) * self._apart[value.register]
        # One dimension per leg: merging them would copy a strided slice.
        value = self.convert(value, tuple((leg,) for leg in value.legs))
        dims = tuple(index for index, leg in enumerate(value.legs) if leg in gone)
        register = self.program.emit(dense.reduce_sum, (value.register,), dims)
        return Value(register, tuple((leg,) for leg in keep))


def _runs(have: tuple[str, ...], want: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Maximal runs of legs that are neighbours in both orders."""
    follows = dict(pairwise(want))
    runs: list[tuple[str, ...]] = []
    for leg in have:
        if runs and follows.get(runs[-1][-1]) == leg:
            runs[-1] = (*runs[-1], leg)
        else:
            runs.append((leg,))
    return runs
