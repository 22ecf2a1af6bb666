"""Runs as their folders tell them: summary, configuration, loss curve."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
LOSSES = ("train/loss", "train/loss_step", "train_loss", "train_loss_step", "train/loss_epoch", "loss")


@dataclass(frozen=True)
class Estimate:
    """The estimator of one VJP in a run: class name, keep rate, and its other options."""

    name: str = "Exact"
    keep: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()


EXACT = Estimate()


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder.

    Args:
        folder: Where the run wrote its files.
        name: The folder's name relative to the folder of all runs.
        summary: Content of ``summary.json``.
    """

    folder: Path
    name: str
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary.get("status") == "finished"

    @property
    def problem(self) -> str | None:
        """Why the run is not finished, in one line; ``None`` if it is."""
        if self.finished:
            return None
        if self.summary.get("status") == "running":
            return "still running, or stopped without a word"
        return str(self.summary.get("error") or "failed without a message")

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.summary.get("run", {}).get("seed")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Last value of every metric."""
        return {name: float(value) for name, value in self.summary.get("metrics", {}).items()}

    def cost(self, name: str) -> float | None:
        """A cost by its name in ``summary.json``, ``None`` if it was not measured."""
        value = self.summary.get("cost", {}).get(name)
        return None if value is None else float(value)

    def estimate(self, vjp: str) -> Estimate:
        """The estimator of ``"weight_vjp"`` or ``"input_vjp"``; all exact ones are the same."""
        fields = dict((self.summary.get("estimators") or {}).get(vjp) or {})
        name, keep = fields.pop("name", "Exact"), fields.pop("keep", None)
        if keep is None or float(keep) == 1:
            return EXACT
        return Estimate(name, float(keep), tuple(sorted((key, _option(value)) for key, value in fields.items())))

    @property
    def exact(self) -> bool:
        """Whether both VJPs are exact."""
        return self.estimate("weight_vjp") == EXACT == self.estimate("input_vjp")

    @cached_property
    def config(self) -> dict[str, str]:
        """The run's ``config.yaml`` with nested keys joined by dots, empty where there is none."""
        import yaml

        try:
            return _flat(yaml.safe_load((self.folder / "config.yaml").read_text()) or {})
        except (OSError, yaml.YAMLError):
            return {}

    def loss_curve(self) -> tuple[list[int], list[float]]:
        """Training loss over steps from ``metrics.csv``; empty where there is none."""
        import pandas

        try:
            table = pandas.read_csv(self.folder / "metrics.csv")
        except (OSError, ValueError):  # missing, empty or cut off
            return [], []
        columns = [str(column) for column in table]
        names = [name for name in LOSSES if name in columns]
        names += [name for name in columns if "train" in name and "loss" in name]
        if not names or "step" not in columns:
            return [], []
        rows = table[["step", names[0]]].dropna()
        return [int(step) for step in rows["step"]], [float(loss) for loss in rows[names[0]]]


def load_runs(folder: Path) -> list[Run]:
    """All runs below a folder (or the one in it), in the order of their names; hidden folders are left out.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no run.
        ValueError: If a summary is not valid JSON.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    runs = []
    for path in sorted(folder.rglob(SUMMARY), key=lambda path: natural_key(str(path))):
        inner = path.parent.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        try:
            summary = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not a summary of a run: {error}") from None
        if summary.get("status") == "finished" and not summary.get("cost"):
            continue  # a test of some checkpoint, not a training run
        runs.append(Run(path.parent, folder.resolve().name if inner == Path() else str(inner), summary))
    if not runs:
        raise FileNotFoundError(f"{folder}: no {SUMMARY} in it or below; runs write one with CostMonitor")
    return runs


def natural_key(text: str) -> list[tuple[float, str]]:
    """Sort key that orders numbers in names by value.

    Example:
        >>> sorted(["keep=0.5", "keep=0.25", "v10", "v9"], key=natural_key)
        ['keep=0.25', 'keep=0.5', 'v9', 'v10']
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]


def _option(value: Any) -> str:
    """An estimator's option as text; an estimator within as its class and options.

    The keep rate of one within is left out: it follows from that of the estimator around it.
    """
    if not isinstance(value, dict):
        return str(value)
    if "class" in value:
        options = [f"{key}={_option(one)}" for key, one in value.items() if key not in ("class", "keep")]
        return f"{value['class']}({', '.join(options)})"
    return "; ".join(f"{key}: {_option(one)}" for key, one in value.items())


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        items = (_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
        return {key: text for part in items for key, text in part.items()}
    if isinstance(value, list) and value:
        return _flat(dict(enumerate(value)), prefix)
    return {prefix: str(value)}
