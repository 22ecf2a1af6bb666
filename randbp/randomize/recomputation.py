"""One sample per call of a layer, also where activation checkpointing computes the call a second time."""

from collections import deque
from collections.abc import Callable

import torch

CALLS = 32  # of one layer between its forward pass and the backward pass that computes them again


class Recomputation:
    """Seeds of a layer's last calls, given again to the calls that a backward pass makes, the last one first.

    That is the order of checkpointed segments. Of several calls within one segment, which run forward again, each gets
    another's seed: its sample is then another, but what is held and what is used belong together all the same.

    Example:
        >>> seeds = iter((5, 6, 7))
        >>> recomputation = Recomputation()
        >>> [recomputation.seed(lambda: next(seeds)) for _ in range(2)]
        [5, 6]
    """

    def __init__(self) -> None:
        self._seeds: deque[int] = deque(maxlen=CALLS)
        self._backward, self._repeated = -1, 0

    def seed(self, new: Callable[[], int]) -> int:
        """A new seed in a forward pass, which is noted; the noted one where a backward pass repeats the call."""
        backward = _current_backward()
        if backward < 0:
            self._seeds.append(new())
            return self._seeds[-1]
        if backward != self._backward:
            self._backward, self._repeated = backward, 0
        if self._repeated == len(self._seeds):  # the first pass was made without gradients and drew nothing
            return new()
        self._repeated += 1
        return self._seeds[-self._repeated]


def _current_backward() -> int:
    """Number of the backward pass that is under way in this thread, -1 outside of any.

    PyTorch has no public name for it; checkpointing itself asks the same.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if current is None else int(current())
