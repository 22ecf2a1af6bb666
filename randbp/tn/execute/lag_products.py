"""Gram matrices of windows from products of shifted inputs: pairs of kernel entries share them.

The product of two windows at one output is that of two inputs which lie ``d·(k' - k)`` apart. So pairs ``(k, k')`` of
one lag ``k' - k`` sum the same products, each over an interval of inputs of its own. The bounds of these intervals cut
the inputs into segments. Each segment's products are summed once, and each pair adds up a run of segments: with a 3 x 3
kernel 13 products of ``C x C`` per position instead of one of ``9C x 9C``, and no unfolded input. With a stride ``s``
intervals have step ``s``, so inputs are sorted by their remainder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from .dense import add_product, windows
from .program import TensorFunction

ALL: Any = slice(None)


@dataclass(frozen=True)
class Lag:
    """Pairs ``(k, k + step)`` of kernel entries in one dimension.

    Attributes:
        step: The second entry less the first.
        segments: First inputs of the two factors, in sorted order, and the number of inputs.
        runs: Per first entry ``k`` the first segment that it sums, and the first one that it no longer sums.
    """

    step: int
    segments: tuple[tuple[int, int, int], ...]
    runs: tuple[tuple[int, int, int], ...]

    @property
    def length(self) -> int:
        """Number of inputs in all segments."""
        return sum(length for *_, length in self.segments)


@lru_cache(maxsize=1024)
def lags_of(p: IndexPattern) -> tuple[Lag, ...]:
    """All lags of one dimension.

    Example:
        >>> for lag in lags_of(IndexPattern(8, 8, kernel_size=2, padding=0)):
        ...     print(lag)
        Lag(step=-1, segments=((1, 0, 7),), runs=((1, 0, 1),))
        Lag(step=0, segments=((0, 0, 1), (1, 1, 7)), runs=((0, 0, 2), (1, 1, 2)))
        Lag(step=1, segments=((0, 1, 7),), runs=((0, 0, 1),))
    """
    return tuple(_lag(p, step) for step in range(1 - p.kernel_size, p.kernel_size))


def _lag(p: IndexPattern, step: int) -> Lag:
    intervals: dict[int, tuple[int, int]] = {}  # in units of the stride, behind those of smaller remainders
    width = p.input_size // p.stride + 1
    for k in range(max(0, -step), p.kernel_size - max(0, step)):
        outputs = [p.met(entry)[0] for entry in (k, k + step)]
        low, high = max(each.start for each in outputs), min(each.stop for each in outputs)
        quotient, remainder = divmod(p.stride * low + p.dilation * k - p.padding, p.stride)
        start = remainder * width + quotient
        intervals[k] = (start, start + high - low) if high > low else (0, 0)
    bounds = sorted({bound for interval in intervals.values() for bound in interval})
    cuts = [
        (low, high)
        for low, high in pairwise(bounds)
        if any(start <= low and high <= stop for start, stop in intervals.values())
    ]
    segments = tuple((_sorted(p, low, width, 0), _sorted(p, low, width, step), high - low) for low, high in cuts)
    runs = []
    for k, (start, stop) in intervals.items():
        mine = [number for number, (low, high) in enumerate(cuts) if start <= low and high <= stop]
        runs.append((k, mine[0], mine[-1] + 1) if mine else (k, 0, 0))
    return Lag(step, segments, tuple(runs))


def _sorted(p: IndexPattern, place: int, width: int, step: int) -> int:
    """The position, among inputs sorted by their remainder, of an input and its partner at a lag."""
    remainder, quotient = divmod(place, width)
    quotient, remainder = divmod(quotient * p.stride + remainder + p.dilation * step, p.stride)
    return sum(len(range(r, p.input_size, p.stride)) for r in range(remainder)) + quotient


def half_of_lags(patterns: tuple[IndexPattern, ...]) -> Iterator[tuple[Lag, ...]]:
    """Lags of all dimensions, one of each two that are opposite."""
    for lags in product(*map(lags_of, patterns)):
        if tuple(lag.step for lag in lags) >= (0,) * len(lags):
            yield lags


def shared_products(patterns: tuple[IndexPattern, ...]) -> tuple[int, int]:
    """Pairs of inputs whose products are summed, and the number of sums."""
    lags = tuple(half_of_lags(patterns))
    pairs = sum(prod(lag.length for lag in each) for each in lags)
    return pairs, sum(prod(len(lag.segments) for lag in each) for each in lags)


@dataclass(frozen=True)
class _Shared:
    """What the pairs of kernel entries of one lag share.

    Attributes:
        lags: The lag in each dimension.
        pairs: First and second kernel entries, and the row of ``sums`` that gives the pair's block.
        sums: Segments that are summed, times a scale: ``[blocks, segments]``.
    """

    lags: tuple[Lag, ...]
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]
    sums: Tensor

    @classmethod
    def of(cls, lags: tuple[Lag, ...], scale: float, dtype: torch.dtype, device: torch.device) -> "_Shared":
        rows: dict[tuple[int, ...], int] = {}
        pairs = []
        for runs in product(*(lag.runs for lag in lags)):
            first = tuple(k for k, *_ in runs)
            second = tuple(k + lag.step for k, lag in zip(first, lags, strict=True))
            chosen = (
                [int(start <= number < stop) for number in range(len(lag.segments))]
                for lag, (_, start, stop) in zip(lags, runs, strict=True)
            )
            row = tuple(map(prod, product(*chosen)))
            pairs.append((first, second, rows.setdefault(row, len(rows))))
        segments = prod(len(lag.segments) for lag in lags)
        sums = torch.tensor([*rows], dtype=dtype, device=device).view(len(rows), segments)
        return cls(lags, tuple(pairs), sums if scale == 1 else sums * scale)

    def blocks(self, total: Tensor) -> Tensor:
        """The blocks ``[G, blocks, C, C]`` of all pairs, from ``total [G, *segments, C, C]``."""
        return (self.sums @ total.flatten(1, -3).flatten(2)).unflatten(2, total.shape[-2:])


def lagged(
    patterns: tuple[IndexPattern, ...], inner: int, scale: float, dtype: torch.dtype, device: torch.device
) -> TensorFunction:
    """``x [N, G, C, *I] → [G, C·ΠK, C·ΠK]``: products of all pairs of windows, summed over examples and positions.

    Examples are processed a few at a time, so that they stay in the cache. Apart from these and the result, one matrix
    is held for each segment.

    Args:
        patterns: One per dimension.
        inner: Number of last dimensions that are unfolded: their kernel entries count as channels, their outputs as
            examples. Matrices are larger then, and segments fewer.
        scale: Factor of the result.
        dtype: Data type of ``x``.
        device: Device of ``x``.
    """
    kernels = tuple(p.kernel_size for p in patterns)
    outer = patterns[: len(patterns) - inner]
    every = tuple(_Shared.of(lags, scale, _precise(dtype), device) for lags in half_of_lags(outer))
    unfold = windows(tuple(enumerate(patterns[len(outer) :], 3 + len(outer))))
    others = kernels[len(outer) :]
    dims = tuple(range(3, 3 + len(outer)))
    ends = tuple(range(3 + len(outer), 3 + len(patterns)))
    orders = {
        dim: torch.tensor(sorted(range(p.input_size), key=lambda i, s=p.stride: i % s), device=device)  # type: ignore[misc]
        for dim, p in zip(dims, outer, strict=True)
        if p.stride > 1
    }

    def kernel(x: Tensor) -> Tensor:
        groups, channels = x.shape[1:3]
        gram = x.new_empty(groups, channels, *kernels, channels, *kernels)
        precise = _precise(x.dtype)
        wide = channels * prod(others)
        totals: list[Tensor | None] = [None] * len(every)
        parts = x.split(max(1, machine.cpu.gram_part // (prod(others) * x[0].numel())))
        for number, part in enumerate(parts, 1):
            for dim, order in orders.items():
                part = part.index_select(dim, order)
            part = unfold(part).permute(1, *dims, 0, *ends, 2, *(end + inner for end in ends))
            rows = part.reshape(groups, *part.shape[1 : 1 + len(outer)], -1, wide).contiguous()  # [G, *I, n, C]
            for index, shared in enumerate(every):
                total = totals[index]
                if total is None:
                    shape = (groups, *(len(lag.segments) for lag in shared.lags), wide, wide)
                    total = x.new_zeros(shape, dtype=precise)
                _add_products(total, rows, shared.lags)
                totals[index] = total
                if number == len(parts):
                    blocks = shared.blocks(total).view(groups, -1, channels, *others, channels, *others)
                    _write(gram, blocks, shared, len(others))
                    totals[index] = None
        return gram.view(groups, channels * prod(kernels), -1)

    return kernel


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Of sums: single precision at least, where numbers have a fraction."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _add_products(total: Tensor, rows: Tensor, lags: tuple[Lag, ...]) -> None:
    """Add ``Σ_i x[c, i] x[c', i + d·step]`` of ``rows [G, *I, n, C]`` for each segment to ``[G, *segments, C, C]``."""
    *outer, last = lags
    for box in product(*(range(len(lag.segments)) for lag in lags)):
        first, second, length = last.segments[box[-1]]
        starts = [lag.segments[number] for lag, number in zip(outer, box, strict=False)]
        place = total[(ALL, *box)]
        # All dimensions but two are taken position by position, the second last is that of a batch of products.
        for steps in product(*(range(size) for *_, size in starts[:-1])):
            left = right = rows
            for step, (one, other, _) in zip(steps, starts, strict=False):
                left, right = left[:, one + step], right[:, other + step]
            if starts:
                one, other, size = starts[-1]
                left, right = left.narrow(1, one, size), right.narrow(1, other, size)
            else:
                left, right = left.unsqueeze(1), right.unsqueeze(1)
            left, right = (
                each.narrow(2, start, length).flatten(2, 3) for each, start in ((left, first), (right, second))
            )
            if left.shape[1] == 1 < len(place):
                place.add_(torch.bmm(left[:, 0].mT, right[:, 0]))
            else:
                for group, matrix in enumerate(place):
                    _add_products_of_lines(matrix, left[group], right[group])


def _add_products_of_lines(place: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``Σ_b left[b]ᵀ right[b]`` to a matrix."""
    at_once = max(1, machine.cpu.products // place.numel())
    if min(at_once, len(left)) == 1 and place.dtype == left.dtype:
        for a, b in zip(left, right, strict=True):
            add_product(place, a.t(), b)
    else:
        for a, b in zip(left.split(at_once), right.split(at_once), strict=True):
            place.add_(torch.bmm(a.mT, b).sum(0))


def _write(gram: Tensor, blocks: Tensor, shared: _Shared, inner: int) -> None:
    """Write the blocks ``[G, blocks, C, *K, C, *K]`` of one lag, and of the opposite one, to ``[G, C, *K, C, *K]``.

    Those have the ``inner`` last kernel entries alone.
    """
    rest = (ALL,) * inner
    half = inner + 1
    turned = (0, *range(1 + half, 1 + 2 * half), *range(1, 1 + half))
    for first, second, row in shared.pairs:
        block = blocks[:, row]
        gram[(ALL, ALL, *first, *rest, ALL, *second, *rest)] = block
        if first != second:
            gram[(ALL, ALL, *second, *rest, ALL, *first, *rest)] = block.permute(turned)
