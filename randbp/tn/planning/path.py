"""Search for the contraction order: exact where the problem is small, along a tree of opt_einsum's where it is not."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import cache, reduce
from typing import Any, NamedTuple

from opt_einsum.paths import get_path_fn

from ..execute.kernel import Kernel
from ..execute.registry import choose
from ..nodes import Operand
from .relations import Problem, Relation, Windows
from .steps import Cost, Join, Legs, Target

Path = list[tuple[int, ...]]
Optimize = str | Callable[..., Any] | None
"""A strategy of opt_einsum, or an optimizer with its interface; ``None`` for the search of this module."""
Tree = tuple[Any, ...]
"""``(number,)`` of an item, or the trees that are joined."""

FREE = Cost(0, 0, 0)
EXHAUSTIVE = 9  # the search is optimal up to this number of items [items]


class Item(NamedTuple):
    """A single relation, or items that are joined to a tensor."""

    mask: int
    legs: int
    tensor: bool = True


class Move(NamedTuple):
    """One step: what it gives, what it joins, and the kernel that does it."""

    item: Item
    join: Join
    kernel: Kernel
    form: Any
    cost: Cost


class Search:
    """Finds the order in which to contract a problem's tensors and relations, by the costs of the kernels to be run.

    A step joins two tensors, a tensor and a relation, or two tensors and the relation between them (a convolution). Two
    relations are never joined: that would be a dense pattern. For up to nine items the order is the cheapest possible
    one (dynamic programming over subsets). Beyond, or if asked, opt_einsum orders the tensors. It sees a leg that a
    pattern determines as the pattern's free legs, so it counts what patterns leave to multiply. Each of its steps, with
    the patterns between the joined tensors, is then ordered by the first method.

    Args:
        problem: Tensors and relations.
        target: What the plan is for.
        optimize: A strategy of opt_einsum (``"greedy"``, ``"dp"``, …), an object with the interface of its
            ``PathOptimizer``, or ``None``.

    Raises:
        ValueError: If there is no such strategy.
    """

    def __init__(self, problem: Problem, target: Target | None = None, optimize: Optimize = None) -> None:
        self.problem, self.optimize = problem, optimize
        self.legs = Legs(problem, target or Target())
        self.count = len(problem.tensors)
        self.items: list[Operand | Relation] = [*problem.tensors, *problem.relations]
        held = [self.legs.encode(item.legs) for item in self.items]
        self.start = [Item(1 << n, legs, n < self.count) for n, legs in enumerate(held)]
        self._open = self.legs.encode(leg for leg in problem.sizes if leg in problem.open_legs)
        self.needed, self.kind, self.move = cache(self._needed), cache(self._kind), cache(self._move)
        numbers: dict[object, int] = {}  # sums of these over equivalent sets of items are equal
        self._kinds = [1 << 8 * numbers.setdefault(_kind(item), len(numbers)) for item in self.items]

    def path(self) -> Path:
        """The path, in opt_einsum's format: positions in a list that loses the joined items and gains the result."""
        if len(self.items) <= 1:
            return []
        if self.optimize is None and len(self.items) <= EXHAUSTIVE:
            return _linear(self._joined([(item, (n,)) for n, item in enumerate(self.start)])[1], len(self.items))
        return _linear(self._along_tree(), len(self.items))

    def _needed(self, mask: int) -> int:
        """Legs of a set of items that something outside, or the output, still needs."""
        inside, outside = 0, self._open
        for item in self.start:
            if item.mask & mask:
                inside |= item.legs
            else:
                outside |= item.legs
        return inside & outside

    def _kind(self, mask: int) -> int:
        """The kind of a set of items, regardless of leg names: the two halves of a Gram matrix are of one kind."""
        low = mask & -mask
        return self.kind(mask ^ low) + self._kinds[low.bit_length() - 1] if mask else 0

    def _move(self, *items: Item) -> Move | None:
        """The step that joins some items; ``None`` if no kernel does."""
        left, *between, right = items
        if not left.tensor or len(between) > right.tensor or any(item.tensor for item in between):
            return None
        mask, relation, windows = left.mask | right.mask, None, None
        if between or not right.tensor:
            number = (between[0] if between else right).mask.bit_length() - 1
            mask, relation = mask | 1 << number, self.items[number]
        else:
            windows = self._windows(left, right)
        tensors = (left.legs, right.legs) if right.tensor else (left.legs,)
        join = Join(self.legs, tensors, relation, self.needed(mask), windows)  # type: ignore[arg-type]
        found = choose(join)
        return None if found is None else Move(Item(mask, join.out), join, *found, found[0].cost(join, found[1]))

    def _windows(self, left: Item, right: Item) -> Windows | None:
        """The patterns of the left tensor, if both are one and the same tensor with the same patterns applied."""
        if left.mask.bit_count() == 2 and self.kind(left.mask) == self.kind(right.mask):
            relation = self.items[left.mask.bit_length() - 1]
            return relation if isinstance(relation, Windows) else None
        return None

    def moves(self, left: Item, right: Item, outer: bool) -> list[tuple[tuple[Item, ...], Move]]:
        """Steps that join two items, maybe with a relation between them; outer products only if asked for."""
        choices: list[tuple[Item, ...]] = []
        if outer or left.legs & right.legs:
            choices.append((left, right) if left.tensor else (right, left))
        if left.tensor and right.tensor:
            joined = left.mask | right.mask
            others = (each for each in self.start[self.count :] if not each.mask & joined)
            choices += [(left, each, right) for each in others if each.legs & left.legs and each.legs & right.legs]
        return [(items, move) for items in choices if (move := self.move(*items)) is not None]

    def moves_from(self, state: list[Item]) -> list[tuple[tuple[int, ...], Move]]:
        """All steps from a state, as positions and moves; outer products only if there is nothing else."""
        position = {item.mask: index for index, item in enumerate(state)}
        for outer in (False, True):
            found = [
                (tuple(position[item.mask] for item in items), move)
                for index, left in enumerate(state)
                for right in state[index + 1 :]
                for items, move in self.moves(left, right, outer)
                if all(item.mask in position for item in items)
            ]
            if found:
                return found
        raise ValueError("no contraction step: the network has relations but no tensor")

    def follow(self, path: Path) -> Iterator[tuple[tuple[int, ...], Move]]:
        """The steps of a path."""
        state = self.start
        for positions in path:
            move = self.move(*(state[position] for position in positions))
            if move is None:
                raise ValueError(f"path: no step joins the items at positions {positions}")
            yield positions, move
            state = advanced(state, positions, move.item)

    def cost(self, path: Path) -> list[Cost]:
        """Cost of every step of a path; a step that repeats an earlier one is free, for it is computed once."""
        known: set[tuple[int, int]] = set()
        costs = []
        for _, move in self.follow(path):
            key = self.kind(move.item.mask), move.cost.size
            costs.append(FREE if key in known else move.cost)
            known.add(key)
        return costs

    def _joined(self, leaves: Sequence[tuple[Item, Tree]]) -> tuple[Item, Tree]:
        """The cheapest way to join some items to one tensor; if these are very many, of the first ones, and so on."""
        found = self._cheapest(leaves[:EXHAUSTIVE], outer=False) or self._cheapest(leaves[:EXHAUSTIVE], outer=True)
        assert found is not None
        return found if len(leaves) <= EXHAUSTIVE else self._joined([found, *leaves[EXHAUSTIVE:]])

    def _cheapest(self, leaves: Sequence[tuple[Item, Tree]], outer: bool) -> tuple[Item, Tree] | None:
        best: dict[int, tuple[float, Tree]] = {item.mask: (0.0, tree) for item, tree in leaves}
        by_count: list[list[Item]] = [[] for _ in range(len(leaves) + 1)]
        by_count[1] = [item for item, _ in leaves]
        for count in range(2, len(leaves) + 1):
            for small in range(1, count // 2 + 1):
                for left in by_count[small]:
                    for right in by_count[count - small]:
                        if left.mask & right.mask or (2 * small == count and left.mask > right.mask):
                            continue
                        for items, move in self.moves(left, right, outer):
                            if len(items) == 3 and items[1].mask not in best:
                                continue  # a relation of another part of the tree
                            first, second = best[left.mask][0], best[right.mask][0]
                            same = self.kind(left.mask) == self.kind(right.mask)  # halves of one kind are computed once
                            time = move.cost.time + (max(first, second) if same else first + second)
                            known = best.get(move.item.mask)
                            if known is None:
                                by_count[count + len(items) - 2].append(move.item)
                            if known is None or time < known[0]:
                                best[move.item.mask] = time, tuple(best[item.mask][1] for item in items)
        return next(((item, best[item.mask][1]) for item in by_count[-1] if item.tensor), None)

    def _along_tree(self) -> Tree:
        """Join tensors in opt_einsum's order, and relations where all tensors that they touch have come together."""
        waiting = {index: self._reached(index) for index in range(self.count, len(self.items))}

        def join(parts: list[tuple[Item, Tree]]) -> tuple[Item, Tree]:
            tensors = reduce(lambda mask, part: mask | part[0].mask, parts, 0)
            everything = tensors & (1 << self.count) - 1 == (1 << self.count) - 1
            due = [index for index, reached in waiting.items() if everything or (reached and not reached & ~tensors)]
            for index in due:
                del waiting[index]
            return self._joined([*parts, *((self.start[index], (index,)) for index in due)])

        state = [join([(self.start[index], (index,))]) for index in range(self.count)]
        for positions in self._tensor_path() if self.count > 1 else ():
            first, *others = (state[position] for position in sorted(positions))
            state = [part for position, part in enumerate(state) if position not in positions]
            state.append(reduce(lambda joined, other: join([joined, other]), others, first))
        return state[0][1]

    def _reached(self, relation: int) -> int:
        """The tensors that a relation touches, directly or by legs that only relations hold."""
        seen, reached, stack = {relation}, 0, [relation]
        while stack:
            legs = self.start[stack.pop()].legs
            touching = [item for item in self.start[: self.count] if item.legs & legs]
            reached |= sum(item.mask for item in touching)
            free = legs & ~self._open & ~reduce(lambda mask, item: mask | item.legs, touching, 0)
            for index in range(self.count, len(self.items)):
                if index not in seen and self.start[index].legs & free:
                    seen.add(index)
                    stack.append(index)
        return reached

    def _tensor_path(self) -> Path:
        """An order of the tensors, by opt_einsum's optimizers."""
        find = self.optimize or "auto"
        if isinstance(find, str):
            try:
                find = get_path_fn(find)
            except KeyError:
                raise ValueError(f"optimize={find!r}: expected a strategy of opt_einsum such as 'dp'") from None
        else:
            find = deepcopy(find)  # some remember the network that they were called for first
        determined = {leg: each.free for each in self.problem.relations for leg in each.determined}

        def free(legs: Iterable[str]) -> frozenset[str]:
            """Determined legs as the free legs that they follow from."""
            for _ in determined:
                legs = {origin for leg in legs for origin in determined.get(leg, (leg,))}
            return frozenset(legs)

        inputs = [free(tensor.legs) for tensor in self.problem.tensors]
        output = free(self.problem.open_legs) & frozenset().union(*inputs)
        return [tuple(step) for step in find(inputs, output, dict(self.problem.sizes), None)]


def advanced(state: list[Item], positions: tuple[int, ...], item: Item) -> list[Item]:
    """The state after a step."""
    return [*(entry for index, entry in enumerate(state) if index not in positions), item]


def _kind(item: Operand | Relation) -> object:
    """Equal for items that differ in the names of legs alone."""
    if isinstance(item, Operand):
        return item.slot, len(item.axes)
    if isinstance(item, Windows):
        return tuple(p.pattern for p in item.patterns)
    return item.selection.slot, len(item.legs), item.determined


def _linear(tree: Tree, count: int) -> Path:
    """Convert a tree of items to opt_einsum's linear path."""
    remaining: list[object] = list(range(count))
    path: Path = []

    def visit(node: Tree) -> object:
        if len(node) == 1:
            return node[0]
        ids = [visit(child) for child in node]
        positions = tuple(remaining.index(item) for item in ids)
        path.append(positions)
        for position in sorted(positions, reverse=True):
            del remaining[position]
        remaining.append(token := object())
        return token

    visit(tree)
    return path
