"""The metric that a sweep optimises, and the best run by it."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from .damaged import Damaged
from .run import Run
from .run_files import parse_yaml
from .summary_file import Fields, Text, what_is_wrong

SWEEP = "sweep.yaml"
"""The copy of its file that a sweep leaves in its folder."""


class Target(Fields):
    """``metric`` of a sweep file: its name, and whether it is minimised or maximised."""

    name: Text
    goal: Literal["minimize", "maximize"] = "minimize"  # W&B's default

    def value(self, run: Run) -> float | None:
        """The metric of a run; ``None`` if it is missing or not finite."""
        value = run.metrics.get(self.name)
        if value is None and self.name.startswith("cost/"):  # as the callback logs it
            value = run.cost(self.name.removeprefix("cost/"))
        return value if value is not None and isfinite(value) else None

    def best(self, runs: Sequence[Run]) -> Run | None:
        """The finished run with the best value, or the first of equal ones; ``None`` if none has the metric."""
        sign = -1.0 if self.goal == "minimize" else 1.0
        known = [(sign * value, run) for run in runs if run.finished and (value := self.value(run)) is not None]
        return max(known, key=lambda pair: pair[0])[1] if known else None


def read_target(path: Path) -> Target | None:
    """The metric that a sweep's file names; ``None`` if there is no file or it names none."""
    content = parse_yaml(path)
    metric = content.get("metric") if isinstance(content, dict) else None
    try:
        return None if metric is None else Target.model_validate(metric)
    except ValidationError as error:
        raise Damaged(path, f"metric: {what_is_wrong(error)}") from error
