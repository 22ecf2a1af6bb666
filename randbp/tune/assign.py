"""The assignment of estimators to layers with the least total variance within a budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from math import inf, isnan

from .assignment import Assignment
from .options import LayerOptions, Measured, Objective, Option, lower_hull

PAYS = 0.95
"""An estimator whose cost exceeds this share of the exact one's is not an option: the difference is within noise."""

UNTIMED = "rounds=0: expected at least 1 where the objective is 'time'"


class UnreachableBudget(ValueError):
    """Raised if no assignment of the candidates keeps within the budget.

    Attributes:
        cheapest: The assignment of least cost; its ``with_budget`` tries another budget without measuring again.
    """

    def __init__(self, message: str, cheapest: Assignment) -> None:
        super().__init__(message)
        self.cheapest = cheapest


def assign(
    layers: Sequence[LayerOptions], budget: float, objective: Objective = "memory", count_shared: bool = True
) -> Assignment:
    """Choose one option for each layer so that total variance is least within a budget of total cost.

    Layers are independent, so their variances add up, and this is a multiple-choice knapsack problem. Its relaxation
    is solved exactly: a step down the lower convex hull of a layer's points (cost, variance) has a price in variance
    per unit of cost, and all layers' steps are taken in the order of their price until the budget is met. Where it is
    met exactly the assignment is the optimum. Otherwise the last step is replaced by the best single change that meets
    the budget, hull or not, and then one layer or two at a time are changed as long as that lowers the variance;
    ``lower_bound`` of the result is what no assignment can fall below.

    With variance ``v_l(1/p_l - 1)`` and cost ``c_l p_l`` in layer l and a continuum of keep rates the same rule gives
    ``p_l ∝ √(v_l/c_l)``, clipped at 1.

    Args:
        layers: The options of each layer.
        budget: Share of the total cost of exact layers, in ``(0, 1]``.
        objective: Whether cost is bytes (``"memory"``) or seconds (``"time"``).
        count_shared: Whether bytes that others hold as well count as a layer's cost. If not, nothing is assigned to a
            layer where no byte would be freed.

    Raises:
        ValueError: If the budget is not in ``(0, 1]``, the objective is unknown, or it is time and none was measured.
        UnreachableBudget: If all layers at their cheapest cost more.

    Example:
        >>> from randbp import Exact, Spatial
        >>> def layer(name, variance):
        ...     options = [Option(Spatial(p), variance * (1 / p - 1), int(64 * p), 1.0) for p in (1 / 2, 1 / 4, 1 / 16)]
        ...     return LayerOptions(name, 1.0, Option(Exact(), 0.0, 64, 1.0), tuple(options))
        >>> chosen = assign([layer("rough", 4.0), layer("smooth", 0.01)], budget=0.55)
        >>> {name: estimator.keep for name, estimator in chosen.items()}
        {'rough': 1.0, 'smooth': 0.0625}
    """
    check_budget(budget, objective)
    if objective == "time" and any(isnan(layer.exact.seconds) for layer in layers):
        raise ValueError(UNTIMED)
    points = [_points(layer, objective, count_shared) for layer in layers]
    allowed = budget * sum(layer.cost(layer.exact, objective, count_shared) for layer in layers)
    hulls = [lower_hull(options) for options in points]
    cheapest = sum(hull[-1][0] for hull in hulls)

    def result(chosen: Sequence[_Point], bound: float) -> Assignment:
        options = tuple(point[2] for point in chosen)
        exact = layers.left_exact if isinstance(layers, Measured) else {}
        return Assignment(Measured(layers, exact), options, float(budget), objective, count_shared, bound)

    if cheapest > allowed * (1 + 1e-9):
        share = cheapest / allowed * budget
        raise UnreachableBudget(
            f"budget={budget!r}: the candidates reach {share:.3g} of the exact layers' {objective} at least, expected "
            "that or more, or other candidates",
            result([hull[-1] for hull in hulls], sum(hull[-1][1] for hull in hulls)),
        )
    chosen, bound = _relaxed(hulls, allowed)
    _improve(chosen, points, allowed)
    return result(chosen, bound)


def check_budget(budget: object, objective: object) -> None:
    """Raise ``ValueError`` unless given a share in ``(0, 1]`` and a known objective.

    Example:
        >>> check_budget(25, "memory")
        Traceback (most recent call last):
        ValueError: budget=25: expected a share of the exact layers' cost in (0, 1]
    """
    if objective not in ("memory", "time"):
        raise ValueError(f"objective={objective!r}: expected 'memory' or 'time'")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise ValueError(f"budget={budget!r}: expected a share of the exact layers' cost in (0, 1]")


_Point = tuple[float, float, Option]


def _points(layer: LayerOptions, objective: Objective, count_shared: bool) -> list[_Point]:
    """Cost, variance and option of the exact VJP and of all options that cost less."""
    exact = layer.cost(layer.exact, objective, count_shared)
    points = [(layer.cost(option, objective, count_shared), option.variance, option) for option in layer.candidates]
    return [(exact, 0.0, layer.exact), *(point for point in points if point[0] <= PAYS * exact)]


@dataclass(frozen=True)
class _Step:
    layer: int
    saves: float
    adds: float
    to: _Point


def _relaxed(hulls: Sequence[Sequence[_Point]], allowed: float) -> tuple[list[_Point], float]:
    """The points before the step that would meet or exceed the budget, and the relaxed problem's optimum."""
    chosen = [hull[0] for hull in hulls]
    steps = [
        _Step(number, dear[0] - cheap[0], cheap[1] - dear[1], cheap)
        for number, hull in enumerate(hulls)
        for dear, cheap in pairwise(hull)
    ]
    steps.sort(key=lambda step: step.adds / step.saves)  # within a layer they are in this order already
    cost, variance = sum(point[0] for point in chosen), sum(point[1] for point in chosen)
    for step in steps:
        if cost - step.saves < allowed * (1 - 1e-9):
            return chosen, variance + step.adds * max(0.0, cost - allowed) / step.saves
        chosen[step.layer] = step.to
        cost, variance = cost - step.saves, variance + step.adds
    return chosen, variance


def _improve(chosen: list[_Point], points: Sequence[Sequence[_Point]], allowed: float) -> None:
    """Change one layer at a time, or two where no single change helps, until the variance is a local minimum.

    At first the budget may be exceeded; one change mends that, as the step that was not taken is one.
    """
    allowed *= 1 + 1e-9
    while True:
        cost = sum(point[0] for point in chosen)
        numbers = range(len(chosen))
        best = _best(chosen, points, allowed - cost, ((i,) for i in numbers))
        if best is None and cost <= allowed:
            best = _best(chosen, points, allowed - cost, combinations(numbers, 2))
        if best is None:
            return
        for number, point in best.items():
            chosen[number] = point


def _best(
    chosen: Sequence[_Point],
    points: Sequence[Sequence[_Point]],
    left: float,
    choices: Iterable[tuple[int, ...]],
) -> dict[int, _Point] | None:
    """The change of some layers that lowers the variance most; ``None`` if none does.

    While the budget is exceeded (``left < 0``), the one that raises it least.
    """
    best, least = None, inf if left < 0 else -1e-12 * sum(point[1] for point in chosen)
    for numbers in choices:
        cost, variance = sum(chosen[number][0] for number in numbers), sum(chosen[number][1] for number in numbers)
        for changed in product(*(points[number] for number in numbers)):
            gain = sum(point[1] for point in changed) - variance
            if gain < least and sum(point[0] for point in changed) - cost <= left:
                best, least = dict(zip(numbers, changed, strict=True)), gain
    return best
