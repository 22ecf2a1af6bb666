"""Bytes of a training step as functions of its size, from a few small steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.storages import storages, tensors_in
from ..diagnostics.objective import Objective
from ..diagnostics.step_peak import StepPeak

CLOSE = 1.05
"""Amounts that differ by at most this factor count as the same."""
LARGEST = 2**40
"""No larger size is looked for."""


@dataclass
class StepBytes:
    """The peak of a step beyond what is there before it, its batch included, as a function of the amount of data.

    A step consists of stretches, from the entry or exit of a module to the next, in the forward as in the backward
    pass. The peak of each is a straight line in the amount ``a`` of data (examples, or pixels), as long as the same
    operations run, so the peak of the step is ``max_s (c_s + b_s a)``: which stretch has it may change with ``a``, and
    lines through the peaks of small steps alone would miss that. Where two measured steps differ in the number of
    stretches, the line through their peaks has to do.

    Attributes:
        measured: The peaks of the stretches, by amount.
    """

    measured: dict[float, tuple[int, ...]] = field(default_factory=dict)

    def lines(self, amount: float) -> list[tuple[float, float]]:
        """Lines ``(c_s, b_s)`` through the two measured amounts around one, or nearest to it.

        They go through the origin and the largest amount if no other was measured, or if that would let more fit into
        less: larger steps are made of other operations then.
        """
        known = sorted(self.measured)
        place = min(max(1, sum(one < amount for one in known)), len(known) - 1)
        low, high = known[max(0, place - 1)], known[place]
        ends = self.measured[low], self.measured[high]
        if low == high or (amount >= high and max(ends[0]) >= max(ends[1])):
            return [(0.0, peak / high) for peak in ends[1]]
        pairs = list(zip(*ends, strict=True)) if self.aligned(low, high) else [(max(ends[0]), max(ends[1]))]
        slopes = [(last - first) / (high - low) for first, last in pairs]
        return [(first - slope * low, slope) for (first, _), slope in zip(pairs, slopes, strict=True)]

    def aligned(self, low: float, high: float) -> bool:
        """Whether two measured steps have the same stretches."""
        return len(self.measured[low]) == len(self.measured[high])

    def at(self, amount: float) -> tuple[float, float]:
        """The bytes for an amount, and how many more each further unit takes: those of the stretch with the peak."""
        return max((start + slope * amount, slope) for start, slope in self.lines(amount))

    def largest(self, room: float, amount_of: Callable[[int], float], step: int = 1) -> int:
        """The largest multiple of ``step`` whose amount fits into some bytes; 0 if none does."""

        def fits(size: int) -> bool:
            return self.at(amount_of(size * step))[0] <= room

        low, high = 0, 1
        while high * step < LARGEST and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * step


def stretches(model: nn.Module, objective: Objective, batch: Any, device: torch.device) -> tuple[int, ...]:
    """Peaks of a step's stretches beyond parameters, buffers, gradients and optimiser state, the batch included.

    Gradients count as if they were there from the start, as they are where a step begins with those of the last one
    (in Lightning, or where gradients are accumulated).
    """
    own = sum(storage.nbytes() for storage in storages(tensors_in(batch)).values())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if device.type == "cuda" and parameter.requires_grad else None
    peak = StepPeak(device, model.parameters())
    with peak, _marked(model, peak.mark):
        objective(batch).backward()
    return tuple(own + each for each in peak.stretches)


@contextmanager
def _marked(model: nn.Module, mark: Callable[[], None]) -> Iterator[None]:
    """Call a function at the entry and the exit of each module, and when the gradient of its output is known."""

    def note(*_: Any) -> None:
        mark()

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        mark()
        for tensor in tensors_in(output):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(note)

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    handles += [module.register_forward_hook(leave, always_call=True) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
