"""One sample per call, even if activation checkpointing computes the call twice."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .._torch.hooks import Hooks, current_backward

SEGMENTS = 64  # most segments between a forward pass and the backward pass that computes them again [segments]
CALLS = 4096  # most calls in one segment; hooks that stay in force during all of a training look like one [calls]


class Recomputation:
    """Records the seeds of calls in checkpointed segments, and repeats them when a backward pass computes these again.

    The calls of one segment are those under the same hooks for saved tensors, by which checkpointing without reentry
    works: each segment has its own in forward, and others when it is computed again. A backward pass starts with the
    last segment, and within a segment calls come in the order of the forward pass.

    Segments that are recomputed in another order, or are nested, may get each other's seeds. Their samples are then
    other ones, but what is held and what is used belong together all the same. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._segments: deque[deque[int]] = deque(maxlen=SEGMENTS)
        self._noted: Callable[[], Any] = _nobody
        self._repeated: Callable[[], Any] = _nobody
        self._backward, self._place = -1, 0
        self._seeds: Iterator[int] = iter(())

    def seed(self, new: Callable[[], int], hooks: Hooks | None) -> int:
        """Return a new seed in a forward pass, and the recorded one if a backward pass repeats the call.

        Hooks are those around the call, usually :func:`hooks_in_force`.
        """
        if hooks is None:  # no checkpoint, or one that ran forward without gradients and drew nothing
            return new()
        backward, owner = current_backward(), hooks[1]
        if backward < 0:
            if self._noted() is not owner:
                self._noted = _reference(owner)
                self._segments.append(deque(maxlen=CALLS))
            self._segments[-1].append(new())
            return self._segments[-1][-1]
        if backward != self._backward:
            self._backward, self._place, self._repeated = backward, 0, _nobody
        if self._repeated() is not owner:
            self._repeated = _reference(owner)
            self._place += 1
            self._seeds = iter(self._segments[-self._place] if self._place <= len(self._segments) else ())
        noted = next(self._seeds, None)
        return new() if noted is None else noted

    def __reduce__(self) -> Any:
        return Recomputation, ()


def _nobody() -> None:
    """Stands for a weak reference whose hooks no longer exist."""


def _reference(owner: Any) -> Callable[[], Any]:
    """A weak reference to hooks, since those of a checkpoint hold its inputs; methods written in C do not allow one."""
    try:
        return weakref.ref(owner)
    except TypeError:
        return _nobody
