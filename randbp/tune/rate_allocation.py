"""Keep rates that hold a variance at the least cost."""

from collections.abc import Mapping, Sequence
from math import log

RATES = tuple(step / 16 for step in range(1, 17))
"""The keep rates that are tried; 1 is exact."""

_STEPS = 60  # of bisection


def allocate(
    costs: Mapping[str, Sequence[float]], variances: Mapping[str, Sequence[float]], target: float
) -> dict[str, int]:
    """Choose one rate per term such that the cost is least and the variance about ``target``.

    The problem ``min Σ_l c_l(p_l)`` subject to ``Σ_l V_l(p_l) = target`` is solved by one Lagrange multiplier: for a
    given ``μ`` each term takes the rate with the least ``c_l(p) + μ V_l(p)``, and ``μ`` is found by bisection. Rates
    come from a list, so the variance is a step function of ``μ``; of the two sides of the step at the target, terms
    move one by one from the side below to the one above as long as that brings the sum closer to the target.

    Source: Everett, Generalized Lagrange multiplier method, Operations Research 11 (1963).

    Args:
        costs: By name of the term, the cost at each rate, in any unit.
        variances: By name, the variance at each rate.
        target: The sum of variances that is aimed at.

    Returns:
        By name, the index of the rate.

    Example:
        >>> allocate({"a": [1, 2], "b": [1, 2]}, {"a": [3, 0], "b": [1, 0]}, target=1)
        {'a': 1, 'b': 0}
    """
    names = list(costs)

    def best(multiplier: float) -> dict[str, int]:
        return {
            name: min(
                range(len(costs[name])),
                key=lambda i, name=name: (costs[name][i] + multiplier * variances[name][i], variances[name][i]),  # type: ignore[misc]
            )
            for name in names
        }

    def total(chosen: Mapping[str, int]) -> float:
        return sum(variances[name][chosen[name]] for name in names)

    cost = sum(max(costs[name]) for name in names) or 1.0
    variance = sum(max(variances[name]) for name in names) or 1.0
    below, above = 1e12 * cost / variance, 1e-12 * cost / variance  # multipliers with variances below and above
    if total(best(above)) <= target:
        return best(above)
    for _ in range(_STEPS):
        middle = (below * above) ** 0.5
        below, above = (middle, above) if total(best(middle)) <= target else (below, middle)
    chosen, other = best(below), best(above)

    def distance(these: Mapping[str, int]) -> float:
        """From the target, as a factor's logarithm; a variance far below counts like one a quarter of it."""
        return abs(log(max(total(these), target / 4) / target)) if target > 0 else total(these)

    for name in names:
        moved = {**chosen, name: other[name]}
        if distance(moved) < distance(chosen):
            chosen = moved
    return chosen
