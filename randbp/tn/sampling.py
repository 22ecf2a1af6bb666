"""Tensor dropout: restrict legs of a network to chosen index values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor

from ..layers.integers import as_integer
from .moves import bind, pruned
from .network import INDEX_TYPES, N, Network, check_leg, check_slot
from .nodes import Axis, Node, Operand, Pattern, Selection, layout_legs, volume

BATCH = "n"


@dataclass(frozen=True)
class Sample:
    """The restriction of a leg without its index values, which is all that a contraction plan depends on.

    Args:
        size: Number of chosen values.
        per_example: Whether every example has its own choice; the index then has shape ``[N, size]``.
        weighted: Whether a slot ``"<legs> weights"`` of the index's shape multiplies the terms.

    Raises:
        ValueError: If the size is not a number of values.
    """

    size: int
    per_example: bool = False
    weighted: bool = False

    def __post_init__(self) -> None:
        size = as_integer(self.size)
        if size is None or size < 0:
            raise ValueError(f"Sample: size={self.size!r}, expected an integer >= 0")


def sampled(net: N, samples: Mapping[str, Sample], stored: tuple[str, ...] = ()) -> N:
    """The network with legs restricted to indices that are handed in at contraction.

    This is the entry point for randomised VJPs: build the network once per layer, then call `contract` with
    fresh indices in the slot ``"<legs> index"`` (and weights in ``"<legs> weights"``); the plan is reused.

    Args:
        net: The network.
        samples: Leg, or legs separated by blanks (chosen jointly), to the form of its restriction.
        stored: Slots whose tensors are handed in already restricted.

    Legs that are restricted jointly become one leg, at the place of the first, in the result and in stored tensors.
    Dimensions that hold a restricted leg hold their legs row-major, without gaps.

    Raises:
        ValueError: For unknown legs or slots.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> spec = tn.ConvSpec((2, 3, 8, 8), 4, 3, padding=1)
        >>> pixels = {"i1 i2": tn.Sample(16, per_example=True)}
        >>> net = tn.sampled(tn.weight_vjp(spec), pixels, stored=("input",))
        >>> net.slots
        {'input': (2, 3, 16), 'output_grad': (2, 4, 8, 8), 'i1 i2 index': (2, 16)}
    """
    for slot in stored:
        check_slot(net, slot, "subsample")
    # The batch leg goes first, so that per-example indices refer to the examples that are left.
    for key in sorted(samples, key=lambda key: key != BATCH):
        net = _restrict(net, key, samples[key], stored)
    return net


def subsample(
    net: N,
    index: Mapping[str, Tensor] | None = None,
    /,
    *,
    weights: Mapping[str, Tensor] | None = None,
    stored: tuple[str, ...] = (),
    **legs: Tensor,
) -> N:
    """Tensor dropout: restrict legs to chosen index values.

    Each leg becomes as long as its index. An index of two dimensions ``[N, S]`` differs per example. Several legs are
    chosen jointly under a key such as ``"i1 i2"``, whose index counts row-major through their grid.

    Args:
        net: The network.
        index: Leg (or legs, separated by blanks) to integer tensor.
        weights: Leg to weights of the index's shape, multiplied in.
        stored: Slots whose tensors are handed in already restricted.
        **legs: As ``index``.

    Raises:
        ValueError: For unknown legs and indices out of range.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> net = tn.weight_vjp(tn.ConvSpec((2, 3, 8), 4, 3)).subsample(i1=torch.tensor([0, 5]))
        >>> net.contract(input=torch.ones(2, 3, 8), output_grad=torch.ones(2, 4, 6)).shape
        torch.Size([4, 3, 3])
    """
    indices, weights = {**(index or {}), **legs}, weights or {}
    for key in weights:
        if key not in indices:
            raise ValueError(f"subsample: weights for {key!r}, which has no index; indices are for {list(indices)}")
    samples, tensors = {}, {}
    for key, chosen in indices.items():
        _check_index(net, key, chosen)
        samples[key] = Sample(chosen.shape[-1], chosen.ndim == 2, key in weights)
        tensors[f"{key} index"] = chosen
    tensors |= {f"{key} weights": weight for key, weight in weights.items()}
    restricted = sampled(net, samples, stored)
    # The index of a leg that only stored tensors hold is not needed any more.
    return bind(restricted, **{slot: tensor for slot, tensor in tensors.items() if slot in restricted.slots})


def _check_index(net: Network, key: str, index: Tensor) -> None:
    legs = _legs(net, key)
    if not isinstance(index, Tensor) or index.dtype not in INDEX_TYPES:
        raise ValueError(f"subsample: index of leg {key!r} must be an integer tensor, got {index!r:.60}")
    if index.ndim not in (1, 2):
        raise ValueError(f"subsample: index of leg {key!r} has shape {tuple(index.shape)}; expected [S] or [N, S]")
    _check_range(f"subsample: index of leg {key!r}", index, volume(legs, net.sizes))


def check_indices(net: Network, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless all indices lie within the legs that they choose from."""
    for node in net.nodes:
        if isinstance(node, Selection):
            _check_range(f"{node.slot} of {net.name}", tensors[node.slot], volume(node.targets, net.sizes))


def _check_range(what: str, index: Tensor, size: int) -> None:
    if not index.numel():
        return
    least, most = (int(bound) for bound in index.long().aminmax())
    if not 0 <= least <= most < size:
        raise ValueError(f"{what} reaches from {least} to {most}; allowed is 0 to {size - 1}")


def _legs(net: Network, key: str) -> tuple[str, ...]:
    legs = (key,) if key in net.sizes else tuple(key.split())
    for leg in legs:
        check_leg(net, leg, "subsample")
    if not legs or len(set(legs)) < len(legs):
        raise ValueError(f"subsample: {key!r} must name one leg, or several different ones separated by blanks")
    return legs


def _restrict(net: N, key: str, sample: Sample, stored: tuple[str, ...]) -> N:
    legs = _legs(net, key)
    if sample.per_example:
        check_leg(net, BATCH, "subsample per example")
        if BATCH in legs:
            raise ValueError(f"subsample: {key!r}: the batch leg itself cannot be chosen per example")
    batch = (BATCH,) if sample.per_example else ()
    slot = f"{key} index"
    if slot in net.slots:
        raise ValueError(f"subsample: {key!r} is restricted already; restrict it once")
    sizes, numbers = {**net.sizes, key: sample.size}, count()

    def apart() -> tuple[dict[str, str], Selection]:
        """Names for the legs of what goes through a selection, and the selection."""
        first = next(numbers)
        names = {leg: next(new for n in count(first) if (new := f"{leg}.{n}") not in sizes) for leg in legs}
        sizes.update((names[leg], net.sizes[leg]) for leg in legs)
        return names, Selection(slot, batch, key, tuple(names.values()))

    nodes: list[Node] = []
    for node in net.nodes:
        if not set(legs) & set(node.legs) or (isinstance(node, Pattern) and len(legs) > 1):
            nodes.append(node)  # patterns join a selection of several legs below, with those of the other dimensions
        elif isinstance(node, Operand) and node.slot in stored:
            nodes.append(replace(node, axes=_merged(node.axes, legs, key, sizes)))
        else:
            names, selection = apart()
            nodes += [node.rename(names), selection]
    if len(legs) > 1 and any(isinstance(node, Pattern) and set(legs) & set(node.legs) for node in nodes):
        names, selection = apart()
        nodes = [*(node.rename(names) if isinstance(node, Pattern) else node for node in nodes), selection]
    if sample.weighted:
        nodes.append(Operand(f"{key} weights", tuple(Axis.grouped((leg,), sizes) for leg in (*batch, key))))
    output = _merged(net.output, legs, key, sizes)
    return pruned(replace(net, nodes=tuple(nodes), leg_sizes=tuple(sorted(sizes.items())), output=output))


def _merged(axes: tuple[Axis, ...], legs: tuple[str, ...], key: str, sizes: Mapping[str, int]) -> tuple[Axis, ...]:
    """A layout in which the restricted legs are one leg, at the position of the first."""
    merged: list[Axis] = []
    place = next((leg for leg in layout_legs(axes) if leg in legs), None)
    for axis in axes:
        names = tuple(key if leg == place else leg for leg in axis.legs if leg == place or leg not in legs)
        if names == axis.legs and key not in names:
            merged.append(axis)
        elif names:
            merged.append(Axis.grouped(names, sizes))
    return tuple(merged)
