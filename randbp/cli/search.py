"""Proposals for the next run of a random or Bayesian sweep, made by Optuna."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .sweep_file import Metric, SweepFile, Values

Draw = dict[str, float]
"""A point of the search space: for each parameter an index into what it lists, an integer, or else a probability whose
quantile is the value. Constants have none."""


@dataclass(frozen=True)
class Trial:
    """A point that was tried, and its result."""

    draw: Draw  # the point
    state: Literal["open", "finished", "stopped", "failed"] = "open"  # of its run; stopped if it fell behind
    history: tuple[float, ...] = ()  # the metric's values in the order in which they were logged
    value: float | None = None  # the metric's last value; None if there is none


def propose(sweep: SweepFile, trials: Sequence[Trial], seed: int = 0) -> Draw:
    """Propose the next point of a random or Bayesian sweep, a function of sweep, seed and earlier trials alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = hashlib.sha256(f"{seed}/{len(trials)}".encode()).digest()
    kind = optuna.samplers.TPESampler if sweep.method == "bayes" else optuna.samplers.RandomSampler
    metric = sweep.metric or Metric(name="none")
    study = optuna.create_study(sampler=kind(seed=int.from_bytes(digest[:4])), direction=metric.goal)
    space = _space(sweep.drawn)
    if sweep.method == "bayes":
        for trial in trials:
            study.add_trial(_frozen(trial, trials, metric, space))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(study.ask(space).params)


def values_at(sweep: SweepFile, draw: Draw) -> Values:
    """The parameters' values at a point."""
    return {name: it.at(draw.get(name, 0)) for name, it in sweep.drawn.items()}


def _space(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's distribution of each coordinate."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def coordinate(it: Any) -> Any:
        match it.distribution:
            case "categorical":
                return CategoricalDistribution(range(len(it.values)))
            case "int_uniform":
                return IntDistribution(it.min, it.max)
        return FloatDistribution(0.0, 1.0)

    return {name: coordinate(it) for name, it in parameters.items() if it.distribution != "constant"}


def _frozen(trial: Trial, trials: Sequence[Trial], metric: Metric, space: Mapping[str, Any]) -> Any:
    """A trial in Optuna's form."""
    from optuna.trial import TrialState, create_trial

    value = trial.value
    if trial.state in ("failed", "open"):
        how = metric.impute if trial.state == "failed" else metric.impute_while_running
        value = _imputed(metric, how, trial, trials)
    if value is None:
        state = TrialState.RUNNING if trial.state == "open" else TrialState.FAIL
    else:
        state = TrialState.PRUNED if trial.state == "stopped" else TrialState.COMPLETE
    return create_trial(
        state=state,
        value=value,
        params=trial.draw,
        distributions=dict(space),
        intermediate_values=dict(enumerate(trial.history, 1)),
    )


def _imputed(metric: Metric, how: str | None, trial: Trial, trials: Sequence[Trial]) -> float | None:
    """The value that is assumed for a trial without one."""
    if how == "latest":
        return trial.history[-1] if trial.history else None
    known = [it.value for it in trials if it.state in ("finished", "stopped") and it.value is not None]
    if how is None or not known:
        return None
    order = sorted(known, key=lambda value: metric.sign * value)
    return order[0 if how == "best" else -1]
