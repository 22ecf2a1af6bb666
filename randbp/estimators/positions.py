"""Kept positions: the candidates, drawing them, and reading them from a tensor."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from .. import tn
from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec, LinearSpec, PositionClass
from ..tn.execute.rows import pieces
from .runs import Runs, flat_rows, gather_runs, joined, steps

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
    """The spec of the layer after :func:`examples_as_positions`."""
    if not isinstance(spec, LinearSpec) or spec.input_size != (1,):
        return spec
    return LinearSpec((1, spec.in_channels, spec.batch_size), spec.out_channels, 1)


def memory_rows(tensor: Tensor) -> Tensor | None:
    """``[N, C, *P]`` as rows ``[N·P, C]`` if these are contiguous in memory, else ``None``.

    Example:
        >>> memory_rows(torch.zeros(2, 5, 3).transpose(1, 2)).shape, memory_rows(torch.zeros(2, 3, 5))
        (torch.Size([10, 3]), None)
    """
    rows = tensor.movedim(1, -1)
    return rows.reshape(-1, tensor.shape[1]) if rows.is_contiguous() else None


def gather_rows(tensor: Tensor, runs: Runs, less: Tensor | None = None) -> Tensor:
    """Rows ``[N, S, C]`` of ``[N, C, *P]`` at flat positions, minus a vector ``[N, C]`` per example."""
    return gather_classes(tensor, [runs], less)[0]


Order = Literal["rows", "examples", "channels"]
"""Of what is kept in memory: rows one behind the other, or positions innermost with examples or channels outermost."""


def gather_classes(
    tensor: Tensor, classes: Sequence[Runs], less: Tensor | None = None, order: Order = "rows"
) -> list[Tensor]:
    """:func:`gather_rows` for several sets of positions; where channels are outermost, the tensor is read only once.

    Args:
        tensor: ``[N, C, *P]``.
        classes: Flat positions.
        less: ``[N, C]``, subtracted.
        order: Memory order of the rows if channels are not innermost already; others than ``"rows"`` save a
            transposition. Only a lone class of runs can have its channels outermost; else examples are.
    """
    if not classes:
        return []
    rows = memory_rows(tensor)
    if rows is not None:
        batch, channels, size = flat_spatial(tensor).shape
        kept = [rows.index_select(0, flat_rows(each, batch, size)).view(batch, -1, channels) for each in classes]
        return kept if less is None else [each.sub_(less.unsqueeze(1)) for each in kept]
    flat = flat_spatial(tensor)
    if len(classes) == 1 and order != "rows":
        met = gather_columns(flat, classes[0], order == "channels")
        return [(met if less is None else met.sub_(less.unsqueeze(2))).transpose(1, 2)]
    return _gather_piecewise(flat, classes, less, turned=order == "rows")


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
    """Columns ``[N, C, S]`` of ``[N, C, P]``; if positions come in runs, channels may be outermost in memory."""
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
        draw: The source of the permutation.
        size: Number of positions.
        count: Number of positions to keep.
        batch: Number of examples.
        device: Device of the result.
        run: Number of neighbours to keep together; it divides ``size`` and ``count``.

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
        stretches = stretches.index_select(0, steps(batch, 1, device) % different)
    return Runs(stretches, run)


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
    """Flat positions of some members of a class; runs stay runs if the class has all positions."""
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
    """Whether some output uses each input position, so that means over all positions are means over sampled ones."""
    return used_size(spec, "input") == prod(spec.input_size)


def products(parts: Iterable[Part]) -> int:
    """Number of products with kernel entries in which one example's kept positions take part."""
    return sum(count * prod(map(len, each.kernels)) for each, count in parts)


def split(spec: LayerSpec, side: Side, count: int, examples: int = 1) -> tuple[Part, ...]:
    """Spread a number of kept positions over the classes of one side, or over all positions if there are too few.

    Args:
        spec: The layer.
        side: The side on which positions are kept.
        count: Number of positions to keep, over all ``examples``.
        examples: Number of examples that share the count.

    Example:
        >>> [(each.size, count) for each, count in split(tn.ConvSpec((1, 1, 9), 1, 3, stride=2), "input", 4)]
        [(5, 2), (4, 2)]
    """
    classes = tn.position_classes(spec, side)
    if count < len(classes):
        classes = (tn.whole_class(spec, side),)
    counts = shares(tuple(examples * each.size for each in classes), count)
    return tuple(zip(classes, counts, strict=True))


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
