"""Measures a model, as it is and under each preset, in small steps."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import nan, sqrt
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.out_of_memory import is_out_of_memory
from .._torch.storages import tensors_in
from ..diagnostics.gradient_error import error_of
from ..diagnostics.memory_report import report_of
from ..diagnostics.memory_rows import Row
from ..diagnostics.objective import Objective
from ..diagnostics.timing import interleave, seconds_per_call
from ..lean.rules import BY_NAME
from ..randomize import PRESETS, RandomizedHandle, randomize
from ..randomize.layers import is_randomized, layer_state
from .advice import PLAIN, Advice, AdviceRow
from .fixed_bytes import OptimizerLike, fixed_bytes
from .growth import Examples, Sides
from .step_bytes import StepBytes, stretches

SETTINGS = (PLAIN, *PRESETS)
TARGET = 2**27
"""The larger measured step takes about this much without a preset, or half of what there is [bytes]."""
DOUBLINGS = 3
"""How often steps are doubled until two of them have the same stretches."""
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
    ) -> None:
        self.model, self.batch, self.objective, self.memory, self.sizes = model, batch, objective, memory, sizes
        self.seed, self.own_loss = seed, own_loss
        self.device = next((tensor.device for tensor in (*model.parameters(), *tensors_in(batch))), torch.device("cpu"))
        self.steps: tuple[int, int] | None = None  # the two sizes to measure, once they are known
        self.noise = nan
        self.notes: list[str] = []

    def advice(self, optimizer: OptimizerLike, draws: int, rounds: int) -> Advice:
        """Measure all settings."""
        fixed = fixed_bytes(self.model, optimizer)
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
        found = StepBytes()
        small, large = self.steps = self.steps or self._steps(objective, setting, min(TARGET, room / 2))
        if setting == "memory":  # it splits and restores tensors in parts if these are large
            small, large = large, self.sizes.size(2 * self.sizes.amount(large))
        for _ in range(DOUBLINGS + 1):
            for size in (small, large):
                self.measure(found, setting, objective, size)
            if found.aligned(*map(self.sizes.amount, (small, large))):
                break
            small, large = large, self.sizes.size(2 * self.sizes.amount(large))
        else:
            self.notes.append(f"{setting}: not linear: steps of {small} and {large} consist of different operations.")
        for _ in range(3):  # what fits is small enough to be measured
            largest = found.largest(room, self.sizes.amount, self.sizes.step)
            near = max(largest, self.sizes.step)
            if near > large or self.sizes.amount(near) in found.measured:
                break
            self.measure(found, setting, objective, near)
        total, each = found.at(self.sizes.amount(max(largest, self.sizes.step)))
        examined = self.sizes.of(self.batch, small)
        report = report_of(self.model, lambda: objective(examined), examined)
        return AdviceRow(
            setting=setting,
            unit_bytes=each,
            largest=largest,
            bytes=total + self.memory - room,
            noise=self.added_noise(setting, objective, draws) if draws else nan,
            held_bytes=report.held_bytes,
            held=tuple(replace(row, why=_why(self.model, row)) for row in report.rows[:MOST_ROWS]),
            measured_at=small,
        )

    def _steps(self, objective: Objective, setting: str, target: float) -> tuple[int, int]:
        """Two sizes, of which the larger takes about ``target`` bytes."""
        size = self.sizes.given if isinstance(self.sizes, Sides) else 2
        for _ in range(2):
            probe = StepBytes()
            self.measure(probe, setting, objective, size)
            amount = self.sizes.amount(size)
            size = self.sizes.size(amount * max(0.0, target) / max(1.0, probe.at(amount)[0]))
            if 0.5 < self.sizes.amount(size) / amount < 2:
                break
        large = max(size, 2 * self.sizes.step)
        return min(self.sizes.size(self.sizes.amount(large) / 2), large - self.sizes.step), large

    def measure(self, found: StepBytes, setting: str, objective: Objective, size: int) -> None:
        """Measure a step of some size."""
        batch = self.sizes.of(self.batch, size)
        try:
            if setting != PLAIN:  # layers are timed and tables filled when shapes are new
                objective(batch).backward()
            found.measured[self.sizes.amount(size)] = stretches(self.model, objective, batch, self.device)
        except RuntimeError as error:
            if size == self.sizes.given or is_out_of_memory(error):
                raise
            what = " ".join(str(error).split())
            raise ValueError(f"batch: the model refuses one whose {self.sizes.title} is {size}: {what}") from error
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None

    def added_noise(self, setting: str, objective: Objective, draws: int) -> float:
        """The root mean square error of the gradient over its length; the first one also measures the minibatch's."""
        if setting in (PLAIN, "exact"):
            return 0.0
        batch = self.batch
        if isinstance(self.sizes, Examples) and self.steps is not None and self.steps[1] < self.sizes.given:
            batch = self.sizes.of(batch, self.steps[1])
        error = error_of(self.model, batch, objective, draws, 16 if setting == "memory" else 0, seed=self.seed)
        if error.model.noise is not None:
            self.noise = error.model.noise.estimate
        return sqrt(max(0.0, error.model.variance.estimate))

    def seconds(self, settings: list[str], rounds: int) -> dict[str, float]:
        """Median seconds of a step of the smaller size in each setting."""
        assert self.steps is not None
        batch = self.sizes.of(self.batch, self.steps[0])

        def step(objective: Objective) -> None:
            objective(batch).backward()
            for parameter in self.model.parameters():
                parameter.grad = None

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
