"""What the versions of encoding and decoding agree on: how rows are cut into blocks, and which numbers a block has."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import packed_size

LIFT = 1 + 2**-15
"""Factor of a dithered block's step: it keeps a level plus noise below the first code that would not fit."""

PIECE = 2**19
"""Entries that the references handle at a time: few enough for a processor's cache, many beside thirty calls [entries].

Of 2^18, 2^19 and 2^20, encoding and decoding in 4 bits took 23, 21, 20 ms and 7, 6, 5 ms (6.4 million, one thread).
"""


@dataclass(frozen=True)
class Rows:
    """Rows of ``entries`` numbers, cut into blocks of which the last may be shorter.

    Example:
        >>> rows = Rows(entries=600, block=256, bits=4)
        >>> rows.blocks, rows.last, rows.nbytes, [rows.first_byte(b) for b in range(3)]
        (3, 88, 300, [0, 128, 256])
    """

    entries: int
    block: int
    bits: int

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.entries // self.block)

    @property
    def last(self) -> int:
        """Entries of its last block."""
        return self.entries - (self.blocks - 1) * self.block

    @property
    def nbytes(self) -> int:
        """Bytes of a row's codes."""
        if not self.blocks:
            return 0
        return self.first_byte(self.blocks - 1) + packed_size(self.last, self.bits)

    def first_byte(self, block: int) -> int:
        """Where the codes of a block begin."""
        return block * packed_size(self.block, self.bits)

    def pieces(self, rows: int, device: torch.device, most: int = PIECE) -> Iterator[tuple[slice, slice, int]]:
        """Cuts of ``rows`` rows: which rows, which blocks, and the entries of each block.

        A row's shorter last block is in a cut of its own.
        """
        most = most if device.type == "cpu" else 2**26  # entries
        whole = self.blocks - (self.last < self.block)
        together = max(1, most // max(1, whole * self.block))  # rows
        at_once = max(1, most // self.block)  # blocks
        for first in range(0, rows if whole else 0, together):
            for block in range(0, whole, at_once):
                yield slice(first, min(first + together, rows)), slice(block, min(block + at_once, whole)), self.block
        if whole < self.blocks:
            together = max(1, most // self.last)
            for first in range(0, rows, together):
                yield slice(first, min(first + together, rows)), slice(whole, self.blocks), self.last


def numbers(rows: Rows, count: int, first: int, device: torch.device) -> Tensor:
    """Numbers of the blocks of ``count`` rows for the noise, ``[R, B]``: all are counted from ``first`` on."""
    return torch.arange(first, first + count * rows.blocks, device=device).view(count, rows.blocks)


def factors(bits: int, dithered: bool) -> tuple[float, float | None]:
    """The step of a block over the span of its entries: of one whose entries are finite, and of another.

    The latter keeps its last level for what is not finite; with one bit there is none to spare, which is ``None``.
    """
    top, lift = 2**bits - 1, LIFT if dithered else 1.0
    return lift / top, lift / (top - 1) if bits > 1 else None


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scales are numbers of the tensor's own precision, or of single precision if that is more.

    Example:
        >>> scale_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.promote_types(dtype, torch.float32)
