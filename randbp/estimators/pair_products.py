"""VJPs of kept (example, position) pairs of a whole batch, which no rectangular sub-sampled network describes.

A kernel entry pairs every position with at most one partner on the other side of the convolution, of the same example.
Each VJP is therefore a gather (weight) or a scatter (input) of rows and a matrix product for each kernel entry.
"""

from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from ..layers.grouped_weights import at_entry, by_group
from ..layers.layer_specs import role
from ..tn import IndexPattern, LayerSpec, PositionClass
from ..tn.execute.rows import PartnerTable, rows_by_matrices, rows_by_rows
from .positions import flat_spatial


def add_pairs_weight_vjp(
    result: Tensor, rows: Tensor, index: Tensor, output_rows: Tensor, spec: LayerSpec, positions: PositionClass
) -> None:
    """Add the weight VJP of kept pairs of one class of positions to the weight's gradient.

    Args:
        result: The sum so far, in the shape of the layer's weight.
        rows: Kept input entries, times their weights, ``[S, C]``.
        index: Which pairs of the class they are: example times size of the class, plus position, ``[S]``.
        output_rows: The output gradient as :func:`rows_with_blank` orders it, ``[N·(O + 1), D]``.
        spec: The layer.
        positions: The class.
    """
    example, local = index // positions.size, index % positions.size
    first = example * (prod(spec.output_size) + 1)
    grouped = by_group(result, spec)
    partners = _partners(role(spec, "input"), positions.patterns, index.device)
    for partner, kernel in zip(partners, product(*positions.kernels), strict=True):
        met = output_rows.index_select(0, partner[local] + first)
        at_entry(grouped, kernel).add_(rows_by_rows(met, rows, spec.groups))


def add_pairs_input_vjp(
    result: Tensor, rows: Tensor, index: Tensor, weight: Tensor, spec: LayerSpec, positions: PositionClass
) -> None:
    """Add the input VJP of kept pairs of one class of output positions.

    Args:
        result: Ordered as by :func:`rows_with_blank`, ``[N·(I + 1), C]``; blank rows collect what has no partner.
        rows: Kept entries of the output gradient, times their weights, ``[S, D]``.
        index: Which pairs of the class they are: example times size of the class, plus position, ``[S]``.
        weight: The layer's weight.
        spec: The layer.
        positions: The class.
    """
    example, local = index // positions.size, index % positions.size
    first = example * (prod(spec.input_size) + 1)
    grouped = by_group(weight, spec)
    partners = _partners(role(spec, "output"), positions.patterns, index.device)
    for partner, kernel in zip(partners, product(*positions.kernels), strict=True):
        result.index_add_(0, partner[local] + first, rows_by_matrices(rows, at_entry(grouped, kernel)))


def rows_with_blank(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` as rows ``[N·(P + 1), C]``; each example ends with zeros, for positions without a partner.

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
    """Flat partner of each position through each kernel entry, ``[K, P]``; the zero row's number if there is none."""
    return _table(role, patterns)(device) if patterns else torch.zeros(1, 1, dtype=torch.long, device=device)


@lru_cache(maxsize=256)
def _table(role: str, patterns: tuple[IndexPattern, ...]) -> PartnerTable:
    """Output positions that inputs meet (role ``"i"``), or inputs that outputs meet (``"o"``)."""
    inputs, outputs = tuple(p.input_size for p in patterns), tuple(p.output_size for p in patterns)
    here, there = (inputs, outputs) if role == "i" else (outputs, inputs)
    return PartnerTable(here, tuple((role, pattern) for pattern in patterns), there)
