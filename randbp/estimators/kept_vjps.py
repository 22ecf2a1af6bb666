"""Weight and input VJPs of kept positions, with a choice of contraction for each class of positions."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tn
from ..layers.grouped_weights import at_entry, by_group
from ..tn import LayerSpec, PositionClass
from ..tn.execute.rows import pieces, rows_by_matrices, rows_by_rows
from .positions import Part, flat_spatial, gather_columns, gather_rows, memory_rows
from .run_products import run_products, serves, stretch
from .runs import Runs, flat_rows


class KeptRows(NamedTuple):
    """The kept part of a class of positions."""

    positions: PositionClass
    rows: Tensor
    """``[N, S, C]``."""
    local: Runs
    """Which positions of the class they are."""
    weight: float


def add_weight_vjp(result: Tensor, kept: Sequence[KeptRows], output_grad: Tensor, spec: LayerSpec) -> None:
    """Add the weight VJP of kept rows to the weight's gradient.

    Args:
        result: The sum so far, in the shape of the layer's weight.
        kept: The kept rows of each class.
        output_grad: ``[N, D, *O]``.
        spec: The layer, with as many examples as there are rows.
    """
    in_runs = all(each.positions.is_pointwise or serves(spec, each.positions, each.local.length) for each in kept)
    as_it_lies = in_runs and memory_rows(output_grad) is None
    margins = () if as_it_lies else _margins(tuple(each.positions for each in kept))
    if margins:  # what several networks read row by row is transposed once
        output_grad = _rows_within(output_grad, margins)
    for positions, rows, local, weight in kept:
        if positions.is_pointwise and not margins:
            grad = _pointwise_weight_vjp(rows, local, output_grad, spec.groups)
            at_entry(by_group(result, spec), _first_entry(positions)).add_(grad, alpha=weight)
        elif as_it_lies:
            grad = run_products(rows, local, output_grad, positions, spec.groups)
            by_group(result, spec)[(slice(None), *_entries(positions))].add_(grad, alpha=weight)
        else:
            reached = _widened(positions, margins) if margins else positions
            net = _weight_vjp(spec, reached, local.count, local.examples > 1, bool(margins))
            kept_input = {"input": rows.transpose(1, 2), _index_slot("i", spec): _index(local)}
            result[_entries(positions)].add_(net.contract(kept_input, output_grad=output_grad), alpha=weight)


@lru_cache(maxsize=512)
def _margins(classes: tuple[PositionClass, ...]) -> tuple[tuple[int, int], ...]:
    """Widths, per dimension, by which the kernel entries of several classes reach beyond the output.

    Empty for one class, and where the margins would be larger than the output.
    """
    if len(classes) < 2 or all(each.is_pointwise for each in classes):
        return ()
    reached = []
    for patterns in zip(*(each.patterns for each in classes), strict=True):
        before = max(p.dilation * (p.kernel_size - 1) - p.padding for p in patterns)
        after = max(p.input_size + p.padding - p.output_size for p in patterns)
        reached.append((max(0, before), max(0, after)))
    outputs = [p.output_size for p in classes[0].patterns]
    within = prod(size + sum(margin) for size, margin in zip(outputs, reached, strict=True))
    return tuple(reached) if within <= 2 * prod(outputs) else ()


def _widened(positions: PositionClass, margins: tuple[tuple[int, int], ...]) -> PositionClass:
    """The class on an output widened by margins, so that each position has a partner through each kernel entry."""
    patterns = tuple(
        replace(p, output_size=before + p.output_size + after, padding=p.padding + before)
        for p, (before, after) in zip(positions.patterns, margins, strict=True)
    )
    return replace(positions, patterns=patterns)


def _rows_within(tensor: Tensor, margins: tuple[tuple[int, int], ...]) -> Tensor:
    """``[N, C, *P]`` as ``[N, *P, C]``, padded with zeros; a view if there are none and channels are innermost."""
    if not any(map(any, margins)) and memory_rows(tensor) is not None:
        return tensor.movedim(1, -1)
    sizes = [before + size + after for size, (before, after) in zip(tensor.shape[2:], margins, strict=True)]
    rows = inside = tensor.new_empty(len(tensor), *sizes, tensor.shape[1])
    for dim, (before, after) in enumerate(margins, 1):
        rows.narrow(dim, 0, before).zero_()
        rows.narrow(dim, sizes[dim - 1] - after, after).zero_()
        inside = inside.narrow(dim, before, tensor.shape[dim + 1])
    inside.copy_(tensor.movedim(1, -1))
    return rows


def _pointwise_weight_vjp(rows: Tensor, local: Runs, output_grad: Tensor, groups: int) -> Tensor:
    """``[G, D / G, C / G]`` from rows ``[N, S, C]`` that each meet the output row of the same position."""
    if memory_rows(output_grad) is not None:
        return rows_by_rows(gather_rows(output_grad, local).flatten(0, 1), rows.flatten(0, 1), groups)
    flat = flat_spatial(output_grad)
    (batch, wide, _), (_, count, narrow) = flat.shape, rows.shape
    by_example = groups == 1 and _small_products(narrow, wide, count)
    total: Tensor | None = None
    for part in pieces(batch, count * wide, flat.device):
        met = gather_columns(flat[part], local.of(part), not by_example)
        if by_example:
            product = torch.bmm(met, rows[part]).sum(0, keepdim=True)
            total = product if total is None else total.add_(product)
        else:
            total = rows_by_rows(met.transpose(1, 2).flatten(0, 1), rows[part].flatten(0, 1), groups, total)
    return rows.new_zeros(groups, wide // groups, narrow // groups) if total is None else total


def products_in_runs(parts: Sequence[Part], runs: Sequence[int]) -> int:
    """As :func:`~randbp.estimators.positions.products`, of positions in runs, whose stretches meet a little more."""
    total = 0
    for (positions, count), run in zip(parts, runs, strict=True):
        reach = 1 if run == 1 or positions.is_pointwise else stretch(positions, run) / run
        total += round(count * reach) * prod(map(len, positions.kernels))
    return total


def multiplied_by_example(positions: PositionClass, count: int, spec: LayerSpec) -> bool:
    """Whether the kept entries of each example form a matrix product of their own, whatever the memory order."""
    return positions.is_pointwise and spec.groups == 1 and _small_products(spec.in_channels, spec.out_channels, count)


def _small_products(inner: int, outer: int, count: int) -> bool:
    """Whether the products of each example are no larger than its rows."""
    return inner * outer <= count * (inner + outer)


def input_vjp(kept: Iterable[KeptRows], weight: Tensor, spec: LayerSpec) -> Tensor:
    """The input VJP ``[N, C, *I]`` of kept rows of the output gradient.

    Args:
        kept: Per class its rows ``[N, S, D]``, which positions of the class they are, and the weight of
            every kept entry.
        weight: The layer's weight.
        spec: The layer.
    """
    total: Tensor | None = None
    for positions, rows, local, scale in kept:
        part = _input_vjp_of_class(rows, local, weight, scale, spec, positions)
        total = part if total is None else total.add_(part)
    return weight.new_zeros(spec.input_shape) if total is None else total


def _input_vjp_of_class(
    rows: Tensor, local: Runs, weight: Tensor, scale: float, spec: LayerSpec, positions: PositionClass
) -> Tensor:
    if positions.is_pointwise:
        size = prod(spec.input_size)
        matrices = at_entry(by_group(weight, spec), _first_entry(positions)) * scale
        result = rows.new_zeros(spec.batch_size, size, spec.in_channels)
        products = rows_by_matrices(rows.flatten(0, 1), matrices)
        result.flatten(0, 1).index_add_(0, flat_rows(local, spec.batch_size, size), products)
        return result.transpose(1, 2).reshape(spec.input_shape)
    net = _input_vjp(spec, positions, local.count, local.examples > 1)
    index = _index(local)
    scaled = weight[_entries(positions)] * scale
    return net.contract({"output_grad": rows.transpose(1, 2), "weight": scaled, _index_slot("o", spec): index})


def _index(runs: Runs) -> Tensor:
    """The index of a sub-sampled network: ``[N, S]``, or ``[S]`` if all examples share it."""
    return runs.positions if runs.examples > 1 else runs.positions[0]


def _first_entry(positions: PositionClass) -> tuple[int, ...]:
    return tuple(entries[0] for entries in positions.kernels)


def _entries(positions: PositionClass) -> tuple[slice, ...]:
    """The slices of a weight with a class's kernel entries."""
    return (slice(None), slice(None), *(slice(r.start, r.stop, r.step) for r in positions.kernels))


@lru_cache(maxsize=1024)
def _weight_vjp(
    spec: LayerSpec, positions: PositionClass, count: int, per_example: bool, channels_last: bool
) -> tn.TensorNetwork:
    sample = {_legs("i", spec): tn.Sample(count, per_example)}
    return tn.sampled(tn.weight_vjp_of_positions(spec, positions, channels_last), sample, stored=("input",))


@lru_cache(maxsize=1024)
def _input_vjp(spec: LayerSpec, positions: PositionClass, count: int, per_example: bool) -> tn.TensorNetwork:
    sample = {_legs("o", spec): tn.Sample(count, per_example)}
    return tn.sampled(tn.input_vjp_of_positions(spec, positions), sample, stored=("output_grad",))


def _legs(side: str, spec: LayerSpec) -> str:
    return " ".join(f"{side}{dim}" for dim in range(1, spec.dims + 1))


def _index_slot(side: str, spec: LayerSpec) -> str:
    return f"{_legs(side, spec)} index"
