"""A training run described in plain data."""

import math
import os
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..estimators import Estimator, plain_estimator


def describe_run(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Describe what is trained on what; the network is the module's attribute ``model`` or the module itself."""
    network = getattr(module, "model", None)
    loader: Any = trainer.train_dataloader
    data = getattr(trainer, "datamodule", None) or getattr(loader, "dataset", None)
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
    return {
        "module": _class_name(module),
        "model": _class_name(network if isinstance(network, nn.Module) else module),
        "data": None if data is None else _class_name(data),
        "batch_size": getattr(loader, "batch_size", None),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seed": None if seed is None else int(seed),
        "precision": str(trainer.precision),
        "devices": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def describe_estimators(trainer: Trainer) -> dict[str, Any] | None:
    """Settings of the estimators in the Trainer's callbacks; ``None`` if no callback has any.

    For each VJP these are the estimator's fields and its class as ``name`` (that of an estimator within it as
    ``class``). Of estimators by layer, ``name`` is ``"PerLayer"``, ``keep`` the mean of their keep rates, and
    ``estimators`` has the fields of each by its name or glob.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        found = {name: getattr(callback, name, None) for name in ("weight_vjp", "input_vjp")}
        if any(hasattr(estimator, "keep") or isinstance(estimator, Mapping) for estimator in found.values()):
            settings: dict[str, Any] = {name: _estimator_fields(found[name]) for name in found}
            lean = getattr(callback, "lean", None) or None
            settings |= {"layers": getattr(callback, "layers", None), "preset": getattr(callback, "preset", None)}
            return settings | {"lean": lean, "bits": getattr(callback, "bits", None) if lean else None}
    return None


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Names of the metrics that are not finite: the training may have diverged."""
    return sorted(name for name, value in metrics.items() if not math.isfinite(value))


def _estimator_fields(estimator: Any) -> dict[str, Any] | None:
    if estimator is None:
        return None
    if isinstance(estimator, Mapping):
        keep = fmean(one.keep for one in estimator.values()) if estimator else 1.0
        each = {pattern: _estimator_fields(one) for pattern, one in estimator.items()}
        return {"name": "PerLayer", "keep": keep, "estimators": each}
    fields = plain_estimator(estimator) if isinstance(estimator, Estimator) else {}
    fields.pop("class", None)
    return {"name": type(estimator).__name__, "keep": getattr(estimator, "keep", None)} | fields


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
