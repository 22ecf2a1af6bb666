"""A thread without the caller's modes (autocast, tracing, saved-tensor hooks)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def without_modes(work: Callable[[], T]) -> T:
    """Run ``work`` in such a thread, without grad mode; return its result or raise its error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.no_grad()(work)).result()
