"""The metric that a sweep optimises, and the rule that stops runs which fall behind in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep optimises.

    Args:
        name: The metric, as runs log it.
        goal: Whether small or large values are good.
        target: The sweep starts no further run once one has reached this.
        impute: The value that Bayesian search assumes for a run that failed: its latest, or the best or the worst of
            all others.
        impute_while_running: The value assumed for a run that has not ended yet; ``None`` to leave it open.

    Example:
        >>> Metric("loss", target=0.5).reaches_target(0.4), Metric("accuracy", "maximize", 0.5).reaches_target(0.4)
        (True, False)
    """

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    impute: str = "worst"
    impute_while_running: str | None = None

    @property
    def sign(self) -> int:
        """The factor that makes small values good."""
        return 1 if self.goal == "minimize" else -1

    def reaches_target(self, value: float) -> bool:
        """Whether a value is at the target or better."""
        return self.target is not None and self.sign * value <= self.sign * self.target


@dataclass(frozen=True)
class Hyperband:
    """W&B's ``early_terminate``: asynchronous successive halving (L. Li et al., Hyperband, JMLR 18, 2018).

    Args:
        bands: Numbers of times that the metric has been logged, at which a run must be among the best.
        eta: It must be among the best ``1/eta`` of all runs that came so far.
        strict: Whether its value at the band counts, instead of its best one so far.
    """

    bands: tuple[int, ...]
    eta: float = 3
    strict: bool = False

    def missed(self, history: Sequence[float], histories: Iterable[Sequence[float]], metric: Metric) -> int | None:
        """The last band that a run has reached, if the run is not among the best there; otherwise ``None``.

        Args:
            history: The metric's values of the run in question.
            histories: Histories of all runs of the sweep, this one included.
            metric: Whether small or large values are good.

        Example:
            >>> histories = [[0.9, 0.4], [0.9, 0.5], [0.9, 0.8], [0.7]]
            >>> [Hyperband(bands=(1, 2)).missed(it, histories, Metric("loss")) for it in histories]
            [None, None, 2, None]
        """
        if not (reached := [band for band in self.bands if band <= len(history)]):
            return None
        band = reached[-1]
        rivals = sorted(metric.sign * it[band - 1] for it in histories if len(it) >= band)
        own = [metric.sign * value for value in history]
        best = own[band - 1] if self.strict else min(own)
        return band if best > rivals[int(len(rivals) / self.eta)] else None
