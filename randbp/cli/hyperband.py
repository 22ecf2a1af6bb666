"""Early stopping of runs that fall behind: W&B's ``early_terminate`` with Hyperband's bands."""

from collections.abc import Iterable, Sequence

from .sweep_file import Hyperband, Metric


def falls_behind(
    history: Sequence[float], histories: Iterable[Sequence[float]], metric: Metric, rule: Hyperband
) -> int | None:
    """The band at which a run is not among the best; ``None`` if there is none.

    Whenever a run has logged the metric as often as one of the bands says, it must be among the best ``1/eta`` of all
    runs that came so far. The last band that it has reached counts. Asynchronous successive halving, as W&B decides it
    (L. Li et al., Hyperband, JMLR 18, 2018).

    Args:
        history: The metric's values of the run in question.
        histories: Histories of all runs of the sweep, this one included.
        metric: The metric to compare, and whether small or large values are good.
        rule: The bands and the share.

    Returns:
        The band, ``None`` if the run may go on.

    Example:
        >>> rule = Hyperband(bands=(1, 2), eta=3)
        >>> histories = [[0.9, 0.4], [0.9, 0.5], [0.9, 0.8], [0.7]]
        >>> [falls_behind(it, histories, Metric("loss"), rule) for it in histories]
        [None, None, 2, None]
    """
    sign = 1 if metric.goal == "minimize" else -1
    if not (reached := [band for band in rule.bands if band <= len(history)]):
        return None
    band = reached[-1]
    rivals = sorted(sign * it[band - 1] for it in histories if len(it) >= band)
    own = sign * history[band - 1] if rule.strict else min(sign * value for value in history)
    return band if own > rivals[int(len(rivals) / rule.eta)] else None
