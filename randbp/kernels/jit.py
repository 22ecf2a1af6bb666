"""How numba compiles kernels, and how these share the processor with PyTorch's: as many threads."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial, wraps
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .operator import LOST_THREADS


@cache
def _most_threads() -> int:
    """Threads that numba may use: as many as there were when it was imported."""
    return int(numba.get_num_threads())


function = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compile a function that kernels call. Division by zero gives what IEEE says; nothing is reordered or fused."""


inlined = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
"""Compile a function of single entries that becomes part of the loops that call it, so that these take many at once."""


part = numba.extending.register_jitable(error_model="numpy")
"""Let kernels call a function that is passed to the function that makes them.

Numba keeps a kernel on disk only if what it closes over is not compiled yet."""


summing = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
"""Compile a function whose sums are taken in an order of the compiler's, many at a time."""


contracting = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
"""The same, with multiplications and additions that may be rounded once."""


def parallel(kernel: Callable[..., Any]) -> Callable[..., None]:
    """Compile a kernel whose ``prange`` runs in as many threads as PyTorch's own operations.

    The last argument of a kernel is the number of parts into which its work is cut; one part takes one thread. Callers
    leave it out. They give tensors, which the kernel sees as :func:`arrays <array>` without gaps, dtypes, which it sees
    as :func:`kinds <kind>`, numbers and arrays, and say how much work there is:

    - ``entries`` of a tensor, of which a part has many; nothing happens if there are none. Or ``tasks``, the parts.
    - ``room``, a block's entries and a dtype, if each part needs :func:`buffers <_room>`: they follow the arguments.

    A kernel is compiled when it first runs with arguments of new types, and the result is kept on disk.
    """
    compiled = numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")(kernel)

    @wraps(kernel)
    def run(
        *arguments: Any, entries: int = 0, tasks: int | None = None, room: tuple[int, torch.dtype] | None = None
    ) -> None:
        parts = parts_of(entries) if tasks is None else tasks
        if not parts:
            return
        given = list(arguments)
        for place, each in enumerate(arguments):
            if type(each) not in _PLAIN:
                given[place] = kind(each) if isinstance(each, torch.dtype) else array(each)
        buffers = () if room is None else _room(parts, *room)
        threads = torch.get_num_threads()
        numba.set_num_threads(max(1, min(threads, parts, _most_threads())))
        with _turn():
            compiled(*given, *buffers, parts)
        _give_back(threads)

    return run


@function
def share(task, tasks, count):
    """The numbers among ``0 … count - 1`` that one of the parts of the work has, as a range."""
    return range(task * count // tasks, (task + 1) * count // tasks)


_PLAIN = {int, float, bool, np.uint64, np.ndarray}
"""Types of arguments that kernels get as they are."""


class _Memory:
    """A tensor's memory as numpy's array interface."""

    __slots__ = ("__array_interface__", "tensor")

    tensor: Tensor  # which lives as long as an array of it
    __array_interface__: dict[str, Any]


_CODES = {
    dtype: np.dtype(str(dtype).removeprefix("torch.")).str
    for dtype in (
        *(torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
} | {torch.float16: "<u2", torch.bfloat16: "<u2"}


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory, or a copy if it has gaps; ``uint16`` for numbers of 16 bits.

    Unlike ``Tensor.numpy`` it lets others resize the memory afterwards, as FSDP2 does when it gives weights back.
    """
    tensor = tensor.contiguous()
    memory = _Memory()
    memory.tensor = tensor = tensor.resolve_neg() if tensor.is_neg() else tensor
    place, code = (tensor.data_ptr(), False), _CODES[tensor.dtype]
    memory.__array_interface__ = {"data": place, "shape": tensor.shape, "typestr": code, "version": 3}
    return np.asarray(memory)


FLOAT, BFLOAT16, FLOAT16 = 0, 1, 2
"""What the entries of an array are: its own numbers, or the bits of others."""


def kind(dtype: torch.dtype) -> int:
    """Which of the kinds a dtype's entries are."""
    return {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}.get(dtype, FLOAT)


def numbers(values: Sequence[float], dtype: torch.dtype) -> np.ndarray:
    """Numbers of single or double precision for a kernel, in which each literal would be of double precision."""
    return np.array(values, np.float64 if dtype == torch.float64 else np.float32)


def parts_of(entries: int) -> int:
    """Into how many parts so much work is cut: a few for each thread, one where it is too small to be shared.

    Example:
        >>> parts_of(0), parts_of(1000)
        (0, 1)
    """
    return min(entries, 1) if entries < _LEAST else min(4 * torch.get_num_threads(), entries // _EACH)


_LEAST, _EACH = 2**15, 2**13
"""Entries from which on several threads share the work, and that each part has at least [entries]."""


def _room(parts: int, block: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Arrays that each part of the work may use: two blocks of numbers, and two of ``uint32``.

    Arrays that a kernel makes itself, and all their slices, are counted by atomic instructions, which take as long as
    the work on a block.
    """
    shape = parts, 2, -(-block // 8) * 8
    return np.empty(shape, np.float64 if dtype == torch.float64 else np.float32), np.empty(shape, np.uint32)


@cache
def _give_back(threads: int) -> None:
    """Numba's first parallel loop sets the number of threads that PyTorch shares: set it as it was."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@cache
def _watched() -> None:
    """Children that are forked from now on know that numba's threads did not come along."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(LOST_THREADS.append, True))


_ONE_AT_A_TIME, _AT_ONCE = threading.Lock(), nullcontext()


def _turn() -> AbstractContextManager[Any]:
    _watched()
    try:
        layer = numba.threading_layer()
    except ValueError:  # nothing has run yet; two threads must not start it together
        return _ONE_AT_A_TIME
    return _ONE_AT_A_TIME if layer == "workqueue" else _AT_ONCE
