"""Query vmap state, and leave autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device; a tensor without data is on no device that autocasts."""
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own, unlike one that a vectorised Jacobian batches."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
