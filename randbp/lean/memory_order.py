"""The memory order of tensors, and tensors flattened in that order."""

from collections.abc import Iterable
from itertools import pairwise
from operator import index
from typing import Any

import torch
from torch import Tensor

CACHE = 2**17
"""Size of pieces that fit a CPU's cache [entries]."""


def memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the outermost to the innermost in memory; in their own order if entries overlap.

    It is the memory order of what PyTorch makes of the tensor entry by entry, also if there are gaps.

    Example:
        >>> images = torch.empty(2, 6, 4, 5, memory_format=torch.channels_last)
        >>> memory_order(images), memory_order(images[:, :3]), memory_order(images[:, :1].expand(2, 3, 4, 5))
        ((0, 2, 3, 1), (0, 2, 3, 1), (0, 1, 2, 3))
    """
    natural = tuple(range(tensor.dim()))
    if tensor.is_contiguous():
        return natural
    strides = tensor.stride()
    order = tuple(sorted(natural, key=lambda dim: (-strides[dim], dim)))
    inner = [dim for dim in order if tensor.shape[dim] > 1]
    apart = all(strides[a] >= strides[b] * tensor.shape[b] for a, b in pairwise(inner))
    return order if apart and all(strides[dim] for dim in inner) else natural


def flatten(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """All entries in the given order; a view if the tensor has that memory order."""
    return tensor.permute(order).reshape(-1)


def unflatten(flat: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """Undo :func:`flatten`, as a view."""
    inverse = sorted(range(len(order)), key=lambda dim: order[dim])
    return flat.view([shape[dim] for dim in order]).permute(inverse)


def laid_out_as(other: Tensor, values: Tensor) -> Tensor:
    """The values in the memory order of a tensor of the same shape, unless entries of that one overlap."""
    order = memory_order(other)
    if 0 in other.stride() or order == memory_order(values):
        return values
    return unflatten(flatten(values, order), values.shape, order)


def unexpanded(tensor: Tensor) -> Tensor:
    """A view without the repetitions of ``expand``: one entry for all those that share its memory.

    Example:
        >>> unexpanded(torch.ones(3, 1).expand(3, 5)).shape
        torch.Size([3, 1])
    """
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def broadcast(tensors: Iterable[Tensor]) -> torch.Size | None:
    """The shape to which tensors broadcast; ``None`` if they do not.

    Example:
        >>> broadcast([torch.ones(3, 1), torch.ones(5)]), broadcast([torch.ones(3), torch.ones(5)])
        (torch.Size([3, 5]), None)
    """
    try:
        return torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except RuntimeError:
        return None


def reduced_shape(shape: torch.Size, dim: Any) -> torch.Size:
    """A shape with ones in the reduced dimensions: one, several, or all if none is given.

    Example:
        >>> reduced_shape(torch.Size([2, 3, 5]), (0, -1)), reduced_shape(torch.Size([2, 3]), 1)
        (torch.Size([1, 3, 1]), torch.Size([2, 1]))
    """
    several = dim if isinstance(dim, (tuple, list)) else range(len(shape)) if dim is None else (dim,)
    dims = {index(each) % max(1, len(shape)) for each in several or range(len(shape))}
    return torch.Size(1 if each in dims else size for each, size in enumerate(shape))


def pieces(count: int, device: torch.device, multiple: int = 1) -> list[slice]:
    """Slices of ``0 … count - 1`` that fit a CPU's cache, or few large ones, of a multiple of so many entries each."""
    size = CACHE if device.type == "cpu" else 2**26
    size = max(multiple, size // multiple * multiple)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
