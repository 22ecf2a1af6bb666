"""What is kept of one side of a layer, and how it is held: by name, and decided once."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layers.layer_specs import Side
from ..tn import LayerSpec
from .controls import Control
from .positions import UsedPositions
from .samplers import Places


class Kept(NamedTuple):
    """What is kept of a tensor: weighted entries, the places that they come from, and the control variate's numbers."""

    entries: Tensor
    where: Tensor
    means: Tensor | None = None


@dataclass(frozen=True)
class Slot:
    """One of the tensors that are held: its name in :class:`Kept`, its (mean) number of entries, and their type."""

    name: str
    entries: float
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """What an estimator keeps of one side of a layer."""

    spec: LayerSpec  # the layer, as the estimator sees it
    side: Side  # whose places are sampled
    places: Places  # all places, and how many of them are kept
    share: float  # share of the places that is kept, the mean if it is random
    used: UsedPositions | None  # the positions that are looked at; None for all
    control: Control | None  # what is kept exactly
    slots: tuple[Slot, ...]  # what is held of the input

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return (self.spec.in_channels if self.side == "input" else self.spec.out_channels) // self.spec.groups

    @property
    def held_bytes(self) -> int:
        """Bytes held, the expectation if the number is random."""
        return round(sum(slot.entries * slot.dtype.itemsize for slot in self.slots))

    def pack(self, kept: Kept) -> tuple[Tensor, ...]:
        """The tensors that are held, in the order of the slots."""
        named: dict[str, Any] = kept._asdict()
        return tuple(named[slot.name].to(slot.dtype) for slot in self.slots)

    def unpack(self, held: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The tensors that are held, by name."""
        return {slot.name: tensor for slot, tensor in zip(self.slots, held, strict=True)}


def index_dtype(size: int) -> torch.dtype:
    """The smallest integers that number ``size`` entries.

    Example:
        >>> index_dtype(1000), index_dtype(100_000)
        (torch.int16, torch.int32)
    """
    return torch.int16 if size <= 1 << 15 else torch.int32
