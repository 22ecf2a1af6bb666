"""What grows until the memory is full: the number of examples, or the side of the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor

from .._torch.storages import tensors_in
from ..diagnostics.objective import batch_size, examples, map_tensors

Grow = Literal["batch", "image"]


@dataclass(frozen=True)
class Examples:
    """The number of examples. Batches are made by repeating or leaving out those of a given one.

    Example:
        >>> Examples(2).of(torch.tensor([5, 7]), 3)
        tensor([5, 7, 5])
    """

    given: int
    step = 1
    unit, title = "example", "batch"

    def of(self, batch: Any, size: int) -> Any:
        """A batch of some size."""
        return examples(batch, self.given, torch.arange(size) % self.given)

    def amount(self, size: int) -> float:
        """What memory is linear in."""
        return size

    def size(self, amount: float) -> int:
        """The largest size of at most some amount, at least one."""
        return max(1, int(amount))

    def smaller(self, size: int) -> int:
        """About half of a size, or twice as much: not one example, which BatchNorm may refuse."""
        return size // 2 if size > 3 else 2 * size


@dataclass(frozen=True)
class Sides:
    """The side of square (cubic) images; all tensors with the same last dimensions as the first one grow with it.

    Sides are multiples of the greatest common divisor of the given ones and 32, for networks that halve them. Images
    are made by repeating or cropping those of a given batch.

    Example:
        >>> sides = Sides.of_batch((torch.ones(1, 3, 96, 64), torch.ones(1, 96, 64)))
        >>> sides.step, [tuple(x.shape) for x in sides.of((torch.ones(1, 3, 96, 64), torch.ones(1, 96, 64)), 128)]
        (32, [(1, 3, 128, 128), (1, 128, 128)])
    """

    sides: tuple[int, ...]
    unit, title = "pixel", "side"

    @staticmethod
    def of_batch(batch: Any) -> "Sides":
        """The sides of the first tensor of a batch, beyond its examples and channels."""
        first = next((tensor for tensor in tensors_in(batch) if tensor.dim() > 2), None)
        if first is None:
            raise ValueError("grow='image': the batch has no images [examples, channels, sides…], expected 'batch'")
        return Sides(tuple(first.shape[2:]))

    @property
    def given(self) -> int:
        """The longest given side, as a multiple of :attr:`step`."""
        return max(self.sides)

    @property
    def step(self) -> int:
        """What all sides are multiples of."""
        return reduce(gcd, self.sides, 32)

    def of(self, batch: Any, size: int) -> Any:
        """A batch with sides of some length."""
        return map_tensors(batch, lambda tensor: _resized(tensor, self.sides, size))

    def amount(self, size: int) -> float:
        """What memory is linear in."""
        return float(size ** len(self.sides))

    def size(self, amount: float) -> int:
        """The largest size of at most some amount, at least one step."""
        return max(1, int(amount ** (1 / len(self.sides)) / self.step + 1e-9)) * self.step

    def smaller(self, size: int) -> int:
        """A side with about half of the amount, or the next larger one if there is none smaller."""
        half = self.size(self.amount(size) / 2)
        return half if half < size else size + self.step


def growth(grow: object, batch: Any) -> Examples | Sides:
    """What ``grow`` means for a batch."""
    if not isinstance(grow, str) or grow not in ("batch", "image"):
        raise ValueError(f"grow={grow!r:.60}: expected 'batch' or 'image'")
    return Examples(batch_size(batch)) if grow == "batch" else Sides.of_batch(batch)


def _resized(tensor: Tensor, sides: Sequence[int], size: int) -> Tensor:
    if tuple(tensor.shape[-len(sides) :]) != tuple(sides) or tensor.dim() <= len(sides):
        return tensor
    for number in range(1, len(sides) + 1):
        tensor = tensor.index_select(-number, torch.arange(size, device=tensor.device) % tensor.shape[-number])
    return tensor
