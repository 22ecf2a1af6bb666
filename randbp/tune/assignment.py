"""The estimators of a model's layers with the least total variance within a budget."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, sqrt
from typing import Any

from ..estimators import Estimator, configure
from ..randomize.left_exact import left_exact_lines
from ..text.text_table import text_table
from ..text.units import format_bytes
from .knapsack import Point, choose
from .options import LayerOptions, Measured, Objective, Option, check_budget

PAYS = 0.95
"""An estimator whose cost exceeds this share of the exact one's is not an option: the difference is within noise."""

UNTIMED = "rounds=0: expected at least 1 where the objective is 'time'"


@dataclass(frozen=True, eq=False, repr=False)
class Assignment(Mapping[str, Estimator]):
    """A mapping from layers' names to estimators of their weight VJPs, for ``randomize`` and ``TensorDropout``.

    Args:
        layers: The measurements of the layers.
        chosen: One option for each layer.
        budget: Share of the exact layers' cost.
        objective: The kind of cost, ``"memory"`` or ``"time"``.
        count_shared: Whether bytes that others hold as well were counted.
        lower_bound: Total variance that no assignment of these options within the budget can fall below.
    """

    layers: tuple[LayerOptions, ...]
    chosen: tuple[Option, ...]
    budget: float
    objective: Objective
    count_shared: bool
    lower_bound: float

    def __getitem__(self, name: str) -> Estimator:
        return {layer.name: option.estimator for layer, option in self._pairs}[name]

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Assignment({dict(self)})"

    @property
    def _pairs(self) -> Iterator[tuple[LayerOptions, Option]]:
        return zip(self.layers, self.chosen, strict=True)

    @property
    def left_exact(self) -> Mapping[str, str]:
        """Reasons, by name, why chosen layers stay exact."""
        return self.layers.left_exact if isinstance(self.layers, Measured) else {}

    @property
    def variance(self) -> float:
        """Sum over layers of ``E‖ĝ - g‖²``."""
        return sum(option.variance for option in self.chosen)

    @property
    def error(self) -> float:
        """Root of the total variance over ``‖g‖``, for the weights of all these layers together."""
        return _root_ratio(self.variance, sum(layer.norm_square for layer in self.layers))

    @property
    def held_bytes(self) -> int:
        """Bytes that the layers hold for their weight VJPs."""
        return sum(option.held_bytes for option in self.chosen)

    @property
    def exact_bytes(self) -> int:
        """Bytes that the layers hold without estimators."""
        return sum(layer.exact.held_bytes for layer in self.layers)

    @property
    def freed_bytes(self) -> int:
        """Bytes that nobody holds any more thanks to the estimators; negative if these hold more than they free."""
        return sum(
            layer.exact.held_bytes - layer.shared_bytes - option.held_bytes
            for layer, option in self._pairs
            if option is not layer.exact
        )

    @property
    def seconds(self) -> float:
        """Time of the weight VJPs [seconds]."""
        return sum(option.seconds for option in self.chosen)

    @property
    def exact_seconds(self) -> float:
        """Time of the exact weight VJPs [seconds]."""
        return sum(layer.exact.seconds for layer in self.layers)

    def with_budget(self, budget: float, objective: Objective | None = None) -> "Assignment":
        """Make an assignment with another budget or objective from the same measurements.

        Raises:
            ValueError: As :func:`randbp.autotune` does.
        """
        return assign(self.layers, budget, objective or self.objective, self.count_shared)

    def prefixed(self, prefix: str) -> dict[str, Estimator]:
        """The assignment for a module that has the measured model as its attribute ``prefix``.

        Example:
            >>> from randbp import Exact
            >>> exact = Option(Exact(), 0.0, 4, 1.0)
            >>> Assignment((LayerOptions("0", 1.0, exact, ()),), (exact,), 1.0, "memory", True, 0.0).prefixed("model")
            {'model.0': Exact()}
        """
        return {f"{prefix}.{name}" if name else prefix: estimator for name, estimator in self.items()}

    def configuration(self) -> dict[str, Any]:
        """The mapping in the form of a configuration file: ``class_path`` and ``init_args`` for each layer."""
        return {name: configure(estimator) for name, estimator in self.items()}

    def __str__(self) -> str:
        columns = ["layer", "weight VJP", "held", "of exact", "time", "of exact", "error", "share", "also held by"]
        rows = []
        for layer, option in self._pairs:
            name = "exact" if option is layer.exact else str(option.estimator)
            costs = _costs(option.held_bytes, layer.exact.held_bytes, option.seconds, layer.exact.seconds)
            error = _root_ratio(option.variance, layer.norm_square)
            share = option.variance / self.variance if self.variance else 0.0
            rows.append([layer.name, name, *costs, f"{error:.3f}", f"{share:.0%}", ", ".join(layer.held_by[:2])])
        costs = _costs(self.held_bytes, self.exact_bytes, self.seconds, self.exact_seconds)
        rows.append(["all of these", "", *costs, f"{self.error:.3f}", "100%" if self.variance else "0%", ""])
        if not any(layer.held_by for layer in self.layers):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        return "\n".join([text_table(columns, rows, left=2, rules=[len(rows) - 1]), "", *self._remarks()])

    def _remarks(self) -> list[str]:
        alone = "" if self.count_shared else ", as far as nobody else holds it"
        lines = [
            f"budget: {self.budget:g} of the exact layers' {self.objective}{alone}",
            "held, time: of the weight VJPs; error: root mean square, over ‖g‖; share: of the total variance",
        ]
        if self.lower_bound and self.variance > 1.01 * self.lower_bound:
            above = self.variance / self.lower_bound - 1
            lines.append(f"the total variance is at most {above:.0%} above the least possible with these candidates")
        if any(option is not layer.exact and layer.shared_bytes for layer, option in self._pairs):
            freed = self.freed_bytes
            effect = f"frees {format_bytes(freed)}" if freed >= 0 else f"holds {format_bytes(-freed)} more"
            lines.append(
                f"other modules hold some of these inputs as well: as long as they do, the whole model {effect}"
            )
        if not self.count_shared:
            lines.append("layers whose input others hold as well are exact, because an estimator would free nothing")
        return lines + left_exact_lines(self.left_exact)


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

    Layers are independent, so their variances add up, and this is a multiple-choice knapsack problem, solved nearly
    always to the optimum; ``lower_bound`` of the result is what no assignment can fall below.

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
    layers = layers if isinstance(layers, Measured) else tuple(layers)

    def result(points: Sequence[Point], bound: float) -> Assignment:
        options = tuple(option for *_, option in points)
        return Assignment(layers, options, float(budget), objective, count_shared, bound)

    def options_of(layer: LayerOptions) -> list[Point]:
        """The exact VJP and all options that cost less."""
        exact, *others = (
            (layer.cost(option, objective, count_shared), option.variance, option)
            for option in (layer.exact, *layer.candidates)
        )
        return [exact, *(point for point in others if point[0] <= PAYS * exact[0])]

    points = [options_of(layer) for layer in layers]
    allowed = budget * sum(layer.cost(layer.exact, objective, count_shared) for layer in layers)
    cheapest = [min(options, key=lambda point: point[:2]) for options in points]
    least = sum(point[0] for point in cheapest)
    if least > allowed * (1 + 1e-9):
        share = f"{least / allowed * budget:.3g} of the exact layers' {objective}"
        raise UnreachableBudget(
            f"budget={budget!r}: the candidates reach {share} at least, expected that or more, or other candidates",
            result(cheapest, sum(point[1] for point in cheapest)),
        )
    return result(*choose(points, allowed))


def _root_ratio(square: float, norm_square: float) -> float:
    if not square:  # also where the gradient is zero
        return 0.0
    return sqrt(square / norm_square) if norm_square else inf


def _costs(held: int, exact_held: int, seconds: float, exact_seconds: float) -> list[str]:
    """Bytes and seconds, each with its ratio to the exact ones."""
    time = f"{seconds * 1e3:.2f} ms" if isfinite(seconds) else "–"
    ratios = [
        f"{value / exact:.3f}" if exact and isfinite(value / exact) else "–"
        for value, exact in ((held, exact_held), (seconds, exact_seconds))
    ]
    return [format_bytes(held), ratios[0], time, ratios[1]]
