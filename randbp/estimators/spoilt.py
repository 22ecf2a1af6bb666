"""Uniform levels of blocks of entries, some of which may be infinite or NaN."""

import torch
from torch import Tensor


def uniform_levels(values: Tensor, bits: int, lift: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """The least level and the step of each block (the last dimension), and which entries no level stands for.

    A block's levels span its finite entries. One that has others, too, keeps its last level for these, and the sign
    of its step says so; with one bit there is no level to spare, and all of such a block comes back as NaN. Numbers
    above half of the largest count as infinite, lest the span be.

    Args:
        values: Floating point numbers.
        bits: Bits per entry: there are ``2^bits`` levels.
        lift: Factor of the step.

    Returns:
        Least level and step, ``[…, 1]``, and a mask of the entries' shape, or ``None`` if all are finite.

    Example:
        >>> least, step, wrong = uniform_levels(torch.tensor([1.0, torch.inf, 3.0]), bits=2)
        >>> least, step, wrong
        (tensor([1.]), tensor([-1.]), tensor([False,  True, False]))
    """
    least, largest, top = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True), 2**bits - 1
    span, wrong = largest - least, None
    spoilt = span.isfinite().logical_not_()
    if values.device.type != "cpu" or bool(spoilt.any()):  # asking an accelerator would make everything wait for it
        wrong = (values.abs() <= torch.finfo(values.dtype).max / 2).logical_not_()
        least = values.masked_fill(wrong, torch.inf).amin(-1, keepdim=True)
        span = values.masked_fill(wrong, -torch.inf).amax(-1, keepdim=True).sub_(least)
        nothing = span == -torch.inf
        least, span = least.masked_fill(nothing, 0), span.masked_fill(nothing, 0)
        spoilt = wrong.any(-1, keepdim=True)
    step = span.mul_(lift / top)
    if wrong is not None:
        step = torch.where(spoilt, step * (-top / (top - 1) if bits > 1 else torch.nan), step)
    return least, step, wrong


def spoilt_entries(codes: Tensor, step: Tensor, bits: int) -> Tensor | None:
    """Which codes stand for entries that were not finite; ``None`` if none does."""
    spoilt = step.signbit()
    if codes.device.type == "cpu" and not bool(spoilt.any()):
        return None
    return spoilt.logical_and(codes == 2**bits - 1)
