"""Segments: kept positions that are neighbours in memory, and are therefore read and multiplied in one piece.

A segment of ``L`` positions of a row meets, through each kernel entry, ``L`` neighbouring outputs, if rows are padded
with zeros. Both sides become matrices with the positions innermost, and one product gives all of the kernel:

``V_W[d, k, c] += Σ_m Σ_j V_Y[d, k, m, j] X[c, m, j]``

with ``m`` the segments and ``j`` the positions within them. Nothing is transposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.gather import gather_planes
from ..layers.layer_specs import role
from ..tn import IndexPattern, LayerSpec, LinearSpec, PositionClass
from ..tn.execute.dense import add_product
from ..tn.execute.rows import PartnerTable
from .positions import flat_spatial, memory_rows

SHORTEST, LONGEST = 7, 16  # shorter segments cost more than they save [positions]
LOST = 1 / 10  # share of the kept positions that may be lost by keeping only whole segments
PLANE = 128  # from this size on, reading planes one by one pays [positions]
PIECE = 2**20  # most elements of one side that are multiplied together, so that they stay in a CPU's cache [elements]


@dataclass(frozen=True, eq=False)
class Segments:
    """Positions ``[N or 1, R·L]`` given as numbers of segments, each of ``L`` neighbouring positions.

    Args:
        numbers: ``[N or 1, R]``.
        length: ``L``.

    Example:
        >>> Segments(torch.tensor([[0, 2]]), 2).positions
        tensor([[0, 1, 4, 5]])
    """

    numbers: Tensor
    length: int = 1

    @property
    def positions(self) -> Tensor:
        """All positions, one by one."""
        if self.length == 1:
            return self.numbers
        within = torch.arange(self.length, device=self.numbers.device)
        return (self.numbers.unsqueeze(2) * self.length + within).flatten(1)

    def of(self, part: slice) -> "Segments":
        """The segments of some examples."""
        return self if len(self.numbers) == 1 else Segments(self.numbers[part], self.length)

    def gather(self, flat: Tensor) -> Tensor:
        """Columns ``[N, C, S]`` of ``[N, C, P]``, where ``P`` is a multiple of ``L``.

        Example:
            >>> Segments(torch.tensor([[2, 0]]), 2).gather(torch.arange(6.0).view(1, 1, 6))
            tensor([[[4., 5., 0., 1.]]])
        """
        batch, channels, size = flat.shape
        if self.length == 1 or not flat.is_contiguous():
            return flat.gather(2, self.positions.unsqueeze(1).expand(batch, channels, -1))
        first = torch.arange(0, batch * channels * (size // self.length), size // self.length, device=flat.device)
        index = first.view(batch, channels, 1) + self.numbers.unsqueeze(1)
        return flat.view(-1, self.length).index_select(0, index.flatten()).view(batch, channels, -1)


def reads_planes(tensor: Tensor) -> bool:
    """Whether a fused kernel reads kept positions of ``[N, C, *P]`` and means in one pass: if planes are large."""
    if gather_planes.backend(tensor.device.type) == "reference" or tensor.dtype not in (torch.float32, torch.float64):
        return False
    return tensor.is_contiguous() and memory_rows(tensor) is None and flat_spatial(tensor).shape[2] >= PLANE


def gather(tensor: Tensor, where: Segments, mean: Tensor | None) -> Tensor:
    """Kept positions ``[N, C, S]`` of ``[N, C, *P]``, less ``[N, C]``, in the tensor's order of memory."""
    flat, rows = flat_spatial(tensor), memory_rows(tensor)
    if rows is None:
        kept = where.gather(flat)
    else:
        batch, channels, size = flat.shape
        offset = torch.arange(0, batch * size, max(1, size), device=flat.device).unsqueeze(1)
        kept = rows.index_select(0, (where.positions + offset).flatten()).view(batch, -1, channels).transpose(1, 2)
    return kept if mean is None else kept.sub_(mean.unsqueeze(2))


@lru_cache(maxsize=1024)
def segment_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """The length of segments for a number of kept inputs of a class; 1 means single positions.

    That is the longest of 7 to 16 that divides each row of the class, leaves two segments at least and loses little of
    the count. If each position meets a single output, segments may continue in the next row.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 28, 28), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [segment_length(layer, everywhere, count) for count in (392, 98, 12)]
        [14, 14, 1]
    """
    if isinstance(spec, LinearSpec):
        return 1  # channels, not positions, of a sequence lie side by side
    whole_rows = positions.is_pointwise
    if not whole_rows and (role(spec, "input") != "i" or any(p.stride > 1 for p in positions.patterns)):
        return 1
    size = positions.size if whole_rows else len(positions.positions[-1])
    for length in range(min(LONGEST, count // 2), SHORTEST - 1, -1):
        if size % length == 0 and count % length <= LOST * count:
            return length
    return 1


def segment_products(
    kept: Tensor, segments: Segments, output_grad: Tensor, positions: PositionClass, groups: int
) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of kept segments, for the kernel entries of their class.

    Args:
        kept: ``[N, C, S]``.
        segments: The positions in the class.
        output_grad: ``[N, D, *O]``.
        positions: The class.
        groups: ``G``.
    """
    margins, table = _met(positions, segments.length)
    starts, sides = table(kept.device)[:, :: segments.length][:, segments.numbers], margins
    (batch, wide), narrow, entries = output_grad.shape[:2], kept.shape[1], len(starts)
    out = kept.new_zeros(groups, wide // groups * entries, narrow // groups)
    for part, some in _pieces(batch, segments.numbers.shape[1], max(wide * entries, narrow) * segments.length, kept):
        place = starts if starts.shape[1] == 1 else starts[:, part]
        padded = F.pad(output_grad[part], sides) if any(sides) else output_grad[part]
        met = _stretches(padded.flatten(2).contiguous(), place[:, :, some], segments.length)
        columns = slice(some.start * segments.length, some.stop * segments.length)
        add_columns(out, met, kept[part, :, columns])
    return out.view(groups, wide // groups, *(p.kernel_size for p in positions.patterns), -1).movedim(-1, 2)


def add_columns(total: Tensor, met: Tensor, kept: Tensor) -> None:
    """Add to ``[G, A, C / G]`` what kept columns ``[N, C, S]`` and those that they meet, ``[G·A, …, N, S]``, give."""
    left, right = met.reshape(*total.shape[:2], -1), kept.transpose(0, 1).reshape(len(total), total.shape[2], -1)
    if len(total) == 1:
        add_product(total[0], left[0], right[0].t())
    else:
        total.baddbmm_(left, right.mT)


def _pieces(batch: int, count: int, elements: int, like: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of each example's segments, few enough to stay in the cache of a CPU."""
    most = max(1, PIECE // max(1, elements)) if like.device.type == "cpu" else batch * count
    examples = max(1, most // max(1, count))
    for start in range(0, batch if count else 0, examples):
        for begin in range(0, count, min(count, most)):
            yield slice(start, min(start + examples, batch)), slice(begin, min(begin + most, count))


def _stretches(planes: Tensor, starts: Tensor, length: int) -> Tensor:
    """Stretches ``[D, F, N, R·L]`` of planes ``[N, D, P]`` that begin at ``[F, N or 1, R]``."""
    batch, channels, size = planes.shape
    lines = planes.as_strided((max(0, planes.numel() - length + 1), length), (1, 1))
    example = torch.arange(0, batch * channels * size, channels * size, device=planes.device)
    channel = torch.arange(0, channels * size, size, device=planes.device)
    index = channel.view(-1, 1, 1, 1) + (starts + example.view(-1, 1))
    return lines.index_select(0, index.flatten()).view(*index.shape[:3], -1)


@lru_cache(maxsize=512)
def _met(positions: PositionClass, length: int) -> tuple[list[int], PartnerTable]:
    """Margins of zeros around the outputs, last dimension first, and which padded output each position meets."""
    margins: list[int] = []
    widened: list[IndexPattern] = []
    for pattern in positions.patterns:
        before = max(0, pattern.dilation * (pattern.kernel_size - 1) - pattern.padding)
        after = max(0, pattern.input_size + pattern.padding - pattern.output_size)
        size = before + pattern.output_size + after
        widened.append(replace(pattern, output_size=size, padding=pattern.padding + before))
        margins = [before, after, *margins]
    sizes = tuple(p.input_size for p in widened)
    partners = PartnerTable(sizes, tuple(("i", p) for p in widened), tuple(p.output_size for p in widened))
    return margins, partners
