"""Graphical moves on one network: remove, differentiate, sum, vectorise, rename, regroup."""

from collections.abc import Mapping
from dataclasses import replace

from ..layers.integers import as_integer
from .network import TensorNetwork, check_leg, check_slot
from .nodes import Axis, Node, Operand, Pattern, Selection, layout_legs, volume


def remove(net: TensorNetwork, slot: str) -> TensorNetwork:
    """The Jacobian with respect to a slot; see `TensorNetwork.remove`."""
    operand = only_operand(net, slot, "remove")
    kept = set(net.open_legs)
    axes = tuple(keep_legs(axis, lambda leg: leg not in kept, net.sizes) for axis in operand.axes)
    nodes = tuple(node for node in net.nodes if node is not operand)
    return pruned(replace(net, nodes=nodes, output=(*net.output, *(axis for axis in axes if axis.terms))))


def vjp(net: TensorNetwork, slot: str, cotangent: str) -> TensorNetwork:
    """The vector-Jacobian product with respect to a slot; see `TensorNetwork.vjp`."""
    operand = only_operand(net, slot, "vjp")
    nodes = (*(node for node in net.nodes if node is not operand), Operand(cotangent, net.output))
    return pruned(replace(net, nodes=nodes, output=operand.axes))


def jvp(net: TensorNetwork, slot: str, tangent: str) -> TensorNetwork:
    """The Jacobian-vector product with respect to a slot; see `TensorNetwork.jvp`."""
    operand = only_operand(net, slot, "jvp")
    nodes = tuple(Operand(tangent, node.axes) if node is operand else node for node in net.nodes)
    return pruned(replace(net, nodes=nodes))


def sum_legs(net: TensorNetwork, legs: tuple[str, ...]) -> TensorNetwork:
    """Sum over open legs; see `TensorNetwork.sum`."""
    for leg in legs:
        check_leg(net, leg, "sum")
        if leg not in net.open_legs:
            raise ValueError(f"sum: leg {leg!r} is summed already; open legs are {' '.join(net.open_legs)}")
    axes = tuple(keep_legs(axis, lambda leg: leg not in legs, net.sizes) for axis in net.output)
    held = {leg for node in net.nodes for leg in node.legs}
    scale = net.scale * volume(set(legs) - held, net.sizes)  # a leg that no tensor holds is constant along it
    return pruned(replace(net, output=tuple(axis for axis in axes if axis.terms), scale=scale))


def with_leg(net: TensorNetwork, leg: str, size: int | None, slots: tuple[str, ...]) -> TensorNetwork:
    """Keep a summed leg, or add a new one; see `TensorNetwork.with_leg`."""
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


def rename(net: TensorNetwork, legs: Mapping[str, str], slots: Mapping[str, str]) -> TensorNetwork:
    """Rename legs and slots; see `TensorNetwork.rename`."""
    for leg in legs:
        check_leg(net, leg, "rename")
    for slot in slots:
        check_slot(net, slot, "rename")
    names = [legs.get(leg, leg) for leg in net.sizes]
    if len(set(names)) < len(names):
        raise ValueError(f"rename: legs={dict(legs)} would give two legs of {net.name} the same name")
    nodes = tuple(_with_slot(node.rename(legs), slots) for node in net.nodes)
    return replace(
        net,
        nodes=nodes,
        leg_sizes=tuple(sorted((legs.get(leg, leg), size) for leg, size in net.leg_sizes)),
        output=Operand("", net.output).rename(legs).axes,
        bound={slots.get(slot, slot): tensor for slot, tensor in net.bound.items()},
    )


def group(net: TensorNetwork, axes: tuple[tuple[str, ...], ...]) -> TensorNetwork:
    """Lay out the result anew; see `TensorNetwork.group`."""
    if sorted(leg for legs in axes for leg in legs) != sorted(net.open_legs):
        raise ValueError(f"group: {axes} must hold each open leg once: {' '.join(net.open_legs)}")
    return replace(net, output=tuple(Axis.grouped(legs, net.sizes) for legs in axes))


def keep_legs(axis: Axis, wanted, sizes: Mapping[str, int]) -> Axis:  # type: ignore[no-untyped-def]
    """The axis of an output without some of its legs."""
    legs = tuple(leg for leg in axis.legs if wanted(leg))
    return axis if legs == axis.legs else Axis.grouped(legs, sizes)


def only_operand(net: TensorNetwork, slot: str, move: str) -> Operand:
    """The one operand of a slot; raises if there are several, for then the network is not linear in it."""
    check_slot(net, slot, move)
    found = [node for node in net.nodes if isinstance(node, Operand) and node.slot == slot]
    if len(found) != 1:
        raise ValueError(f"{move}: slot {slot!r} occurs {len(found)} times in {net.name}; it must be linear in it")
    return found[0]


def pruned(net: TensorNetwork) -> TensorNetwork:
    """Drop sizes of legs, and tensors bound to slots, that no longer exist."""
    used = {leg for node in net.nodes for leg in node.legs} | set(layout_legs(net.output))
    slots = {node.slot for node in net.nodes if not isinstance(node, Pattern)}
    return replace(
        net,
        leg_sizes=tuple((leg, size) for leg, size in net.leg_sizes if leg in used),
        bound={slot: tensor for slot, tensor in net.bound.items() if slot in slots},
    )


def _with_slot(node: Node, slots: Mapping[str, str]) -> Node:
    if isinstance(node, Pattern) or node.slot not in slots:
        return node
    if isinstance(node, Selection):
        return replace(node, slot=slots[node.slot])
    return replace(node, slot=slots[node.slot])
