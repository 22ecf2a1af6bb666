"""Checks of a checkpoint before anything is created."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from randbp.randomize.selection import shortened

from .errors import UsageError

NAMES = ("best", "last", "hpc")  # names that Lightning looks up itself
SHOWN = 3  # most parameter names in a message


def check_file(option: str, path: str) -> dict[str, Any] | None:
    """Read a checkpoint file and check its form; ``None`` where only Lightning can tell."""
    if path in NAMES or "://" in path or path.startswith("registry"):
        return None
    if not Path(path).exists():
        raise UsageError(f"{option}={path}: no such file")
    if Path(path).is_dir():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise UsageError(f"{option}={path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever reading nonsense as a pickle or an archive may raise
        found = re.search(r"GLOBAL (\S+)|(?:type|class|global|function) (\S+\.\S+)", str(error))
        what = "not a checkpoint, or damaged"
        if found and isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            what = f"holds more than tensors and plain values ({found[1] or found[2]}), not loaded"
        raise UsageError(f"{option}={path}: {what}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"{option}={path}: not a checkpoint of Lightning, expected one with a state_dict in it")
    return content


def check_content(option: str, path: str, content: dict[str, Any], model: LightningModule, train: bool) -> None:
    """Check that a checkpoint fits a model, to be trained if ``train``; Lightning judges where hooks change either."""
    if train and not {"loops", "optimizer_states", "lr_schedulers"} <= content.keys():
        raise UsageError(f"{option}={path}: holds weights alone, expected the state of a training")
    late = any(is_overridden(hook, model) for hook in ("configure_model", "setup", "on_load_checkpoint"))
    if late or not model.strict_loading:
        return
    states = model.state_dict(), content["state_dict"]
    own, given = ({key: getattr(it, "shape", None) for key, it in state.items()} for state in states)
    faults = {
        "lacks": [key for key in own if key not in given],
        "has": [key for key in given if key not in own],
        "has another size of": [key for key in own if len({own[key], given.get(key)} - {None}) > 1],
    }
    found = [f"{how} {shortened([*map(repr, keys)], SHOWN)}" for how, keys in faults.items() if keys]
    if found:
        raise UsageError(f"{option}={path}: of another model than {type(model).__name__}: {', '.join(found)}")
