"""Timing: of a repeated step without synchronising a GPU at every step, and of contenders that take turns."""

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from random import Random
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


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
    sample, shares = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, (0.25, 0.5, 0.75)))
    return Quartiles(*sample.quantile(shares).tolist())


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
        self._pending: deque[tuple[Any, Any]] = deque()  # times, or a device's events
        self._started: Any = None

    def start(self) -> None:
        """Begin a step; a step that was begun and not stopped is forgotten."""
        self._started = self._now()

    def stop(self) -> None:
        """End the step; without an earlier :meth:`start` nothing happens."""
        started, self._started = self._started, None
        if started is not None:
            self._pending.append((started, self._now()))
            self._read(wait=False)

    def seconds(self) -> list[float]:
        """Durations of all finished steps in seconds; on a GPU this waits for the last of them."""
        self._read(wait=True)
        return self._seconds.tolist()

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _read(self, wait: bool) -> None:
        cuda = self.device.type == "cuda"
        while self._pending and (wait or not cuda or self._pending[0][1].query()):
            first, last = self._pending.popleft()
            if cuda:
                last.synchronize()
            self._seconds.append(first.elapsed_time(last) / 1000 if cuda else last - first)  # CUDA has milliseconds


def interleave(
    contenders: Mapping[Name, Callable[[], Any]],
    read: Callable[[Callable[[], Any], int], float],
    rounds: tuple[int, int],
    budget: float = 0.0,
) -> dict[Name, list[float]]:
    """Time contenders in turn, so that the machine's drift meets all of them alike: seconds per call in each round.

    The order is random in every round, since what runs before a contender decides what it finds in the cache. Each is
    called twice beforehand, and fast ones several times per reading, so that a reading takes about two milliseconds.
    ``read`` gives the mean seconds of a function called a number of times, such as :func:`seconds_per_call`. Of the
    least and most ``rounds`` as many are made as fit into a ``budget`` of seconds for all of them.
    """
    repeats, total = {}, 0.0
    for name, run in contenders.items():
        run()
        seconds = read(run, 1)
        repeats[name] = max(1, min(1000, int(2e-3 / max(seconds, 1e-7))))
        total += seconds * repeats[name]
    readings: dict[Name, list[float]] = {name: [] for name in contenders}
    names, order = list(contenders), Random(0)
    for _ in range(max(rounds[0], min(rounds[1], int(budget / max(total, 1e-9))))):
        order.shuffle(names)
        for name in names:
            readings[name].append(read(contenders[name], repeats[name]))
    return readings


def seconds_per_call(
    run: Callable[[], Any],
    times: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Mean seconds of a function that is called a number of times, until the device has done the work."""
    started = clock()
    for _ in range(times):
        run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (clock() - started) / times
