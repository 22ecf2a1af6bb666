"""The tensor network: an immutable sum over products of named tensors and index patterns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .nodes import Axis, Node, Operand, Pattern, Selection, index_shape, layout_legs

INDEX_TYPES = frozenset(
    (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
)
"""Data types of index tensors: all integers."""

if TYPE_CHECKING:
    from .planning.path_report import PathReport
    from .planning.plan import Plan


@dataclass(frozen=True)
class TensorNetwork:
    """A multilinear map written as tensors that share legs; legs that are not in the output are summed.

    Networks are immutable values: every move returns a new one. Two networks of the same structure and sizes
    are equal and share one contraction plan, whatever index values they carry.

    Args:
        nodes: Operands, patterns and selections.
        leg_sizes: ``(leg, size)`` pairs, sorted by leg.
        output: Layout of the result.
        scale: Number that multiplies the result.
        name: Name of the result, for printing.
        bound: Tensors that are already attached to slots (indices and weights of `subsample`).

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> spec = tn.ConvSpec((2, 3, 8, 8), out_channels=4, kernel_size=3, padding=1)
        >>> net = tn.weight_vjp(spec)
        >>> print(net)
        weight_vjp: input[n g·c i1 i2] Π[i1 o1 k1] Π[i2 o2 k2] output_grad[n g·d o1 o2] → [g·d c k1 k2]
        >>> net.contract(input=torch.randn(2, 3, 8, 8), output_grad=torch.randn(2, 4, 8, 8)).shape
        torch.Size([4, 3, 3, 3])
    """

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
        return TensorNetwork, (self.nodes, self.leg_sizes, self.output, self.scale, self.name, self.bound)

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
            shape = node.shape if isinstance(node, Operand) else index_shape(node, self.sizes)
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

    # Moves
    # ------------------------------------------------------------------------------------------------------

    def remove(self, slot: str) -> "TensorNetwork":
        """Differentiate with respect to a tensor: it is removed, and its legs become open.

        The result is the Jacobian, with the output's dimensions first and then the removed tensor's. A leg
        that the tensor shares with the output (batch, groups) is kept once: entries off that diagonal are
        zero.

        Raises:
            ValueError: If the slot is unknown, or occurs more than once (the network is not linear in it).

        Example:
            >>> from randbp import tn
            >>> tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).remove("weight").output_shape  # n, g·d, o1, c, k1
            (2, 4, 6, 3, 3)
        """
        from .moves import remove

        return remove(self, slot)

    def vjp(self, slot: str, cotangent: str = "output_grad") -> "TensorNetwork":
        """Differentiate with respect to a tensor and contract with a cotangent of the output's shape.

        Example:
            >>> from randbp import tn
            >>> print(tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).vjp("input"))
            conv: Π[i1 o1 k1] weight[g·d c k1] output_grad[n g·d o1] → [n g·c i1]
        """
        from .moves import vjp

        return vjp(self, slot, cotangent)

    def jvp(self, slot: str, tangent: str | None = None) -> "TensorNetwork":
        """Directional derivative with respect to a tensor: its slot takes a tangent
        (``"<slot>_tangent"``)."""
        from .moves import jvp

        return jvp(self, slot, tangent or f"{slot}_tangent")

    def sum(self, *legs: str) -> "TensorNetwork":
        """Sum over open legs: they leave the output.

        Example:
            >>> from randbp import tn
            >>> tn.unfold(tn.ConvSpec((2, 3, 8), 4, 3)).sum("o1").output_shape
            (2, 9)
        """
        from .moves import sum_legs

        return sum_legs(self, legs)

    def with_leg(self, leg: str, size: int | None = None, *slots: str) -> "TensorNetwork":
        """Vectorise, as `torch.vmap` does: a new leading dimension of the output.

        A leg that the network sums is kept instead (``weight_vjp(spec).with_leg("n")`` gives per-example
        gradients). A new leg needs a size and the slots that get it as their leading dimension.

        Raises:
            ValueError: If the leg is open already, or if size or slots are missing for a new leg.

        Example:
            >>> from randbp import tn
            >>> spec = tn.ConvSpec((2, 3, 8), 4, 3)
            >>> tn.weight_vjp(spec).with_leg("n").output_shape
            (2, 4, 3, 3)
            >>> tn.weight_jvp(spec).with_leg("v", 5, "weight_tangent").output_shape
            (5, 2, 4, 6)
        """
        from .moves import with_leg

        return with_leg(self, leg, size, slots)

    def rename(self, legs: Mapping[str, str] | None = None, slots: Mapping[str, str] | None = None) -> "TensorNetwork":
        """Rename legs and slots of the network."""
        from .moves import rename

        return rename(self, legs or {}, slots or {})

    def scaled(self, factor: float) -> "TensorNetwork":
        """Multiply the network by a number."""
        return replace(self, scale=self.scale * factor)

    def named(self, name: str) -> "TensorNetwork":
        """The network under another name (for printing only)."""
        return replace(self, name=name)

    def group(self, *axes: tuple[str, ...]) -> "TensorNetwork":
        """Lay the open legs out anew: one tuple of legs per dimension of the result.

        Example:
            >>> from randbp import tn
            >>> tn.unfold(tn.ConvSpec((2, 3, 8), 4, 3)).group(("n", "o1"), ("g", "c"), ("k1",)).output_shape
            (12, 3, 3)
        """
        from .moves import group

        return group(self, axes)

    def compose(self, other: "TensorNetwork", into: str) -> "TensorNetwork":
        """Plug the output of another network into a slot of this one.

        The other network's summed legs are renamed apart; slot names are not: equal names mean the same
        tensor, so rename them first if they should differ.

        Raises:
            ValueError: If the other network's output does not have the slot's shape.

        Example:
            >>> from randbp import tn
            >>> first = tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).rename(slots={"weight": "weight1"})
            >>> second = tn.conv(tn.ConvSpec((2, 4, 6), 5, 3))
            >>> second.compose(first, into="input").slots
            {'weight': (5, 4, 3), 'input': (2, 3, 8), 'weight1': (4, 3, 3)}
        """
        from .compose import compose

        return compose(self, other, into)

    def outer(self, other: "TensorNetwork", share: tuple[str, ...] = ()) -> "TensorNetwork":
        """The product of two networks; open legs named in ``share`` are identified, all others renamed apart.

        The output has this network's dimensions, then the other's without the shared legs. Follow with `sum`
        to contract the shared legs.

        Example:
            >>> from randbp import tn
            >>> gradients = tn.per_example_weight_vjp(tn.ConvSpec((2, 3, 8), 4, 3))
            >>> gradients.outer(gradients, share=("g", "d", "c", "k1")).sum("g", "d", "c", "k1").output_shape
            (2, 2)
        """
        from .compose import outer

        return outer(self, other, share)

    def subsample(
        self,
        index: Mapping[str, Tensor] | None = None,
        /,
        *,
        weights: Mapping[str, Tensor] | None = None,
        stored: tuple[str, ...] = (),
        **legs: Tensor,
    ) -> "TensorNetwork":
        """Tensor dropout: restrict legs to chosen index values.

        Each leg becomes as long as its index. An index of two dimensions ``[N, S]`` differs per example.
        Several legs are chosen jointly under a key such as ``"i1 i2"``, whose index counts row-major through
        their grid.

        Args:
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
        from .sampling import subsample

        return subsample(self, {**(index or {}), **legs}, weights or {}, stored)

    def bind(self, **tensors: Tensor) -> "TensorNetwork":
        """Attach tensors to slots; `contract` no longer asks for them."""
        for slot, tensor in tensors.items():
            check_operand(self, slot, tensor)
        return replace(self, bound={**self.bound, **tensors})

    def simplify(self) -> "TensorNetwork":
        """Replace patterns by reshapes or slices where possible (dense, down-sampling, identity, size-1 patterns).

        Example:
            >>> from randbp import tn
            >>> print(tn.conv(tn.ConvSpec((2, 3, 8), 4, kernel_size=2, stride=2)).simplify())
            conv: input[n g·c o1·k1] weight[g·d c k1] → [n g·d o1]
        """
        from .simplify import simplify

        return simplify(self)

    # Contraction
    # ------------------------------------------------------------------------------------------------

    def contract(self, operands: Mapping[str, Tensor] | None = None, /, **tensors: Tensor) -> Tensor:
        """Evaluate the network on tensors in PyTorch's layouts.

        Args:
            operands: Slot to tensor, for slot names that are not identifiers.
            **tensors: Slot to tensor.

        Returns:
            The result, of shape `output_shape`, with the operands' data type and device.

        Raises:
            ValueError: For unknown or missing slots and wrong shapes, data types or devices.
        """
        if operands is not None and not isinstance(operands, Mapping):
            kind, slots = type(operands).__name__, ", ".join(self.slots)
            raise ValueError(f"operands={kind}: expected a mapping from slots, or keywords; {self.name} takes {slots}")
        return _engine().contract(self, {**operands, **tensors} if operands else tensors)

    def plan(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "Plan":
        """The contraction plan, computed or taken from the cache; print it to read it.

        Raises:
            ValueError: If ``dtype`` is not a ``torch.dtype``.
        """
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype={dtype!r}: expected a torch.dtype such as torch.float32")
        from .planning.plan_cache import cache

        return cache.plan(self, dtype, torch.device(device))

    def path_report(self, samples: int = 200) -> "PathReport":
        """Costs of the best, median and worst contraction order, without running anything."""
        from .planning.path_report import path_report

        return path_report(self, samples)

    def einsum(self, operands: Mapping[str, Tensor] | None = None, /, **tensors: Tensor) -> Any:
        """The naive meaning: ``(equation, dense operands)`` for `torch.einsum`, with 0/1 patterns built in
        full.

        Without operands, a callable that takes them and evaluates the expression.

        Example:
            >>> import torch
            >>> from randbp import tn
            >>> net = tn.conv(tn.ConvSpec((1, 1, 4), 1, 2))
            >>> equation, operands = net.einsum(input=torch.ones(1, 1, 4), weight=torch.ones(1, 1, 2))
            >>> torch.einsum(equation, *operands).tolist()
            [[[2.0, 2.0, 2.0]]]
            >>> net.einsum()(input=torch.ones(1, 1, 4), weight=torch.ones(1, 1, 2)).tolist()
            [[[2.0, 2.0, 2.0]]]
        """
        from .einsum import NaiveEinsum

        naive: NaiveEinsum = NaiveEinsum(self)
        given = {**(operands or {}), **tensors}
        return naive.arguments(given) if given or set(self.slots) <= set(self.bound) else naive

    def draw(self, ax: Any = None, title: str | None = None) -> Any:
        """A diagram of the network (needs matplotlib and networkx); returns the matplotlib figure."""
        from .diagram.drawing import draw

        return draw(self, ax=ax, title=title)


@cache
def _engine() -> ModuleType:
    """The modules that contract networks and therefore import this one; an import statement in every call is slow."""
    from . import contraction

    return contraction


def network(
    name: str,
    nodes: tuple[Node, ...],
    sizes: Mapping[str, int],
    output: tuple[tuple[str, ...], ...],
    scale: float = 1.0,
) -> TensorNetwork:
    """A network from nodes, leg sizes and, per dimension of the result, the legs that it groups."""
    used = {leg for node in nodes for leg in node.legs} | {leg for legs in output for leg in legs}
    leg_sizes = tuple(sorted((leg, size) for leg, size in sizes.items() if leg in used))
    return TensorNetwork(nodes, leg_sizes, tuple(Axis.grouped(legs, sizes) for legs in output), scale, name)


def check_leg(net: TensorNetwork, leg: str, move: str) -> None:
    """Raise ``ValueError`` unless the network has the leg."""
    if leg not in net.sizes:
        raise ValueError(f"{move}: unknown leg {leg!r}; the legs of {net.name} are {' '.join(net.sizes)}")


def check_slot(net: TensorNetwork, slot: str, move: str) -> None:
    """Raise ``ValueError`` unless the network has the slot."""
    if slot not in net.slots:
        raise ValueError(f"{move}: unknown slot {slot!r}; {net.name} takes {', '.join(net.slots)}")


def check_operand(net: TensorNetwork, slot: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor fits the slot."""
    check_slot(net, slot, "contract")
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{slot}={type(tensor).__name__}: expected a torch.Tensor of shape {net.slots[slot]}")
    if tuple(tensor.shape) != net.slots[slot]:
        axes = next((str(node) for node in net.nodes if not isinstance(node, Pattern) and node.slot == slot), slot)
        raise ValueError(f"{slot} of shape {tuple(tensor.shape)}: {net.name} needs {net.slots[slot]} for {axes}")
    if slot in net.index_slots and tensor.dtype not in INDEX_TYPES:
        raise ValueError(f"{slot} of dtype {tensor.dtype}: an index needs integers")
