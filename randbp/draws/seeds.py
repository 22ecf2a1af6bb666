"""Sequences of seeds that Python and compiled graphs continue together."""

from array import array
from collections.abc import Iterable, MutableSequence, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch.graph_break import graph_break
from .._torch.hooks import Hooks, hooks_in_force
from ..layers.integers import as_integer
from .draw import mix, seed_from
from .recomputation import Recomputation


class Integers:
    """A few integers in memory shared by Python and PyTorch, so that a compiled graph can read and increment them.

    Python's own numbers would be constants of the graph: every step would compile again, or repeat one sample.
    """

    def __init__(self, values: Iterable[int]) -> None:
        self.values = array("q", [((value + 2**63) & (2**64 - 1)) - 2**63 for value in values])
        self.tensor: Tensor = torch.frombuffer(self.values, dtype=torch.int64)  # the same memory

    def __reduce__(self) -> Any:
        return Integers, (list(self.values),)


def next_seed(clock: Sequence[int], place: MutableSequence[int]) -> int:
    """The next seed of a sequence, which starts again whenever the clock is set.

    Args:
        clock: Seed of all sequences, then the time (any number of integers), then how often it was set.
        place: Name of this one (any number of integers), how often the clock had been set when it was last asked, and
            how often it was asked since. These two are advanced.
    """
    seed, *time, turn = clock
    *name, seen, count = place
    place[-2] = turn
    place[-1] = count + 1 if seen == turn else 1
    return mix(seed, *name, *time, place[-1])


# What draws on the host must not be recorded into a CUDA graph, which would repeat one sample for ever.
DRAWS_ON_HOST = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("randbp::next_seed", mutates_args={"place"}, tags=DRAWS_ON_HOST)
def _next_seed(clock: Tensor, place: Tensor) -> Tensor:
    """Do what :func:`next_seed` does, on tensors of the CPU."""
    values = place.tolist()
    seed = next_seed(clock.tolist(), values)
    place.copy_(torch.tensor(values))
    return torch.tensor(seed)


@_next_seed.register_fake
def _(clock: Tensor, place: Tensor) -> Tensor:
    return clock.new_empty(())


@graph_break("randbp: a generator has no graph")
def _seed_from(generator: torch.Generator) -> Tensor:
    return torch.tensor(seed_from(generator))


class SeedStream:
    """One sequence of seeds: hashed from a clock, a name and how often the stream was asked since the clock was set.

    A call that activation checkpointing computes again gets the seed that it had. Copies and pickles continue the
    sequence, of a clock that is copied along.

    Args:
        clock: Seed of all sequences, then the time (any number of integers), then how often it was set.
        *name: Name of this sequence, any number of integers.

    Example:
        >>> clock = Integers([1, 5, 3])
        >>> stream = SeedStream(clock, 7)
        >>> first = [stream.next(), stream.next()]
        >>> clock.values[2] += 1
        >>> first == [stream.next(), stream.next()]
        True
    """

    def __init__(self, clock: Integers, *name: int) -> None:
        self.clock, self._place = clock, Integers((*name, 0, 0))
        self._recomputation = Recomputation()

    def next(self, generator: torch.Generator | None = None) -> int | Tensor:
        """The next seed (or one from a generator), as a tensor while ``torch.compile`` traces the call."""
        if torch.compiler.is_compiling():
            return _next_seed(self.clock.tensor, self._place.tensor) if generator is None else _seed_from(generator)
        hooks = hooks_in_force()
        if hooks is None and generator is None:
            return next_seed(self.clock.values, self._place.values)
        return self.drawn(hooks, generator)

    def drawn(self, hooks: Hooks | None, generator: torch.Generator | None = None) -> int:
        """The next seed of a call under certain hooks for saved tensors, by which a recomputation is recognised."""
        if hooks is None:
            return next_seed(self.clock.values, self._place.values) if generator is None else seed_from(generator)
        return self._recomputation.seed(lambda: self.drawn(None, generator), hooks)

    @property
    def drew(self) -> bool:
        """Whether a seed was ever taken, in a compiled graph or elsewhere."""
        return self._place.values[-1] > 0

    def restart(self) -> None:
        """Start again."""
        self._place.values[-1] = 0


default_stream = SeedStream(Integers([0, 0]))
"""The seeds of calls that name no generator."""


def manual_seed(seed: int) -> None:
    """Restart the stream of samples used by :mod:`randbp.functional` calls that name no ``generator``.

    Args:
        seed: Any integer. PyTorch's own generators are neither read nor changed.

    Raises:
        ValueError: If it is not an integer.
    """
    default_stream.clock.values[0] = Integers([checked_seed(seed)]).values[0]
    default_stream.restart()


def checked_seed(seed: object) -> int:
    """Check a seed and return it as an ``int``; to negative ones ``2**64`` is added, as in :func:`torch.manual_seed`.

    Raises:
        ValueError: If it is not an integer, or does not fit into 64 bits: it would be the same as another seed.
    """
    number = as_integer(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"seed={seed!r}: expected an integer from -2**63 to 2**64 - 1")
    return number
