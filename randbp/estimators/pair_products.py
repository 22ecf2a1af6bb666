"""VJPs of kept (example, position) pairs of a whole batch, which no rectangular sub-sampled network describes.

A kernel entry pairs every position with at most one partner on the other side of the convolution, of the same
example. Each VJP is therefore a gather (weight) or a scatter (input) of rows beside a matrix product per kernel entry.
"""

from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from ..tn import ConvSpec, IndexPattern, ResidueClass
from ..tn.execute.rows import PartnerTable, rows_by_matrices, rows_by_rows
from .positions import flat_spatial


def add_pairs_weight_vjp(
    result: Tensor, rows: Tensor, index: Tensor, output_rows: Tensor, spec: ConvSpec, residue: ResidueClass
) -> None:
    """Add the weight VJP of kept pairs of one residue class to the weight's gradient.

    Args:
        result: ``[D, C / G, *K]``.
        rows: Kept input entries, times their weights, ``[S, C]``.
        index: Which pairs of the class they are: example times size of the class, plus position, ``[S]``.
        output_rows: The output gradient as :func:`rows_with_blank` orders it, ``[N·(O + 1), D]``.
        spec: The convolution.
        residue: The class.
    """
    example, local = index // residue.size, index % residue.size
    first = example * (prod(spec.output_size) + 1)
    grouped = result.unflatten(0, (spec.groups, -1))
    partners = _partners("i", residue.patterns, index.device)
    for partner, kernel in zip(partners, product(*residue.kernels), strict=True):
        met = output_rows.index_select(0, partner[local] + first)
        grouped[(..., *kernel)].add_(rows_by_rows(met, rows, spec.groups))


def pairs_input_vjp(rows: Tensor, index: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """The input VJP of kept pairs of the output gradient.

    Args:
        rows: Kept entries, times their weights, ``[S, D]``.
        index: Which pairs they are: example times ``O``, plus flat position, ``[S]``.
        weight: ``[D, C / G, *K]``.
        spec: The convolution.

    Returns:
        ``[N, C, *I]``, a view of memory ordered by rows.
    """
    size = prod(spec.output_size)
    example, local = index // size, index % size
    length = prod(spec.input_size) + 1  # the blank row collects what falls into the padding
    result = rows.new_zeros(spec.batch_size * length, spec.in_channels)
    matrices = weight.reshape(spec.groups, -1, spec.in_channels // spec.groups, prod(spec.kernel_size))
    for kernel, partner in enumerate(_partners("o", spec.patterns, index.device)):
        result.index_add_(0, partner[local] + example * length, rows_by_matrices(rows, matrices[..., kernel]))
    by_example = result.view(spec.batch_size, length, spec.in_channels)[:, :-1]
    return by_example.transpose(1, 2).reshape(spec.input_shape)


def rows_with_blank(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` as rows ``[N·(P + 1), C]``; every example ends with zeros, the partner of what has none.

    Example:
        >>> rows_with_blank(torch.tensor([[[1.0, 2.0]]]))[:, 0]
        tensor([1., 2., 0.])
    """
    flat = flat_spatial(tensor)
    rows = tensor.new_empty(flat.shape[0], flat.shape[2] + 1, flat.shape[1])
    rows[:, :-1].copy_(flat.transpose(1, 2))
    rows[:, -1].zero_()
    return rows.flatten(0, 1)


def _partners(role: str, patterns: tuple[IndexPattern, ...], device: torch.device) -> Tensor:
    """Flat partner of each position through each kernel entry, ``[K, P]``; the blank row's number if it has none."""
    return _table(role, patterns)(device) if patterns else torch.zeros(1, 1, dtype=torch.long, device=device)


@lru_cache(maxsize=256)
def _table(role: str, patterns: tuple[IndexPattern, ...]) -> PartnerTable:
    """Output positions that inputs meet (role ``"i"``), or inputs that outputs meet (``"o"``)."""
    inputs, outputs = tuple(p.input_size for p in patterns), tuple(p.output_size for p in patterns)
    here, there = (inputs, outputs) if role == "i" else (outputs, inputs)
    return PartnerTable(here, tuple((role, pattern) for pattern in patterns), there)
