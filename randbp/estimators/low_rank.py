"""Low-rank parts of a tensor: few directions in channel space. Their weight VJP is that of a narrow layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec
from .planned import planned_weight_vjp, shared_weight_vjp
from .positions import Order, flat_spatial, gather_classes, memory_rows
from .runs import Runs

COLUMNS = 4  # positions from which directions are found [positions per channel]
FEWEST = 16  # least number of examples in a mean over examples, which takes a quarter of the batch [examples]


@dataclass(frozen=True)
class LowRank:
    """A tensor ``[N, C, P]`` with the entries ``Σ_r directions[c r] coefficients[n r i]``, group by group.

    Args:
        groups: Number ``G`` of groups of consecutive channels, each of which has its own directions.
        directions: ``[C, R]``, orthonormal within each group.
        coefficients: ``[N, G·R, P]``, or ``[G·R, P]`` of what all examples share.

    Example:
        >>> part = LowRank(1, torch.eye(3)[:, :1], torch.ones(2, 1, 4))
        >>> rows = torch.zeros(2, 1, 3)
        >>> part.subtract_from([rows], [Runs(torch.tensor([[0]]))])
        >>> rows.flatten(1)
        tensor([[-1.,  0.,  0.],
                [-1.,  0.,  0.]])
    """

    groups: int
    directions: Tensor
    coefficients: Tensor

    @property
    def grouped(self) -> Tensor:
        """Directions ``[G, C / G, R]``."""
        return self.directions.unflatten(0, (self.groups, -1))

    def subtract_from(self, classes: Sequence[Tensor], where: Sequence[Runs]) -> None:
        """Subtract the entries at several sets of flat positions from rows ``[N, S, C]``, in place."""
        order = _order(classes[0]) if classes else "rows"
        if self.coefficients.dim() == 3:
            kept = gather_classes(self.coefficients, where, order=order)
        else:
            table = self.coefficients.t()
            kept = [table[each.positions].expand(len(rows), -1, -1) for rows, each in zip(classes, where, strict=True)]
        for rows, here in zip(classes, kept, strict=True):
            if self.groups > 1:
                rows -= torch.einsum("nsgr,gcr->nsgc", here.unflatten(2, (self.groups, -1)), self.grouped).flatten(2)
            elif order == "examples":
                directions = self.directions.expand(len(rows), -1, -1)
                rows.transpose(1, 2).baddbmm_(directions, here.transpose(1, 2), alpha=-1)
            else:
                in_place = rows.view(-1, rows.shape[2])  # an error, not a copy, where rows of another order come along
                in_place.addmm_(here.flatten(0, 1), self.directions.t(), alpha=-1)

    def thin_vjp(self, output_grad: Tensor, spec: LayerSpec) -> Tensor:
        """Exact weight VJP of the coefficients: ``[G, D / G·K, R]``."""
        thin = replace_channels(spec, self.groups, self.directions.shape[1], spec.out_channels // self.groups)
        coefficients = self.coefficients.unflatten(-1, spec.input_size)
        if self.coefficients.dim() == 3:
            grad = planned_weight_vjp(coefficients, output_grad, thin)
        else:
            grad = shared_weight_vjp(coefficients.unsqueeze(0), output_grad, thin)
        return by_group(grad, thin).flatten(3).transpose(2, 3).flatten(1, 2)


def _order(rows: Tensor) -> Order:
    """The memory order of rows ``[N, S, C]``."""
    if rows.is_contiguous():
        return "rows"
    return "examples" if rows.transpose(1, 2).is_contiguous() else "channels"


def add_low_rank_vjp(result: Tensor, parts: Sequence[LowRank], output_grad: Tensor, spec: LayerSpec) -> None:
    """Add the exact weight VJP of some parts to the weight's gradient: that of their coefficients times directions."""
    if not parts:
        return
    thin = torch.cat([part.thin_vjp(output_grad, spec) for part in parts], 2)
    directions = torch.cat([part.grouped for part in parts], 2).mT
    place = by_group(result, spec).movedim(2, -1)  # [G, D / G, *K, C / G]
    if place.is_contiguous():
        place.flatten(1, -2).baddbmm_(thin, directions)
    else:
        place.add_((thin @ directions).view(place.shape))


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


def low_rank(tensor: Tensor, mean: Tensor, shared: LowRank | None, groups: int, rank: int, draw: Draw) -> LowRank:
    """The part of ``[N, C, *P]``, less its means ``[N, C]`` and a shared part, that ``rank`` directions span.

    The directions depend on the tensor only, not on which positions are drawn: they are those of a few columns.
    """
    flat = flat_spatial(tensor)
    examples, places = _spread(*flat.shape)
    columns = flat[examples, :, places] - mean[examples].unsqueeze(2)
    if shared is not None:
        here = shared.coefficients[:, places].unflatten(0, (groups, -1))
        columns -= (shared.grouped @ here).flatten(0, 1)
    grouped = columns.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
    directions = leading_directions(grouped, rank, draw).to(tensor.dtype)
    coefficients = _project(directions, tensor)
    coefficients -= _project(directions, mean.unsqueeze(2))
    if shared is not None:
        both = directions.mT @ shared.grouped
        coefficients -= (both @ shared.coefficients.unflatten(0, (groups, -1))).flatten(0, 1)
    return LowRank(groups, directions.flatten(0, 1), coefficients)


def shared_low_rank(tensor: Tensor, mean: Tensor, groups: int, rank: int, draw: Draw) -> LowRank:
    """The part that ``rank`` directions span of the mean of some examples of ``[N, C, *P]`` less means ``[N, C]``."""
    every = max(1, len(tensor) // max(FEWEST, len(tensor) // 4))
    image = flat_spatial(tensor)[::every].mean(0).sub_(mean[::every].mean(0).unsqueeze(1))
    grouped = image.unflatten(0, (groups, -1))
    directions = leading_directions(grouped, rank, draw).to(tensor.dtype)
    return LowRank(groups, directions.flatten(0, 1), (directions.mT @ grouped).flatten(0, 1))


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
