"""Segments: kept positions that are neighbours in memory, and are therefore read and multiplied in one piece."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..kernels.gather import gather_planes
from ..layers.layer_specs import role
from ..tn import LayerSpec, LinearSpec, PositionClass
from .positions import flat_spatial, memory_rows

SHORTEST, LONGEST = 7, 16  # shorter segments cost more than they save [positions]
LOST = 1 / 10  # share of the kept positions that may be lost by keeping only whole segments
PLANE = 128  # from this size on, reading planes one by one pays [positions]


@dataclass(frozen=True, eq=False)
class Segments:
    """Positions ``[N or 1, R·L]`` given as numbers of segments, each of ``L`` neighbouring positions.

    Args:
        numbers: ``[N or 1, R]``.
        length: ``L``.

    Example:
        >>> Segments(torch.tensor([[0, 2]]), 2).positions
        tensor([[0, 1, 4, 5]])
    """

    numbers: Tensor
    length: int = 1

    @property
    def positions(self) -> Tensor:
        """All positions, one by one."""
        if self.length == 1:
            return self.numbers
        within = torch.arange(self.length, device=self.numbers.device)
        return (self.numbers.unsqueeze(2) * self.length + within).flatten(1)

    def of(self, part: slice) -> "Segments":
        """The segments of some examples."""
        return self if len(self.numbers) == 1 else Segments(self.numbers[part], self.length)

    def gather(self, flat: Tensor) -> Tensor:
        """Columns ``[N, C, S]`` of ``[N, C, P]``, where ``P`` is a multiple of ``L``.

        Example:
            >>> Segments(torch.tensor([[2, 0]]), 2).gather(torch.arange(6.0).view(1, 1, 6))
            tensor([[[4., 5., 0., 1.]]])
        """
        batch, channels, size = flat.shape
        if self.length == 1 or not flat.is_contiguous():
            return flat.gather(2, self.positions.unsqueeze(1).expand(batch, channels, -1))
        first = torch.arange(0, batch * channels * (size // self.length), size // self.length, device=flat.device)
        index = first.view(batch, channels, 1) + self.numbers.unsqueeze(1)
        return flat.view(-1, self.length).index_select(0, index.flatten()).view(batch, channels, -1)


def reads_planes(tensor: Tensor) -> bool:
    """Whether a fused kernel reads kept positions of ``[N, C, *P]`` and means in one pass: if planes are large."""
    if gather_planes.backend(tensor.device.type) == "reference" or tensor.dtype not in (torch.float32, torch.float64):
        return False
    return tensor.is_contiguous() and memory_rows(tensor) is None and flat_spatial(tensor).shape[2] >= PLANE


def gather(tensor: Tensor, where: Segments, mean: Tensor | None) -> Tensor:
    """Kept positions ``[N, C, S]`` of ``[N, C, *P]``, less ``[N, C]``, in the tensor's order of memory."""
    rows = None if tensor.is_contiguous() else memory_rows(tensor)
    if rows is None:
        kept = where.gather(tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2))
    else:
        batch, channels, size = len(tensor), tensor.shape[1], len(rows) // max(1, len(tensor))
        offset = torch.arange(0, batch * size, max(1, size), device=rows.device).unsqueeze(1)
        kept = rows.index_select(0, (where.positions + offset).flatten()).view(batch, -1, channels).transpose(1, 2)
    return kept if mean is None else kept.sub_(mean.unsqueeze(2))


@lru_cache(maxsize=1024)
def segment_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """The length of segments for a number of kept inputs of a class; 1 means single positions.

    That is the longest of 7 to 16 that divides each row of the class, leaves two segments at least and loses little of
    the count. If each position meets a single output, segments may continue in the next row.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 28, 28), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [segment_length(layer, everywhere, count) for count in (392, 98, 12)]
        [14, 14, 1]
    """
    if isinstance(spec, LinearSpec):
        return 1  # channels, not positions, of a sequence lie side by side
    whole_rows = positions.is_pointwise
    if not whole_rows and (role(spec, "input") != "i" or any(p.stride > 1 for p in positions.patterns)):
        return 1
    size = positions.size if whole_rows else len(positions.positions[-1])
    for length in range(min(LONGEST, count // 2), SHORTEST - 1, -1):
        if size % length == 0 and count % length <= LOST * count:
            return length
    return 1


def windows(draw: Draw, size: int, count: int, batch: int, device: torch.device) -> Tensor:
    """Places to keep of each of several sums, ``[B, count]``, ascending: stretches of one permutation, in turn.

    Together the sums cover the places as evenly as whole stretches can. Where more than half of the places are kept,
    those left out are such stretches.

    Example:
        >>> windows(Draw(0), 6, 3, 2, torch.device("cpu")).flatten().sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    left_out = size - count
    if not left_out:
        return torch.arange(size, device=device).expand(batch, size)
    length = min(count, left_out)
    different = min(batch, size // length)
    stretches = draw.permutation(size, device)[: different * length].view(different, length).sort(1).values
    if count > left_out:  # the s-th place kept is s plus the number left out before it
        before = stretches - torch.arange(length, device=device)
        numbers = torch.arange(count, device=device).expand(different, count).contiguous()
        stretches = numbers + torch.searchsorted(before, numbers, right=True)
    if different < batch:
        stretches = stretches.index_select(0, torch.arange(batch, device=device) % different)
    return stretches
