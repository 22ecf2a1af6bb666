"""Runs that differ only in their seed, taken together and compared with exact backpropagation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from .folder import Results
from .printable import printable
from .run import EXACT, TIMES, Estimate, Run
from .statistic import Statistic

LAYERS = "layers"
WAY = ("preset", "lean", "bits")
OWN = (*WAY, LAYERS)
"""Settings that belong to the estimates, and that exact backpropagation does not have."""

# Configuration in which runs may differ without being different experiments: where they write, seeds, and the
# estimators, which the summary tells more plainly.
INCIDENTAL = (
    *("name", "version", "wandb", "tensor_dropout"),
    *("trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar"),
)
INCIDENTAL_PARTS = ("seed", "seed_everything", "save_dir", "dirpath", "weight_vjp", "input_vjp")


@dataclass(frozen=True)
class Group:
    """Runs with equal estimators and settings, which differ in their seeds."""

    weight_vjp: Estimate
    input_vjp: Estimate
    settings: tuple[tuple[str, str], ...]  # others that distinguish these runs from others in the comparison
    runs: tuple[Run, ...]  # all of them, failed ones included

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """The finished runs, which are the only ones that count."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def exact(self) -> bool:
        """Whether these runs are plain backpropagation: both VJPs exact, without preset and lean mode."""
        return all(run.exact for run in self.runs)

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """The settings that matter to exact backpropagation too."""
        return tuple((key, value) for key, value in self.settings if key not in OWN)

    @property
    def leading(self) -> Estimate:
        """The estimate whose keep rate counts: that of the weight VJP unless only the input VJP is estimated."""
        return self.input_vjp if self.weight_vjp == EXACT else self.weight_vjp

    @property
    def keep(self) -> float:
        """The keep rate to plot against."""
        return self.leading.keep

    def metric(self, name: str) -> Statistic | None:
        """Statistic of a metric over the finished runs."""
        return Statistic.of(run.metrics[name] for run in self.finished if name in run.metrics)

    def cost(self, name: str, trusted: bool = False) -> Statistic | None:
        """Statistic of a cost over the finished runs; a trusted time is of runs that had their processors alone."""
        runs = [run for run in self.finished if not (trusted and name in TIMES and run.disturbed)]
        return Statistic.of(value for run in runs if (value := run.cost(name)) is not None)


Measure = Callable[[Group], Statistic | None]


@dataclass(frozen=True)
class Comparison:
    """Groups in the order of their settings, estimators and falling keep rate."""

    groups: tuple[Group, ...]
    accuracy: str | None  # name of the metric that counts as accuracy, None if the runs have none
    results: Results  # what was read, runs included that failed before their settings were known

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        strays = (run for run in self.results.runs if run.summary.run is None)
        return (*(run for group in self.groups for run in group.runs), *strays)

    @property
    def problems(self) -> tuple[Run, ...]:
        """The runs that did not finish."""
        return tuple(run for run in self.runs if not run.finished)

    def exact(self, group: Group) -> Group | None:
        """The finished exact group with the same settings as another group."""
        same = (g for g in self.groups if g.exact and g.finished and g.conditions == group.conditions)
        return next(same, None)

    def ratio(self, group: Group, measure: Measure) -> float | None:
        """Ratio of a group's mean to that of its exact group; ``None`` if either is unknown or not finite."""
        exact = self.exact(group)
        ours, theirs = measure(group), measure(exact) if exact else None
        ratio = ours.mean / theirs.mean if ours and theirs and theirs.mean else None
        return ratio if ratio is not None and isfinite(ratio) else None

    def label(self, group: Group) -> str:
        """The label of a group: the estimators and settings that distinguish it, without :attr:`Group.keep`."""
        parts = [] if group.exact else [self._estimators(group)]
        parts += [f"{key.rpartition('.')[2]} {value}" for key, value in group.settings]
        return " · ".join(parts) or "exact"

    def _estimators(self, group: Group) -> str:
        weight, input_ = group.weight_vjp, group.input_vjp
        if weight == EXACT == input_:
            return "exact"
        if input_ == EXACT:
            both = any(g.input_vjp != EXACT for g in self.groups)
            return self._name(weight) + (" (weight VJP)" if both else "")
        if weight == EXACT:
            return f"{self._name(input_)} (input VJP)"
        if weight.keep == input_.keep:
            names = [self._name(weight), self._name(input_)]
            return " + ".join(dict.fromkeys(names)) + " (both VJPs)"
        return f"{self._name(weight)} (weight VJP), {self._name(input_)} {input_.rate} (input VJP)"

    def _name(self, estimate: Estimate) -> str:
        """Class name, with the options in which estimators of that class differ; mappings of the same are numbered."""
        others = [e for g in self.groups for e in (g.weight_vjp, g.input_vjp) if e.name == estimate.name]
        if estimate.by_layer:
            alike = list(dict.fromkeys(other.options for other in others if other.parts == estimate.parts))
            number = f", mapping {1 + alike.index(estimate.options)}" if len(alike) > 1 else ""
            return f"by layer: {estimate.parts}{number}"
        differ = {key for key, value in estimate.options if any(dict(e.options).get(key) != value for e in others)}
        told = [f"{key}={value}" for key, value in estimate.options if key in differ]
        return f"{estimate.name}({', '.join(told)})" if told else estimate.name


def compare(results: Results) -> Comparison:
    """Group runs by estimators and by the settings in which they differ; seeds and places written to do not count."""
    runs = [run for run in results.runs if run.summary.run is not None]
    settings = [_settings(run) for run in runs]
    if len({one[LAYERS] for one in settings if LAYERS in one}) == 1:  # exact runs have none, which is no difference
        for one in settings:
            one.pop(LAYERS, None)
    telling = _telling(settings)
    members: dict[tuple[Estimate, Estimate, tuple[tuple[str, str], ...]], list[Run]] = {}
    for run, one in zip(runs, settings, strict=True):
        told = tuple((key, one[key]) for key in telling if key in one)
        members.setdefault((run.estimate("weight_vjp"), run.estimate("input_vjp"), told), []).append(run)
    groups = [Group(*key, tuple(group)) for key, group in members.items()]
    groups.sort(key=_order)
    return Comparison(tuple(groups), _accuracy(runs), results)


def _order(group: Group) -> tuple[object, ...]:
    weight, input_ = group.weight_vjp, group.input_vjp
    names = (not group.exact, weight.name, str(weight.options), input_.name, str(input_.options))
    return (group.settings, *names, -weight.keep, -input_.keep)


def _settings(run: Run) -> dict[str, str]:
    described = run.summary.run
    classes = {"model": described.model, "data": described.data} if described else {}
    settings = {key: value.rpartition(".")[2] for key, value in classes.items() if value} | run.way
    layers = run.summary.estimators.layers if run.summary.estimators else None
    if not run.exact:
        settings[LAYERS] = "all" if layers is None else printable(str(layers))
    settings.update((key, value) for key, value in run.config.items() if not _incidental(key))
    return settings


def _incidental(key: str) -> bool:
    own = any(key == name or key.startswith(f"{name}.") for name in INCIDENTAL)
    return own or any(part in INCIDENTAL_PARTS for part in key.split("."))


def _telling(settings: list[dict[str, str]]) -> list[str]:
    """The first keys that together distinguish all settings that differ in any key; preset and lean mode come first."""
    keys = dict.fromkeys((*WAY, *(key for one in settings for key in one)))
    told: list[str] = []
    parts = 1
    for key in keys:
        finer = len({tuple(one.get(name) for name in (*told, key)) for one in settings})
        if finer > parts:
            told, parts = [*told, key], finer
    return told


def _accuracy(runs: list[Run]) -> str | None:
    names = sorted({name for run in runs for name in run.metrics if "acc" in name.lower()})
    for stage in ("test", "val"):
        found = [name for name in names if name.startswith(stage)]
        if found:
            return f"{stage}/accuracy" if f"{stage}/accuracy" in found else found[0]
    return None
