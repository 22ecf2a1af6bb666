"""The cost model: multiplications that meet no zero of a pattern, and elements moved through memory."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..execute import diagonals
from ..execute.convolution_kernels import has_avx512
from ..execute.grams import multiplications, prefers_lags
from .relations import Lookup, Problem, Relation, Windows

# A multiply-add in a matrix product is far cheaper than moving an element through memory. The weights count
# multiply-adds per element, of the order found on current CPUs and GPUs; orders hardly depend on them.
STREAM = 16  # one read or write in order [multiply-adds per element]
GATHER = 64  # one read or write through an index [multiply-adds per element]
REORDER = 2.5  # passes over its tensors of a native input gradient, in addition to a matrix product's one [passes]
BLOCKS = 1.5  # cost of a multiply-add of a native weight gradient over blocks [multiply-adds of a matrix product]
LAST_RESORT = 1000  # scattering chosen entries into zeros, which is correct but avoided if possible [per element moved]
LAUNCH = 20_000  # fixed cost of a step [multiply-adds]


@dataclass(frozen=True)
class Cost:
    """Cost of one step of a contraction.

    Args:
        multiplications: Multiply-adds.
        moved: Elements read and written, indexed ones counted with their weight.
        size: Elements of the result.
    """

    multiplications: int
    moved: int
    size: int

    @property
    def time(self) -> float:
        """Estimated time in units of a multiply-add."""
        return self.multiplications + STREAM * self.moved + (LAUNCH if self.size else 0)


class CostModel:
    """Costs of the steps that a problem allows; legs are handled as bit sets, for search is the hot loop
    here.

    Args:
        problem: The contraction.
        native: Whether native convolution kernels serve the data type.
        diagonal: Whether depthwise weight gradients may go through matrix products (see `execute.diagonals`).
    """

    def __init__(self, problem: Problem, native: bool, diagonal: bool) -> None:
        self.native = native
        self.diagonal = diagonal
        self._bits = {leg: 1 << index for index, leg in enumerate(problem.sizes)}
        self._sizes = list(problem.sizes.values())
        self._volumes: dict[int, int] = {0: 1}
        self._roles: dict[int, tuple[int, int, int, int, int]] = {}
        # Legs of the operands' last dimensions, by the operands' legs.
        self._innermost = {self.encode(t.legs): self.encode(t.axes[-1].legs) for t in problem.tensors if t.axes}

    def encode(self, legs: Iterable[str]) -> int:
        """The bit set of some legs."""
        mask = 0
        for leg in legs:
            mask |= self._bits[leg]
        return mask

    def volume(self, mask: int) -> int:
        """Number of index tuples of a bit set of legs."""
        known = self._volumes.get(mask)
        if known is None:
            low = mask & -mask
            known = self.volume(mask ^ low) * self._sizes[low.bit_length() - 1]
            self._volumes[mask] = known
        return known

    def product(self, left: int, right: int, out: int) -> Cost:
        """A batched matrix product of two tensors."""
        union = (left & (right | out)) | (right & (left | out))
        size = self.volume(out)
        return Cost(self.volume(union), self.volume(left) + self.volume(right) + size, size)

    def relation(self, tensor: int, relation: Relation, out: int) -> Cost:
        """A relation applied to one tensor: windows or gathers, sums, and their transposes. No
        multiplications."""
        i, o, k, free, _ = self._masks(relation)
        rest = tensor & ~(i | free)
        needed = free & (out | tensor) if not (i & tensor) and not (i & out) else free
        expanded = self.volume(rest | needed)
        size = self.volume(out)
        moved = self.volume(tensor) + size
        if isinstance(relation, Lookup):
            if i & out and free & tensor:  # back into the full size: multiplies by the zeros that a sample leaves out
                return Cost(0, LAST_RESORT * (moved + expanded), size)
            # Gathering through a table that is held as well: two passes, irregular.
            return Cost(0, moved + (GATHER // STREAM) * expanded, size)
        if (i & tensor) and not (i & out) and (free & ~out) == 0:
            return Cost(0, moved + size, size)  # a strided view that the next step copies
        source, target = tensor & (i | o | k), out & (i | o | k)
        if source != target and source in (i, o, k) and target in (i, o, k):
            return Cost(0, moved, size)  # a small band is left of the patterns
        return Cost(0, moved + expanded, size)

    def window_gram(self, relation: Windows, left: int, right: int, out: int) -> Cost:
        """The product of a tensor's windows with themselves: lag products, or unfolded a few examples at a
        time."""
        plain = self.product(left, right, out)
        _, o, k, _, _ = self._masks(relation)
        if (o & left) != o or (o & right) != o or o & out or (k & left) != k or (k & right):
            return plain
        size = plain.size
        patterns = tuple(p.pattern for p in relation.patterns)
        moved = self.volume(left) // self.volume(k) + 2 * size
        channels = self.volume(left & ~right & ~k)
        positions = self.volume(left & right)
        lags, windows = multiplications(patterns, channels)
        if prefers_lags(patterns, channels, positions // self.volume(o)):
            return Cost(int(lags * positions), moved, size)
        return Cost(int(windows * positions), moved, size)

    def convolution(self, left: int, relation: Windows, right: int, out: int) -> Cost | None:
        """Two tensors joined by all patterns of a convolution, in a native kernel; None if they do not fit
        one."""
        roles = self.convolution_roles(left, relation, right, out)
        if roles is None:
            return None
        i, o, k, free, nonzeros = self._masks(relation)
        rest = (left | right) & ~(i | free)
        size = self.volume(out)
        moved = self.volume(left) + self.volume(right) + size
        if "i" not in roles:
            moved = int(REORDER * moved)
        elif "k" not in roles and _are_blocks(relation):
            x, y = (left, right) if roles[0] == "i" else (right, left)
            rows, columns = self.volume(x & ~(y | i) | k), self.volume(y & ~(x | o))
            small = 2 * rows * columns <= self.volume(o) * (rows + columns)  # products of each image
            if small or not (self.diagonal and has_avx512()):
                moved += int((BLOCKS - 1) * self.volume(rest) * nonzeros / STREAM)
        method = None if "k" in roles else self._depthwise(left, relation, right, out)
        if method is not None:
            return Cost(self.volume(rest) * method.multiplications, moved, size)
        return Cost(self.volume(rest) * nonzeros, moved, size)

    def _depthwise(self, left: int, relation: Windows, right: int, out: int) -> diagonals.Method | None:
        """The method by which matrix products compute a depthwise weight gradient; ``None`` if they are not faster."""
        everything = self.encode(relation.legs)
        if not self.diagonal or self.volume((left ^ right) & ~everything) > 1:
            return None
        patterns = tuple(p.pattern for p in relation.patterns)
        return diagonals.choose(patterns, self.volume(left & right & ~everything & ~out))

    def convolution_roles(self, left: int, relation: Windows, right: int, out: int) -> tuple[str, str] | None:
        """The roles (i, o, k) of the left and the right tensor in a convolution; ``None`` if no native kernel fits."""
        if not self.native:
            return None
        masks = dict(zip("iok", self._masks(relation)[:3], strict=True))
        found = []
        for tensor in (left, right):
            held = [role for role, mask in masks.items() if tensor & mask]
            if len(held) != 1 or tensor & masks[held[0]] != masks[held[0]] or out & masks[held[0]]:
                return None
            found.append(held[0])
        third = set("iok") - set(found)
        if len(third) != 1 or out & masks[next(iter(third))] != masks[next(iter(third))]:
            return None
        everything = masks["i"] | masks["o"] | masks["k"]
        if (left ^ right) & ~everything & ~out:
            return None  # a leg of one tensor alone that is summed: sum it first
        return found[0], found[1]

    def lookup_product(self, left: int, relation: Lookup, right: int, out: int) -> Cost | None:
        """Two tensors joined by a selection, row by row (see `execute.rows`); None if they do not fit."""
        form = self.lookup_form(left, relation, right, out)
        if form is None:
            return None
        kind, left_is_rows = form
        tensor, rows = (right, left) if left_is_rows else (left, right)
        positions, size = self.encode(relation.determined), self.volume(out)
        passing = self.encode((relation.selection.sample, *relation.enumerated))
        whole = tensor if kind == "gather" else out
        passed = self.volume(whole & ~positions | passing)  # rows read or written through the index
        multiplications = self.volume((left | right | passing) & ~positions)
        moved = self.volume(rows) + 2 * passed + size
        if self._innermost.get(tensor, positions) & positions:  # else its rows are read where they lie
            moved += 2 * self.volume(tensor)
        return Cost(multiplications, moved, size)

    def lookup_form(self, left: int, relation: Lookup, right: int, out: int) -> tuple[str, bool] | None:
        """The kind of product (``"gather"`` or ``"scatter"``), and whether the left tensor holds the chosen rows."""
        sample = self.encode((relation.selection.sample,))
        batch = self.encode(relation.selection.batch)
        positions, entries = self.encode(relation.determined), self.encode(relation.enumerated)
        if not relation.partial or out & sample or positions & entries:
            return None
        for left_is_rows, rows, tensor in ((False, right, left), (True, left, right)):
            if not rows & sample or rows & (positions | entries) or tensor & sample:
                continue
            lone = (rows ^ tensor) & ~(sample | positions | entries)
            if lone & ~out:
                continue  # a leg of one tensor alone that is summed: sum it first
            gathers = tensor & positions == positions and not tensor & entries and not out & positions
            if gathers and out & entries == entries and not out & batch and tensor & batch == batch == rows & batch:
                return "gather", left_is_rows
            scatters = tensor & entries == entries and not tensor & positions and not out & entries
            if scatters and out & positions == positions and not tensor & batch and rows & out & batch == batch:
                return "scatter", left_is_rows
        return None

    def _masks(self, relation: Relation) -> tuple[int, int, int, int, int]:
        known = self._roles.get(id(relation))
        if known is None:
            if isinstance(relation, Windows):
                parts = [[getattr(p, role) for p in relation.patterns] for role in "iok"]
                nonzeros = relation.nonzeros
            else:
                parts = [list(relation.determined), [], []]
                nonzeros = 0
            i, o, k = (self.encode(part) for part in parts)
            known = (i, o, k, self.encode(relation.free), nonzeros)
            self._roles[id(relation)] = known
        return known


def _are_blocks(relation: Windows) -> bool:
    """Whether windows of several entries do not overlap, so that they are a reshaped tensor."""
    patterns = [p.pattern for p in relation.patterns]
    apart = all(p.dilation == 1 and p.kernel_size <= p.stride for p in patterns)
    return apart and any(p.kernel_size > 1 for p in patterns)
