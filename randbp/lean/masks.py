"""Yes or no per entry, in one bit."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .layout import pieces


def pack_where(test: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    """Where entries of a flat tensor pass a test, :func:`packed <pack_mask>` a cache's size at a time.

    Example:
        >>> bits = pack_where(lambda x: x > 0, torch.tensor([1.0, -1.0, 1.0]))
        >>> bits, [(part, mask.tolist()) for part, mask in unpacked(bits, 3)]
        (tensor([5], dtype=torch.uint8), [(slice(0, 3, None), [True, False, True])])
    """
    parts = pieces(flat.numel(), flat.device, 8)
    return torch.cat([pack_mask(test(flat[part])) for part in parts])


def unpacked(packed: Tensor, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Inverse of :func:`pack_where`, piece by piece: which of ``count`` entries, and their ``bool`` mask."""
    first = 0
    for part in pieces(count, packed.device, 8):
        entries = part.stop - part.start
        size = -(-entries // 8)
        yield part, unpack_mask(packed[first : first + size], entries)
        first += size


def pack_mask(mask: Tensor) -> Tensor:
    """A flat ``bool`` tensor as bytes, eight entries each. The mask's memory is used up.

    Byte ``j`` of ``L`` holds the entries ``j, j + L, …, j + 7 L``, so that long runs of memory move at once.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    count = mask.numel()
    length = -(-count // 8)
    bytes_ = mask.view(torch.uint8)
    if missing := 8 * length - count:
        bytes_ = torch.cat([bytes_, bytes_.new_zeros(missing)])
    return bytes_.view(8, length).mul_(_weights(mask.device)).sum(0, dtype=torch.uint8)


def unpack_mask(packed: Tensor, count: int) -> Tensor:
    """Inverse of :func:`pack_mask`: a flat ``bool`` tensor of ``count`` entries."""
    bits = torch.bitwise_and(packed, _weights(packed.device)).ne_(0)
    return bits.view(torch.bool).view(-1)[:count]


def _weights(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8).to(device, non_blocking=True).view(8, 1)
