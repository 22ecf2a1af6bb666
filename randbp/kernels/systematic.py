"""Systematic sampling: a fixed number of terms, each with a probability in proportion to its size, at most one."""

import torch
from torch import Tensor

from .operator import fused

UNIT = 2**32
"""The probability 1, in integers [1]."""

SCALE = 2**31
"""The largest size, in integers [1]."""

ROUNDS = 16
"""Most times that probabilities above one are cut and the others raised."""


@fused(
    lambda sizes, count, start: (
        sizes.new_empty(count, dtype=torch.int64),
        sizes.new_empty(count, dtype=torch.float64),
    )
)
def systematic_rows(sizes: Tensor, count: int, start: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of ``n`` terms without replacement, term ``i`` with probability ``π_i = min(1, λ (s_i + s̄/10))``.

    ``s̄`` is the mean of the sizes that are not zero, so that no weight is much above ``11·n/count``; ``λ`` is such that
    ``Σ π = count``. A size of zero is never drawn, one that is not finite always. Points of unit spacing from a random
    start are laid over the running sum of the probabilities, and each draws the term that it falls into. Neighbouring
    terms are seldom drawn together, which serves sums whose neighbours are alike.

    All is counted in integers, of which a probability is one over ``2^32``: no order of summation matters, and ``1/π``
    is the weight of the probability that was used. Where fewer terms than ``count`` are not zero each is drawn once,
    and the places that are left have weight zero, as has the last one if rounding leaves its point beyond the sum.

    Source: W. G. Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20 (1949);
    T. Hesterberg, Weighted average importance sampling and defensive mixture distributions, Technometrics 37 (1995).

    Args:
        sizes: ``[n]``, single precision, not negative.
        count: Number to draw, at most ``n``.
        start: The start, uniform among the integers from 0 to ``2^32 - 1``.

    Returns:
        Numbers of the terms ``[count]``, ascending, and their weights ``1/π``, in double precision.

    Example:
        >>> rows, weights = systematic_rows(torch.tensor([1.0, 1.0, 0.0, 2.0, 20.0]), 2, 2**31)
        >>> rows.tolist(), [round(float(weight), 2) for weight in weights]
        ([1, 4], [3.62, 1.0])
    """
    wild = sizes.isfinite().logical_not()
    known = sizes.double().masked_fill(wild, 0)
    top = known.max().clamp_min(torch.finfo(torch.float32).tiny) if len(sizes) else known.sum()
    integers = (known / top * SCALE).ceil().long()
    some = integers > 0
    integers += some * (integers.sum() // some.sum().clamp_min(1) // 10)
    sure = wild
    for _ in range(ROUNDS):
        rest = integers.masked_fill(sure, 0)
        rate = (count - sure.sum()).double() / rest.sum().double()
        sure = sure | ((rest.double() * rate >= 1) & (rest > 0))
    rest = integers.masked_fill(sure, 0)
    rate = (count - sure.sum()).clamp_min(0).double() / rest.sum().clamp_min(1).double()
    chances = torch.where(sure, UNIT, (rest.double() * rate * UNIT).long().clamp_(max=UNIT))
    ends = chances.cumsum(0)
    points = torch.arange(count, device=sizes.device) * UNIT + start
    rows = torch.searchsorted(ends, points, right=True)
    drawn = rows < len(sizes)
    rows = rows.clamp_max_(max(0, len(sizes) - 1))
    weights = UNIT / chances[rows].clamp_min(1).double()
    return rows, torch.where(drawn, weights, 0)
