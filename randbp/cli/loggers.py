"""Loggers of metrics: always a CSV file, and W&B where it is installed."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from .metrics_file import MetricsFile

WandbMode = Literal["offline", "online", "disabled"]


def make_loggers(folder: Path, name: str, wandb: WandbMode) -> tuple[MetricsFile, *tuple[Logger, ...]]:
    """Make the loggers of a run: of ``metrics.csv`` and W&B, whose agent (``WANDB_SWEEP_ID``) decides on its mode."""
    file = MetricsFile(folder)
    agent = "WANDB_SWEEP_ID" in os.environ
    mode = os.environ.get("WANDB_MODE", "online") if agent else wandb
    if mode == "disabled":
        return (file,)
    if importlib.util.find_spec("wandb") is None:
        note = "W&B is not installed (pip install wandb): metrics go to metrics.csv only"
        rank_zero_only(print)(note, file=sys.stderr)
        return (file,)
    import wandb as library

    # W&B keeps silent, because its many lines would come between ours; `close_loggers` says what matters.
    library.setup(settings=library.Settings(silent=True))
    # Not `offline=True`, for which WandbLogger changes the environment of whatever runs next.
    options: dict[str, Any] = {} if agent else {"mode": wandb}
    project = os.environ.get("WANDB_PROJECT", "randbp")
    return file, WandbLogger(name, save_dir=str(folder), project=project, **options)


def close_loggers(loggers: list[Logger], failed: bool) -> None:
    """Finish W&B's run, if there is one, and print its location."""
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return
    import wandb as library

    if (run := library.run) is None:
        return
    place = f"wandb sync {Path(run.dir).parent}" if run.offline else run.url
    run.finish(exit_code=int(failed))
    print(f"W&B: {place}")
