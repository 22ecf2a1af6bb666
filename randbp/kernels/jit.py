"""How numba compiles kernels, and how these share the processor with PyTorch's: as many threads."""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any

import numba
import numpy as np
import torch

from .operator import lost_threads


@cache
def _most_threads() -> int:
    """Threads that numba may use: as many as there were when it was imported."""
    return int(numba.get_num_threads())


function = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compile a function that kernels call. Division by zero gives what IEEE says; nothing is reordered or fused."""


summing = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
"""Compile a function whose sums are taken in an order of the compiler's, many at a time."""


def parallel(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose ``prange`` runs in as many threads as PyTorch's own operations.

    Its last argument is the number of parts that the loop runs over (:func:`tasks`); one part takes one thread. It is
    compiled when it first runs with arguments of new types, and the result kept on disk.
    """
    compiled = numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")(kernel)

    @wraps(kernel)
    def run(*args: Any) -> Any:
        threads = torch.get_num_threads()
        numba.set_num_threads(max(1, min(threads, args[-1], _most_threads())))
        with _turn():
            result = compiled(*args)
        _give_back(threads)
        return result

    return run


@cache
def _give_back(threads: int) -> None:
    """Numba's first parallel loop sets the number of threads that PyTorch shares: set it as it was."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@cache
def _watched() -> None:
    """Children that are forked from now on know that numba's threads did not come along."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lost_threads)


_ONE_AT_A_TIME = threading.Lock()


def _turn() -> AbstractContextManager[Any]:
    _watched()
    try:
        layer = numba.threading_layer()
    except ValueError:  # nothing has run yet; two threads must not start it together
        return _ONE_AT_A_TIME
    return _ONE_AT_A_TIME if layer == "workqueue" else nullcontext()


def room(tasks: int, block: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Arrays that each part of the work may use: two blocks of numbers, and two of ``uint32``.

    Arrays that a kernel makes itself, and all their slices, are counted by atomic instructions, which take as long as
    the work on a block.
    """
    padded = -(-block // 8) * 8
    return np.empty((tasks, 2, padded), dtype), np.empty((tasks, 2, padded), np.uint32)


_LEAST, _EACH = 2**15, 2**13
"""Entries from which on several threads share the work, and that each part has at least [entries]."""


def tasks(entries: int) -> int:
    """Into how many parts so much work is cut: a few for each thread, one where it is too small to be shared.

    Example:
        >>> tasks(1000)
        1
    """
    return 1 if entries < _LEAST else min(4 * torch.get_num_threads(), entries // _EACH)
