"""Relations: how patterns and selections enter a contraction, as functions between legs instead of dense tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..network import Network
from ..nodes import Operand, Pattern, Selection


@dataclass(frozen=True, eq=False)
class Windows:
    """Patterns of one convolution, used together: ``(o, k)`` are free, ``i = s·o + d·k - p`` follows from them."""

    patterns: tuple[Pattern, ...]

    @property
    def free(self) -> tuple[str, ...]:
        """Legs that can be chosen freely: all ``o``, then all ``k``."""
        return (*(p.o for p in self.patterns), *(p.k for p in self.patterns))

    @property
    def determined(self) -> tuple[str, ...]:
        """Legs that follow from the free ones: all ``i``."""
        return tuple(p.i for p in self.patterns)

    @property
    def legs(self) -> tuple[str, ...]:
        """Free legs, then determined legs."""
        return self.free + self.determined

    def __str__(self) -> str:
        return " ".join(map(str, self.patterns))


@dataclass(frozen=True, eq=False)
class Lookup:
    """A selection, merged with the patterns that it feeds: a table from ``(batch, sample, free legs)`` to positions."""

    selection: Selection
    via: tuple[Pattern | None, ...]

    @property
    def enumerated(self) -> tuple[str, ...]:
        """Free legs that the patterns add to the selection's own."""
        pairs = zip(self.via, self.selection.targets, strict=True)
        return tuple(p.o if target == p.k else p.k for p, target in pairs if p is not None)

    @property
    def free(self) -> tuple[str, ...]:
        """Batch legs, the sample leg, and a free leg per merged pattern."""
        return (*self.selection.batch, self.selection.sample, *self.enumerated)

    @property
    def determined(self) -> tuple[str, ...]:
        """Legs whose value the table gives."""
        pairs = zip(self.via, self.selection.targets, strict=True)
        return tuple(target if p is None else p.o if target == p.i else p.i for p, target in pairs)

    @property
    def legs(self) -> tuple[str, ...]:
        """Free legs, then determined legs."""
        return self.free + self.determined

    @property
    def partial(self) -> bool:
        """Whether some entries of the table meet nothing (they fall into padding or between strides)."""
        return any(pattern is not None for pattern in self.via)

    def __str__(self) -> str:
        return " ".join(map(str, (self.selection, *(pattern for pattern in self.via if pattern is not None))))


Relation = Windows | Lookup


ONE = Operand("1", ())
"""The number one: the tensor of networks that hold none, for relations act on tensors."""


@dataclass(frozen=True)
class Problem:
    """A contraction to be planned: dense tensors (at least one), relations between their legs, and the legs to keep."""

    tensors: tuple[Operand, ...]
    relations: tuple[Relation, ...]
    sizes: Mapping[str, int]
    open_legs: frozenset[str]


def problem(net: Network, merge: bool = True) -> Problem:
    """The network with its patterns bundled and, if asked, its selections merged into the patterns they feed."""
    tensors = tuple(node for node in net.nodes if isinstance(node, Operand))
    patterns = [node for node in net.nodes if isinstance(node, Pattern)]
    relations: list[Relation] = []
    for node in net.nodes:
        if isinstance(node, Selection):
            via = _fed_patterns(net, node, patterns) if merge else (None,) * len(node.targets)
            patterns = [pattern for pattern in patterns if not any(pattern is fed for fed in via)]
            relations.append(Lookup(node, via))
    relations += _bundles(net, patterns)
    return Problem(tensors or (ONE,), tuple(relations), net.sizes, frozenset(net.open_legs))


def _fed_patterns(net: Network, node: Selection, patterns: list[Pattern]) -> tuple[Pattern | None, ...]:
    """The pattern that each target of a selection feeds, if there is one of its own.

    A table is a function: it counts its free legs and gives one value to each leg that follows. A pattern that joins
    two of its legs (it is fed twice, or shares a leg with another one) is a condition instead, and stays apart.
    """
    taken, via = set(node.legs), list[Pattern | None]()
    for target in node.targets:
        holders = [other for other in net.nodes if target in other.legs]
        alone = len(holders) == 2 and target not in net.open_legs  # the selection, and perhaps a pattern
        others = [(each, {*each.legs} - {target}) for each in patterns if alone and target in each.legs]
        fed, legs = next(((each, legs) for each, legs in others if len(legs) == 2 and not legs & taken), (None, set()))
        taken |= legs
        via.append(fed)
    return tuple(via)


def _bundles(net: Network, patterns: list[Pattern]) -> list[Windows]:
    """Group patterns whose legs go to the same nodes in the same roles: the dimensions of one convolution."""
    tensors = [node for node in net.nodes if not isinstance(node, Pattern)]
    near = {id(p): tuple(_holders(tensors, leg, net.open_legs) for leg in p.legs) for p in patterns}
    bundles: dict[object, list[list[Pattern]]] = {}
    for pattern in patterns:
        # Patterns met through a leg (the other half of a Gram matrix) count by their own neighbours.
        through = tuple(
            tuple(sorted((near[id(p)], p.legs.index(leg)) for p in patterns if p is not pattern and leg in p.legs))
            for leg in pattern.legs
        )
        lonely = not any(near[id(pattern)]) and not any(through)
        alike = bundles.setdefault(id(pattern) if lonely else (near[id(pattern)], through), [])
        for members in alike:
            if not any(set(pattern.legs) & set(other.legs) for other in members):
                members.append(pattern)
                break
        else:  # it shares a leg with each of them: another convolution on the same positions
            alike.append([pattern])
    return [Windows(tuple(members)) for alike in bundles.values() for members in alike]


def _holders(tensors: list[Operand | Selection], leg: str, open_legs: tuple[str, ...]) -> tuple[int, ...]:
    found = tuple(index for index, node in enumerate(tensors) if leg in node.legs)
    return (*found, -1) if leg in open_legs else found
