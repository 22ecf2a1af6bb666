"""The low-rank part of a tensor: few directions in channel space. Its weight VJP is that of a narrow layer."""

from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec
from ..tn.execute.segments import flat_spatial, memory_rows
from .planned import planned_weight_vjp

COLUMNS = 4  # positions from which directions are found [positions per channel]
WIDE = 200  # layers above this spend little of their time on low-rank parts [multiply-adds per input entry]
LARGE = 2**30  # in layers below this, finding directions takes a large part of the time [multiply-adds]
SPENT = 3 / 8  # share of the kept entries that is spent on directions
EVEN = 8  # kernels are fastest with a multiple of this number of channels [channels]


def affordable_rank(spec: LayerSpec, budget: int) -> int:
    """The number of directions that take three eighths of the entries of ``budget`` positions per example.

    Example:
        >>> from randbp import tn
        >>> affordable_rank(tn.ConvSpec((128, 192, 16, 16), 192, 3, padding=1), 63)
        16
    """
    if spec.multiply_adds < max(LARGE, WIDE * prod(spec.input_shape)):
        return 0
    rank = int(min(SPENT * budget / price(spec), spec.in_channels // spec.groups // 2))
    return rank - rank % EVEN if rank > EVEN else rank


def price(spec: LayerSpec) -> float:
    """What one direction of each group takes, in positions of each example."""
    return prod(spec.input_size) * spec.groups / spec.in_channels + 1 / spec.batch_size


@dataclass(frozen=True)
class LowRank:
    """A tensor ``[N, C, P]`` with the entries ``Σ_r directions[c r] coefficients[n r i]``, group by group."""

    groups: int  # number G of groups of consecutive channels, each of which has its own directions
    directions: Tensor  # [C, R], orthonormal within each group
    coefficients: Tensor  # [N, G·R, P]

    @property
    def grouped(self) -> Tensor:
        """Directions ``[G, C / G, R]``."""
        return self.directions.unflatten(0, (self.groups, -1))

    def subtract_from(self, kept: Tensor, positions: Tensor) -> None:
        """Subtract the entries at flat positions ``[N or 1, S]`` from ``[N, C, S]``, in place.

        Example:
            >>> part, columns = LowRank(1, torch.eye(3)[:, :1], torch.ones(2, 1, 4)), torch.zeros(2, 3, 1)
            >>> part.subtract_from(columns, torch.tensor([[0]]))
            >>> columns.flatten(1)
            tensor([[-1.,  0.,  0.],
                    [-1.,  0.,  0.]])
        """
        shape = (*self.coefficients.shape[:2], -1)
        here = self.coefficients.gather(2, positions.unsqueeze(1).expand(shape))
        if self.groups > 1:
            kept -= (self.grouped @ here.unflatten(1, (self.groups, -1))).flatten(1, 2)
        elif kept.is_contiguous():
            kept.baddbmm_(self.directions.expand(len(kept), -1, -1), here, alpha=-1)
        else:
            rows = kept.transpose(1, 2).view(-1, kept.shape[1])  # an error, not a copy, for any other order of memory
            rows.addmm_(here.transpose(1, 2).flatten(0, 1), self.directions.t(), alpha=-1)

    def add_weight_vjp(self, grouped: Tensor, output_grad: Tensor, spec: LayerSpec) -> None:
        """Add the exact weight VJP, that of the coefficients mapped back, to a gradient ``[G, D / G, C / G, *K]``."""
        thin = replace_channels(spec, self.groups, self.directions.shape[1], spec.out_channels // self.groups)
        grad = planned_weight_vjp(self.coefficients.unflatten(2, spec.input_size), output_grad, thin)
        of_coefficients = by_group(grad, thin).flatten(3).transpose(2, 3).flatten(1, 2)  # [G, D / G · K, R]
        place = grouped.movedim(2, -1)
        if place.is_contiguous():
            place.flatten(1, -2).baddbmm_(of_coefficients, self.grouped.mT)
        else:
            place.add_((of_coefficients @ self.grouped.mT).view(place.shape))


def low_rank(tensor: Tensor, mean: Tensor, groups: int, rank: int, draw: Draw) -> LowRank:
    """The part of ``[N, C, *P]``, less its means ``[N, C]``, that ``rank`` directions span.

    The directions depend on the tensor only, not on which positions are drawn: they are those of a few columns.
    """
    flat = flat_spatial(tensor)
    examples, places = _spread(*flat.shape)
    columns = flat[examples, :, places] - mean[examples].unsqueeze(2)
    grouped = columns.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
    directions = leading_directions(grouped, rank, draw).to(tensor.dtype)
    coefficients = _project(directions, tensor)
    coefficients -= _project(directions, mean.unsqueeze(2))
    return LowRank(groups, directions.flatten(0, 1), coefficients)


def leading_directions(columns: Tensor, rank: int, draw: Draw) -> Tensor:
    """Orthonormal directions ``[G, C, rank]`` that capture almost the largest possible part of columns ``[G, C, M]``.

    Two steps of subspace iteration from a random start (N. Halko, P.-G. Martinsson, J. Tropp, Finding structure with
    randomness, SIAM Review 53, 2011, algorithm 4.4), in single precision at least.

    Example:
        >>> left, right = torch.randn(1, 6, 2), torch.randn(1, 2, 50)
        >>> found = leading_directions(left @ right, 2, Draw(0))
        >>> bool(torch.allclose(found @ (found.mT @ left), left, atol=1e-4))
        True
    """
    columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
    start = torch.randn(columns.shape[1], rank, generator=draw.generator(columns.device), device=columns.device)
    found = start.to(columns.dtype).expand(len(columns), -1, -1)
    for _ in range(2):
        found = torch.linalg.qr(columns @ (found.mT @ columns).mT).Q
    return found.contiguous()


def _project(directions: Tensor, tensor: Tensor) -> Tensor:
    """Coefficients ``[N, G·R, P]`` of ``[N, C, *P]`` along directions ``[G, C / G, R]``; in the same memory order."""
    rows = memory_rows(tensor) if len(directions) == 1 else None
    if rows is not None:
        return (rows @ directions[0]).view(len(tensor), -1, directions.shape[2]).transpose(1, 2)
    flat = flat_spatial(tensor).unflatten(1, (len(directions), -1))
    return torch.matmul(directions.mT, flat).flatten(1, 2)


def _spread(batch: int, channels: int, size: int) -> tuple[slice, slice]:
    """Examples and positions, evenly spread, that together make about ``COLUMNS`` columns for each channel."""
    count = COLUMNS * channels
    examples = min(batch, max(8, -(-count // size)))
    step = max(1, size * examples // count)
    while gcd(step, size) > 1:  # else all may lie in few columns of the image
        step -= 1
    every = batch // examples
    return slice(0, every * examples, every), slice(0, size, step)
