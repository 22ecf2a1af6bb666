"""The data of a tensor network: an immutable sum over products of named tensors and index patterns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from .nodes import Axis, Node, Operand, Pattern, Selection, layout_legs

INDEX_TYPES = frozenset(
    (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
)
"""Data types of index tensors: all integers."""

N = TypeVar("N", bound="Network")
"""A class of networks: a move returns a network of the class that it gets."""


@dataclass(frozen=True)
class Network:
    """The fields of a :class:`~randbp.tn.TensorNetwork`, and what follows from them: all that moves and plans read."""

    nodes: tuple[Node, ...]
    leg_sizes: tuple[tuple[str, int], ...]
    output: tuple[Axis, ...]
    scale: float = 1.0
    name: str = field(default="network", compare=False)
    bound: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        # Without what is cached: a hash of text is another one in another process.
        return type(self), (self.nodes, self.leg_sizes, self.output, self.scale, self.name, self.bound)

    @cached_property
    def _hash(self) -> int:
        return hash((self.nodes, self.leg_sizes, self.output, self.scale))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every leg."""
        return dict(self.leg_sizes)

    @cached_property
    def slots(self) -> dict[str, tuple[int, ...]]:
        """Shape of the tensor that each slot takes, in the order of the nodes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for node in self.nodes:
            if isinstance(node, Pattern):
                continue
            if isinstance(node, Operand):
                shape = node.shape
            else:
                shape = tuple(self.sizes[leg] for leg in (*node.batch, node.sample))
            if shapes.setdefault(node.slot, shape) != shape:
                raise ValueError(f"slot {node.slot!r}: used with shapes {shapes[node.slot]} and {shape}; rename one")
        for node in self.nodes:
            if isinstance(node, Operand) and node.slot in self.index_slots:
                raise ValueError(f"slot {node.slot!r}: used as an index and as data; rename one")
        return shapes

    @cached_property
    def index_slots(self) -> frozenset[str]:
        """Slots that take index tensors rather than data."""
        return frozenset(node.slot for node in self.nodes if isinstance(node, Selection))

    @cached_property
    def takes(self) -> tuple[tuple[str, tuple[int, ...], bool], ...]:
        """The name of each slot, the shape of its tensor, and whether that is an index."""
        return tuple((slot, shape, slot in self.index_slots) for slot, shape in self.slots.items())

    @cached_property
    def unbound(self) -> Self:
        """The network without its tensors, which must not live as long as its plan."""
        return replace(self, bound={})

    @cached_property
    def open_legs(self) -> tuple[str, ...]:
        """Legs of the output, outermost first."""
        return layout_legs(self.output)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(axis.size for axis in self.output)

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f"{self.scale:.4g} "
        nodes = " ".join(map(str, self.nodes)) or "1"
        return f"{self.name}: {scale}{nodes} → [{' '.join(map(str, self.output))}]"


def check_leg(net: Network, leg: str, move: str) -> None:
    """Raise ``ValueError`` unless the network has the leg."""
    if leg not in net.sizes:
        raise ValueError(f"{move}: unknown leg {leg!r}; the legs of {net.name} are {' '.join(net.sizes)}")


def check_slot(net: Network, slot: str, move: str) -> None:
    """Raise ``ValueError`` unless the network has the slot."""
    if slot not in net.slots:
        raise ValueError(f"{move}: unknown slot {slot!r}; {net.name} takes {', '.join(net.slots)}")


def check_operand(net: Network, slot: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor fits the slot."""
    check_slot(net, slot, "contract")
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{slot}={type(tensor).__name__}: expected a torch.Tensor of shape {net.slots[slot]}")
    if tuple(tensor.shape) != net.slots[slot]:
        axes = next((str(node) for node in net.nodes if not isinstance(node, Pattern) and node.slot == slot), slot)
        raise ValueError(f"{slot} of shape {tuple(tensor.shape)}: {net.name} needs {net.slots[slot]} for {axes}")
    if slot in net.index_slots and tensor.dtype not in INDEX_TYPES:
        raise ValueError(f"{slot} of dtype {tensor.dtype}: an index needs integers")


def check_operands(net: Network, tensors: Mapping[str, Tensor], move: str) -> None:
    """Raise ``ValueError`` unless there is a fitting tensor for each slot."""
    for slot, tensor in tensors.items():
        check_operand(net, slot, tensor)
    missing = ", ".join(f"{slot} {shape}" for slot, shape in net.slots.items() if slot not in tensors)
    if missing:
        raise ValueError(f"{move}: missing {missing}; {net.name} takes {', '.join(net.slots)}")
