"""Arithmetic on a parameter, piece by piece: what is read and written in a step stays in the processor's cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, strided

from .sharding import is_sharded

_AT_ONCE = {"cpu": 2**16}
"""Entries of a piece by device; elsewhere a launch costs more than a pass over memory."""
_ELSEWHERE = 2**24


@dataclass(frozen=True)
class Scaled:
    """A gradient of a weight times factors of its rows and of its columns, which are multiplied piece by piece.

    Attributes:
        grad: The gradient, of the weight's own shape.
        factors: Tensors that ``grad.unflatten(0, (groups, -1))`` is to be multiplied by.
        groups: Number of groups.
    """

    grad: Tensor
    factors: tuple[Tensor, Tensor]
    groups: int

    def dot(self) -> Tensor:
        """The inner product with the gradient."""
        return sum((piece.mul_(grad).sum() for piece, grad in pieces(self, self.grad)), self.factors[0].new_zeros(()))


def pieces(update: Tensor | Scaled, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into pieces of the same entries; those of the first must not be written to.

    Pieces of the others are views of them.

    Example:
        >>> import torch
        >>> grad, total = torch.ones(4, 2), torch.zeros(4, 2)
        >>> factors = torch.arange(1.0, 5).view(1, 4, 1), torch.tensor([[[1.0, 10.0]]])
        >>> for piece, part in pieces(Scaled(grad, factors, groups=1), total):
        ...     part += piece
        >>> total
        tensor([[ 1., 10.],
                [ 2., 20.],
                [ 3., 30.],
                [ 4., 40.]])
    """
    if isinstance(update, Scaled):
        yield from _scaled(update, others)
        return
    tensors = update, *others
    at_once = _AT_ONCE.get(update.device.type, _ELSEWHERE)
    flat = None if update.numel() <= at_once else _flat(tensors)
    if flat is None:
        yield tensors
    else:
        yield from zip(*(tensor.split(at_once) for tensor in flat), strict=True)


def scaled(tensor: Tensor, length: Tensor | float) -> Tensor:
    """The tensor times a number; itself where that is the number 1."""
    return tensor if isinstance(length, float) and length == 1 else tensor * length


def _scaled(update: Scaled, others: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    tensors = [tensor.unflatten(0, (update.groups, -1)) for tensor in (update.grad, *others)]
    of_group, of_row = (max(1, tensors[0][index].numel()) for index in (0, (0, 0)))
    at_once = _AT_ONCE.get(update.grad.device.type, _ELSEWHERE)
    for groups in _ranges(update.groups, max(1, at_once // of_group)):
        for rows in _ranges(tensors[0].shape[1], max(1, at_once // of_row) if of_group > at_once else of_group):
            grad, *rest = (tensor[groups, rows] for tensor in tensors)
            first, second = (f[groups, rows] if f.shape[1] > 1 else f[groups] for f in update.factors)
            piece = grad * first
            yield piece.mul_(second), *rest


def _ranges(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _flat(tensors: tuple[Tensor, ...]) -> list[Tensor] | None:
    """Views ``[n]`` of tensors that lie in memory alike and without gaps; ``None`` of others."""
    first = tensors[0]
    if any(is_sharded(each) or each.layout is not strided or each.stride() != first.stride() for each in tensors):
        return None
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    ordered = [each.permute(order) for each in tensors]
    return [each.view(-1) for each in ordered] if all(each.is_contiguous() for each in ordered) else None
