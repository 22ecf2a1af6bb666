"""Timing of a repeated step, without synchronising a GPU at every step."""

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import NamedTuple

import torch


class Quartiles(NamedTuple):
    """Median and quartiles of a sample, in the sample's unit."""

    q25: float
    median: float
    q75: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles, linearly interpolated between neighbouring values.

    Args:
        values: At least one number.

    Raises:
        ValueError: If there are no values.

    Example:
        >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
        Quartiles(q25=2.0, median=3.0, q75=4.0)
    """
    if not len(values):
        raise ValueError("values=[]: expected at least one number")
    ordered = torch.tensor(values, dtype=torch.float64).sort().values
    position = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) * (len(ordered) - 1)
    below = position.long()
    low, high = ordered[below], ordered[position.ceil().long()]
    return Quartiles(*(low + (high - low) * (position - below)).tolist())


class StepTimer:
    """Seconds between :meth:`start` and :meth:`stop`, step after step.

    On a CUDA device two events are recorded on the current stream and read once the device has passed them,
    so no step waits for the device; the time is then that between the events on the device. Elsewhere it is
    wall-clock time.

    Args:
        device: Where the steps run.
        seconds: Durations of earlier steps, which come first.

    Example:
        >>> timer = StepTimer("cpu")
        >>> for _ in range(3):
        ...     timer.start()
        ...     _ = torch.ones(8).sum()
        ...     timer.stop()
        >>> len(timer.seconds()), min(timer.seconds()) > 0
        (3, True)
    """

    def __init__(self, device: torch.device | str, seconds: Iterable[float] = ()) -> None:
        self.device = torch.device(device)
        self._seconds = array("d", seconds)
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._started: float | torch.cuda.Event | None = None

    def start(self) -> None:
        """Begin a step; a step that was begun and not stopped is forgotten."""
        self._started = self._now()

    def stop(self) -> None:
        """End the step; without an earlier :meth:`start` nothing happens."""
        started, self._started = self._started, None
        if started is None:
            return
        now = self._now()
        if isinstance(now, float):
            assert isinstance(started, float)
            self._seconds.append(now - started)
        else:
            assert not isinstance(started, float)
            self._pending.append((started, now))
            self._read(wait=False)

    def seconds(self) -> list[float]:
        """Durations of all finished steps in seconds; on a GPU this waits for the last of them."""
        self._read(wait=True)
        return self._seconds.tolist()

    def _now(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _read(self, wait: bool) -> None:
        while self._pending and (wait or self._pending[0][1].query()):
            first, last = self._pending.popleft()
            last.synchronize()
            self._seconds.append(first.elapsed_time(last) / 1000)  # CUDA counts milliseconds
