"""Sequences of seeds that Python and compiled graphs continue together."""

from array import array
from collections.abc import Iterable, MutableSequence, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.integers import as_integer
from .draw import mix


class Integers:
    """A few integers in memory shared by Python and PyTorch, so that a compiled graph can read and increment them.

    Python's own numbers would be constants of the graph: every step would compile again, or repeat one sample.

    Attributes:
        values: The integers as Python sees them.
        tensor: The same memory as an ``int64`` tensor.

    Example:
        >>> count = Integers([3, -1])
        >>> count.values[0] = 4
        >>> count.tensor
        tensor([ 4, -1])
    """

    def __init__(self, values: Iterable[int]) -> None:
        self.values = array("q", [((value + 2**63) & (2**64 - 1)) - 2**63 for value in values])
        self.tensor: Tensor = torch.frombuffer(self.values, dtype=torch.int64)

    def __reduce__(self) -> Any:
        return Integers, (list(self.values),)


def next_seed(clock: Sequence[int], place: MutableSequence[int]) -> int:
    """The next seed of a sequence, which starts again whenever the clock is set.

    Args:
        clock: Seed of all sequences, then the time (any number of integers), then how often it was set.
        place: Name of this one (any number of integers), how often the clock had been set when it was last asked, and
            how often it was asked since. These two are advanced.

    Example:
        >>> place = [7, 0, 0]
        >>> next_seed([1, 5, 3], place) == mix(1, 7, 5, 1), place
        (True, [7, 3, 1])
    """
    seed, *time, turn = clock
    *name, seen, count = place
    place[-2] = turn
    place[-1] = count + 1 if seen == turn else 1
    return mix(seed, *name, *time, place[-1])


class SeedStream:
    """The seeds used when a call names no generator: a counter, hashed with a seed of its own.

    Example:
        >>> stream = SeedStream(0)
        >>> first = [stream.next(), stream.next()]
        >>> stream.reset(0)
        >>> first == [stream.next(), stream.next()]
        True
    """

    def __init__(self, seed: int) -> None:
        self.clock, self.place = Integers([seed, 0]), Integers([0, 0])

    def reset(self, seed: int) -> None:
        """Start the stream again from a seed."""
        self.clock.values[0], self.place.values[1] = Integers([seed]).values[0], 0

    def next(self) -> int:
        """The next seed."""
        return next_seed(self.clock.values, self.place.values)


default_stream = SeedStream(0)


def manual_seed(seed: int) -> None:
    """Restart the stream of samples used by :mod:`randbp.functional` calls that name no ``generator``.

    Args:
        seed: Any integer. PyTorch's own generators are neither read nor changed.

    Raises:
        ValueError: If it is not an integer.

    Example:
        >>> manual_seed(0)
    """
    default_stream.reset(checked_seed(seed))


def checked_seed(seed: object) -> int:
    """Check a seed and return it as an ``int``; to negative ones ``2**64`` is added, as in :func:`torch.manual_seed`.

    Raises:
        ValueError: If it is not an integer, or does not fit into 64 bits: it would be the same as another seed.

    Example:
        >>> checked_seed(1.5)
        Traceback (most recent call last):
        ValueError: seed=1.5: expected an integer from -2**63 to 2**64 - 1
    """
    number = as_integer(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"seed={seed!r}: expected an integer from -2**63 to 2**64 - 1")
    return number
