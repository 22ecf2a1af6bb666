"""Products of kept runs with the stretches of output gradient that they meet, read in memory order.

A run of ``L`` positions of a row meets, through each kernel entry of the other dimensions, ``L + d(K - 1)`` outputs of
one row, ``K`` and ``d`` the kernel's size and dilation along it. Both sides are made matrices with the positions of
these stretches innermost, the kept entries once for each of the ``K`` shifts, and one product gives all of the kernel:

``V_W[d, a, c, k] += Σ_m Σ_j V_Y[d, a, m, j] X[c, k, m, j]``

with ``m`` the runs, ``j`` the outputs of a stretch and ``a`` the kernel entries of the other dimensions. Nothing is
transposed, and an output is read ``(1 + d(K - 1)/L)`` times for each ``a`` where gathered rows read it for each entry.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..kernels.stretches import gather_stretches
from ..layers.layer_specs import role
from ..tn import LayerSpec, PositionClass
from ..tn.execute.dense import add_product
from ..tn.execute.rows import PartnerTable
from .positions import flat_spatial
from .runs import Runs, steps

PIECE = 2**20  # most elements of one side that a CPU works on together, so that they stay in its cache [elements]
SMALL_PIECE = 2**18  # least such number; between the two, half the number of the class's inputs [elements]
REACH = 1.25  # largest ratio of the outputs that a run meets in a row to its positions


def stretch(positions: PositionClass, length: int) -> int:
    """Number of outputs of one row that a run of a class may meet.

    Example:
        >>> from randbp import tn
        >>> everywhere, = tn.position_classes(tn.ConvSpec((1, 1, 8, 20), 1, kernel_size=3, padding=1), "input")
        >>> stretch(everywhere, 10), stretch(everywhere, 20)
        (12, 20)
    """
    row = positions.patterns[-1]
    return min(length + row.dilation * (row.kernel_size - 1), row.output_size)


def serves(spec: LayerSpec, positions: PositionClass, length: int) -> bool:
    """Whether runs of a class of inputs can be multiplied in this way without much excess arithmetic."""
    if length == 1 or role(spec, "input") != "i" or any(p.stride > 1 for p in positions.patterns):
        return False
    return len(positions.positions[-1]) % length == 0 and stretch(positions, length) <= REACH * length


def run_products(rows: Tensor, runs: Runs, output_grad: Tensor, positions: PositionClass, groups: int) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of kept rows, for the kernel entries of their class.

    Args:
        rows: ``[N, S, C]``.
        runs: The positions of the rows in the class.
        output_grad: ``[N, D, *O]``.
        positions: The class, one that `serves`.
        groups: ``G``.
    """
    where = _meetings(positions, runs.length)
    flat = flat_spatial(output_grad).contiguous()
    (batch, wide, _), narrow = flat.shape, rows.shape[2]
    reach = stretch(positions, runs.length)
    kernel, count = [p.kernel_size for p in positions.patterns], runs.numbers.shape[1]
    outer, inner = prod(kernel[:-1]), kernel[-1]
    out = flat.new_empty(groups, wide // groups * outer, inner * narrow // groups)
    empty = not batch * count * out.numel()
    if empty:
        out.zero_()
    elements = max(SMALL_PIECE, batch * narrow * positions.size // 2)
    most = min(PIECE, elements) if rows.device.type == "cpu" else elements
    at_once = max(1, most // max(1, max(wide * outer, narrow * inner) * reach))  # runs
    for part, some in [] if empty else _pieces(batch, count, at_once):
        numbers = runs.of(part).numbers[:, some]
        met = where.outputs(flat[part], numbers)
        kept = where.inputs(rows[part, some.start * runs.length : some.stop * runs.length], numbers)
        met, kept = met.view(groups, out.shape[1], -1), kept.view(groups, out.shape[2], -1)
        first = part.start == some.start == 0
        if groups == 1:
            add_product(out[0], met[0], kept[0].t(), first)
        elif first:
            torch.bmm(met, kept.mT, out=out)
        else:
            out.baddbmm_(met, kept.mT)
    shape = (groups, wide // groups, *kernel[:-1], narrow // groups, inner)
    return out.view(shape).movedim(-2, 2)


def _pieces(batch: int, count: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of each example's runs, at most ``at_once`` runs together where that is possible."""
    together = max(1, at_once // count)
    for start in range(0, batch, together):
        for first in range(0, count, min(count, at_once)):
            yield slice(start, min(start + together, batch)), slice(first, min(first + at_once, count))


class _Meetings:
    """Tables of the outputs that each run of a class meets, indexed by the number of the run."""

    def __init__(self, positions: PositionClass, length: int) -> None:
        *self._others, row = positions.patterns
        self._row, self._length, self._reach = row, length, stretch(positions, length)
        first = range(0, row.input_size, length)
        # The least output that a run meets, if the row had it, and where its stretch begins within the row.
        wanted = [i + row.padding - row.dilation * (row.kernel_size - 1) for i in first]
        self._begin = [min(max(0, o), row.output_size - self._reach) for o in wanted]
        self._shift = [o - i - row.padding for o, i in zip(self._begin, first, strict=True)]
        most = max(self._shift) + row.dilation * (row.kernel_size - 1)
        self._margins = max(0, -min(self._shift)), max(0, most + self._reach - length)
        self._made: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Per kernel entry of the other dimensions and run, where its outputs begin, -1 if there are none; per kernel
        entry of the row and run, where the inputs that these meet begin beside the run."""
        made = self._made.get(device)
        if made is None:
            begins, shifts = self._on_host()  # so that no other device has to be waited for
            made = begins.to(device, non_blocking=True), shifts.to(device, non_blocking=True)
            if type(begins) is Tensor:  # not one without data, of a mode that is on just now
                self._made[device] = made
        return made

    def _on_host(self) -> tuple[Tensor, Tensor]:
        begin, shift = torch.tensor(self._begin, device="cpu"), torch.tensor(self._shift, device="cpu")
        entries = steps(self._row.kernel_size, self._row.dilation, begin.device).unsqueeze(1)
        shifts = entries + shift + self._margins[0]
        if not self._others:
            return begin.unsqueeze(0), shifts
        sizes, outputs = (tuple(getattr(p, side) for p in self._others) for side in ("input_size", "output_size"))
        met = PartnerTable(sizes, tuple(("i", p) for p in self._others), outputs)(begin.device)  # [entries, rows]
        none = (met == prod(outputs)).unsqueeze(2)
        begins = (met.unsqueeze(2) * self._row.output_size + begin).masked_fill(none, -1).flatten(1)
        return begins, shifts.repeat(1, prod(sizes))

    def outputs(self, flat: Tensor, numbers: Tensor) -> Tensor:
        """Outputs ``[D, A, N, R·J]`` of ``[N, D, O]`` that runs ``[N or 1, R]`` meet, zeros where there are none."""
        return gather_stretches(flat, self._tables(flat.device)[0][:, numbers], self._reach, True)

    def inputs(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Kept rows ``[N, S, C]`` beside those outputs, for each kernel entry along the row: ``[C, K, 1, N·R·J]``.

        The ``j``-th output of a stretch that begins at ``b`` meets input ``b + j - p + d·k``.
        """
        batch, _, channels = rows.shape
        count, (before, after) = numbers.shape[1], self._margins
        padded = rows.new_zeros(channels, batch, count, before + self._length + after)
        padded.narrow(3, before, self._length).copy_(rows.permute(2, 0, 1).unflatten(2, (count, -1)))
        runs = steps(batch * count, padded.shape[3], rows.device).view(batch, count)
        starts = (self._tables(rows.device)[1][:, numbers] + runs).flatten(1).unsqueeze(1)
        return gather_stretches(padded.view(1, channels, -1), starts, self._reach, True)


@lru_cache(maxsize=512)
def _meetings(positions: PositionClass, length: int) -> _Meetings:
    return _Meetings(positions, length)
