"""The estimator of each layer, with its costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

from ..estimators import Estimator, configure
from ..randomize.left_exact import left_exact_lines
from ..text.text_table import text_table
from ..text.units import format_bytes
from .options import LayerOptions, Measured, Objective, Option


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

    layers: tuple[LayerOptions, ...] | Measured
    chosen: tuple[Option, ...]
    budget: float
    objective: Objective
    count_shared: bool
    lower_bound: float

    def __getitem__(self, name: str) -> Estimator:
        for layer, option in zip(self.layers, self.chosen, strict=True):
            if layer.name == name:
                return option.estimator
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Assignment({dict(self)})"

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
            for layer, option in zip(self.layers, self.chosen, strict=True)
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
        from .assign import assign

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
        for layer, option in zip(self.layers, self.chosen, strict=True):
            name = "exact" if option is layer.exact else str(option.estimator)
            share = option.variance / self.variance if self.variance else 0.0
            cells = [format_bytes(option.held_bytes), _ratio(option.held_bytes, layer.exact.held_bytes)]
            cells += [_seconds(option.seconds), _ratio(option.seconds, layer.exact.seconds)]
            cells += [f"{_root_ratio(option.variance, layer.norm_square):.3f}", f"{share:.0%}"]
            rows.append([layer.name, name, *cells, ", ".join(layer.held_by[:2])])
        total = [format_bytes(self.held_bytes), _ratio(self.held_bytes, self.exact_bytes)]
        total += [_seconds(self.seconds), _ratio(self.seconds, self.exact_seconds)]
        rows.append(["all of these", "", *total, f"{self.error:.3f}", "100%" if self.variance else "0%", ""])
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
        if any(o is not layer.exact and layer.shared_bytes for layer, o in zip(self.layers, self.chosen, strict=True)):
            freed = self.freed_bytes
            effect = f"frees {format_bytes(freed)}" if freed >= 0 else f"holds {format_bytes(-freed)} more"
            lines.append(
                f"other modules hold some of these inputs as well: as long as they do, the whole model {effect}"
            )
        if not self.count_shared:
            lines.append("layers whose input others hold as well are exact, because an estimator would free nothing")
        return lines + left_exact_lines(self.left_exact)


def _root_ratio(square: float, norm_square: float) -> float:
    if not square:  # also where the gradient is zero
        return 0.0
    return sqrt(square / norm_square) if norm_square else inf


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if isfinite(seconds) else "–"


def _ratio(value: float, exact: float) -> str:
    return f"{value / exact:.3f}" if exact and isfinite(value / exact) else "–"
