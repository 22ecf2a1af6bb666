"""Segments: kept positions that are neighbours in memory, and are therefore read and multiplied in one piece."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gather import gather_planes

PLANE = 128  # from this size on, reading planes one by one pays [positions]


def flat_spatial(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` with its spatial dimensions flattened, ``[N, C, P]``; one position if it has none."""
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)


def memory_rows(tensor: Tensor) -> Tensor | None:
    """``[N, C, *P]`` as rows ``[N·P, C]`` if these are contiguous in memory, else ``None``.

    Example:
        >>> memory_rows(torch.zeros(2, 5, 3).transpose(1, 2)).shape, memory_rows(torch.zeros(2, 3, 5))
        (torch.Size([10, 3]), None)
    """
    rows = tensor.movedim(1, -1)
    return rows.reshape(-1, tensor.shape[1]) if rows.is_contiguous() else None


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
