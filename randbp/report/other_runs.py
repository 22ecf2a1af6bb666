"""Runs that other programs wrote: plain CSV files and offline folders of W&B."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import pandas
from pydantic import ValidationError

from .damaged import Damaged, reading
from .printable import printable
from .run import Run
from .run_files import LOSSES, flat_config, losses_of, read_config
from .summary_file import Summary, what_is_wrong
from .wandb_file import read_wandb

RUN, STEP = "run", "step"
KEEP, ESTIMATOR = ("keep", "keep_rate"), ("estimator", "weight_vjp")
SEEDS, COSTS = ("seed", "seed_everything"), ("step_seconds", "held_bytes", "peak_bytes")
OURS = "tensor_dropout.weight_vjp"  # where configurations of ``randbp fit`` have the estimator
SETTINGS = (RUN, *KEEP, *ESTIMATOR, *SEEDS)


def read_csv_runs(path: Path, name: str) -> list[Run]:
    """Read the runs in a CSV file with a row per step, whose columns are found by name.

    ``step`` and a training loss (``loss``, ``train/loss``, ``train_loss``) must be there. ``run`` tells several runs
    apart; ``seed``, ``estimator`` and ``keep`` describe them, further texts are settings; ``step_seconds``,
    ``held_bytes`` and ``peak_bytes`` are costs; of all other numbers the last one counts, as a metric. Settings may
    also stand in ``config.yaml`` or ``hparams.yaml`` beside the file.

    Raises:
        Damaged: If a column is missing, or a value cannot be meant.
    """
    with reading(path, "CSV"):
        table = pandas.read_csv(path, low_memory=False)
    columns = [str(column) for column in table]
    missing = [] if STEP in columns else [STEP]
    missing += [] if any(each in columns for each in LOSSES) or _has_loss(columns) else ["loss (or train/loss)"]
    if missing:
        raise Damaged(path, printable(f"no column {' and no column '.join(missing)}, found {', '.join(columns)}"))
    beside: dict[str, str] = {}
    for config in ("config.yaml", "hparams.yaml"):
        beside |= read_config(path.with_name(config))
    parts = table.groupby(RUN, sort=False) if RUN in columns else [("", table)]
    return [_run(path, "/".join(filter(None, (name, str(which)))), part, beside, {}) for which, part in parts]


def read_wandb_run(path: Path, name: str) -> Run:
    """Read the offline run of W&B in a ``.wandb`` file."""
    found = read_wandb(path)
    config = dict(flat_config({key: value for key, value in found.config.items() if key != "_wandb"}))
    table = pandas.DataFrame(found.history)
    if STEP not in table:
        known = next((each for each in ("trainer/global_step", "_step") if each in table), None)
        table[STEP] = table[known] if known else range(len(table))
    return _run(path, name, table, config, found.summary)


def _has_loss(columns: list[str]) -> bool:
    return any("train" in column and "loss" in column for column in columns)


def _run(path: Path, name: str, table: pandas.DataFrame, config: Mapping[str, str], summary: Mapping[str, Any]) -> Run:
    """A finished run from the rows of its history, its settings, and values that are known of its end."""
    texts, values = dict(config), {}
    for column in table:
        rows = table[column].dropna()
        if len(rows) and (column in SETTINGS or not pandas.api.types.is_numeric_dtype(rows)):
            texts[str(column)] = str(rows.iloc[-1])
        elif len(rows) and column != STEP:
            values[str(column)] = float(rows.iloc[-1])
    values |= {key: float(each) for key, each in summary.items() if isinstance(each, int | float)}
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    costs = {
        key: values[each] for key in COSTS for each in (key, f"cost/{key}") if isfinite(values.get(each, float("nan")))
    }
    metrics = {key: value for key, value in values.items() if not key.startswith("cost/") and key not in costs}
    keep = _first(texts, (*KEEP, f"{OURS}.init_args.keep", f"{OURS}.keep"))
    told = _first(texts, (*ESTIMATOR, f"{OURS}.class_path"))
    try:
        rate = 1.0 if keep is None else float(keep)
        seed = _first(texts, SEEDS)
        content = {
            "format": 1, "status": "finished", "run": {"seed": None if seed is None else int(float(seed))},
            "estimators": {"weight_vjp": {"name": (told or "estimate").rpartition(".")[2], "keep": rate}},
            "cost": costs,
            "metrics": metrics,
        }  # fmt: skip
        kept = {key: text for key, text in texts.items() if key not in SETTINGS}
        return Run(printable(name), Summary.model_validate(content), kept, losses_of(path, table))
    except ValidationError as error:
        raise Damaged(path, what_is_wrong(error)) from error
    except ValueError as error:
        raise Damaged(
            path, printable(f"keep={keep}, seed={_first(texts, SEEDS)}: {error}, expected numbers")
        ) from error


def _first(texts: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((texts[name] for name in names if name in texts), None)
