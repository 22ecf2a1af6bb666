"""The variance that drawing rows in proportion to their sizes adds, for many keep rates in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import kept


def sampling_variances(sizes: Tensor, squares: Tensor, rates: Sequence[float]) -> Tensor:
    """``V(p) = Σ_r (1/π_r(p) - 1) q_r`` of several keep rates ``p`` and several squared norms ``q``.

    ``π_r(p) = min(1, λ (s_r + s̄/10))`` is the probability that :func:`randbp.kernels.systematic_rows` draws row ``r``
    at keep rate ``p``: ``s̄`` is the mean of the sizes that are not zero, and ``λ`` is such that ``Σ π = ⌊p·R⌋``. Rows
    of size zero are never drawn and have no part in the sum. ``V`` is the variance of ``Σ_{r∈S} v_r/π_r`` with
    ``‖v_r‖² = q_r`` if rows are drawn independently of each other. The rows are sorted once; with running sums each
    rate then takes one look at the sizes.

    Source: Horvitz and Thompson, A generalization of sampling without replacement from a finite universe, JASA 47
    (1952), for the estimate; Hájek, Asymptotic theory of rejective sampling, Annals of Mathematical Statistics 35
    (1964), for the approximation by independent draws.

    Args:
        sizes: ``[R]``, finite and not negative.
        squares: ``[K, R]``: for each of ``K`` sums the squared norms of its terms.
        rates: Keep rates in ``(0, 1]``.

    Returns:
        ``[K, len(rates)]`` in double precision.

    Example:
        >>> sampling_variances(torch.ones(8), torch.ones(1, 8), [0.25, 0.5, 1.0]).round(decimals=6).tolist()
        [[24.0, 8.0, 0.0]]
    """
    some = sizes > 0
    sizes, order = (sizes[some].double()).sort(descending=True)
    squares = squares[:, some].double()[:, order]
    result = squares.new_zeros(len(squares), len(rates))
    number = len(sizes)
    if not number:
        return result
    sizes = sizes + sizes.mean() / 10

    def sums_from(values: Tensor) -> Tensor:
        """``Σ_{r≥m} values_r`` for each ``m``."""
        return values.flip(-1).cumsum(-1).flip(-1)

    rest, shares, all_of = sums_from(sizes), sums_from(squares / sizes), sums_from(squares)
    places = torch.arange(number, device=sizes.device)
    for column, rate in enumerate(rates):
        count = kept(len(some), rate)
        if count >= number:
            continue
        # The m largest rows are drawn for sure; m is the least for which all others have a probability below one.
        sure = ((count - places) * sizes <= rest).to(torch.uint8).argmax()
        scale = rest[sure] / (count - sure).clamp_min(1)
        result[:, column] = (scale * shares[:, sure] - all_of[:, sure]).clamp_min(0)
    return result
