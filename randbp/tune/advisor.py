"""Measures a model, as it is and under each preset, in small steps."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf, nan, sqrt
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.out_of_memory import is_out_of_memory
from .._torch.storages import tensors_in
from ..diagnostics.gradient_error import error_of
from ..diagnostics.memory_report import report_of
from ..diagnostics.memory_rows import Row
from ..diagnostics.objective import Objective
from ..diagnostics.peak_memory import available_bytes
from ..diagnostics.timing import interleave, seconds_per_call
from ..lean.rules import BY_NAME
from ..randomize import PRESETS, RandomizedHandle, randomize
from ..randomize.layers import is_randomized, layer_state
from .advice import PLAIN, Advice, AdviceRow
from .fixed_bytes import OptimizerLike, fixed_bytes
from .growth import Examples, Sides
from .regime import as_if_larger
from .step_bytes import CLOSE, StepBytes, stretches

SETTINGS = (PLAIN, *PRESETS)
GUESS = {"exact": 1.0, "memory": 3.0, "time": 1.0}
"""The first measured size, as a multiple of the largest that fits without a preset."""
LONGEST = 2.0
"""Steps that would take longer are extrapolated to [seconds]."""
TIMED = 0.2
"""About the time of the steps whose times are compared [seconds]."""
SHARE = 0.5
"""Of the memory that there is now, a measured step on the host takes at most this part [1]."""
FARTHEST = 4
"""No step is measured that may take this many times the given memory [1]."""
ROUNDS = 6
TWICE = 2
"""Sizes are worth a measurement if they are more than this many times those that were measured [1]."""
ALIKE = 1.25
"""Steps whose sizes differ by at most this factor are made of the same operations."""
MOST_ROWS = 3


class Advisor:
    """Measures one model."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        objective: Objective,
        memory: int,
        sizes: Examples | Sides,
        seed: int,
        own_loss: bool,
        longest: float,
    ) -> None:
        self.model, self.batch, self.objective, self.memory, self.sizes = model, batch, objective, memory, sizes
        self.seed, self.own_loss, self.longest = seed, own_loss, longest
        self.device = next((tensor.device for tensor in (*model.parameters(), *tensors_in(batch))), torch.device("cpu"))
        self.plain = StepBytes()
        self.pace = 0.0  # of the last measured step [seconds per unit]
        self.compared = 1  # the size of the steps whose times are compared
        self.noise = nan
        self.notes: list[str] = []

    def advice(self, optimizer: OptimizerLike, draws: int, rounds: int) -> Advice:
        """Measure all settings."""
        fixed = fixed_bytes(self.model, optimizer)
        self.forget_gradients()
        room = self.memory - sum(fixed.values())
        rows = [self.row(setting, room, draws) for setting in SETTINGS]
        seconds = self.seconds([row.setting for row in rows if row.measured_at], rounds) if rounds else {}
        rows = [_timed(row, seconds) for row in rows]
        return Advice(
            rows=tuple(rows),
            memory=self.memory,
            fixed=fixed,
            given=self.sizes.given,
            grows=self.sizes.title,
            unit=self.sizes.unit,
            compared=self.compared,
            minibatch_noise=self.noise,
            notes=tuple(self.notes),
        )

    @contextmanager
    def under(self, setting: str) -> Iterator[Objective]:
        """The loss as a function of the batch, with a preset at work."""
        if setting == PLAIN:
            yield self.objective
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that stay exact, which the rest of the table shows
            handle = randomize(self.model, preset=setting, seed=self.seed)  # type: ignore[arg-type]
        with handle:
            yield partial(_in_lean, handle, self.objective) if self.own_loss else self.objective

    def row(self, setting: str, room: int, draws: int) -> AdviceRow:
        """Measure one setting; what does not even fit here stays unmeasured."""
        try:
            with self.under(setting) as objective:
                return self._row(setting, objective, room, draws)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.notes.append(f"{setting}: the smallest steps did not fit here, so nothing was measured.")
        return AdviceRow(setting)

    def _row(self, setting: str, objective: Objective, room: int, draws: int) -> AdviceRow:
        found = self.fitted(setting, objective, room)
        largest = found.largest(room, self.sizes.amount, self.sizes.step)
        total, each = found.at(self.sizes.amount(max(largest, self.sizes.step)))
        if setting == PLAIN:
            self.plain = found
            self.compared = min(self.sizes.size(TIMED / self.pace), self.sizes.size(max(found.measured)))
        examined = self.sizes.of(self.batch, self.compared)
        report = report_of(self.model, lambda: objective(examined), examined)
        return AdviceRow(
            setting=setting,
            unit_bytes=each,
            largest=largest,
            bytes=total + self.memory - room,
            noise=self.added_noise(setting, objective, draws) if draws else nan,
            held_bytes=report.held_bytes,
            held=tuple(replace(row, why=_why(self.model, row)) for row in report.rows[:MOST_ROWS]),
            measured_at=self.sizes.size(max(found.measured)),
            given_bytes=found.at(self.sizes.amount(self.sizes.given))[0] + self.memory - room,
        )

    def fitted(self, setting: str, objective: Objective, room: float) -> StepBytes:
        """Bytes of steps around the largest size that fits or, if these take too long, of two smaller ones.

        Each round tells the next one where to measure, until they agree. So what is read off at the end lies beside a
        measurement, whatever depends on sizes, such as scratch memory of PyTorch's kernels. Where that cannot be, lean
        mode treats the tensors of the smaller steps as it will treat the large ones.
        """
        found, most, aim, whole = StepBytes(), inf, self._first(setting, room), True
        for number in range(ROUNDS):
            before, size = aim, self.sizes.size(min(self.sizes.amount(aim), most, self._reach(found, room)))
            close = self.sizes.amount(aim) <= CLOSE * self.sizes.amount(size)
            if not (close and whole):
                found = StepBytes()
            whole = close
            try:
                with as_if_larger(self.sizes.amount(aim) / self.sizes.amount(size)):
                    self.measure(found, setting, objective, size, warm=True)
                if not whole:
                    half = self.sizes.smaller(size)
                    with as_if_larger(self.sizes.amount(aim) / self.sizes.amount(half)):
                        self.measure(found, setting, objective, half, warm=False)
            except Exception as error:
                if size == self.sizes.step or number == ROUNDS - 1 or not is_out_of_memory(error):
                    raise
                most = self.sizes.amount(size) / 2
                continue
            aim = max(self.sizes.step, found.largest(room, self.sizes.amount, self.sizes.step))
            ratio = self.sizes.amount(max(before, aim)) / self.sizes.amount(min(before, aim))
            grown = self.sizes.size(min(self.sizes.amount(aim), most, self._reach(found, room)))
            if ratio <= (CLOSE if whole else ALIKE) and self.sizes.amount(grown) <= TWICE * self.sizes.amount(size):
                break
        return found

    def _first(self, setting: str, room: float) -> int:
        if setting == PLAIN or not self.plain.measured:
            return self.sizes.given if isinstance(self.sizes, Sides) else 2
        fits = self.sizes.amount(self.plain.largest(room, self.sizes.amount, self.sizes.step))
        return self.sizes.size(min(GUESS[setting] * fits, self._reach(self.plain, room)))

    def _reach(self, found: StepBytes, room: float) -> float:
        """The largest amount that can be measured here: as far as memory and time allow."""
        found = found if found.measured else self.plain
        if not found.measured:
            return inf
        known = max(found.measured)
        free = available_bytes(self.device) if self.device.type in ("cpu", "cuda") else None
        bytes = min(
            FARTHEST * max(1.0, room), inf if free is None else (SHARE if self.device.type == "cpu" else 1) * free
        )
        # Not one example, which BatchNorm may refuse.
        return max(2.0, min(bytes * known / max(1, max(found.measured[known])), self.longest / self.pace))

    def measure(self, found: StepBytes, setting: str, objective: Objective, size: int, warm: bool) -> None:
        """Measure a step of some size."""
        batch = self.sizes.of(self.batch, size)
        try:
            if warm:  # layers are timed and tables filled when shapes are new
                objective(batch).backward()
            started = perf_counter()
            found.measured[self.sizes.amount(size)] = stretches(self.model, objective, batch, self.device)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            if warm:  # less of a large step's time is spent by the profiler and on the first calls
                self.pace = (perf_counter() - started) / self.sizes.amount(size)
        except RuntimeError as error:
            if size == self.sizes.given or is_out_of_memory(error):
                raise
            what = " ".join(str(error).split())
            raise ValueError(f"batch: the model refuses one whose {self.sizes.title} is {size}: {what}") from error
        finally:
            self.forget_gradients()

    def forget_gradients(self) -> None:
        """Give up all gradients; those of before are kept by whoever called."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def added_noise(self, setting: str, objective: Objective, draws: int) -> float:
        """The root mean square error of the gradient over its length; the first one also measures the minibatch's."""
        if setting in (PLAIN, "exact"):
            return 0.0
        batch = self.batch
        if isinstance(self.sizes, Examples) and self.compared < self.sizes.given:
            batch = self.sizes.of(batch, self.compared)
        error = error_of(self.model, batch, objective, draws, 16 if setting == "memory" else 0, seed=self.seed)
        if error.model.noise is not None:
            self.noise = error.model.noise.estimate
        return sqrt(max(0.0, error.model.variance.estimate))

    def seconds(self, settings: list[str], rounds: int) -> dict[str, float]:
        """Median seconds of a step in each setting."""
        batch = self.sizes.of(self.batch, self.compared)

        def step(objective: Objective) -> None:
            objective(batch).backward()
            self.forget_gradients()

        def run(setting: str, times: int = 1) -> float:
            with self.under(setting) as objective:
                return seconds_per_call(partial(step, objective), times, self.device)

        contenders = {setting: partial(run, setting) for setting in settings}

        def read(contender: Callable[..., float], times: int) -> float:
            return contender(times)

        readings = interleave(contenders, read, (rounds, rounds))
        return {setting: median(found) for setting, found in readings.items()}


def _in_lean(handle: RandomizedHandle, objective: Objective, batch: Any) -> Tensor:
    with handle.lean():
        return objective(batch)


def _timed(row: AdviceRow, seconds: dict[str, float]) -> AdviceRow:
    return replace(row, time_ratio=seconds.get(row.setting, nan) / seconds.get(PLAIN, nan))


def _why(model: nn.Module, row: Row) -> str:
    """Why this is held, or what holds it."""
    if row.why or row.hidden or row.operation in BY_NAME:
        return row.why
    module = dict(model.named_modules()).get(row.module)
    if module is not None and is_randomized(module):
        return f"by {layer_state(module).weight_vjp}"
    return "by lean mode, in the bits that it needs"
