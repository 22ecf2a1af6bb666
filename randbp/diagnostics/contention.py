"""Contention for the CPU while a process is timed."""

from contextlib import suppress
from pathlib import Path
from time import perf_counter

_TASKS = Path("/proc/self/task")


class ProcessorWait:
    """Time that this process's threads have waited for a CPU since this object was made.

    A thread that is ready to run but finds all processors taken waits, and with it every parallel loop it is
    part of. Times measured meanwhile say more about the other work on the machine than about the work timed.

    Example:
        >>> wait = ProcessorWait()
        >>> _ = sum(range(100_000))
        >>> wait.threads is None or wait.threads >= 0
        True
    """

    def __init__(self) -> None:
        self._began = perf_counter()
        self._before = _waited_seconds()

    @property
    def threads(self) -> float | None:
        """Average number of waiting threads over time; ``None`` where Linux's scheduler does not report it."""
        now = _waited_seconds()
        if now is None or self._before is None:
            return None
        return max(0.0, now - self._before) / max(perf_counter() - self._began, 1e-9)


def _waited_seconds() -> float | None:
    """Total time that the living threads were ready but not running [seconds]."""
    waited = None
    with suppress(OSError, ValueError, IndexError):
        for task in _TASKS.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                nanoseconds = int((task / "schedstat").read_text().split()[1])
                waited = (waited or 0.0) + nanoseconds * 1e-9
    return waited
