"""The parts a tensor network is made of: dense operands, index patterns and selections, joined by named legs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..layers.pattern import IndexPattern


@dataclass(frozen=True)
class Axis:
    """One dimension of a stored tensor, as an affine function of legs: ``position = start + Σ step·leg``.

    A plain axis has one leg; ``[g·c]`` groups two legs row-major; a strided or cropped axis belongs to a
    simplified pattern. Distinct leg values always mean distinct positions.

    Args:
        terms: ``(leg, step)`` pairs.
        size: Length of the stored dimension.
        start: Position where all legs are zero.

    Example:
        >>> Axis.grouped(("g", "c"), {"g": 2, "c": 3})
        Axis(terms=(('g', 3), ('c', 1)), size=6, start=0)
    """

    terms: tuple[tuple[str, int], ...]
    size: int
    start: int = 0

    @classmethod
    def grouped(cls, legs: tuple[str, ...], sizes: Mapping[str, int]) -> "Axis":
        """The axis that holds these legs row-major and completely."""
        terms, step = [], 1
        for leg in reversed(legs):
            terms.append((leg, step))
            step *= sizes[leg]
        return cls(tuple(reversed(terms)), step)

    @property
    def legs(self) -> tuple[str, ...]:
        """The legs on this axis, outermost first."""
        return tuple(leg for leg, _ in self.terms)

    def is_plain(self, sizes: Mapping[str, int]) -> bool:
        """Whether the legs, row-major, fill the axis: then no slicing is needed to read or write it."""
        return self == Axis.grouped(self.legs, sizes)

    def replace(self, leg: str, terms: tuple[tuple[str, int], ...], start: int = 0) -> "Axis":
        """Substitute ``leg := start + Σ step·other``; an axis without the leg is not changed."""
        if leg not in self.legs:
            return self
        new: list[tuple[str, int]] = []
        offset = self.start
        for name, step in self.terms:
            if name == leg:
                new += [(other, step * inner) for other, inner in terms]
                offset += step * start
            else:
                new.append((name, step))
        return Axis(tuple(new), self.size, offset)

    def __str__(self) -> str:
        return "·".join(self.legs) or "1"


def layout_legs(axes: tuple[Axis, ...]) -> tuple[str, ...]:
    """All legs of a layout, outermost first."""
    return tuple(leg for axis in axes for leg in axis.legs)


@dataclass(frozen=True)
class Operand:
    """A dense tensor that is given under a slot name, with the legs of its dimensions."""

    slot: str
    axes: tuple[Axis, ...]

    @property
    def legs(self) -> tuple[str, ...]:
        """All legs, outermost first."""
        return layout_legs(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that the slot takes."""
        return tuple(axis.size for axis in self.axes)

    def rename(self, names: Mapping[str, str]) -> "Operand":
        """Rename legs of the operand."""
        axes = (Axis(tuple((names.get(leg, leg), step) for leg, step in a.terms), a.size, a.start) for a in self.axes)
        return Operand(self.slot, tuple(axes))

    def __str__(self) -> str:
        return f"{self.slot}[{' '.join(map(str, self.axes))}]"


@dataclass(frozen=True)
class Pattern:
    """An index pattern with its three legs: ``Π[i, o, k]``."""

    pattern: IndexPattern
    i: str
    o: str
    k: str

    @property
    def legs(self) -> tuple[str, ...]:
        """``(i, o, k)``."""
        return (self.i, self.o, self.k)

    def rename(self, names: Mapping[str, str]) -> "Pattern":
        """Rename legs of the pattern."""
        return Pattern(self.pattern, *(names.get(leg, leg) for leg in self.legs))

    def __str__(self) -> str:
        return f"Π[{' '.join(self.legs)}]"


@dataclass(frozen=True)
class Selection:
    """A choice of index values: ``δ[b, s, t] = [t = index[b, s]]``, with the index handed in under a slot name.

    With several targets the index counts through their grid row-major: this is how positions of an image are
    chosen jointly. With a batch leg every example has its own choice.

    Args:
        slot: Name under which the index tensor is handed in.
        batch: Legs along which the index differs (none, or the batch leg).
        sample: Leg that counts the chosen values.
        targets: Legs that take the chosen values.
    """

    slot: str
    batch: tuple[str, ...]
    sample: str
    targets: tuple[str, ...]

    @property
    def legs(self) -> tuple[str, ...]:
        """Batch legs, the sample leg, then the targets."""
        return (*self.batch, self.sample, *self.targets)

    def rename(self, names: Mapping[str, str]) -> "Selection":
        """Rename legs of the selection."""
        get = lambda leg: names.get(leg, leg)  # noqa: E731
        return Selection(self.slot, tuple(map(get, self.batch)), get(self.sample), tuple(map(get, self.targets)))

    def __str__(self) -> str:
        return f"δ[{' '.join((*self.batch, self.sample))} → {' '.join(self.targets)}]"


Node = Operand | Pattern | Selection


def leg_counts(nodes: tuple[Node, ...]) -> dict[str, int]:
    """Number of nodes that hold each leg."""
    counts: dict[str, int] = {}
    for node in nodes:
        for leg in set(node.legs):
            counts[leg] = counts.get(leg, 0) + 1
    return counts


def volume(legs: tuple[str, ...] | frozenset[str] | set[str], sizes: Mapping[str, int]) -> int:
    """Number of index tuples of some legs."""
    return prod(sizes[leg] for leg in legs)
