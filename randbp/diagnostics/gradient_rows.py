"""Results of :func:`randbp.diagnostics.gradient_error`, as numbers and as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan, sqrt
from typing import TYPE_CHECKING

from ..randomize.left_exact import left_exact_lines
from ..text.text_table import text_table
from .significance import Interval, holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GradientRow:
    """Exact gradient g against its estimate ĝ, of one layer or of several together.

    Args:
        name: The layer.
        estimator: Estimator of the layer's weight VJP, and of its input VJP if that is estimated.
        parameters: Length of g.
        norm: ``‖g‖``.
        error: Mean over draws of ``‖ĝ - g‖ / ‖g‖``.
        variance: Mean over draws of ``‖ĝ - g‖² / ‖g‖²``; these add up over layers, errors do not.
        cosine: Mean over draws of ``⟨ĝ, g⟩ / ‖ĝ‖‖g‖``.
        bias: ``‖E ĝ - g‖ / ‖g‖`` as far as it shows: the root of the unbiased estimate ``Σ_{r≠s} ⟨d_r, d_s⟩ / R(R-1)``
            of ``‖E d‖²``, with ``d = ĝ - g``; zero where that is negative.
        bias_p: Probability, if ĝ is unbiased, of a result as extreme as this one: see
            :func:`~randbp.diagnostics.gradient_error`. It covers both tests of this row, but no other rows.
        noise: ``‖g - E g‖ / ‖g‖``, what the choice of this minibatch has done to g; ``None`` where not measured.
    """

    name: str
    estimator: str
    parameters: int
    norm: float
    error: Interval
    variance: Interval
    cosine: Interval
    bias: float
    bias_p: float
    noise: Interval | None

    @property
    def noise_ratio(self) -> float:
        """Error of the estimate in units of the minibatch noise, both as root mean squares."""
        if self.noise is None or not self.noise.estimate:
            return nan
        return sqrt(self.variance.estimate) / self.noise.estimate


@dataclass(frozen=True)
class GradientError:
    """Result of :func:`randbp.diagnostics.gradient_error`.

    Args:
        rows: One per randomised layer: the gradient of its weight.
        total: These gradients, concatenated.
        model: The gradients of all trainable parameters; also biases, norms and layers that are not randomised.
        draws: Number of estimates.
        batch_size: Number of examples.
        micro_batches: Number of parts from which the minibatch noise is estimated; 0 where it is not.
        confidence: Confidence level of all intervals.
        notes: Notes that explain the numbers.
        left_exact: Why layers that were chosen stay exact, by name.
    """

    rows: tuple[GradientRow, ...]
    total: GradientRow
    model: GradientRow
    draws: int
    batch_size: int
    micro_batches: int
    confidence: float
    notes: tuple[str, ...] = ()
    left_exact: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def bias_p(self) -> dict[str, float]:
        """P-value of each layer's bias test, adjusted for the number of layers by Holm's method."""
        return dict(zip([row.name for row in self.rows], holm([row.bias_p for row in self.rows]), strict=True))

    def biased(self, level: float = 0.01) -> list[str]:
        """Layers whose estimate is biased; the probability of naming any unbiased one is at most ``level``."""
        return [name for name, p in self.bias_p.items() if p < level]

    def __str__(self) -> str:
        columns = ["layer", "weight VJP", "parameters", "error", "cosine", "bias", "p", "minibatch noise", "ratio"]
        adjusted = [*self.bias_p.values(), self.total.bias_p, self.model.bias_p]
        cells = []
        for row, p in zip([*self.rows, self.total, self.model], adjusted, strict=True):
            probability = "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
            numbers = [str(row.error), str(row.cosine), _number(row.bias), probability]
            noise = "–" if row.noise is None else str(row.noise)
            cells.append([row.name, row.estimator, f"{row.parameters:,}", *numbers, noise, _number(row.noise_ratio, 2)])
        table = text_table(columns, cells, left=2, rules=[len(self.rows)])
        found = self.biased()
        lines = [
            f"error ‖ĝ-g‖/‖g‖ of {self.draws} draws on a batch of {self.batch_size}; ± is half of the "
            f"{self.confidence:.0%} interval of the mean",
            "ratio: root mean square of the error over the minibatch noise ‖g-E g‖/‖g‖; below 1, the choice of the "
            "batch disturbs more",
            "p: test of E ĝ = g, over layers adjusted by Holm's method; "
            + (f"biased at the 1% level: {', '.join(found)}" if found else "no layer is biased at the 1% level"),
            *self.notes,
            *left_exact_lines(self.left_exact),
        ]
        return "\n".join([table, "", *lines])

    def plot(self) -> "Figure":
        """Plot errors and minibatch noise of all layers as a matplotlib figure.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        from .row_plots import plot_intervals

        rows = [*self.rows, self.total, self.model]
        errors = [row.variance.map(lambda square: max(0.0, square) ** 0.5) for row in rows]
        title = f"{self.draws} draws, batch of {self.batch_size}"
        return plot_intervals([row.name for row in rows], errors, [row.noise for row in rows], len(self.rows), title)


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isfinite(value) else "–"
