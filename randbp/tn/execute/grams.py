"""Gram matrices of windows (KFAC-expand), from what index patterns leave of them: lag products and border terms.

``Ω[c k, c' k'] = Σ_{n o} X[c, s·o + d·k - p] X[c', s·o + d·k' - p]``. With stride 1 the summand depends on ``k`` and
``k'`` through the lag ``k' - k`` alone; ``k`` moves only the window of positions that are summed. So one matrix product
per lag over all positions, less the few border positions that a window leaves out, gives every pair: with a 3 x 3
kernel 13 products of ``C x C`` instead of a product of ``9C x 9C``, and no unfolded input.
"""

from collections.abc import Iterator
from itertools import product
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.steps import Cost, Join
from .dense import lying, windows
from .kernel import Lowered
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
        lags, windows = multiplications(patterns, channels)
        lagging = prefers_lags(patterns, channels, positions // join.volume(form.o))
        moved = join.volume(left) // join.volume(form.k) + 2 * join.size
        return Cost(int((lags if lagging else windows) * positions), moved, join.size)

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
    if prefers_lags(geometry, builder.volume(first), builder.volume(summed + groups)):
        register = builder.program.emit(lagged, (base.register,), geometry)
        return Value(register, (groups, *kernels_a, first, *kernels_b, second)), "lag products"
    register = builder.program.emit(unfolded, (base.register,), geometry)
    rows, columns = (sum(legs, axis) for axis, legs in ((first, kernels_a), (second, kernels_b)))
    return Value(register, (groups, rows, columns)), "windows + baddbmm"


def multiplications(patterns: tuple[IndexPattern, ...], channels: int) -> tuple[float, float]:
    """Multiply-adds per output position of lag products and of unfolded windows; infinite where lags do not exist."""
    pairs = prod(p.kernel_size**2 for p in patterns)
    triangle = (1 + 1 / machine.cpu.gram_blocks) / 2 if channels**2 * pairs >= machine.cpu.gram_rows**2 else 1.0
    windows = triangle * pairs * channels**2
    if len(patterns) > 2 or any(p.stride > 1 or p.output_size < 2 * p.kernel_size for p in patterns):
        return inf, windows
    lags = (prod(2 * p.kernel_size - 1 for p in patterns) + 1) / 2
    zeros = prod(_padded(p) / p.output_size for p in patterns)
    borders = sum(2 * p.kernel_size**2 / p.output_size for p in patterns) / 3
    return lags * (zeros + borders) * max(channels, machine.cpu.gram_narrow) ** 2, windows


def prefers_lags(patterns: tuple[IndexPattern, ...], channels: int, examples: int) -> bool:
    """Whether lag products are cheaper for a number of channels per group and of groups times examples."""
    lags, windows = multiplications(patterns, channels)
    pairs = prod(p.kernel_size**2 for p in patterns)
    unfolding = machine.cpu.gram_unfold * channels * prod(p.kernel_size for p in patterns)
    positions = examples * prod(p.output_size for p in patterns)
    return lags * positions + pairs * machine.cpu.gram_start < (windows + unfolding) * positions


def unfolded(patterns: tuple[IndexPattern, ...]) -> TensorFunction:
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
        gram = x.new_zeros(groups, rows, rows)
        step = -(-rows // machine.cpu.gram_blocks) if rows >= machine.cpu.gram_rows and groups == 1 else rows
        for part in x.split(size):
            part = lying(unfold(part).permute(order).reshape(groups, rows, -1))
            for row in range(0, rows, step):
                block = part[:, row : row + step]
                gram[:, row : row + step, row:].baddbmm_(block, part[:, row:].transpose(1, 2))
        for row in range(step, rows, step):
            gram[:, row:, row - step : row] = gram[:, row - step : row, row:].transpose(1, 2)
        return gram

    return kernel


def lagged(patterns: tuple[IndexPattern, ...]) -> TensorFunction:
    """``x [N, G, C, *I] → [G, *K, C, *K, C]``: the products of :func:`unfolded` from lag products, for stride 1.

    Positions ``j = o + d·k`` count from the start of the left padding. The input lies in a buffer with enough zeros
    behind every row that a lag is one shift of the flattened positions: no product copies anything but borders.
    """
    kernels = tuple(p.kernel_size for p in patterns)
    lags = [lag for lag in product(*(range(1 - size, size) for size in kernels)) if lag >= (0,) * len(kernels)]
    lengths = tuple(_padded(p) for p in patterns)

    def kernel(x: Tensor) -> Tensor:
        n, groups, channels = x.shape[:3]
        buffer = x.new_zeros(groups, channels, n, *lengths)
        inside = buffer
        for dim, p in enumerate(patterns, 3):
            inside = inside.narrow(dim, p.padding, p.input_size)
        inside.copy_(x.permute(1, 2, 0, *range(3, x.ndim)))
        gram = x.new_empty(groups, *kernels, channels, *kernels, channels)
        for lag in lags:
            known: dict[tuple[tuple[int, ...], ...], Tensor] = {}
            entries = (range(max(0, -step), size - max(0, step)) for step, size in zip(lag, kernels, strict=True))
            for first in product(*entries):
                second = tuple(k + step for k, step in zip(first, lag, strict=True))
                block: Tensor | None = None
                for sign, borders in _borders(patterns, first, lag):
                    if borders not in known:
                        known[borders] = _lag_product(buffer, patterns, lag, borders)
                    block = known[borders] if block is None else torch.add(block, known[borders], alpha=sign)
                assert block is not None
                every: Any = slice(None)
                gram[(every, *first, every, *second)] = block
                if any(lag):
                    gram[(every, *second, every, *first)] = block.mT
        return gram

    return kernel


def _padded(p: IndexPattern) -> int:
    """Number of positions of a buffer with enough zeros that no lag leaves it."""
    reach = p.dilation * (p.kernel_size - 1)
    return max(p.stride * (p.output_size - 1) + reach + 1, p.padding + p.input_size) + reach


def _borders(
    patterns: tuple[IndexPattern, ...], first: tuple[int, ...], lag: tuple[int, ...]
) -> Iterator[tuple[int, tuple[tuple[int, ...], ...]]]:
    """Inclusion and exclusion: signs, and per dimension the positions to restrict to (none: all positions)."""
    excluded = []
    for p, k, step in zip(patterns, first, lag, strict=True):
        shift = p.dilation * step
        low, high = p.padding, p.padding + p.input_size
        # Only positions where both factors lie on the image matter; the window of k leaves these out:
        met, window = range(max(low, low - shift), min(high, high - shift)), p.dilation * k
        excluded.append(tuple(j for j in met if not window <= j < window + p.output_size))
    for restricted in product((False, True), repeat=len(patterns)):
        choice = tuple(rows if use else () for rows, use in zip(excluded, restricted, strict=True))
        if all(choice[dim] or not use for dim, use in enumerate(restricted)):
            yield (-1) ** sum(restricted), choice


def _lag_product(
    buffer: Tensor,
    patterns: tuple[IndexPattern, ...],
    lag: tuple[int, ...],
    borders: tuple[tuple[int, ...], ...],
) -> Tensor:
    """``Σ X[c, j] X[c', j + d·lag]`` over all positions, or over the given ones in some dimensions: ``[G, C, C']``."""
    left = right = buffer
    shifts = [p.dilation * step for p, step in zip(patterns, lag, strict=True)]
    for dim, rows in enumerate(borders):
        if rows:
            left = _select(left, dim + 3, rows)
            right = _select(right, dim + 3, tuple(j + shifts[dim] for j in rows))
            shifts[dim] = 0
    flat, stride = 0, 1
    for shift, size in zip(reversed(shifts), reversed(left.shape[3:]), strict=True):
        flat += shift * stride
        stride *= size
    a, b = left.flatten(2), right.flatten(2)
    if flat > 0:
        a, b = a[..., :-flat], b[..., flat:]
    elif flat < 0:
        a, b = a[..., -flat:], b[..., :flat]
    return a @ b.transpose(1, 2)


def _select(x: Tensor, dim: int, rows: tuple[int, ...]) -> Tensor:
    if rows == tuple(range(rows[0], rows[-1] + 1)):
        return x.narrow(dim, rows[0], len(rows))
    return torch.cat([x.narrow(dim, row, 1) for row in rows], dim)
