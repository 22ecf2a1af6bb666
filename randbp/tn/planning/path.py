"""Search for the contraction order: an opt_einsum path optimizer that knows index patterns."""

from collections.abc import Iterator
from dataclasses import dataclass

from opt_einsum.paths import PathOptimizer

from ..nodes import Operand
from .cost import Cost, CostModel
from .relations import Lookup, Problem, Windows

Path = list[tuple[int, ...]]

FREE = Cost(0, 0, 0)
EXHAUSTIVE = 9  # the search is optimal up to this number of items [items]


@dataclass(frozen=True)
class Move:
    """One step of a contraction: the items that it joins, its result and its cost."""

    items: tuple[int, ...]
    legs: int
    cost: Cost


class PatternAware(PathOptimizer):
    """Finds the order in which to contract a problem's tensors and relations.

    A step joins two tensors, a tensor and a relation, or two tensors and the relation between them (a convolution). Two
    relations are never joined: that would be a dense pattern. For up to nine items the order is the cheapest possible
    one (dynamic programming over subsets, after opt_einsum's ``optimal``); beyond, the cheapest step is taken greedily.

    Args:
        problem: Tensors and relations; opt_einsum's ``inputs`` are their legs, tensors first.
        native: Whether native convolution kernels serve the data type.
        diagonal: Whether depthwise weight gradients may go through matrix products: on CPUs.
    """

    def __init__(self, problem: Problem, native: bool = True, diagonal: bool = True) -> None:
        self.problem = problem
        self.model = CostModel(problem, native, diagonal)
        self.count = len(problem.tensors)
        self.items = [*problem.tensors, *problem.relations]
        self.legs = [self.model.encode(item.legs) for item in self.items]
        self.kinds = self._item_kinds()
        self._kind_of: dict[int, int] = {0: 0}
        self.open = self.model.encode(leg for leg in problem.sizes if leg in problem.open_legs)

    def __call__(self, inputs=None, output=None, size_dict=None, memory_limit=None) -> Path:  # type: ignore[no-untyped-def]
        """The path, in opt_einsum's format: positions in a list that loses the joined items and gains the
        result."""
        if len(self.items) <= 1:
            return []
        return (self._optimal() if len(self.items) <= EXHAUSTIVE else None) or self._greedy()

    def needed(self, mask: int) -> int:
        """Legs of a set of items that something outside, or the output, still needs."""
        inside, outside = 0, self.open
        for index, legs in enumerate(self.legs):
            if mask >> index & 1:
                inside |= legs
            else:
                outside |= legs
        return inside & outside

    def _item_kinds(self) -> list[int]:
        """Assign a number to each item so that sums over equivalent sets of items are equal."""
        numbers: dict[object, int] = {}
        kinds = []
        for item in self.items:
            if isinstance(item, Operand):
                key: object = (item.slot, len(item.axes))
            elif isinstance(item, Windows):
                key = tuple(p.pattern for p in item.patterns)
            else:
                key = (item.selection.slot, len(item.legs), item.determined)
            kinds.append(1 << 8 * numbers.setdefault(key, len(numbers)))
        return kinds

    def kind(self, mask: int) -> int:
        """The kind of a set of items, regardless of leg names: the two halves of a Gram matrix are of one kind."""
        known = self._kind_of.get(mask)
        if known is None:
            low = mask & -mask
            known = self._kind_of[mask] = self.kind(mask ^ low) + self.kinds[low.bit_length() - 1]
        return known

    def product(self, left: tuple[int, int], right: tuple[int, int], out: int) -> Cost:
        """Cost of a product; windows of one tensor with themselves have a kernel of their own."""
        if left[0] != right[0] and self.kind(left[0]) == self.kind(right[0]):
            relations = [index for index in range(self.count, len(self.items)) if left[0] >> index & 1]
            if left[0].bit_count() == 2 and len(relations) == 1:
                relation = self.items[relations[0]]
                if isinstance(relation, Windows):
                    return self.model.window_gram(relation, left[1], right[1], out)
        return self.model.product(left[1], right[1], out)

    def joins(
        self, left: tuple[int, int], right: tuple[int, int], outer: bool
    ) -> Iterator[tuple[tuple[int, ...], Cost]]:
        """Steps that join two tensors, given as ``(item set, legs)``: a product, or a convolution through a
        relation."""
        (left_set, left_legs), (right_set, right_legs) = left, right
        if left_legs & right_legs or outer:
            both = left_set | right_set
            yield (), self.product(left, right, self.needed(both))
        for index in range(self.count, len(self.items)):
            relation = self.items[index]
            bit = 1 << index
            if (left_set | right_set) & bit:
                continue
            legs = self.legs[index]
            if legs & left_legs and legs & right_legs:
                out = self.needed(left_set | right_set | bit)
                cost = None
                if isinstance(relation, Windows):
                    cost = self.model.convolution(left_legs, relation, right_legs, out)
                elif isinstance(relation, Lookup):
                    cost = self.model.lookup_product(left_legs, relation, right_legs, out)
                if cost is not None:
                    yield (index,), cost

    def _optimal(self) -> Path | None:
        for outer in (False, True):
            tree = self._search(outer)
            if tree is not None:
                return _linear(tree, len(self.items))
        return None

    def _search(self, outer: bool) -> tuple | None:
        best: dict[int, tuple[float, tuple]] = {}
        by_count: list[list[int]] = [[] for _ in range(len(self.items) + 1)]
        legs: dict[int, int] = {}

        def offer(mask: int, time: float, tree: tuple) -> None:
            if mask not in best:
                by_count[mask.bit_count()].append(mask)
                legs[mask] = self.needed(mask) if mask.bit_count() > 1 else self.legs[mask.bit_length() - 1]
                best[mask] = (time, tree)
            elif time < best[mask][0]:
                best[mask] = (time, tree)

        for index in range(self.count):
            offer(1 << index, 0.0, (index,))
        for count in range(2, len(self.items) + 1):
            for mask in list(by_count[count - 1]):
                time, tree = best[mask]
                for index in range(self.count, len(self.items)):
                    bit = 1 << index
                    if mask & bit or not (outer or legs[mask] & self.legs[index]):
                        continue
                    cost = self.model.relation(legs[mask], self.items[index], self.needed(mask | bit))  # type: ignore[arg-type]
                    offer(mask | bit, time + cost.time, (tree, (index,)))
            for small in range(1, count // 2 + 1):
                for left in by_count[small]:
                    for right in list(by_count[count - small]):
                        if left & right or (2 * small == count and left > right):
                            continue
                        self._offer_joins(left, right, legs, best, offer, outer, plain=True)
            for small in range(1, (count - 1) // 2 + 1):
                for left in by_count[small]:
                    for right in list(by_count[count - 1 - small]):
                        if left & right or (2 * small == count - 1 and left > right):
                            continue
                        self._offer_joins(left, right, legs, best, offer, outer, plain=False)
        full = (1 << len(self.items)) - 1
        return best[full][1] if full in best else None

    def _offer_joins(self, left, right, legs, best, offer, outer, plain) -> None:  # type: ignore[no-untyped-def]
        for through, cost in self.joins((left, legs[left]), (right, legs[right]), outer and plain):
            if plain == (not through):
                mask = left | right
                for index in through:
                    mask |= 1 << index
                # Two halves of one kind are computed once.
                spent = best[left][0] + best[right][0]
                if self.kind(left) == self.kind(right):
                    spent = max(best[left][0], best[right][0])
                trees = (best[left][1], *((index,) for index in through), best[right][1])
                offer(mask, spent + cost.time, trees)

    def _greedy(self) -> Path:
        state = [(1 << index, legs, index < self.count) for index, legs in enumerate(self.legs)]
        path: Path = []
        while len(state) > 1:
            move = min(self.moves(state), key=lambda move: move.cost.time)
            path.append(move.items)
            state = self.advance(state, move)
        return path

    def moves(self, state: list[tuple[int, int, bool]]) -> list[Move]:
        """All steps from a state, a list of ``(item set, legs, is a tensor)``; outer products only if
        nothing else."""
        for outer in (False, True):
            found = list(self._moves(state, outer))
            if found:
                return found
        raise ValueError("no contraction step: the network has relations but no tensor")

    def _moves(self, state: list[tuple[int, int, bool]], outer: bool) -> Iterator[Move]:
        position = {mask: index for index, (mask, _, _) in enumerate(state)}
        for a, (left, left_legs, left_tensor) in enumerate(state):
            for b in range(a + 1, len(state)):
                right, right_legs, right_tensor = state[b]
                if left_tensor and right_tensor:
                    for through, cost in self.joins((left, left_legs), (right, right_legs), outer):
                        middle = [position[1 << index] for index in through if 1 << index in position]
                        if len(middle) == len(through):
                            mask = left | right | sum(1 << index for index in through)
                            yield Move((a, *middle, b), self.needed(mask), cost)
                elif left_tensor != right_tensor and (outer or left_legs & right_legs):
                    tensor, relation = (left_legs, right) if left_tensor else (right_legs, left)
                    out = self.needed(left | right)
                    item = self.items[relation.bit_length() - 1]
                    yield Move((a, b), out, self.model.relation(tensor, item, out))  # type: ignore[arg-type]

    def join(self, state: list[tuple[int, int, bool]], positions: tuple[int, ...]) -> Move:
        """The step that joins the items at some positions: two tensors, a relation, or a relation between
        tensors."""
        mask = 0
        for position in positions:
            mask |= state[position][0]
        out = self.needed(mask)
        legs = [state[position][1] for position in positions if state[position][2]]
        relations = [self.items[state[p][0].bit_length() - 1] for p in positions if not state[p][2]]
        cost: Cost | None = None
        if len(legs) == 2 and not relations:
            first, second = (state[position][:2] for position in positions)
            cost = self.product(first, second, out)
        elif len(legs) == 1 and len(relations) == 1 and not isinstance(relations[0], Operand):
            cost = self.model.relation(legs[0], relations[0], out)
        elif len(legs) == 2 and len(relations) == 1 and isinstance(relations[0], Windows):
            cost = self.model.convolution(legs[0], relations[0], legs[1], out)
        elif len(legs) == 2 and len(relations) == 1 and isinstance(relations[0], Lookup):
            cost = self.model.lookup_product(legs[0], relations[0], legs[1], out)
        if cost is None:
            raise ValueError(f"path: no step joins the items at positions {positions}")
        return Move(positions, out, cost)

    def cost(self, path: Path) -> list[Cost]:
        """Cost of every step of a path; a step that repeats an earlier one is free, for it is computed
        once."""
        state = self.start()
        costs: list[Cost] = []
        known: set[tuple[int, int]] = set()
        for positions in path:
            move = self.join(state, positions)
            state = self.advance(state, move)
            key = (self.kind(state[-1][0]), move.cost.size)
            costs.append(FREE if key in known else move.cost)
            known.add(key)
        return costs

    @staticmethod
    def advance(state: list[tuple[int, int, bool]], move: Move) -> list[tuple[int, int, bool]]:
        """The state after a step."""
        mask = 0
        for index in move.items:
            mask |= state[index][0]
        rest = [entry for index, entry in enumerate(state) if index not in move.items]
        return [*rest, (mask, move.legs, True)]

    def start(self) -> list[tuple[int, int, bool]]:
        """The state before the first step."""
        return [(1 << index, legs, index < self.count) for index, legs in enumerate(self.legs)]


def _linear(tree: tuple, count: int) -> Path:
    """Convert a nested tree of items to opt_einsum's linear path."""
    remaining: list[object] = list(range(count))
    path: Path = []

    def visit(node: tuple) -> object:
        if len(node) == 1:
            return node[0]
        ids = [visit(child) for child in node]
        positions = tuple(remaining.index(item) for item in ids)
        path.append(positions)
        for position in sorted(positions, reverse=True):
            del remaining[position]
        token = object()
        remaining.append(token)
        return token

    visit(tree)
    return path
