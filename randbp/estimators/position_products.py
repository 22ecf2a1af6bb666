"""VJPs of kept positions of one class, and of tensors that are constant over positions."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..kernels.gather import gather_planes
from ..layers.grouped_weights import by_group
from ..layers.layer_specs import Side, is_identity, role
from ..layers.pattern import IndexPattern
from ..tn import LayerSpec, PositionClass
from ..tn.execute.banded import banded
from ..tn.execute.program import TensorFunction
from ..tn.execute.rows import gathered_product, pieces, rows_by_rows, scattered_product
from .controls import position_means
from .positions import flat_spatial, memory_rows
from .segments import Segments, add_columns, segment_products


def weight_vjp_of_class(
    kept: Tensor, where: Segments, output_grad: Tensor, positions: PositionClass, spec: LayerSpec
) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of kept inputs of a class, for its kernel entries.

    Args:
        kept: ``[N, C, S]``.
        where: Which positions of the class they are.
        output_grad: ``[N, D, *O]``.
        positions: The class.
        spec: The layer.
    """
    if positions.is_pointwise:
        grad = _pointwise_weight_vjp(kept, where, output_grad, spec.groups)
    elif where.length > 1:
        return segment_products(kept, where, output_grad, positions, spec.groups)
    else:
        kernel = _gathered(positions.patterns, role(spec, "input"), spec.groups)
        grad = kernel(flat_spatial(output_grad), kept.transpose(1, 2), where.numbers)
    return grad.view(*grad.shape[:3], *(p.kernel_size for p in positions.patterns))


def input_vjp_of_class(
    kept: Tensor, where: Tensor, matrices: Tensor, positions: PositionClass, spec: LayerSpec
) -> Tensor:
    """The input VJP, as rows ``[N, I, C]``, of kept outputs of a class.

    Args:
        kept: ``[N, D, S]``.
        where: Which positions of the class they are, ``[N or 1, S]``.
        matrices: The weight ``[G, D / G, C / G, *K]`` at the kernel entries of the class.
        positions: The class.
        spec: The layer.
    """
    kernel = _scattered(positions.patterns, role(spec, "output"), spec.groups)
    return kernel(matrices.flatten(3) if spec.dims else matrices.unsqueeze(3), kept.transpose(1, 2), where)


def _pointwise_weight_vjp(kept: Tensor, where: Segments, output_grad: Tensor, groups: int) -> Tensor:
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
        zeros = [0.0] * some.numbers.shape[1]
        met, means[part], _ = gather_planes(flat[part], some.numbers, some.length, zeros, "channels", what)
        add_columns(total, met, kept[part])
    total *= weight
    return total if mean is None else total.baddbmm_(means.t().unsqueeze(0), mean.unsqueeze(0), alpha=size)


def weight_vjp_of_mean(mean: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The weight VJP ``[G, D / G, C / G, *K]`` of an input that is constant over positions, ``[N, C]``."""
    if all(map(is_identity, spec.patterns)):
        sums = position_means(output_grad).mul_(prod(spec.output_size)).unsqueeze(2)
    else:
        sums = _summed(spec, "output", output_grad.numel(), output_grad.dtype, output_grad.device)(output_grad)
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


@lru_cache(maxsize=512)
def _gathered(patterns: tuple[IndexPattern, ...], side: str, groups: int) -> TensorFunction:
    return gathered_product(*_partners(patterns, side), groups)


@lru_cache(maxsize=512)
def _scattered(patterns: tuple[IndexPattern, ...], side: str, groups: int) -> TensorFunction:
    return scattered_product(*_partners(patterns, side), groups)


def _partners(
    patterns: tuple[IndexPattern, ...], side: str
) -> tuple[tuple[int, ...], tuple[tuple[str, IndexPattern], ...], tuple[int, ...]]:
    inputs, outputs = tuple(p.input_size for p in patterns), tuple(p.output_size for p in patterns)
    here, there = (inputs, outputs) if side == "i" else (outputs, inputs)
    return here, tuple((side, pattern) for pattern in patterns), there


@lru_cache(maxsize=512)
def _summed(spec: LayerSpec, side: Side, volume: int, dtype: torch.dtype, device: torch.device) -> TensorFunction:
    """Box sums of an output gradient for each kernel entry, or of what meets each kernel entry at each input."""
    ends = role(spec, side) + "k" if side == "output" else "k" + role(spec, side)
    return banded(spec.patterns, ends, volume, dtype, device)
