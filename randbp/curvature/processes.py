"""What several processes that train together have seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from .averages import Scales
from .gathering import Seen

Shape = tuple[int, ...]


def processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@dataclass(frozen=True)
class Peers:
    """The other processes, for weights whose statistics are brought together; all must call its methods together.

    Args:
        shapes: ``(G, d, a)`` of the weights, by key.
        like: A tensor whose device and data type all sums have.
        agreed: Whether all processes are known to have the same ``shapes``.
    """

    shapes: Mapping[str, tuple[int, int, int]]
    like: Tensor
    agreed: bool

    def keys(self) -> list[str]:
        """Keys of weights that have the same shapes in all processes."""
        keys = sorted(self.shapes)
        if self.agreed:
            return keys
        known = everyones({key: self.shapes[key] for key in keys})
        return [key for key in keys if all(theirs.get(key) == self.shapes[key] for theirs in known)]

    def means(
        self, parts: Mapping[str, Sequence[Tensor]], wanted: Callable[[tuple[int, int, int]], Sequence[Shape]]
    ) -> dict[str, list[Tensor]]:
        """Average the tensors of each key over the processes that have any.

        Args:
            parts: This process's tensors.
            wanted: Their shapes, given that of the weight; tensors of other shapes do not count.
        """
        keys = self.keys()
        if not keys:
            return {}
        shapes = {key: list(wanted(self.shapes[key])) for key in keys}
        fit = {key: key in parts and [part.shape for part in parts[key]] == shapes[key] for key in keys}
        given = [part for key in keys for part in (parts[key] if fit[key] else map(self.like.new_zeros, shapes[key]))]
        counts = self.like.new_tensor([float(fit[key]) for key in keys])
        flat = torch.cat([*(part.flatten().to(self.like) for part in given), counts])
        distributed.all_reduce(flat)
        *sums, numbers = flat.split([*(part.numel() for part in given), len(keys)])
        every = iter(zip(sums, given, strict=True))
        means: dict[str, list[Tensor]] = {}
        for key, count in zip(keys, numbers.tolist(), strict=True):
            found = [next(every) for _ in shapes[key]]
            if count:
                means[key] = [(total.view(part.shape) / count).to(part.dtype) for total, part in found]
        return means

    def factors(
        self, taken: Mapping[str, Seen], scales: Scales, diagonals: tuple[bool, bool] = (False, False)
    ) -> dict[str, Seen]:
        """Average both factors, or their diagonals, over the processes that have seen any."""
        parts = {
            key: [moment.matrix() * scale for moment, scale in zip(seen.moments, scales[key], strict=True)]
            for key, seen in taken.items()
        }

        def wanted(shape: tuple[int, int, int]) -> list[Shape]:
            sides = zip(shape[:0:-1], diagonals, strict=True)
            return [(shape[0], rows) if diagonal else (shape[0], rows, rows) for rows, diagonal in sides]

        means = {}
        for key, found in self.means(parts, wanted).items():
            means[key] = Seen(examples=1)
            for moment, mean in zip(means[key].moments, found, strict=True):
                moment.add_matrix(mean)
        return means


def everyones(what: Any) -> list[Any]:
    """An object of each process, by rank."""
    known: list[Any] = [None] * processes()
    distributed.all_gather_object(known, what)
    return known
