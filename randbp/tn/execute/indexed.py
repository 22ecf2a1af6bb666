"""Kernels for selections: index tables computed from the index at run time, gathers and scatters through them."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_zeros

from ...layers.pattern import IndexPattern
from .program import TensorFunction


class Targets(NamedTuple):
    """What an index chooses, and what follows from it.

    Attributes:
        sizes: Sizes of the legs whose grid the index counts through.
        via: Per target its role (``"i"``, ``"o"`` or ``"k"``) in a merged pattern, or None.
        determined: Sizes of the determined legs.
    """

    sizes: tuple[int, ...]
    via: tuple[tuple[str, IndexPattern] | None, ...]
    determined: tuple[int, ...]


def table(targets: Targets) -> TensorFunction:
    """Positions in the grid of determined legs, for each chosen value and free leg.

    The kernel maps an index ``[*batch, S]`` to ``[*batch, S, F1, F2, …]``. Where nothing is met it gives the
    grid's volume, the position of an extra zero.
    """
    free, volume = sum(entry is not None for entry in targets.via), prod(targets.determined)

    def kernel(index: Tensor) -> Tensor:
        remainder = index.long()  # positions may be beyond what the index's type holds
        values = []
        for size in reversed(targets.sizes):
            values.append(remainder % size)
            remainder = torch.div(remainder, size, rounding_mode="floor")
        values.reverse()
        position: Tensor | None = None
        valid: Tensor | None = None
        dim = 0
        for value, entry, size in zip(values, targets.via, targets.determined, strict=True):
            value = value.reshape(*value.shape, *(1,) * free)
            if entry is not None:
                value, ok = _through(value, entry, dim - free)
                valid = ok if valid is None else valid & ok
                dim += 1
            position = value if position is None else position * size + value
        assert position is not None
        return position if valid is None else torch.where(valid, position, volume)

    return kernel


def _through(value: Tensor, entry: tuple[str, IndexPattern], dim: int) -> tuple[Tensor, Tensor]:
    """The determined leg of a pattern, and where it exists, given one leg and all values of its free leg at ``dim``."""
    role, pattern = entry
    count = pattern.output_size if role == "k" else pattern.kernel_size
    free = torch.arange(count, device=value.device, dtype=value.dtype).reshape(-1, *(1,) * (-dim - 1))
    if role == "i":
        return pattern.outputs_at(value, free)
    return pattern.inputs_at(value, free) if role == "o" else pattern.inputs_at(free, value)


def gather(batched: bool, held: tuple[tuple[int, int], ...], volume: int, partial: bool) -> TensorFunction:
    """Make a kernel that reads the last dimension at the positions of a table.

    ``x`` is ``[(n), *rest, *held, volume]``, the table ``[(n), *free]``; the result ``[(n), *rest, *free]``.
    Held free legs, which ``x`` has already, are read along their diagonal.
    """
    width = volume + partial

    def kernel(x: Tensor, positions: Tensor) -> Tensor:
        if partial:
            x = pad_zeros(x, (0, 1))
        positions = _combined(positions, held, width, positions.ndim - batched)
        x = x.flatten(x.ndim - 1 - len(held))
        free = positions.shape[batched:]
        if not batched:
            return x.index_select(-1, positions.reshape(-1)).reshape(*x.shape[:-1], *free)
        rest = x.shape[1:-1]
        flat = positions.reshape(x.shape[0], *(1,) * len(rest), -1).expand(x.shape[0], *rest, -1)
        return x.gather(-1, flat).reshape(x.shape[0], *rest, *free)

    return kernel


def scatter(batched: bool, kept: tuple[tuple[int, int], ...], volume: int) -> TensorFunction:
    """Make a kernel that adds up at the positions of a table: the transpose of `gather`.

    ``x`` is ``[(n), *rest, *free]``, the table ``[(n), *free]``; the result ``[(n), *rest, *kept, volume]``.
    """
    width = volume + 1

    def kernel(x: Tensor, positions: Tensor) -> Tensor:
        free = positions.ndim - batched
        positions = _combined(positions, kept, width, free)
        sizes = [size for _, size in kept]
        rest = x.shape[batched : x.ndim - free]
        source = x.flatten(x.ndim - free)
        buffer = x.new_zeros((*source.shape[:-1], width * prod(sizes)))
        if batched:
            flat = positions.reshape(x.shape[0], *(1,) * len(rest), -1).expand(source.shape)
            buffer.scatter_add_(-1, flat, source)
        else:
            buffer.index_add_(-1, positions.reshape(-1), source)
        return buffer.reshape(*source.shape[:-1], *sizes, width)[..., :volume]

    return kernel


def _combined(positions: Tensor, legs: tuple[tuple[int, int], ...], width: int, free: int) -> Tensor:
    """Positions in the joint grid of some free legs and the determined ones."""
    offset: Tensor | None = None
    for dim, size in legs:
        along = torch.arange(size, device=positions.device).reshape(-1, *(1,) * (free - 1 - dim))
        offset = along if offset is None else offset * size + along
    return positions.long() if offset is None else positions + offset * width
