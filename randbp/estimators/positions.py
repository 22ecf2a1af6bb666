"""Kept spatial positions: reading them from a tensor, and the sub-sampled networks that contract them."""

from functools import lru_cache

import torch
from torch import Tensor

from .. import tn
from ..tn import ConvSpec, ResidueClass


def flat_spatial(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` with its spatial dimensions flattened, ``[N, C, P]``; one position if it has none."""
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)


def gather_rows(tensor: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[N, S, C]`` of ``[N, C, *P]`` at flat positions ``[N or 1, S]``."""
    index = positions.unsqueeze(1).expand(*tensor.shape[:2], -1)
    return flat_spatial(tensor).gather(2, index).transpose(1, 2).contiguous()


@lru_cache(maxsize=512)
def grid_positions(grid: tuple[range, ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major flat positions of a grid of coordinates within an image of the given sizes."""
    flat = torch.zeros(1, dtype=torch.long)
    for coordinates, size in zip(grid, sizes, strict=True):
        flat = (flat[:, None] * size + torch.tensor(coordinates, dtype=torch.long)).flatten()
    return flat.to(device, non_blocking=True)


@lru_cache(maxsize=256)
def used_positions(spec: ConvSpec, device: torch.device) -> Tensor:
    """Flat input positions that any output may use, one residue class after the other.

    Example:
        >>> downsampling = ConvSpec((1, 1, 5), out_channels=1, kernel_size=1, stride=2)
        >>> used_positions(downsampling, torch.device("cpu"))
        tensor([0, 2, 4])
    """
    classes = tn.residue_classes(spec.patterns)
    parts = [grid_positions(residue.inputs, spec.input_size, device) for residue in classes]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=device)


def add_weight_vjp(
    result: Tensor,
    rows: Tensor,
    local: Tensor,
    output_grad: Tensor,
    spec: ConvSpec,
    residue: ResidueClass,
    weight: float,
) -> None:
    """Add the weight VJP of kept rows of one residue class to the weight's gradient.

    Args:
        result: ``[D, C / G, *K]``.
        rows: Kept input entries ``[N, S, C]``.
        local: Which positions of the class they are, ``[N or 1, S]``.
        output_grad: ``[N, D, *O]``.
        spec: The convolution, with as many examples as ``rows``.
        residue: The class.
        weight: The weight of every kept entry.
    """
    net = _weight_vjp(spec, residue, local.shape[1], len(local) > 1)
    index = local if len(local) > 1 else local[0]
    grad = net.contract({"input": rows.transpose(1, 2), "output_grad": output_grad, _index_slot("i", spec): index})
    entries = tuple(slice(r.start, r.stop, r.step) for r in residue.kernels)
    result[(slice(None), slice(None), *entries)].add_(grad, alpha=weight)


def input_vjp(rows: Tensor, local: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """The input VJP ``[N, C, *I]`` of kept rows ``[N, S, D]`` of the output gradient at positions ``[N or 1, S]``."""
    net = _input_vjp(spec, local.shape[1], len(local) > 1)
    index = local if len(local) > 1 else local[0]
    return net.contract({"output_grad": rows.transpose(1, 2), "weight": weight, _index_slot("o", spec): index})


def by_rows(tensor: Tensor) -> Tensor:
    """The same tensor with channels innermost in memory: what several networks read row by row is transposed once."""
    if tensor.dim() == 2:
        return tensor
    return tensor.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, tensor.shape[2:])


@lru_cache(maxsize=1024)
def _weight_vjp(spec: ConvSpec, residue: ResidueClass, count: int, per_example: bool) -> tn.TensorNetwork:
    sample = {_legs("i", spec): tn.Sample(count, per_example)}
    return tn.sampled(tn.residue_weight_vjp(spec, residue), sample, stored=("input",))


@lru_cache(maxsize=1024)
def _input_vjp(spec: ConvSpec, count: int, per_example: bool) -> tn.TensorNetwork:
    return tn.sampled(tn.input_vjp(spec), {_legs("o", spec): tn.Sample(count, per_example)}, stored=("output_grad",))


def _legs(side: str, spec: ConvSpec) -> str:
    return " ".join(f"{side}{dim}" for dim in range(1, spec.dims + 1))


def _index_slot(side: str, spec: ConvSpec) -> str:
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
