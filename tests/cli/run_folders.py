"""Folders of runs as training leaves them, without the training."""

import json
from pathlib import Path
from typing import Any

import pandas

MIB = 2**20


def write_run(folder: Path, keep: float | None = 1.0, seed: int = 0, **changes: Any) -> None:
    """A run's folder as a training run leaves it, with costs that depend on keep rate and seed."""
    folder.mkdir(parents=True)
    share = 1.0 if keep is None else keep
    cost = {
        "step_seconds": (0.05 + 0.05 * share) * (1 + 0.1 * seed),
        "step_seconds_q25": 0.04,
        "step_seconds_q75": 0.2,
        "steps_timed": 95,
        "waiting_threads": 0.01,
        "held_bytes": round((10 + 30 * share) * MIB),
        "peak_bytes": 600 * MIB + seed * MIB,
        "start_bytes": 490 * MIB,
        "peak_source": "peak resident set of the process, libraries included",
    }
    estimator = {"name": "Spatial", "keep": share, "per_example": True, "center": True, "runs": True}
    summary: dict[str, Any] = {
        "format": 1,
        "status": "finished",
        "error": None,
        "started": "2026-01-02T03:04:05+00:00",
        "run": {"model": "nets.Net", "data": "sets.Digits", "parameters": 1234, "batch_size": 32, "seed": seed},
        "estimators": {"weight_vjp": estimator, "input_vjp": {"name": "Exact", "keep": 1.0}, "layers": None},
        "progress": {"epochs": 3, "max_epochs": 3, "steps": 30},
        "cost": cost,
        "metrics": {"val/accuracy": 0.5, "test/accuracy": 0.9004 - 0.1 * (1 - share) + 0.01 * seed},
        "environment": {"torch": "2.13.0", "device": "cpu"},
        "fit_seconds": 12.5,
    }
    if keep is None:
        summary["estimators"] = None
    for key, value in changes.items():
        summary[key] = summary[key] | value if isinstance(value, dict) else value
    (folder / "summary.json").write_text(json.dumps(summary))
    steps = range(0, 300, 3)
    pandas.DataFrame({"step": steps, "train/loss": [2.0 / (1 + step) + seed for step in steps]}).to_csv(
        folder / "metrics.csv", index=False
    )
