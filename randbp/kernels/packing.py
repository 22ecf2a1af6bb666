"""Integers of 1 to 8 bits packed into bytes without a gap."""

import torch
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes take; the count is rounded up to a multiple of eight.

    Example:
        >>> packed_size(1000, 3)
        375
    """
    return -(-count // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes ``[…, M]`` (``uint8``, below ``2^bits``) as bytes ``[…, ⌈M/8⌉·bits]``.

    The bits of a code go into planes whose widths are the powers of two that make up ``bits`` (5 = 4 + 1), so that
    each plane packs a whole number of codes into a byte. Within a plane, byte ``j`` holds codes that lie a fixed
    distance apart: packing and unpacking then move long runs of memory. Codes that are missing up to a multiple of
    eight are zeros.

    Example:
        >>> codes = torch.randint(0, 2**5, (2, 16), dtype=torch.uint8)
        >>> pack(codes, 5).shape, bool((unpack(pack(codes, 5), 5, 16) == codes).all())
        (torch.Size([2, 10]), True)
    """
    if missing := -codes.shape[-1] % 8:
        codes = torch.cat([codes, codes.new_zeros(*codes.shape[:-1], missing)], -1)
    planes, low = [], 0
    for width in widths(bits):
        part = codes if width == bits else (codes >> low) & (2**width - 1)
        slabs = part.unflatten(-1, (8 // width, codes.shape[-1] * width // 8))
        plane = slabs[..., 0, :].clone()
        for number in range(1, 8 // width):
            plane.add_(slabs[..., number, :], alpha=1 << (number * width))
        planes.append(plane)
        low += width
    return planes[0] if len(planes) == 1 else torch.cat(planes, -1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack`: the first ``count`` codes, ``[…, count]``."""
    length = packed.shape[-1] // bits
    codes = packed.new_empty(*packed.shape[:-1], 8 * length)
    low = first = 0
    for width in widths(bits):
        plane = packed[..., first : first + width * length]
        slabs = codes.unflatten(-1, (8 // width, width * length))
        for number in range(8 // width):
            part = plane >> (number * width) if number else plane
            if number < 8 // width - 1:  # the last has nothing above it
                part = part & (2**width - 1)
            if low:
                slabs[..., number, :] |= part << low
            else:
                slabs[..., number, :] = part
        first, low = first + width * length, low + width
    return codes[..., :count]


def to_bytes(levels: Tensor, top: int = 255) -> Tensor:
    """The whole parts of numbers from 0 to ``2^15``, but ``top`` at most, ``uint8``.

    Example:
        >>> to_bytes(torch.tensor([0.9, 255.5, 256.5]))
        tensor([  0, 255, 255], dtype=torch.uint8)
    """
    return levels.to(torch.int16).clamp_(max=top).to(torch.uint8)  # (straight to bytes is slower on a processor)


def widths(bits: int) -> list[int]:
    """Widths of the planes that make up ``bits``, the widest first.

    Example:
        >>> widths(5)
        [4, 1]
    """
    return [width for width in (8, 4, 2, 1) if bits & width]
