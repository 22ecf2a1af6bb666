"""The multiple-choice knapsack problem: one option for each layer, the least total variance within a total cost."""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise, product
from math import inf

from .options import Option

Point = tuple[float, float, Option]
"""Cost and variance of an option."""


def choose(layers: Sequence[Sequence[Point]], allowed: float) -> tuple[list[Point], float]:
    """Choose one point for each layer, and bound the total variance from below.

    The relaxation, in which layers may be mixtures of their points, is solved exactly: steps down the lower convex
    hulls of all layers' points are taken in the order of their price until the cost is low enough. The last one is
    replaced by the best single change that gets there, and then one layer or two at a time are changed as long as that
    helps. The cheapest points together cost at most ``allowed``; the bound is the optimum of the relaxation.
    """
    hulls = [lower_hull(points) for points in layers]
    chosen = [hull[0] for hull in hulls]
    steps = [(number, *step) for number, hull in enumerate(hulls) for step in pairwise(hull)]
    cost, bound = sum(point[0] for point in chosen), sum(point[1] for point in chosen)
    for number, dear, cheap in sorted(steps, key=lambda step: _price(*step[1:])):  # in order within a layer, too
        saves, adds = dear[0] - cheap[0], cheap[1] - dear[1]
        if cost - saves < allowed * (1 - 1e-9):
            bound += adds * max(0.0, cost - allowed) / saves
            break
        chosen[number], cost, bound = cheap, cost - saves, bound + adds
    allowed *= 1 + 1e-9
    while change := _best_change(chosen, layers, allowed):
        for number, point in change.items():
            chosen[number] = point
    return chosen, bound


def lower_hull(points: Iterable[Point]) -> list[Point]:
    """The lower convex hull of points, from the cheapest of least variance to the cheapest of all.

    Example:
        >>> [point[:2] for point in lower_hull([(4, 0, "a"), (3, 2, "b"), (2, 2, "c"), (1, 9, "d"), (1, 8, "e")])]
        [(4, 0), (2, 2), (1, 8)]
    """
    hull: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], point[0])):
        if hull and point[0] >= hull[-1][0]:  # dearer, and no better
            continue
        while len(hull) > 1 and _price(hull[-1], point) <= _price(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _price(dear: Point, cheap: Point) -> float:
    """Variance per unit of cost saved."""
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])


def _best_change(chosen: Sequence[Point], layers: Sequence[Sequence[Point]], allowed: float) -> dict[int, Point] | None:
    """The best change of one layer, or of two where no single one helps; of one while the cost is too high."""
    left = allowed - sum(point[0] for point in chosen)
    best, least = None, inf if left < 0 else -1e-12 * sum(point[1] for point in chosen)
    for size in (1, 2) if left >= 0 else (1,):
        for numbers in combinations(range(len(chosen)), size):
            cost = sum(chosen[number][0] for number in numbers)
            variance = sum(chosen[number][1] for number in numbers)
            for changed in product(*(layers[number] for number in numbers)):
                gain = sum(point[1] for point in changed) - variance
                if gain < least and sum(point[0] for point in changed) - cost <= left:
                    best, least = dict(zip(numbers, changed, strict=True)), gain
        if best is not None:
            break
    return best
