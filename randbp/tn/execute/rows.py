"""Kernels that join two tensors through a selection: gathered or scattered rows beside matrix products.

A value of the free legs (a kernel entry) pairs every chosen position with at most one partner. The sum over the
relation is therefore a row gather or a row scatter and one dense matrix product for each value, and gathered rows are
never held for all values at once.
"""

from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..planning import machine
from .dense import add_product, lying
from .indexed import Targets, table
from .program import TensorFunction


def gathered_product(targets: Targets, groups: int) -> TensorFunction:
    """``out[g a b f] = Σ_{r s} x[r, g a, p(index[r s], f)] rows[r, s, g b]``: the weight VJP of kept positions.

    The kernel takes ``x [R, G·A, P]``, ``rows [R, S, G·B]`` and an index ``[R or a divisor of it, S]``, whose rows
    repeat for consecutive ``r``; it gives ``[G, A, B, F]``.
    """
    table = PartnerTable(targets)

    def kernel(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        batch, channels, positions = x.shape
        count, width = rows.shape[1:]
        entries = table(index.device)
        shape = groups, len(entries), channels // groups, width // groups
        if not batch * count:
            return x.new_zeros(shape).permute(0, 2, 3, 1)
        depthwise = channels == width == groups
        # Sums over rows of all channels have the channels innermost.
        out = x.new_empty(len(entries), groups).t()[..., None, None] if depthwise else x.new_empty(shape)
        index = _aligned(index, batch)
        groups_of_entries = -(-len(entries) // max(1, machine.cpu.row_width // channels))  # few, and of equal size
        together = len(entries) if depthwise else -(-len(entries) // groups_of_entries)
        at_once = max(1, (machine.cpu.row_weighted if depthwise else machine.cpu.row_gathered) // (channels * together))
        empty = True
        for part in pieces(batch, (positions + 1) * channels, x.device):
            source, step = (_rows(x[part]), positions) if table.complete else (_with_blank(x[part]), positions + 1)
            flat = rows[part].flatten(0, 1)
            local = index if len(index) == 1 else index[part]
            offsets = _offsets(part.stop - part.start, step, index.device).unsqueeze(2)
            for start, some in zip(range(0, len(entries), together), entries.split(together), strict=True):
                place = out[:, start : start + together].flatten(1, 2)
                partners = (some.t()[local] + offsets).flatten(0, 1)  # [R·S, F]
                first = empty
                for chosen, kept in zip(partners.split(at_once), flat.split(at_once), strict=True):
                    met = source.index_select(0, chosen.flatten()).view(len(kept), len(some), -1)
                    if depthwise:
                        _add_weighted(place, met, kept, first)
                    else:
                        met = met.unflatten(2, (groups, -1)).transpose(1, 2).flatten(1)  # [rows, G·(F·A)]
                        add_rows_by_rows(place, met, kept, first)
                    first = False
            empty = False
        return out.permute(0, 2, 3, 1)

    return kernel


def pieces(batch: int, elements: int, device: torch.device) -> list[slice]:
    """Slices of a batch for work piece by piece, so that the data of a piece stay in a CPU's cache.

    A large batch is never one piece: intermediate tensors would double its memory.

    Example:
        >>> pieces(5, 2**20, torch.device("cpu"))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    together = min(machine.cpu.row_piece, max(machine.cpu.row_piece // 4, batch * elements // 2))
    size = batch if device.type != "cpu" else max(1, together // max(1, elements))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, max(1, size))]


def _add_weighted(place: Tensor, met: Tensor, kept: Tensor, first: bool) -> None:
    """Multiply ``[R, F, C]``, in place, by ``[R, C]``, sum over rows, and add the sums to ``[C, F, 1]``."""
    sums = met.mul_(kept.unsqueeze(1)).sum(0).t().unsqueeze(2)
    place.copy_(sums) if first else place.add_(sums)


def _rows(x: Tensor) -> Tensor:
    """``[R, C, P]`` as rows ``[R·P, C]``; a view if that is the memory order."""
    return x.transpose(1, 2).reshape(-1, x.shape[1])


def _with_blank(x: Tensor) -> Tensor:
    """``[R, C, P]`` as rows ``[R·(P + 1), C]``; each ``r`` ends with zeros, for positions without a partner."""
    batch, channels, positions = x.shape
    blank = x.new_empty(batch, positions + 1, channels)
    blank[:, :-1].copy_(x.transpose(1, 2))
    blank[:, -1].zero_()
    return blank.flatten(0, 1)


def scattered_product(targets: Targets, groups: int) -> TensorFunction:
    """``out[r p g b] = Σ_{s f: p(index[r s], f) = p} Σ_a rows[r, s, g a] x[g a b f]``: the input VJP of kept positions.

    The kernel takes ``x [G, A, B, F]``, ``rows [R, S, G·A]`` and an index ``[R or a divisor of it, S]``; it gives
    ``[R, P, G·B]``.
    """
    table, positions = PartnerTable(targets), prod(targets.determined)

    def kernel(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        batch = rows.shape[0]
        entries = table(index.device)
        out = rows.new_zeros(batch * (positions + 1), groups * x.shape[2])  # the extra row collects the padding
        flat = rows.flatten(0, 1)
        index, offsets = _aligned(index, batch), _offsets(batch, positions + 1, index.device)
        for number, entry in enumerate(entries):
            out.index_add_(0, (entry[index] + offsets).flatten(), rows_by_matrices(flat, x[..., number]))
        return out.view(batch, positions + 1, -1)[:, :-1]

    return kernel


class PartnerTable:
    """Partners of all positions, ``[F, grid]``, computed at the first call."""

    def __init__(self, targets: Targets) -> None:
        self._kernel = table(targets)
        self._grid, self._none = prod(targets.sizes), prod(targets.determined)
        self._made: dict[torch.device, Tensor] = {}

    @cached_property
    def _table(self) -> Tensor:
        """The table on the host, so that no device has to be waited for."""
        return self._kernel(torch.arange(self._grid, device="cpu")).reshape(self._grid, -1).t().contiguous()

    @cached_property
    def complete(self) -> bool:
        """Whether every position has a partner through every entry."""
        return not bool((self._table == self._none).any())

    def __call__(self, device: torch.device) -> Tensor:
        """The table ``[F, grid]`` on a device; entries equal to the number of positions stand for no partner."""
        made = self._made.get(device)
        if made is None:
            made = self._made[device] = self._table.to(device, non_blocking=True)
        return made


def _aligned(index: Tensor, batch: int) -> Tensor:
    """The index with one row per row of the batch."""
    index = index.reshape(-1, index.shape[-1]).long()
    return index if len(index) in (1, batch) else index.repeat_interleave(batch // len(index), 0)


def _offsets(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(0, batch * length, length, device=device).unsqueeze(1)


def rows_by_rows(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """``[R, G·A]`` and ``[R, G·B]`` to ``[G, A, B]``: the product over rows within each group."""
    total = left.new_empty(groups, left.shape[1] // groups, right.shape[1] // groups)
    add_rows_by_rows(total, left, right, first=True)
    return total


def add_rows_by_rows(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Write the product over rows within each group to ``[G, A, B]`` (``first``), or add it there."""
    groups = len(total)
    if groups == 1 and right.shape[1] >= machine.cpu.row_narrow:
        add_product(total[0], left.t(), right, first)
        return
    if groups == 1:  # three times faster with the wide side's rows as they lie in memory
        product = (right.t() @ left).t().unsqueeze(0)
    else:
        left, right = left.unflatten(1, (groups, -1)), right.unflatten(1, (groups, -1))
        if min(left.shape[2], right.shape[2]) == 1:  # depthwise: a weighted sum over rows, no matrix product
            product = (left.unsqueeze(3) * right.unsqueeze(2)).sum(0)
        else:
            product = torch.bmm(lying(left.permute(1, 2, 0)), lying(right.transpose(0, 1)))
    total.copy_(product) if first else total.add_(product)


def rows_by_matrices(rows: Tensor, matrices: Tensor) -> Tensor:
    """Rows ``[R, G·A]`` times one matrix ``[G, A, B]`` per group to ``[R, G·B]``."""
    groups, inner, outer = matrices.shape
    if groups == 1:
        return rows @ matrices[0]
    if inner == 1:
        return (rows.unsqueeze(2) * matrices.reshape(groups, outer)).flatten(1)
    return torch.bmm(rows.unflatten(1, (groups, -1)).transpose(0, 1), matrices).transpose(0, 1).flatten(1)
