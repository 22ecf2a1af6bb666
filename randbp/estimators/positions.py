"""The positions on one side of a layer that the other side uses, and how kept ones are spread over their classes."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..layers.layer_specs import Side, role
from ..tn import LayerSpec, LinearSpec, PositionClass

SHORTEST, LONGEST = 7, 16  # shorter segments cost more than they save [positions]
LOST = 1 / 10  # share of the kept positions that may be lost by keeping only whole segments
NARROW = 8  # below this, gathering output rows costs more than the products that it saves [channels per group]

Part = tuple[PositionClass, int]
"""A class of positions, and how many of them are kept."""


def examples_as_positions(tensor: Tensor, spec: LayerSpec) -> tuple[Tensor, LayerSpec]:
    """A linear layer on vectors, ``[N, C, 1]``, seen as one sequence of the examples, ``[1, C, N]``.

    Its weight VJP sums over examples only, so they take the place of positions. Other layers are returned as they are.
    """
    seen = sampled_spec(spec)
    return (tensor, spec) if seen is spec else (tensor.permute(2, 1, 0), seen)


def sampled_spec(spec: LayerSpec) -> LayerSpec:
    """The spec of the layer after :func:`examples_as_positions`."""
    if not isinstance(spec, LinearSpec) or spec.input_size != (1,):
        return spec
    return LinearSpec((1, spec.in_channels, spec.batch_size), spec.out_channels, 1)


@dataclass(frozen=True)
class UsedPositions:
    """The grid of positions on one side of a layer that the other side uses.

    Example:
        >>> downsampling = tn.ConvSpec((1, 1, 5), out_channels=1, kernel_size=1, stride=2)
        >>> used_positions(downsampling, "input").take(torch.arange(5.0).view(1, 1, 5))
        tensor([[[0., 2., 4.]]])
    """

    sizes: tuple[int, ...]  # spatial sizes of that side
    axes: tuple[range | tuple[int, ...], ...]  # coordinates per dimension

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of coordinates per dimension."""
        return tuple(map(len, self.axes))

    @property
    def size(self) -> int:
        """Number of positions."""
        return prod(self.shape)

    @property
    def every(self) -> bool:
        """Whether all positions are used."""
        return self.shape == self.sizes

    def take(self, tensor: Tensor) -> Tensor:
        """The used part of ``[N, C, *sizes]``; a view if coordinates are evenly spaced."""
        if self.every:
            return tensor
        for dim, axis in enumerate(self.axes, 2):
            if isinstance(axis, range):
                tensor = tensor[(slice(None),) * dim + (slice(axis.start, axis.stop, axis.step),)]
            else:
                tensor = tensor.index_select(dim, torch.tensor(axis, device=tensor.device))
        return tensor

    def put_back(self, tensor: Tensor) -> Tensor:
        """A used part ``[N, C, P]`` as ``[N, C, *sizes]``, with zeros elsewhere."""
        if self.every:
            return tensor.view(*tensor.shape[:2], *self.sizes)
        result = tensor.new_zeros(*tensor.shape[:2], prod(self.sizes))
        return result.index_copy_(2, _remembered(self.axes, self.sizes, tensor.device), tensor).unflatten(2, self.sizes)

    def members(self, positions: PositionClass, device: torch.device) -> Tensor | None:
        """Flat numbers of a class's positions within the grid, in their order; ``None`` if these are all."""
        if tuple(map(len, positions.positions)) == self.shape:
            return None
        numbers = tuple(tuple(map(axis.index, each)) for axis, each in zip(self.axes, positions.positions, strict=True))
        return _remembered(numbers, self.shape, device)


@lru_cache(maxsize=512)
def used_positions(spec: LayerSpec, side: Side) -> UsedPositions:
    """The used positions of one side of a layer."""
    sizes = spec.input_size if side == "input" else spec.output_size
    classes = tn.position_classes(spec, side)
    return UsedPositions(
        sizes, tuple(_axis({i for each in classes for i in each.positions[d]}) for d in range(spec.dims))
    )


def _axis(coordinates: set[int]) -> range | tuple[int, ...]:
    found = sorted(coordinates)
    step = found[1] - found[0] if len(found) > 1 else 1
    evenly = range(found[0], found[-1] + 1, step) if found else range(0)
    return evenly if list(evenly) == found else tuple(found)


def flat_positions(axes: tuple[range | tuple[int, ...], ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major flat positions of a grid of coordinates within an image of the given sizes."""
    flat = torch.zeros(1, dtype=torch.long, device="cpu")
    for coordinates, size in zip(axes, sizes, strict=True):
        flat = (flat[:, None] * size + torch.tensor(coordinates, dtype=torch.long, device="cpu")).flatten()
    return flat.to(device, non_blocking=True)


_remembered = lru_cache(maxsize=512)(flat_positions)


def split(spec: LayerSpec, side: Side, count: int) -> tuple[Part, ...]:
    """Spread a number of kept positions over the classes of one side, or over all positions if there are too few.

    Example:
        >>> [(each.size, count) for each, count in split(tn.ConvSpec((1, 1, 9), 1, 3, stride=2), "input", 4)]
        [(5, 2), (4, 2)]
    """
    classes = tn.position_classes(spec, side)
    if count < len(classes):
        classes = (tn.whole_class(spec, side),)
    return tuple(zip(classes, shares(tuple(each.size for each in classes), count), strict=True))


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


@lru_cache(maxsize=1024)
def segment_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """The length of segments for a number of kept inputs of a class; 1 means single positions.

    That is the longest of 7 to 16 that divides each row of the class, leaves two segments at least and loses little of
    the count. If each position meets a single output, segments may continue in the next row.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 28, 28), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [segment_length(layer, everywhere, count) for count in (392, 98, 12)]
        [14, 14, 1]
    """
    if isinstance(spec, LinearSpec):
        return 1  # channels, not positions, of a sequence lie side by side
    whole_rows = positions.is_pointwise
    if not whole_rows and (role(spec, "input") != "i" or any(p.stride > 1 for p in positions.patterns)):
        return 1
    size = positions.size if whole_rows else len(positions.positions[-1])
    for length in range(min(LONGEST, count // 2), SHORTEST - 1, -1):
        if size % length == 0 and count % length <= LOST * count:
            return length
    return 1


def is_narrow(spec: LayerSpec) -> bool:
    """Whether the exact weight VJP takes no longer than any sum over kept positions.

    In the first layer of a network, and in depthwise ones, a kept position has few channels and meets output rows with
    many, so sums over kept positions are bound by memory. (PyTorch's kernels are slow with few channels in each of many
    groups.)

    Example:
        >>> [is_narrow(tn.ConvSpec((8, channels, 32, 32), 64, 3)) for channels in (3, 64)]
        [True, False]
    """
    few = spec.in_channels // spec.groups < NARROW and prod(spec.kernel_size) > 1
    return few and spec.groups in (1, spec.in_channels)
