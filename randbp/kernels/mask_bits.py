"""Masks of one bit per entry: made by comparisons and by ReLU, read as ``bool``, and used as factors.

A flat mask is cut into blocks of 2048 entries, of which the last may be shorter. A block of ``n`` entries takes
``L = ⌈n / 8⌉`` bytes; bit ``k`` of its byte ``j`` belongs to entry ``j + k L``: long runs of memory move at once.
"""

import torch
from torch import Tensor

from .operator import fused
from .packing import pack, unpack

BLOCK = 2048
"""Entries of a block [entries]."""

PIECE = 2**17
"""Entries that fit a processor's cache, a multiple of a block [entries]."""


def mask_bytes(count: int) -> int:
    """Bytes of the bits of so many entries.

    Example:
        >>> mask_bytes(2049), mask_bytes(0)
        (257, 0)
    """
    return -(-count // 8)


def bits_of(mask: Tensor) -> Tensor:
    """The bits of a flat ``bool`` tensor, ``uint8 [⌈n / 8⌉]``.

    Example:
        >>> bits = bits_of(torch.tensor([True, False, True]))
        >>> bits, mask_of(bits, 3)
        (tensor([5], dtype=torch.uint8), tensor([ True, False,  True]))
    """
    codes, whole = mask.view(torch.uint8), len(mask) // BLOCK * BLOCK
    blocks = pack(codes[:whole].view(-1, BLOCK), 1).view(-1)
    return blocks if whole == len(mask) else torch.cat([blocks, pack(codes[whole:], 1)])


def mask_of(bits: Tensor, count: int) -> Tensor:
    """The inverse: a flat ``bool`` tensor of ``count`` entries."""
    whole = count // BLOCK * BLOCK
    blocks = unpack(bits[: whole // 8].view(-1, BLOCK // 8), 1, BLOCK).reshape(-1)
    codes = blocks if whole == count else torch.cat([blocks, unpack(bits[whole // 8 :], 1, count - whole)])
    return codes.view(torch.bool)


def pieces(count: int, device: torch.device) -> list[slice]:
    """Whole blocks that fit a processor's cache; few and large pieces elsewhere."""
    size = PIECE if device.type == "cpu" else 2**26
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def bytes_of(part: slice) -> slice:
    """Where the bits of some whole blocks lie."""
    return slice(part.start // 8, mask_bytes(part.stop))


@fused(lambda values, *_: values.new_empty(mask_bytes(len(values)), dtype=torch.uint8))
def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """Test flat entries in their own precision, and pack the results as bits.

    Args:
        values: ``[n]``, of any floating dtype, or ``bool`` for ``"true"``.
        test: ``"over"`` (``x > low``), ``"not_under"`` (not ``x <= low``, so NaN passes), ``"between"``
            (``low < x < high``), ``"within"`` (``low <= x <= high``) or ``"true"`` (``x`` itself).
        low: The lower bound.
        high: The upper bound.

    Returns:
        ``uint8 [⌈n / 8⌉]``.

    Example:
        >>> inside(torch.tensor([1.0, -1.0, torch.nan]), "not_under", 0, 0)
        tensor([5], dtype=torch.uint8)
    """
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8, device=values.device)
    for part in pieces(len(values), values.device):
        bits[bytes_of(part)] = bits_of(_passes(values[part], test, low, high))
    return bits


def _passes(x: Tensor, test: str, low: float, high: float) -> Tensor:
    if test == "over":
        return x > low
    if test == "not_under":
        return (x <= low).logical_not_()
    if test == "between":
        return (x > low).logical_and_(x < high)
    return (x >= low).logical_and_(x <= high) if test == "within" else x


@fused(lambda values: (torch.empty_like(values), values.new_empty(mask_bytes(len(values)), dtype=torch.uint8)))
def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``max(x, 0)`` as PyTorch does, and the bits of where ``x <= 0`` does not hold.

    Args:
        values: ``[n]``, of any floating dtype.

    Returns:
        The values, and ``uint8 [⌈n / 8⌉]``.

    Example:
        >>> relu(torch.tensor([1.0, -1.0, torch.nan]))
        (tensor([1., 0., nan]), tensor([5], dtype=torch.uint8))
    """
    return torch.relu(values), inside(values, "not_under", 0.0, 0.0)


@fused(lambda bits, count: bits.new_empty(count, dtype=torch.bool))
def unmask(bits: Tensor, count: int) -> Tensor:
    """Unpack the mask ``bool [n]`` that :func:`inside` packed.

    Args:
        bits: ``uint8 [⌈n / 8⌉]``.
        count: Number ``n`` of entries.

    Example:
        >>> unmask(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    mask = torch.empty(count, dtype=torch.bool, device=bits.device)
    for part in pieces(count, bits.device):
        mask[part] = mask_of(bits[bytes_of(part)], part.stop - part.start)
    return mask


@fused(lambda values, *_: torch.empty_like(values))
def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """Multiply entries by ``factor`` where their bit is set, and by ``other`` elsewhere (``None``: 0, even of NaN).

    As in PyTorch's gradients of piecewise linear functions, entries of 16 bits are multiplied in single precision.

    Args:
        values: ``[n]``, of any floating dtype.
        bits: ``uint8 [⌈n / 8⌉]``.
        factor: The factor where the bit is set; one of the two is 1 or 0 if both are given.
        other: The factor where it is not set, or ``None``.

    Example:
        >>> masked(torch.ones(3), torch.tensor([5], dtype=torch.uint8), 1.0, 0.5)
        tensor([1.0000, 0.5000, 1.0000])
    """
    result = torch.empty_like(values)
    for part in pieces(len(values), values.device):
        result[part] = chosen(values[part], mask_of(bits[bytes_of(part)], part.stop - part.start), factor, other)
    return result


def chosen(x: Tensor, mask: Tensor, factor: float, other: float | None) -> Tensor:
    """:func:`masked` with a ``bool`` mask, by differentiable operations; ``torch.where`` is many times slower."""
    kept = mask.to(x.dtype)
    if other == 0:  # an entry keeps its sign, and need not be finite
        return x * (kept if factor == 1 else kept * factor)
    if other is not None:
        return torch.ops.aten.leaky_relu_backward(x, kept, other, False)
    return torch.ops.aten.threshold_backward(x if factor == 1 else x * factor, kept, 0)
