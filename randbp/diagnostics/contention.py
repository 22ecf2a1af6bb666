"""Whether the processor was this process's own while it was timed."""

from contextlib import suppress
from pathlib import Path
from time import perf_counter

_TASKS = Path("/proc/self/task")


class ProcessorWait:
    """How much the threads of this process have waited for a processor since the construction of this object.

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
        """Number of threads that waited, on average over time; ``None`` where Linux's scheduler does not tell."""
        now = _waited_seconds()
        if now is None or self._before is None:
            return None
        return max(0.0, now - self._before) / max(perf_counter() - self._began, 1e-9)


def _waited_seconds() -> float | None:
    """Sum over the living threads of the time each was ready but not running."""
    waited = None
    with suppress(OSError, ValueError, IndexError):
        for task in _TASKS.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                nanoseconds = int((task / "schedstat").read_text().split()[1])
                waited = (waited or 0.0) + nanoseconds * 1e-9
    return waited
