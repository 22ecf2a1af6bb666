"""Statistics of a weight, gathered in backward passes and kept as long as the weight holds their gradients."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import NoneType
from typing import Any, NamedTuple

from torch import Tensor

from .._torch.hooks import current_backward
from .moments import Moment
from .projected_gradients import Pair
from .sharding import is_sharded


class Means(NamedTuple):
    """Means over examples, of what is a mean over positions with each of them.

    Attributes:
        input: Of the input's rows, ``[G, a]``.
        output: Of the output, ``[G, d]``.
        output_grad: Of the output's gradient, ``[G, d]``: of its sum over positions if these are reduced.
    """

    input: Tensor
    output: Tensor
    output_grad: Tensor


@dataclass
class Seen:
    """Sums ``Σ_n u_n u_nᵀ`` and ``Σ_n v_n v_nᵀ`` for one weight over all examples seen, and their number.

    Attributes:
        input: ``Σ_n u_n u_nᵀ``.
        output_grad: ``Σ_n v_n v_nᵀ``.
        examples: Number of examples.
        terms: Positions in these at which the gradient is not zero, where they are counted.
        means: Means over the examples of the last backward pass, where a method compares two passes.
        pairs: Both sides of each call, where a method asks for them.
        squares: What a method has made of such pairs: sums of squares ``[G, d, a]``.
        order: Smaller for statistics that were seen earlier.
    """

    input: Moment = field(default_factory=Moment)
    output_grad: Moment = field(default_factory=Moment)
    examples: int = 0
    terms: Tensor | float = 0
    means: Means | None = None
    pairs: list[Pair] = field(default_factory=list)
    squares: Tensor | None = None
    order: int = field(default_factory=count().__next__)

    @property
    def moments(self) -> tuple[Moment, Moment]:
        """Those of input and output gradient."""
        return self.input, self.output_grad

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, a)``."""
        groups, outer = self.output_grad.shape[:2]
        return groups, outer, self.input.shape[1]

    def add(self, other: "Seen") -> None:
        """Add another object's sums, and weigh means by examples."""
        self.input.add(other.input)
        self.output_grad.add(other.output_grad)
        self.examples += other.examples
        if self.means is not None and other.means is not None:
            share = other.examples / self.examples
            self.means = Means(*(mine.lerp(its, share) for mine, its in zip(self.means, other.means, strict=True)))
        else:
            self.means = other.means
        self.terms = self.terms + other.terms
        self.pairs += other.pairs
        if other.squares is not None:
            self.add_squares(other.squares)

    def add_squares(self, squares: Tensor) -> None:
        """Add to the squares."""
        self.squares = squares if self.squares is None else self.squares + squares


class Gathering:
    """Statistics of one weight, from the running backward pass and from those whose gradient it holds.

    A pass counts once its gradient has been added to the parameter's, so those of ``torch.autograd.grad`` do not. What
    was seen is dropped as soon as the gradient that came with it is: set to zero or to ``None``, by whomever.
    """

    def __init__(self) -> None:
        self.kept: Seen | None = None
        self._passing, self._backward = Seen(), -1
        self._leaf: Callable[[], Tensor | None] = NoneType
        self._handle: Any = None
        self._mark: Any = None

    def note(self, seen: Seen, parameter: Tensor | None) -> None:
        """Add a call's statistics from a backward pass, before the parameter's gradient arrives."""
        backward = current_backward()
        if backward != self._backward or self._passing.examples == 0:
            if parameter is not None and not is_sharded(parameter):  # while backward runs, shards hold nothing
                self.drop_if_gone(parameter)
            self._passing, self._backward = Seen(), backward
        self._passing.add(seen)

    def watches(self, leaf: Tensor) -> bool:
        """Whether a tensor is the one that was watched last."""
        return self._leaf() is leaf

    def watch(self, leaf: Tensor) -> None:
        """Set the tensor in which a graph accumulates the gradient."""
        if self.watches(leaf):
            return
        self.remove()
        this = weakref.ref(self)

        def accumulated(tensor: Tensor) -> None:
            if (gathering := this()) is not None:
                gathering._accumulated(tensor)

        self._leaf, self._handle = weakref.ref(leaf), leaf.register_post_accumulate_grad_hook(accumulated)

    def drop(self) -> None:
        """Forget all statistics."""
        self.kept, self._passing = None, Seen()

    def drop_if_gone(self, parameter: Tensor) -> None:
        """Forget all statistics if the parameter no longer holds a gradient."""
        grad = parameter.grad
        changed = grad is None or (not is_sharded(grad) and self._mark != _mark(grad))
        if self.kept is not None and changed and (grad is None or not bool(grad.any())):
            self.kept = None

    def remove(self) -> None:
        """Take the hook off the parameter."""
        if self._handle is not None:
            self._handle.remove()
        self._leaf, self._handle = NoneType, None

    def _accumulated(self, leaf: Tensor) -> None:
        if self._passing.examples and self._backward == current_backward():
            if self.kept is None:
                self.kept = self._passing
            else:
                self.kept.add(self._passing)
                self.kept.means = self._passing.means
        self._passing = Seen()
        self._mark = None if leaf.grad is None or is_sharded(leaf.grad) else _mark(leaf.grad)


def _mark(grad: Tensor) -> tuple[int, int]:
    """A value that stays the same as long as a gradient does."""
    return grad.data_ptr(), grad._version
