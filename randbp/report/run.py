"""Runs, read from their folders: summary, configuration, loss curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text.units import keep_rate
from .printable import printable
from .run_files import LossCurve
from .summary_file import EstimatorFields, Summary

SUMMARY = "summary.json"
DISTURBED = 0.1
"""Average number of threads waiting for a CPU above which times are not trusted; undisturbed, it is about 0.01."""

TIMES = ("step_seconds", "step_seconds_q25", "step_seconds_q75")
"""The costs that other work on the machine disturbs."""

BY_LAYER = "PerLayer"
"""The class that a summary names for a mapping of estimators; its keep rate is their mean."""


@dataclass(frozen=True)
class Estimate:
    """The estimator of one VJP in a run: class name, keep rate, and its other options."""

    name: str = "Exact"  # of the class
    keep: float = 1.0  # of a mapping from layers to estimators the mean of theirs
    options: tuple[tuple[str, str], ...] = ()  # the other fields as text
    parts: str = ""  # such a mapping in a few words: estimators and keep rates

    @property
    def by_layer(self) -> bool:
        """Whether layers have different estimators, so that there is not a single keep rate."""
        return self.name == BY_LAYER

    @property
    def rate(self) -> str:
        """The keep rate as text, which says if it is only a mean.

        Example:
            >>> Estimate("Spatial", 0.125).rate, Estimate("PerLayer", 0.1172).rate
            ('1/8', 'mean 0.117')
        """
        return f"mean {self.keep:.3g}" if self.by_layer else keep_rate(self.keep)


EXACT = Estimate()


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder, read once."""

    name: str  # the folder's, relative to the folder of all runs
    summary: Summary  # content of summary.json
    config: Mapping[str, str]  # content of config.yaml, nested keys joined by dots
    losses: LossCurve  # training loss by step

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.summary.finished

    @property
    def problem(self) -> str | None:
        """The reason why the run has not finished, in one line; ``None`` if it has."""
        if self.finished:
            return None
        if self.summary.status == "running":
            return "still running, or stopped without a word"
        return self.summary.error or "failed without a message"

    @property
    def metrics(self) -> Mapping[str, float]:
        """Last value of every metric."""
        return self.summary.metrics

    @property
    def disturbed(self) -> bool:
        """Whether the run shared its processors with other work, so that its times mislead."""
        return (self.cost("waiting_threads") or 0) > DISTURBED

    def cost(self, name: str) -> float | None:
        """A cost by its name in ``summary.json``; ``None`` if it was not measured."""
        value = getattr(self.summary.cost, name, None)
        return value if isinstance(value, int | float) else None

    def estimate(self, vjp: str) -> Estimate:
        """The estimator of ``"weight_vjp"`` or ``"input_vjp"``; all exact ones are the same."""
        fields: EstimatorFields | None = getattr(self.summary.estimators, vjp, None)
        if fields is None or fields.keep is None or fields.keep == 1:
            return EXACT
        options = fields.model_extra or {}
        told = tuple(sorted((printable(str(key)), _option(value)) for key, value in options.items()))
        return Estimate(fields.name, fields.keep, told, _parts(options) if fields.name == BY_LAYER else "")

    @property
    def way(self) -> dict[str, str]:
        """The preset, or else lean mode and its bits, as text; empty if the run has neither."""
        found = self.summary.estimators
        if found is None or not (found.preset or found.lean):
            return {}
        told = {"preset": found.preset} if found.preset else {"lean": found.lean}
        told |= {"bits": found.bits} if found.lean and found.lean != "exact" else {}
        return {key: printable(str(value)) for key, value in told.items()}

    @property
    def exact(self) -> bool:
        """Whether the run is plain backpropagation: both VJPs exact, without preset and lean mode."""
        return self.estimate("weight_vjp") == EXACT == self.estimate("input_vjp") and not self.way


def _parts(options: Mapping[str, Any]) -> str:
    """The classes of a mapping's estimators, each with the range of its keep rates."""
    rates: dict[str, list[float]] = {}
    each = options.get("estimators")
    for fields in each.values() if isinstance(each, dict) else ():
        if isinstance(fields, dict):
            keep = fields.get("keep")
            known = [float(keep)] if isinstance(keep, int | float) and 0 < keep < 1 else []
            rates.setdefault(printable(str(fields.get("name", "Exact"))), []).extend(known)
    told = []
    for name, keeps in rates.items():
        ends = dict.fromkeys(keep_rate(keep) for keep in (min(keeps), max(keeps))) if keeps else {}
        told.append(" ".join(filter(None, (name, "–".join(ends)))))
    return ", ".join(told)


def _option(value: Any) -> str:
    """An option as text; of an estimator within, class and options, but its keep rate, which follows from others."""
    if not isinstance(value, dict):
        return printable(str(value))
    if "class" not in value:
        return "; ".join(f"{printable(str(key))}: {_option(one)}" for key, one in value.items())
    told = ((printable(str(key)), _option(one)) for key, one in value.items() if key not in ("class", "keep"))
    return f"{printable(str(value['class']))}({', '.join(map('='.join, told))})"
