"""Products of kept runs with the stretches of output gradient that they meet, read as they lie in memory.

A run of ``L`` positions of a row meets, through each kernel entry of the other dimensions, ``L + d(K - 1)`` outputs of
one row, ``K`` and ``d`` the kernel's size and dilation along it. Both sides are made matrices with the positions of
these stretches innermost, the kept entries once for each of the ``K`` shifts, and one product gives all of the kernel:

``V_W[d, a, k, c] += Σ_m Σ_j V_Y[d, a, m, j] X[k, c, m, j]``

with ``m`` the runs, ``j`` the outputs of a stretch and ``a`` the kernel entries of the other dimensions. Nothing is
transposed, and an output is read ``(1 + d(K - 1)/L)`` times for each ``a`` where gathered rows read it for each entry.
"""

from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

from ..tn import LayerSpec, PositionClass
from ..tn.execute import indexed
from ..tn.execute.kernels import add_product
from ..tn.layers import role
from .positions import flat_spatial
from .runs import Runs, steps

PIECE = 2**20  # elements of one side worked on together on a processor: they stay in its cache
SMALL_PIECE = 2**16  # and in any layer; between them, half as many as the class has
REACH = 1.3  # outputs that a run meets in a row, over its positions, up to which they are read together


def stretch(positions: PositionClass, length: int) -> int:
    """How many outputs of one row the runs of a class may meet.

    Example:
        >>> from randbp import tn
        >>> everywhere, = tn.position_classes(tn.ConvSpec((1, 1, 8, 20), 1, kernel_size=3, padding=1), "input")
        >>> stretch(everywhere, 10), stretch(everywhere, 20)
        (12, 20)
    """
    row = positions.patterns[-1]
    return min(length + row.dilation * (row.kernel_size - 1), row.output_size)


def serves(spec: LayerSpec, positions: PositionClass, length: int) -> bool:
    """Whether runs of a class of inputs can be multiplied so, without much more arithmetic than they need."""
    if length == 1 or role(spec, "input") != "i" or any(p.stride > 1 for p in positions.patterns):
        return False
    return len(positions.positions[-1]) % length == 0 and stretch(positions, length) <= REACH * length


def run_products(rows: Tensor, runs: Runs, output_grad: Tensor, positions: PositionClass, groups: int) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of kept rows, for the kernel entries of their class.

    Args:
        rows: ``[N, S, C]``.
        runs: Which positions of the class they are.
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
    together = max(1, most // max(1, max(wide * outer, narrow * inner) * count * reach))
    for start in range(0, 0 if empty else batch, together):
        part = slice(start, min(start + together, batch))
        numbers = runs.of(part).numbers
        met = where.outputs(flat[part], numbers)
        kept = where.inputs(rows[part], numbers, groups)
        met, kept = met.view(groups, out.shape[1], -1), kept.view(groups, out.shape[2], -1)
        if groups == 1:
            add_product(out[0], met[0], kept[0].t(), start == 0)
        elif start == 0:
            torch.bmm(met, kept.mT, out=out)
        else:
            out.baddbmm_(met, kept.mT)
    shape = (groups, wide // groups, *kernel, narrow // groups)
    return out.view(shape).movedim(-1, 2)


class _Meetings:
    """For each run of a class the outputs that it meets, as offsets that indices of one draw are looked up in."""

    def __init__(self, positions: PositionClass, length: int) -> None:
        self._length, self._reach = length, stretch(positions, length)
        *self._others, self._row = positions.patterns
        self._made: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = {}

    @cached_property
    def _on_host(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Per kernel entry of the other dimensions and run, where its outputs begin; per run, where they lie beside the
        run; and whether there are any, if not always."""
        row, others = self._row, self._others
        sizes = tuple(p.input_size for p in others)
        first = torch.arange(0, row.input_size, self._length)
        wanted = first + row.padding - row.dilation * (row.kernel_size - 1)  # the least output that a run meets
        begin = wanted.clamp(0, row.output_size - self._reach)
        shift = (begin - first - row.padding).repeat(prod(sizes))
        if not others:
            return begin.unsqueeze(0), shift, None
        table = indexed.table(sizes, tuple(("i", p) for p in others), tuple(p.output_size for p in others))
        met = table(torch.arange(prod(sizes))).reshape(prod(sizes), -1).t()  # [entries, rows]
        there = met < prod(p.output_size for p in others)
        begins = (met * there).unsqueeze(2) * row.output_size + begin
        exists = None if bool(there.all()) else there.repeat_interleave(len(first), 1)
        return begins.flatten(1), shift, exists

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        made = self._made.get(device)
        if made is None:
            begins, shift, exists = self._on_host
            there = None if exists is None else exists.to(device, non_blocking=True)
            made = begins.to(device, non_blocking=True), shift.to(device, non_blocking=True), there
            self._made[device] = made
        return made

    def outputs(self, flat: Tensor, numbers: Tensor) -> Tensor:
        """Outputs ``[D, A, N·R·J]`` of ``[N, D, O]`` that runs ``[N or 1, R]`` meet, zeros where there are none."""
        begins, _, exists = self._tables(flat.device)
        batch, wide, size = flat.shape
        here = begins[:, numbers] + steps(batch, wide * size, flat.device).unsqueeze(1)  # [A, N, R]
        index = steps(wide, size, flat.device).view(-1, 1, 1, 1) + here
        met = _stretches(flat, self._reach).index_select(0, index.flatten()).view(*index.shape, self._reach)
        if exists is not None:
            met.mul_(exists[:, numbers].unsqueeze(-1))
        return met.flatten(2)

    def inputs(self, rows: Tensor, numbers: Tensor, groups: int) -> Tensor:
        """Kept rows ``[N, S, C]`` beside those outputs, for each kernel entry along the row: ``[G, K, C / G, N·R·J]``.

        The ``j``-th output of a stretch that begins at ``b`` meets input ``b + j - p + d·k``.
        """
        _, shifts, _ = self._tables(rows.device)
        batch, _, channels = rows.shape
        count, (before, after) = numbers.shape[1], self._margins
        padded = rows.new_zeros(channels, batch, count, before + self._length + after)
        padded.narrow(3, before, self._length).copy_(rows.permute(2, 0, 1).unflatten(2, (count, -1)))
        step = padded.shape[3]
        here = (shifts[numbers] + before).expand(batch, -1) + steps(batch * count, step, rows.device).view(batch, count)
        channel = steps(channels, batch * count * step, rows.device).view(groups, 1, -1, 1, 1)
        entry = steps(self._row.kernel_size, self._row.dilation, rows.device).view(-1, 1, 1, 1)
        index = channel + (entry + here)
        return _stretches(padded, self._reach).index_select(0, index.flatten())

    @cached_property
    def _margins(self) -> tuple[int, int]:
        """How far stretches reach beyond a run, before and after."""
        _, shift, _ = self._on_host
        least, most = int(shift.min()), int(shift.max()) + self._row.dilation * (self._row.kernel_size - 1)
        return max(0, -least), max(0, most + self._reach - self._length)


def _stretches(tensor: Tensor, length: int) -> Tensor:
    """All stretches of so many entries of a contiguous tensor, as the rows of a view."""
    return tensor.as_strided((tensor.numel() - length + 1, length), (1, 1))


@lru_cache(maxsize=512)
def _meetings(positions: PositionClass, length: int) -> _Meetings:
    return _Meetings(positions, length)
