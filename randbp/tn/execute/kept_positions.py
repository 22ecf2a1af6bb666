"""VJPs of kept positions of one class, and of tensors that are constant over positions."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._torch.clean_thread import without_modes
from ...kernels.gather import gather_planes
from ...layers.grouped_weights import by_group
from ...layers.layer_specs import LayerSpec, Side, is_identity, role
from ...layers.pattern import IndexPattern
from ..operations.position_classes import PositionClass
from .banded import banded
from .dense import add_product
from .indexed import Targets
from .program import TensorFunction
from .rows import PartnerTable, gathered_product, pieces, rows_by_rows, scattered_product
from .segments import Segments, flat_spatial, memory_rows

PIECE = 2**20  # most elements of one side that are multiplied together, so that they stay in a CPU's cache [elements]
SMALL_PIECE = 2**19  # least such number; between the two, a quarter of the output gradient's [elements]


def weight_vjp_of_class(
    kept: Tensor, where: Segments, output_grad: Tensor, positions: PositionClass, pointwise: bool, spec: LayerSpec
) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of kept inputs ``[N, C, S]`` of a class, for its kernel entries.

    ``pointwise`` says whether each position meets the output of the same number.
    """
    if where.length > 1 and not pointwise:
        return _segment_products(kept, where, output_grad, positions, spec.groups)
    if pointwise:
        grad = _pointwise_products(kept, where, output_grad, spec.groups)
    else:
        kernel = _product(gathered_product, positions.patterns, role(spec, "input"), spec.groups)
        grad = kernel(flat_spatial(output_grad), kept.transpose(1, 2), where.numbers)
    return grad.view(*grad.shape[:3], *(p.kernel_size for p in positions.patterns))


def input_vjp_of_class(
    kept: Tensor, where: Tensor, matrices: Tensor, positions: PositionClass, spec: LayerSpec
) -> Tensor:
    """The input VJP, as rows ``[N, I, C]``, of kept outputs ``[N, D, S]`` of a class, at numbers ``[N or 1, S]``.

    ``matrices`` are the weight ``[G, D / G, C / G, *K]`` at the kernel entries of the class.
    """
    kernel = _product(scattered_product, positions.patterns, role(spec, "output"), spec.groups)
    return kernel(matrices.flatten(3) if spec.dims else matrices.unsqueeze(3), kept.transpose(1, 2), where)


def _pointwise_products(kept: Tensor, where: Segments, output_grad: Tensor, groups: int) -> Tensor:
    """``[G, D / G, C / G]`` of kept positions that each meet the output at the same position."""
    (batch, narrow, count), wide, rows = kept.shape, output_grad.shape[1], memory_rows(output_grad)
    if rows is not None:
        offset = torch.arange(0, len(rows), len(rows) // max(1, batch), device=rows.device).unsqueeze(1)
        met = rows.index_select(0, (where.positions + offset).flatten())
        return rows_by_rows(met, kept.transpose(1, 2).flatten(0, 1), groups)
    flat, total = flat_spatial(output_grad), kept.new_zeros(groups, wide // groups, narrow // groups)
    for part in pieces(batch, count * wide, flat.device):
        add_columns(total, where.of(part).gather(flat[part]).transpose(0, 1), kept[part])
    return total


def _segment_products(
    kept: Tensor, segments: Segments, output_grad: Tensor, positions: PositionClass, groups: int
) -> Tensor:
    """:func:`weight_vjp_of_class` of segments of more than one position.

    A segment of ``L`` positions of a row meets, through each kernel entry, ``L`` neighbouring outputs, if rows are
    padded with zeros. Both sides become matrices with the positions innermost, and one product gives all of the kernel.
    """
    margins, table = _met(positions, segments.length, kept.device)
    starts = table[:, segments.numbers]
    (batch, wide), narrow, (entries, _, count) = output_grad.shape[:2], kept.shape[1], starts.shape
    out = kept.new_zeros(groups, wide // groups * entries, narrow // groups)
    elements = max(1, max(wide * entries, narrow) * segments.length)
    piece = min(PIECE, max(SMALL_PIECE, output_grad.numel() // 4))
    together = max(1, piece // elements) if kept.device.type == "cpu" else batch * count
    examples = max(1, together // max(1, count))
    for part in (slice(start, start + examples) for start in range(0, batch if count else 0, examples)):
        place = starts if starts.shape[1] == 1 else starts[:, part]
        _add_segments(out, kept[part], place, output_grad[part], margins, segments.length, together)
    return out.view(groups, wide // groups, *(p.kernel_size for p in positions.patterns), -1).movedim(-1, 2)


def _add_segments(
    out: Tensor, kept: Tensor, starts: Tensor, met: Tensor, margins: list[int], length: int, together: int
) -> None:
    """Add the products of some examples, ``together`` segments at a time; no more than these is held at a time."""
    planes = (F.pad(met, margins) if any(margins) else met).flatten(2).contiguous()
    for first in range(0, starts.shape[2], together):
        last = first + together
        columns = kept[:, :, first * length : last * length]
        add_columns(out, _stretches(planes, starts[:, :, first:last], length), columns)


def add_columns(total: Tensor, met: Tensor, kept: Tensor) -> None:
    """Add to ``[G, A, C / G]`` what kept columns ``[N, C, S]`` and those that they meet, ``[G·A, …, N, S]``, give."""
    left, right = met.reshape(*total.shape[:2], -1), kept.transpose(0, 1).reshape(len(total), total.shape[2], -1)
    if len(total) == 1:
        add_product(total[0], left[0], right[0].t())
    else:
        total.baddbmm_(left, right.mT)


def _stretches(planes: Tensor, starts: Tensor, length: int) -> Tensor:
    """Stretches ``[D, F, N, R·L]`` of planes ``[N, D, P]`` that begin at ``[F, N or 1, R]``."""
    batch, channels, size = planes.shape
    lines = planes.as_strided((max(0, planes.numel() - length + 1), length), (1, 1))
    example = torch.arange(0, batch * channels * size, channels * size, device=planes.device)
    channel = torch.arange(0, channels * size, size, device=planes.device)
    index = channel.view(-1, 1, 1, 1) + (starts + example.view(-1, 1))
    return lines.index_select(0, index.flatten()).view(*index.shape[:3], -1)


@lru_cache(maxsize=512)
def _met(positions: PositionClass, length: int, device: torch.device) -> tuple[list[int], Tensor]:
    """Margins of zeros around the outputs, last dimension first, and the padded output that each segment meets first.

    The table is ``[F, segments]``.
    """
    margins: list[int] = []
    widened: list[IndexPattern] = []
    for pattern in positions.patterns:
        before = max(0, pattern.dilation * (pattern.kernel_size - 1) - pattern.padding)
        after = max(0, pattern.input_size + pattern.padding - pattern.output_size)
        size = before + pattern.output_size + after
        widened.append(replace(pattern, output_size=size, padding=pattern.padding + before))
        margins = [before, after, *margins]
    table = PartnerTable(partner_targets(tuple(widened), "i"))
    return margins, without_modes(lambda: table(device)[:, ::length].contiguous())  # no tensor without data is kept


def pointwise_weight_vjp_with_mean(
    kept: Tensor, where: Segments, weight: float, mean: Tensor | None, output_grad: Tensor
) -> Tensor:
    """``[1, D, C]``: the VJP of kept positions, weighted, and of the mean, in one pass over large planes."""
    flat, (_, narrow, count) = flat_spatial(output_grad), kept.shape
    batch, wide, size = flat.shape
    total, means = kept.new_zeros(1, wide, narrow), flat.new_empty(batch, wide)
    what = "entries" if mean is None else "means"
    for part in pieces(batch, count * wide, flat.device):
        some = where.of(part)
        met, means[part] = gather_planes(flat[part], some.numbers, some.length, "channels", what)
        add_columns(total, met, kept[part])
    total *= weight
    return total if mean is None else total.baddbmm_(means.t().unsqueeze(0), mean.unsqueeze(0), alpha=size)


def weight_vjp_of_mean(mean: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of an input that is constant over positions, ``[N, C]``."""
    sums = _summed(spec, "output", output_grad.numel(), output_grad.dtype, output_grad.device)(output_grad)  # [N, D, K]
    left = sums.unflatten(1, (spec.groups, -1)).permute(1, 2, 3, 0).flatten(1, 2)  # [G, D / G · K, N]
    product = left @ mean.unflatten(1, (spec.groups, -1)).transpose(0, 1)
    return product.view(spec.groups, -1, *spec.kernel_size, product.shape[2]).movedim(-1, 2)


def input_vjp_of_mean(mean: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The input VJP ``[N, C, *I]`` of an output gradient that is constant over positions, ``[N, D]``."""
    left = mean.unflatten(1, (spec.groups, -1)).transpose(0, 1)  # [G, N, D / G]
    product = left @ by_group(weight, spec).flatten(2)  # [G, N, C / G · K]
    product = product.unflatten(2, (-1, *spec.kernel_size)).transpose(0, 1).flatten(1, 2)
    kernel = _summed(spec, "input", product.numel(), product.dtype, product.device)
    return kernel(product.contiguous()).view(spec.input_shape)


@lru_cache(maxsize=1024)
def _product(
    make: Callable[[Targets, int], TensorFunction], patterns: tuple[IndexPattern, ...], side: str, groups: int
) -> TensorFunction:
    return make(partner_targets(patterns, side), groups)


def partner_targets(patterns: tuple[IndexPattern, ...], side: str) -> Targets:
    """What positions on one side meet on the other, through each kernel entry."""
    inputs, outputs = tuple(p.input_size for p in patterns), tuple(p.output_size for p in patterns)
    here, there = (inputs, outputs) if side == "i" else (outputs, inputs)
    return Targets(here, tuple((side, pattern) for pattern in patterns), there)


@lru_cache(maxsize=512)
def _summed(spec: LayerSpec, side: Side, volume: int, dtype: torch.dtype, device: torch.device) -> TensorFunction:
    """Box sums of an output gradient for each kernel entry, or of what meets each kernel entry at each input."""
    ends = role(spec, side) + "k" if side == "output" else "k" + role(spec, side)
    if side == "output" and all(map(is_identity, spec.patterns)):
        return lambda output_grad: output_grad.flatten(2).sum(2).unsqueeze(2)
    return banded(spec.patterns, ends, volume, dtype, device)
