"""PyTorch's profiler of memory, without what it prints."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_ERROR = 2  # level of PyTorch's log from which on messages are errors


def profiler_running() -> bool:
    """Whether a profiler of PyTorch is running in this thread; a second one cannot start."""
    return torch.autograd._profiler_enabled()


@contextmanager
def memory_profile() -> Iterator[profile]:
    """Record every allocation on the CPU within the block.

    Meanwhile PyTorch's C++ code logs errors alone, if it lets us say so: the allocator warns of each thousandth block
    that is older than the profile. Python's warnings and everything else on standard error are untouched.
    """
    # From 2.12 on the profiler's library prints two lines at every start unless it finds this before its first one.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    level, usual = _log_level()
    level.value = max(usual, _ERROR)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
            yield recorded
    finally:
        level.value = usual


@cache
def _log_level() -> tuple[ctypes.c_int, int]:
    """The level of PyTorch's C++ log, for reading and writing, and what it was at first."""
    level = ctypes.c_int()  # where it cannot be found, changing it does nothing
    with suppress(OSError, ValueError, AttributeError):
        (library,) = (Path(torch.__file__).parent / "lib").glob("*c10.*")
        level = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_log_level")
    return level, level.value
