"""Which entries pass a comparison, in one bit each."""

import torch
from torch import Tensor

from .mask_bits import bits_of, bytes_of, mask_bytes, pieces
from .operator import fused

TESTS = ("over", "not_under", "between", "within", "true")
"""Comparisons: see :func:`inside`."""


def _fake(values: Tensor, test: str, low: float, high: float) -> Tensor:
    return values.new_empty(mask_bytes(len(values)), dtype=torch.uint8)


@fused(_fake)
def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The bits (:mod:`.mask_bits`) of where flat entries pass a test, in the entries' own precision.

    Args:
        values: ``[n]``, of any floating dtype, or ``bool`` for ``"true"``.
        test: ``"over"`` (``x > low``), ``"not_under"`` (not ``x <= low``, so NaN passes), ``"between"``
            (``low < x < high``), ``"within"`` (``low <= x <= high``) or ``"true"`` (``x`` itself).
        low: Lower bound.
        high: Upper bound.

    Returns:
        ``uint8 [⌈n / 8⌉]``.

    Example:
        >>> inside(torch.tensor([1.0, -1.0, torch.nan]), "not_under", 0, 0)
        tensor([5], dtype=torch.uint8)
    """
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8, device=values.device)
    for part in pieces(len(values), values.device):
        bits[bytes_of(part)] = bits_of(passes(values[part], test, low, high))
    return bits


def passes(x: Tensor, test: str, low: float, high: float) -> Tensor:
    """Where entries pass a test."""
    if test == "over":
        return x > low
    if test == "not_under":
        return (x <= low).logical_not_()
    if test == "between":
        return (x > low).logical_and_(x < high)
    if test == "within":
        return (x >= low).logical_and_(x <= high)
    return x
