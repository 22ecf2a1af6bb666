"""Tensors ``[N, P, C, S]`` as numba's kernels see them: rows of planes, each plane with numbers of its channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

_FEW = 8
"""Planes of fewer entries are worked on many at a time [entries]."""

_NARROW = 128
"""So are rows of fewer planes of one entry."""


@dataclass(frozen=True)
class Form:
    """A flat tensor as rows of planes of ``size`` entries; plane ``i`` of a row has the numbers of channel ``i``.

    Planes of one entry are columns: kernels run along the row, with vectors of numbers. Small planes are made columns,
    too, by repeating the numbers for each of a plane's entries, and short rows are joined by repeating all of them.

    Example:
        >>> Form.of(torch.Size([8, 1, 64, 100]), examples=1)
        Form(examples=1, channels=64, rows=8, planes=64, size=100, copies=1)
        >>> Form.of(torch.Size([8, 49, 32, 1]), examples=1), Form.of(torch.Size([8, 1, 64, 4]), examples=1)
        (Form(examples=1, channels=32, rows=98, planes=128, size=1, copies=4), \
Form(examples=1, channels=64, rows=8, planes=256, size=1, copies=1))
    """

    examples: int
    channels: int
    rows: int
    planes: int
    size: int
    copies: int

    @staticmethod
    def of(shape: torch.Size, examples: int) -> "Form":
        """How to look at a tensor of that shape, if ``examples`` of it have numbers of their own: all, or 1."""
        count, before, channels, after = shape
        rows, planes, copies = count // max(1, examples) * before, channels, 1
        if after == 1 or (after < _FEW and examples == 1):
            planes, after = planes * after, 1
            while planes < _NARROW and rows % 2 == 0:
                rows, planes, copies = rows // 2, planes * 2, copies * 2
        return Form(examples, channels, rows, planes, after, copies)

    def spread(self, values: Tensor) -> Tensor:
        """Numbers ``[examples, C]`` for the planes of a row: ``[examples, planes]``."""
        each = self.planes // self.copies // self.channels
        if each > 1:
            values = values.repeat_interleave(each, 1)
        return (values.repeat(1, self.copies) if self.copies > 1 else values).contiguous()

    def gather(self, sums: Tensor) -> Tensor:
        """The opposite, for sums ``[…, planes]``: ``[…, C]``."""
        shape = (self.copies, self.channels, self.planes // self.copies // self.channels)
        return sums.unflatten(-1, shape).sum((-1, -3))
