"""Fixed-size draws without replacement whose inclusion probabilities follow given sizes."""

import torch
from torch import Tensor

_ROUNDS = 6  # times that probabilities above 1 are cut and others raised; fixed, so nothing waits for the device

_DEFENCE = 0.1  # share of the mean norm that is added to each norm


def inclusion_probabilities(sizes: Tensor, count: int) -> Tensor:
    """``π_i = min(1, λ·size_i)`` with ``λ`` such that ``Σ π = count``, per row of ``sizes`` ``[B, n]``, in ``float64``.

    A few rounds of cutting at 1 and raising the rest find ``λ``; should they not suffice, all probabilities are raised
    by a common factor, and those above 1 mean an expected number of copies (Särndal, Swensson, Wretman, Model assisted
    survey sampling, 1992, section 3.6).

    Example:
        >>> inclusion_probabilities(torch.tensor([[1.0, 1.0, 2.0, 8.0]]), 2).tolist()
        [[0.25, 0.25, 0.5, 1.0]]
    """
    sizes = sizes.double()
    probabilities = sizes * (count / sizes.sum(1, keepdim=True))
    for _ in range(_ROUNDS):
        sure = probabilities >= 1
        rest = torch.where(sure, 0, sizes)
        factor = (count - sure.sum(1, keepdim=True)) / rest.sum(1, keepdim=True).clamp_min(1e-300)
        probabilities = torch.where(sure, 1, rest * factor)
    return probabilities * (count / probabilities.sum(1, keepdim=True))


def systematic(probabilities: Tensor, count: int, start: Tensor) -> Tensor:
    """Draw ``count`` of each row's entries, entry ``i`` with probability ``π_i``: ``[B, count]``, ascending.

    Points of unit spacing from ``start`` in ``[0, 1)``, ``[B, 1]``, are laid over the running sum of the probabilities
    (W. G. Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20, 1949).

    Example:
        >>> systematic(torch.tensor([[0.25, 0.25, 0.5, 1.0]]), 2, torch.tensor([[0.6]]))
        tensor([[2, 3]])
    """
    points = torch.arange(count, device=probabilities.device) + start.to(probabilities.dtype)
    drawn = torch.searchsorted(probabilities.cumsum(1), points, right=True)
    return drawn.clamp_(max=probabilities.shape[1] - 1)


def weighted_draw(norms: Tensor, count: int, top: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """Draw ``count`` entries of each row and give their weights ``1/π``.

    The sizes that the probabilities follow are the norms plus a tenth of their mean: no weight is then above about
    ``11·n/count``, however small the norm. Without that, a small entry that meets a large factor is drawn too seldom.

    The norms are ``[B, n]``, ``start`` is uniform in ``[0, 1)``, ``[B, 1]``; indices ``[B, count]`` are ``int64``,
    weights ``float64``. The share ``top`` of the count goes to the largest entries, which are always kept, with
    weight 1; the others are drawn from the rest.

    Source: Hesterberg, Weighted average importance sampling and defensive mixture distributions, Technometrics 37
    (1995).

    Example:
        >>> index, weight = weighted_draw(torch.tensor([[2.0, 2.0, 2.0, 14.0]]), 2, 0.5, torch.tensor([[0.9]]))
        >>> index.tolist(), weight.tolist()
        ([[3, 2]], [[1.0, 3.0]])
    """
    certain, mean = int(top * count), norms.double().mean(1, keepdim=True)
    sizes = torch.where(mean == 0, 1, norms.double() + _DEFENCE * mean)
    largest = sizes.topk(certain, dim=1, sorted=False).indices
    probabilities = inclusion_probabilities(sizes.scatter(1, largest, 0), count - certain)
    drawn = systematic(probabilities, count - certain, start)
    chances = probabilities.gather(1, drawn)
    weights = torch.where(chances == 0, 0, chances.reciprocal())  # only rounding draws what has no chance
    return torch.cat([largest, drawn], 1), torch.cat([torch.ones_like(largest, dtype=weights.dtype), weights], 1)
