"""Kept positions: reading them from a tensor, and the sub-sampled networks that contract them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import tn
from ..tn import LayerSpec, LinearSpec, PositionClass
from ..tn.execute.rows import pieces, rows_by_matrices, rows_by_rows
from ..tn.layers import Side
from .draw import Draw
from .kernels import at_entry, by_group
from .runs import Runs, gather_runs, joined, steps

Part = tuple[PositionClass, int]


def flat_spatial(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` with its spatial dimensions flattened, ``[N, C, P]``; one position if it has none."""
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)


def examples_as_positions(tensor: Tensor, spec: LayerSpec) -> tuple[Tensor, LayerSpec]:
    """A linear layer on vectors, ``[N, C, 1]``, seen as one sequence of the examples, ``[1, C, N]``.

    Its weight VJP sums over examples only, so they are what a sampler of positions samples, and their mean is what it
    keeps exactly. Other layers are returned as they are.
    """
    seen = sampled_spec(spec)
    return (tensor, spec) if seen is spec else (tensor.permute(2, 1, 0), seen)


def sampled_spec(spec: LayerSpec) -> LayerSpec:
    """The layer as :func:`examples_as_positions` sees it."""
    if not isinstance(spec, LinearSpec) or spec.input_size != (1,):
        return spec
    return LinearSpec((1, spec.in_channels, spec.batch_size), spec.out_channels, 1)


def memory_rows(tensor: Tensor) -> Tensor | None:
    """``[N, C, *P]`` as the rows ``[N·P, C]`` that lie one behind the other in memory, ``None`` if they do not.

    Example:
        >>> memory_rows(torch.zeros(2, 5, 3).transpose(1, 2)).shape, memory_rows(torch.zeros(2, 3, 5))
        (torch.Size([10, 3]), None)
    """
    rows = tensor.movedim(1, -1)
    return rows.reshape(-1, tensor.shape[1]) if rows.is_contiguous() else None


def gather_rows(tensor: Tensor, runs: Runs, less: Tensor | None = None) -> Tensor:
    """Rows ``[N, S, C]`` of ``[N, C, *P]`` at flat positions, less a vector ``[N, C]`` per example."""
    return gather_classes(tensor, [runs], less)[0]


Order = Literal["rows", "examples", "channels"]
"""Of what is kept in memory: rows one behind the other, or positions innermost with examples or channels outermost."""


def gather_classes(
    tensor: Tensor, classes: Sequence[Runs], less: Tensor | None = None, order: Order = "rows"
) -> list[Tensor]:
    """The same for several sets of positions; where channels lie outermost, the tensor is read once for all of them.

    Args:
        tensor: ``[N, C, *P]``.
        classes: Flat positions.
        less: ``[N, C]``, subtracted.
        order: How rows shall lie in memory where channels are not innermost already; others than ``"rows"`` save a
            transposition. ``"channels"`` is for a lone class of runs.
    """
    if not classes:
        return []
    rows = memory_rows(tensor)
    if rows is not None:
        batch, channels, size = flat_spatial(tensor).shape
        kept = [rows.index_select(0, _flat_index(each, batch, size)).view(batch, -1, channels) for each in classes]
        return kept if less is None else [each.sub_(less.unsqueeze(1)) for each in kept]
    flat = flat_spatial(tensor)
    if len(classes) == 1 and (order == "examples" or (order == "channels" and _in_runs(flat, classes[0]))):
        met = gather_columns(flat, classes[0], order == "channels")
        return [(met if less is None else met.sub_(less.unsqueeze(2))).transpose(1, 2)]
    return _gather_piecewise(flat, classes, less, turned=order != "examples")


def _gather_piecewise(flat: Tensor, classes: Sequence[Runs], less: Tensor | None, turned: bool) -> list[Tensor]:
    batch, channels, _ = flat.shape
    counts = [each.count for each in classes]
    runs = joined(classes)
    if turned:
        kept = [flat.new_empty(batch, count, channels) for count in counts]
    else:
        kept = [flat.new_empty(batch, channels, count).transpose(1, 2) for count in counts]
    for part in pieces(batch, channels * sum(counts), flat.device):
        met = gather_columns(flat[part], runs.of(part)).transpose(1, 2)
        for target, some in zip(kept, met.split(counts, 1), strict=True):
            if less is None:
                target[part].copy_(some)
            else:
                torch.sub(some, less[part].unsqueeze(1), out=target[part])
    return kept


def gather_columns(flat: Tensor, runs: Runs, channels_first: bool = False) -> Tensor:
    """Columns ``[N, C, S]`` of ``[N, C, P]``; where they come in runs, channels may be outermost in memory."""
    if _in_runs(flat, runs):
        return gather_runs(flat, runs, channels_first)
    return flat.gather(2, runs.positions.unsqueeze(1).expand(len(flat), flat.shape[1], -1))


def _in_runs(flat: Tensor, runs: Runs) -> bool:
    return runs.length > 1 and flat.is_contiguous()


def windows(draw: Draw, size: int, count: int, batch: int, device: torch.device, run: int = 1) -> Runs:
    """Positions to keep of each example, ascending: disjoint stretches of one random permutation, in turn.

    Together the examples cover the positions as evenly as whole stretches can. Where more than half of the positions
    are kept, those left out are such stretches.

    Args:
        draw: Where the permutation comes from.
        size: How many positions there are.
        count: How many to keep.
        batch: How many examples.
        device: Where.
        run: How many neighbours to keep together; it divides both numbers.

    Example:
        >>> windows(Draw(0), 6, 3, 2, torch.device("cpu")).positions.flatten().sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    size, count = size // run, count // run
    left_out = size - count
    if not left_out:
        return Runs(steps(size, 1, device).expand(batch, size), run)
    length = min(count, left_out)
    different = min(batch, size // length)
    stretches = draw.permutation(size, device)[: different * length].view(different, length).sort(1).values
    if count > left_out:  # the s-th position kept is s plus the number left out before it
        before = stretches - steps(length, 1, device)
        kept = steps(count, 1, device).expand(different, count).contiguous()
        stretches = kept + torch.searchsorted(before, kept, right=True)
    if different < batch:
        stretches = stretches.index_select(0, _in_turn(batch, different, device))
    return Runs(stretches, run)


@lru_cache(maxsize=512)
def _in_turn(batch: int, different: int, device: torch.device) -> Tensor:
    """For each example which of so many samples it takes."""
    return torch.arange(batch, device=device) % different


@lru_cache(maxsize=512)
def grid_positions(grid: tuple[range, ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major flat positions of a grid of coordinates within an image of the given sizes."""
    flat = torch.zeros(1, dtype=torch.long)
    for coordinates, size in zip(grid, sizes, strict=True):
        flat = (flat[:, None] * size + torch.tensor(coordinates, dtype=torch.long)).flatten()
    return flat.to(device, non_blocking=True)


def class_positions(positions: PositionClass, spec: LayerSpec, side: Side, device: torch.device) -> Tensor:
    """Flat positions of a class, in its own order."""
    return grid_positions(positions.positions, side_size(spec, side), device)


def at_positions(positions: PositionClass, local: Runs, spec: LayerSpec, side: Side) -> Runs:
    """Flat positions of some of a class; runs stay runs where the class is all positions."""
    if positions.positions == tuple(map(range, side_size(spec, side))):
        return local
    return Runs(class_positions(positions, spec, side, local.numbers.device)[local.positions])


def side_size(spec: LayerSpec, side: Side) -> tuple[int, ...]:
    """Spatial sizes of a layer's input or output."""
    return spec.input_size if side == "input" else spec.output_size


@lru_cache(maxsize=256)
def used_positions(spec: LayerSpec, device: torch.device) -> Tensor:
    """Flat input positions that any output may use, one class after the other.

    Example:
        >>> downsampling = tn.ConvSpec((1, 1, 5), out_channels=1, kernel_size=1, stride=2)
        >>> used_positions(downsampling, torch.device("cpu"))
        tensor([0, 2, 4])
    """
    classes = tn.position_classes(spec, "input")
    parts = [class_positions(each, spec, "input", device) for each in classes]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=device)


def used_size(spec: LayerSpec, side: Side) -> int:
    """Number of positions on one side that the other side uses."""
    return sum(each.size for each in tn.position_classes(spec, side))


def uses_every_position(spec: LayerSpec) -> bool:
    """Whether some output uses each input position, so that means over all are means over those that are sampled."""
    return used_size(spec, "input") == prod(spec.input_size)


def products(parts: Iterable[Part]) -> int:
    """Products of rows with kernel entries that one example's kept positions take part in."""
    return sum(count * prod(map(len, each.kernels)) for each, count in parts)


def split(spec: LayerSpec, side: Side, count: int, examples: int = 1) -> tuple[Part, ...]:
    """Spread a number of kept positions over the classes of one side, or over all positions if it is too small.

    Args:
        spec: The layer.
        side: Where positions are kept.
        count: How many to keep, of ``examples`` examples together.
        examples: How many examples share them.

    Example:
        >>> [(each.size, count) for each, count in split(tn.ConvSpec((1, 1, 9), 1, 3, stride=2), "input", 4)]
        [(5, 2), (4, 2)]
    """
    classes = tn.position_classes(spec, side)
    if count < len(classes):
        classes = (tn.whole_class(spec, side),)
    counts = shares(tuple(examples * each.size for each in classes), count)
    return tuple(zip(classes, counts, strict=True))


class KeptRows(NamedTuple):
    """What is kept of a class of positions."""

    positions: PositionClass
    rows: Tensor
    """``[N, S, C]``."""
    local: Runs
    """Which positions of the class they are."""
    weight: float


def add_weight_vjp(result: Tensor, kept: Sequence[KeptRows], output_grad: Tensor, spec: LayerSpec) -> None:
    """Add the weight VJP of kept rows to the weight's gradient.

    Args:
        result: In the shape of the layer's weight.
        kept: What is kept of each class.
        output_grad: ``[N, D, *O]``.
        spec: The layer, with as many examples as there are rows.
    """
    margins = _margins(tuple(each.positions for each in kept))
    if margins:  # what several networks read row by row is transposed once
        output_grad = _rows_within(output_grad, margins)
    for positions, rows, local, weight in kept:
        if not margins and positions.is_pointwise:
            grad = _pointwise_weight_vjp(rows, local, output_grad, spec.groups)
            at_entry(by_group(result, spec), _first_entry(positions)).add_(grad, alpha=weight)
            continue
        reached = _widened(positions, margins) if margins else positions
        net = _weight_vjp(spec, reached, local.count, local.examples > 1, bool(margins))
        index = _index(local)
        grad = net.contract({"input": rows.transpose(1, 2), "output_grad": output_grad, _index_slot("i", spec): index})
        result[_entries(positions)].add_(grad, alpha=weight)


@lru_cache(maxsize=512)
def _margins(classes: tuple[PositionClass, ...]) -> tuple[tuple[int, int], ...]:
    """How far beyond the output, per dimension, the kernel entries of several classes reach.

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
    """A class beside an output with margins, so that every position meets something through each kernel entry."""
    patterns = tuple(
        replace(p, output_size=before + p.output_size + after, padding=p.padding + before)
        for p, (before, after) in zip(positions.patterns, margins, strict=True)
    )
    return replace(positions, patterns=patterns)


def _rows_within(tensor: Tensor, margins: tuple[tuple[int, int], ...]) -> Tensor:
    """``[N, *P, C]`` of ``[N, C, *P]`` with zeros around; a view if there are none and it lies in memory so."""
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


def multiplied_by_example(positions: PositionClass, count: int, spec: LayerSpec) -> bool:
    """Whether so many kept entries of each example are multiplied as a matrix of their own, in any order of memory."""
    return positions.is_pointwise and spec.groups == 1 and _small_products(spec.in_channels, spec.out_channels, count)


def _small_products(inner: int, outer: int, count: int) -> bool:
    """Whether the products of each example are no larger than its rows."""
    return inner * outer <= count * (inner + outer)


def input_vjp(kept: Iterable[KeptRows], weight: Tensor, spec: LayerSpec) -> Tensor:
    """The input VJP ``[N, C, *I]`` of kept rows of the output gradient.

    Args:
        kept: Per class its rows ``[N, S, D]``, which positions of the class they are ``[N or 1, S]``, and the weight
            of every kept entry.
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
        result.flatten(0, 1).index_add_(0, _flat_index(local, spec.batch_size, size), products)
        return result.transpose(1, 2).reshape(spec.input_shape)
    net = _input_vjp(spec, positions, local.count, local.examples > 1)
    index = _index(local)
    scaled = weight[_entries(positions)] * scale
    return net.contract({"output_grad": rows.transpose(1, 2), "weight": scaled, _index_slot("o", spec): index})


def _flat_index(runs: Runs, batch: int, size: int) -> Tensor:
    """Rows of ``[N·P, C]`` at some positions of each example, flattened."""
    return (runs.positions + steps(batch, size, runs.numbers.device).unsqueeze(1)).flatten()


def _index(runs: Runs) -> Tensor:
    """The index of a sub-sampled network: ``[N, S]``, or ``[S]`` if all examples share it."""
    return runs.positions if runs.examples > 1 else runs.positions[0]


def _first_entry(positions: PositionClass) -> tuple[int, ...]:
    return tuple(entries[0] for entries in positions.kernels)


def _entries(positions: PositionClass) -> tuple[slice, ...]:
    """Where a class's kernel entries lie in a weight."""
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


def shares(sizes: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Split ``total`` over classes in proportion to their sizes, at least one each, exactly ``total`` in all.

    Example:
        >>> shares((6, 3, 1), 5)
        (3, 1, 1)
    """
    everything = sum(sizes)
    parts = [max(1, total * size // everything) for size in sizes]
    by_need = sorted(range(len(sizes)), key=lambda c: parts[c] - total * sizes[c] / everything)
    step = 1 if sum(parts) < total else -1
    while sum(parts) != total:
        for c in by_need if step > 0 else reversed(by_need):
            if sum(parts) != total and 1 <= parts[c] + step <= sizes[c]:
                parts[c] += step
    return tuple(parts)
