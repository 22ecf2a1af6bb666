"""Budget of low-rank parts: how many directions in channel space are kept in addition to sampled positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import replace_batch, replace_channels
from ..tn import LayerSpec
from .coarse import CoarseGrid
from .low_rank import FEWEST, LowRank, low_rank, shared_low_rank
from .positions import uses_every_position
from .rebuilt import rebuilding_pays

WIDE = 200  # layers above this spend little of their time on low-rank parts [multiply-adds per input entry]
LARGE = 2**30  # in layers below this, finding directions takes a large part of the time [multiply-adds]
SPENT = 3 / 8  # share of the budget that is spent on directions in channel space
SHARED, SHARE = 8, 8  # directions of the mean over examples; they take at most one in SHARE kept entries
EVEN = 8  # kernels are fastest with a multiple of this number of channels; fewer take as long [channels]
BLOCK = 2  # side of the cells for directions at the lower resolution [positions]


@dataclass(frozen=True)
class Ranks:
    """Numbers of directions kept at every position, in cells of positions, and of the mean over examples.

    ``left`` is the number of positions of each example that can still be kept.
    """

    left: int
    fine: int = 0
    coarse: int = 0
    shared: int = 0

    @property
    def directions(self) -> int:
        """Total number of directions of a group."""
        return self.fine + self.coarse + self.shared

    def entries(self, spec: LayerSpec) -> int:
        """Number of entries of the directions and of their coefficients."""
        each = spec.batch_size * (self.fine * prod(spec.input_size) + self.coarse * cells(spec).cells)
        return self.directions * spec.in_channels + spec.groups * (each + self.shared * prod(spec.input_size))

    def multiply_adds(self, spec: LayerSpec) -> int:
        """Multiply-adds to find the coefficients, for their weight VJPs, and to map these back to channels."""
        outer, total = spec.out_channels // spec.groups, 0
        for rank, batch in ((self.fine + self.coarse, spec.batch_size), (self.shared, 1)):
            if rank:
                layer = replace_batch(spec, batch)
                total += rank * (prod(layer.input_shape) + prod(spec.weight_shape))
                total += replace_channels(layer, spec.groups, rank, outer).multiply_adds
        return total


def cells(spec: LayerSpec) -> CoarseGrid:
    """The grid of cells for coefficients at the lower resolution."""
    return CoarseGrid(spec.input_size, BLOCK)


def _products_per_entry(spec: LayerSpec) -> float:
    """Multiply-adds of the exact weight VJP per entry of the input."""
    return spec.multiply_adds / prod(spec.input_shape)


def affordable_ranks(spec: LayerSpec, budget: int) -> Ranks:
    """Divide the entries of ``budget`` positions per example among low-rank parts, as measured on All-CNN-C's layers.

    Example:
        >>> from randbp import tn
        >>> affordable_ranks(tn.ConvSpec((128, 192, 16, 16), 192, 3, padding=1), 63)
        Ranks(left=41, fine=16, coarse=0, shared=8)
    """
    size, batch, channels = prod(spec.input_size), spec.batch_size, spec.in_channels // spec.groups
    if _products_per_entry(spec) < WIDE or spec.multiply_adds < LARGE or rebuilding_pays(spec, 1, torch.float32):
        return Ranks(budget)
    shared_price = (size / channels + 1) / batch  # of a direction, in positions
    shared = min(SHARED, channels // 2, int(budget / SHARE / shared_price)) if batch >= FEWEST and budget > 1 else 0
    left = budget - shared * shared_price
    high, low = size / channels + 1 / batch, cells(spec).cells / channels + 1 / batch
    fine, coarse = min(int(SPENT * left / high), channels // 2) if high > low else 0, 0
    if fine > EVEN:
        fine -= fine % EVEN
    elif fine:
        few, spent = min(2 * fine, EVEN, channels // 2), left - max(1, round((1 - SPENT) * left))
        fine = max(0, min(few, int((spent - few * low) / (high - low))))
        if uses_every_position(spec):  # else cells would reach beyond the positions that the mean is taken of
            coarse = max(0, min(few - fine, int((spent - fine * high) / low)))
    rest = int(left - fine * high - coarse * low)
    return Ranks(rest, fine, coarse, shared) if rest else Ranks(budget)  # some positions must be sampled


def keep_parts(
    ranks: Ranks, input: Tensor, mean: Tensor, spec: LayerSpec, draw: Draw
) -> tuple[list[LowRank], list[Tensor]]:
    """The low-rank parts of an input less its means, and the tensors from which they can be restored."""
    shared, held = None, []
    if ranks.shared:
        shared = shared_low_rank(input, mean, spec.groups, ranks.shared, draw.child(0))
        held += [shared.directions, shared.coefficients]
    if ranks.fine + ranks.coarse:
        found = low_rank(input, mean, shared, spec.groups, ranks.fine + ranks.coarse, draw.child(1))
        held.append(found.directions)
        if not ranks.coarse:
            held.append(found.coefficients)
        else:
            fine, coarse = found.coefficients.unflatten(1, (spec.groups, -1)).split([ranks.fine, ranks.coarse], 2)
            if ranks.fine:
                fine = fine.flatten(1, 2).clone(memory_format=torch.contiguous_format)
                held.append(fine)  # a view would hold the others as well
            held.append(cells(spec).means(coarse.flatten(1, 2).unflatten(2, spec.input_size)))
    return kept_parts(ranks, held, spec), held


def kept_parts(ranks: Ranks, held: Sequence[Tensor], spec: LayerSpec) -> list[LowRank]:
    """Restore the low-rank parts from the tensors that were held."""
    tensors, parts = iter(held), []
    if ranks.shared:
        parts.append(LowRank(spec.groups, next(tensors), next(tensors)))
    if ranks.fine + ranks.coarse:
        directions, coefficients = next(tensors), []
        if ranks.fine:
            coefficients.append(next(tensors))
        if ranks.coarse:
            coarse = next(tensors)
            coefficients.append(coarse.index_select(2, cells(spec).cell_of(coarse.device)))
        if len(coefficients) > 1:
            joined = torch.cat([each.unflatten(1, (spec.groups, -1)) for each in coefficients], 2).flatten(1, 2)
        else:
            joined = coefficients[0]
        parts.append(LowRank(spec.groups, directions, joined))
    return parts
