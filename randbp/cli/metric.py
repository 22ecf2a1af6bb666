"""The metric that a sweep optimises, and the rule that stops runs which fall behind in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep optimises.

    Example:
        >>> Metric("loss", target=0.5).reaches_target(0.4), Metric("accuracy", "maximize", 0.5).reaches_target(0.4)
        (True, False)
    """

    name: str  # as runs log it
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None  # the sweep starts no further run once one has reached this
    impute: str = "worst"  # value of a failed run in Bayesian search: its latest, or the best or worst of others
    impute_while_running: str | None = None  # the same for a run that has not ended; None to leave it open

    @property
    def sign(self) -> int:
        """The factor that makes small values good."""
        return 1 if self.goal == "minimize" else -1

    def reaches_target(self, value: float) -> bool:
        """Whether a value is at the target or better."""
        return self.target is not None and self.sign * value <= self.sign * self.target


@dataclass(frozen=True)
class Hyperband:
    """W&B's ``early_terminate``: asynchronous successive halving (L. Li et al., Hyperband, JMLR 18, 2018)."""

    bands: tuple[int, ...]  # how often the metric has been logged when a run must be among the best
    eta: float = 3  # it must be among the best 1/eta of all runs that came so far
    strict: bool = False  # whether its value at the band counts, instead of its best one so far

    def missed(self, history: Sequence[float], histories: Iterable[Sequence[float]], metric: Metric) -> int | None:
        """The last band that a run has reached, if it is not among the best of all runs there; otherwise ``None``.

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
