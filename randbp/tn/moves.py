"""Graphical moves on one network, the methods of `TensorNetwork`: remove, differentiate, sum, rename, regroup."""

from collections.abc import Container, Mapping
from dataclasses import replace

from torch import Tensor

from ..layers.integers import as_integer
from .network import N, Network, check_leg, check_operand, check_slot
from .nodes import Axis, Operand, Pattern, layout_legs, volume


def remove(net: N, slot: str) -> N:
    """Differentiate with respect to a tensor: it is removed, and its legs become open.

    The result is the Jacobian, with the output's dimensions first and then the removed tensor's. A leg that the tensor
    shares with the output (batch, groups) is kept once: entries off that diagonal are zero.

    Raises:
        ValueError: If the slot is unknown, or occurs more than once (the network is not linear in it).

    Example:
        >>> from randbp import tn
        >>> tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).remove("weight").output_shape  # n, g·d, o1, c, k1
        (2, 4, 6, 3, 3)
    """
    operand = only_operand(net, slot, "remove")
    kept = set(net.open_legs)
    axes = tuple(without_legs(axis, kept, net.sizes) for axis in operand.axes)
    nodes = tuple(node for node in net.nodes if node is not operand)
    return pruned(replace(net, nodes=nodes, output=(*net.output, *(axis for axis in axes if axis.terms))))


def vjp(net: N, slot: str, cotangent: str = "output_grad") -> N:
    """Differentiate with respect to a tensor and contract with a cotangent of the output's shape.

    Example:
        >>> from randbp import tn
        >>> print(tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).vjp("input"))
        conv: Π[i1 o1 k1] weight[g·d c k1] output_grad[n g·d o1] → [n g·c i1]
    """
    operand = only_operand(net, slot, "vjp")
    nodes = (*(node for node in net.nodes if node is not operand), Operand(cotangent, net.output))
    return pruned(replace(net, nodes=nodes, output=operand.axes))


def jvp(net: N, slot: str, tangent: str | None = None) -> N:
    """Directional derivative with respect to a tensor: its slot takes a tangent (``"<slot>_tangent"``).

    Example:
        >>> from randbp import tn
        >>> list(tn.conv(tn.ConvSpec((2, 3, 8), 4, 3)).jvp("input").slots)
        ['input_tangent', 'weight']
    """
    operand = only_operand(net, slot, "jvp")
    new = Operand(tangent or f"{slot}_tangent", operand.axes)
    return pruned(replace(net, nodes=tuple(new if node is operand else node for node in net.nodes)))


def sum_legs(net: N, *legs: str) -> N:
    """Sum over open legs: they leave the output.

    Example:
        >>> from randbp import tn
        >>> tn.unfold(tn.ConvSpec((2, 3, 8), 4, 3)).sum("o1").output_shape
        (2, 9)
    """
    for leg in legs:
        check_leg(net, leg, "sum")
        if leg not in net.open_legs:
            raise ValueError(f"sum: leg {leg!r} is summed already; open legs are {' '.join(net.open_legs)}")
    axes = tuple(without_legs(axis, legs, net.sizes) for axis in net.output)
    held = {leg for node in net.nodes for leg in node.legs}
    scale = net.scale * volume(set(legs) - held, net.sizes)  # a leg that no tensor holds is constant along it
    return pruned(replace(net, output=tuple(axis for axis in axes if axis.terms), scale=scale))


def with_leg(net: N, leg: str, size: int | None = None, *slots: str) -> N:
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
    if leg in net.open_legs:
        raise ValueError(f"with_leg: leg {leg!r} is open already; open legs are {' '.join(net.open_legs)}")
    if leg in net.sizes:
        if size not in (None, net.sizes[leg]):
            raise ValueError(f"with_leg: size={size!r}: leg {leg!r} of {net.name} has size {net.sizes[leg]}")
        return replace(net, output=(Axis.grouped((leg,), net.sizes), *net.output))
    size = as_integer(size)
    if size is None or size < 1 or not slots:
        raise ValueError(
            f"with_leg: {leg!r} is no leg of {net.name} ({' '.join(net.sizes)}); "
            "a new leg needs a positive size and slots"
        )
    for slot in slots:
        check_slot(net, slot, "with_leg")
    axis = Axis(((leg, 1),), size)
    nodes = tuple(
        Operand(node.slot, (axis, *node.axes)) if isinstance(node, Operand) and node.slot in slots else node
        for node in net.nodes
    )
    return replace(net, nodes=nodes, leg_sizes=tuple(sorted((*net.leg_sizes, (leg, size)))), output=(axis, *net.output))


def rename(net: N, legs: Mapping[str, str] | None = None, slots: Mapping[str, str] | None = None) -> N:
    """Rename legs and slots of the network."""
    legs, slots = legs or {}, slots or {}
    for leg in legs:
        check_leg(net, leg, "rename")
    for slot in slots:
        check_slot(net, slot, "rename")
    names = [legs.get(leg, leg) for leg in net.sizes]
    if len(set(names)) < len(names):
        raise ValueError(f"rename: legs={dict(legs)} would give two legs of {net.name} the same name")
    nodes = tuple(node.rename(legs) for node in net.nodes)
    return replace(
        net,
        nodes=tuple(
            node if isinstance(node, Pattern) else replace(node, slot=slots.get(node.slot, node.slot)) for node in nodes
        ),
        leg_sizes=tuple(sorted((legs.get(leg, leg), size) for leg, size in net.leg_sizes)),
        output=Operand("", net.output).rename(legs).axes,
        bound={slots.get(slot, slot): tensor for slot, tensor in net.bound.items()},
    )


def group(net: N, *axes: tuple[str, ...]) -> N:
    """Lay the open legs out anew: one tuple of legs per dimension of the result.

    Example:
        >>> from randbp import tn
        >>> tn.unfold(tn.ConvSpec((2, 3, 8), 4, 3)).group(("n", "o1"), ("g", "c"), ("k1",)).output_shape
        (12, 3, 3)
    """
    if sorted(leg for legs in axes for leg in legs) != sorted(net.open_legs):
        raise ValueError(f"group: {axes} must hold each open leg once: {' '.join(net.open_legs)}")
    return replace(net, output=tuple(Axis.grouped(legs, net.sizes) for legs in axes))


def scaled(net: N, factor: float) -> N:
    """Multiply the network by a number."""
    return replace(net, scale=net.scale * factor)


def named(net: N, name: str) -> N:
    """The network under another name (for printing only)."""
    return replace(net, name=name)


def bind(net: N, /, **tensors: Tensor) -> N:
    """Attach tensors to slots; `contract` no longer asks for them."""
    for slot, tensor in tensors.items():
        check_operand(net, slot, tensor)
    return replace(net, bound={**net.bound, **tensors})


def without_legs(axis: Axis, gone: Container[str], sizes: Mapping[str, int]) -> Axis:
    """The axis of an output without some of its legs."""
    legs = tuple(leg for leg in axis.legs if leg not in gone)
    return axis if legs == axis.legs else Axis.grouped(legs, sizes)


def only_operand(net: Network, slot: str, move: str) -> Operand:
    """The one operand of a slot; raises if there are several, for then the network is not linear in it."""
    check_slot(net, slot, move)
    found = [node for node in net.nodes if isinstance(node, Operand) and node.slot == slot]
    if len(found) != 1:
        raise ValueError(f"{move}: slot {slot!r} occurs {len(found)} times in {net.name}; it must be linear in it")
    return found[0]


def pruned(net: N) -> N:
    """Drop sizes of legs, and tensors bound to slots, that no longer exist."""
    used = {leg for node in net.nodes for leg in node.legs} | set(layout_legs(net.output))
    slots = {node.slot for node in net.nodes if not isinstance(node, Pattern)}
    return replace(
        net,
        leg_sizes=tuple((leg, size) for leg, size in net.leg_sizes if leg in used),
        bound={slot: tensor for slot, tensor in net.bound.items() if slot in slots},
    )
