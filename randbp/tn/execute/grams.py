"""Gram matrices of windows (KFAC-expand): lag products where pairs of kernel entries share many, else unfolded windows.

``Ω[c k, c' k'] = Σ_{n o} X[c, s·o + d·k - p] X[c', s·o + d·k' - p]``.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.steps import Cost, Join
from .dense import lying, windows
from .kernel import Lowered
from .lag_products import lagged, shared_products
from .matrix_products import MatrixProduct
from .program import TensorFunction
from .registers import Builder, Value


class WindowGram(MatrixProduct):
    """Windows of one tensor times themselves, summed over positions."""

    def fits(self, join: Join) -> Any:
        """The windows' roles, if both halves hold all of their windows and the result all pairs of kernel entries."""
        if join.windows is None:
            return None
        roles, (left, right) = join.legs.roles(join.windows), join.tensors
        both = left & right
        summed = not roles.o & ~both and not roles.o & join.out
        return roles if summed and not roles.k & ~(left & join.out) and not roles.k & right else None

    def cost(self, join: Join, form: Any) -> Cost:
        """Lag products, or windows that are unfolded for a few examples at a time."""
        left, right = join.tensors
        assert join.windows is not None
        patterns = tuple(p.pattern for p in join.windows.patterns)
        channels, positions = join.volume(left & ~right & ~form.k), join.volume(left & right)
        groups = join.volume(left & right & join.out)
        way = fastest(patterns, channels, groups, positions // groups // join.volume(form.o))
        moved = join.volume(left) // join.volume(form.k) + 2 * join.size
        return Cost(int(way.multiplications), moved, join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """The Gram matrix, or a plain product where the windows are not views."""
        left, right = values
        gram = _window_gram(builder, left, right, join.legs.names(join.out))
        return super().emit(builder, join, values, form) if gram is None else Lowered(*gram)


def _window_gram(builder: Builder, left: Value, right: Value, out: frozenset[str]) -> tuple[Value, str] | None:
    a, b = left.windows, right.windows
    if a is None or b is None or a.register != b.register:
        return None
    if [(p.pattern, a.legs.index(p.i)) for p in a.patterns] != [(q.pattern, b.legs.index(q.i)) for q in b.patterns]:
        return None
    for p, q in zip(a.patterns, b.patterns, strict=True):
        if p.o != q.o or p.o in out or p.k == q.k or not {p.k, q.k} <= out:
            return None
    inputs = {p.i for p in a.patterns}
    pairs = [(x, y) for x, y in zip(a.legs, b.legs, strict=True) if x not in inputs]
    summed = tuple(x for x, y in pairs if x == y and x not in out)
    groups = tuple(x for x, y in pairs if x == y and x in out)
    ends = [(x, y) for x, y in pairs if x != y]
    if not all({x, y} <= out for x, y in ends):
        return None
    first, second = tuple(x for x, _ in ends), tuple(y for _, y in ends)
    flat = Value(a.register, tuple((leg,) for leg in a.legs))
    base = builder.convert(flat, (summed, groups, first, *((p.i,) for p in a.patterns)))
    geometry = tuple(p.pattern for p in a.patterns)
    kernels_a, kernels_b = tuple((p.k,) for p in a.patterns), tuple((p.k,) for p in b.patterns)
    scale, builder.scale = builder.scale, 1.0
    inner = fastest(geometry, *map(builder.volume, (first, groups, summed))).inner
    if lagging := inner < len(geometry):
        target = builder.target
        register = builder.program.emit(lagged, (base.register,), geometry, inner, scale, target.dtype, target.device)
    else:
        register = builder.program.emit(unfolded, (base.register,), geometry, scale)
    rows, columns = (sum(legs, axis) for axis, legs in ((first, kernels_a), (second, kernels_b)))
    return Value(register, (groups, rows, columns)), "lag products" if lagging else "windows + baddbmm"


@dataclass(frozen=True)
class Way:
    """A way to make the Gram matrix: the last ``inner`` dimensions are unfolded, the others taken lag by lag.

    Attributes:
        inner: Number of dimensions that are unfolded.
        multiplications: Multiply-adds.
        time: Estimated time in multiply-adds.
    """

    inner: int
    multiplications: float
    time: float


def ways(patterns: tuple[IndexPattern, ...], channels: int, groups: int, examples: int) -> list[Way]:
    """All ways, for a number of channels per group."""
    found, cpu = [], machine.cpu
    multiplications: float
    last: float
    result = groups * (channels * prod(p.kernel_size for p in patterns)) ** 2
    for inner in range(len(patterns) + 1):
        outer, rest = patterns[: len(patterns) - inner], patterns[len(patterns) - inner :]
        wide = channels * prod(p.kernel_size for p in rest)
        lines = groups * examples * prod(p.output_size for p in rest)
        copied = cpu.gram_copy * wide * lines * prod(p.input_size for p in outer)
        if outer:
            pairs, sums = shared_products(outer)
            multiplications = pairs * wide**2 * lines
            parts = max(1, wide * lines * prod(p.input_size for p in outer) // groups // cpu.gram_part)
            starts = parts * sums * prod(p.input_size for p in outer[:-2]) * (groups if len(outer) > 1 else 1)
            last = cpu.gram_start * starts + cpu.gram_write * result
        else:
            triangle = (1 + 1 / cpu.gram_blocks) / 2 if wide >= cpu.gram_rows and groups == 1 else 1.0
            multiplications = triangle * wide**2 * lines
            last = cpu.gram_mirror * result
        time = multiplications * (1 + cpu.gram_narrow / wide) + copied + last
        found.append(Way(inner, multiplications, time))
    return found


def fastest(patterns: tuple[IndexPattern, ...], channels: int, groups: int, examples: int) -> Way:
    """The way that is estimated to take least time."""
    return min(ways(patterns, channels, groups, examples), key=lambda way: way.time)


def unfolded(patterns: tuple[IndexPattern, ...], scale: float = 1) -> TensorFunction:
    """``x [N, G, C, *I] → [G, C·ΠK, C·ΠK]``: products of all pairs of windows, summed over examples and positions.

    Inputs are unfolded for a few examples at a time: memory stays near the result's. If the result is large, only the
    part above the diagonal is computed, and mirrored at the end.
    """
    kernels = tuple(p.kernel_size for p in patterns)
    unfold = windows(tuple(enumerate(patterns, 3)))
    size = max(1, machine.cpu.gram_positions // prod(p.output_size for p in patterns))
    dims = len(patterns)
    order = (1, 2, *range(3 + dims, 3 + 2 * dims), 0, *range(3, 3 + dims))

    def kernel(x: Tensor) -> Tensor:
        groups, channels = x.shape[1:3]
        rows = channels * prod(kernels)
        gram = x.new_empty(groups, rows, rows)
        step = -(-rows // machine.cpu.gram_blocks) if rows >= machine.cpu.gram_rows and groups == 1 else rows
        for number, part in enumerate(x.split(size)):
            part = lying(unfold(part).permute(order).reshape(groups, rows, -1))
            for row in range(0, rows, step):
                block = part[:, row : row + step]
                place, other = gram[:, row : row + step, row:], part[:, row:].transpose(1, 2)
                place.baddbmm_(block, other, beta=1 if number else 0, alpha=scale)
        for row in range(step, rows, step):
            gram[:, row:, row - step : row] = gram[:, row - step : row, row:].transpose(1, 2)
        return gram

    return kernel
