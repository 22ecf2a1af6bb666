"""Moves on two networks: the outer product, and composition, which plugs one network into another."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from .moves import only_operand, pruned, rename, scaled, without_legs
from .network import N, Network
from .nodes import Axis, Operand, volume


def outer(left: N, right: N, share: tuple[str, ...] = ()) -> N:
    """The product of two networks; open legs named in ``share`` are identified, all others renamed apart.

    The output has this network's dimensions, then the other's without the shared legs. Follow with `sum`
    to contract the shared legs.

    Example:
        >>> from randbp import tn
        >>> gradients = tn.per_example_weight_vjp(tn.ConvSpec((2, 3, 8), 4, 3))
        >>> gradients.outer(gradients, share=("g", "d", "c", "k1")).sum("g", "d", "c", "k1").output_shape
        (2, 2)
    """
    _check_network("outer", right)
    for leg in share:
        for side in (left, right):
            if leg not in side.open_legs:
                raise ValueError(f"outer: share={leg!r} is no open leg of {side}")
        if left.sizes[leg] != right.sizes[leg]:
            raise ValueError(f"outer: share={leg!r} has size {left.sizes[leg]} on the left, {right.sizes[leg]} right")
    right = _renamed_apart(right, set(left.sizes), keep=set(share))
    axes = [
        without_legs(axis, share, right.sizes) for axis in right.output if set(axis.legs) - set(share) or not axis.legs
    ]
    return replace(
        left,
        nodes=left.nodes + right.nodes,
        leg_sizes=tuple(sorted({**left.sizes, **right.sizes}.items())),
        output=(*left.output, *axes),
        scale=left.scale * right.scale,
        name=left.name if left.name == right.name else f"{left.name} × {right.name}",
        bound=_merged(left.bound, right.bound),
    )


def compose(net: N, other: N, into: str) -> N:
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
    target = only_operand(net, into, "compose")
    _check_network("compose", other)
    if other.output_shape != target.shape:
        raise ValueError(
            f"compose: {other.name} gives {other.output_shape}, but slot {into!r} of {net.name} takes {target.shape}"
        )
    other = _renamed_apart(other, set(net.sizes), keep=set())
    sizes = {**net.sizes, **other.sizes}
    outer_net = replace(net, nodes=tuple(node for node in net.nodes if node is not target))
    merged = replace(
        outer_net,
        nodes=outer_net.nodes + other.nodes,
        leg_sizes=tuple(sorted(sizes.items())),
        scale=net.scale * other.scale,
        bound=_merged({s: t for s, t in net.bound.items() if s != into}, other.bound),
    )
    pairs = list(zip(target.axes, other.output, strict=True))
    for index in range(len(pairs)):
        # An earlier identification may have renamed legs of later axes, so look them up through a probe
        # operand.
        merged, pairs = _identify(merged, pairs, index)
    joined = {leg for pair in pairs for axis in pair for leg in axis.legs}
    held = {*merged.open_legs, *(leg for node in merged.nodes for leg in node.legs)}
    # A joined leg that no tensor holds is summed over equal terms.
    return pruned(scaled(merged, volume(joined - held, merged.sizes)))


def _check_network(move: str, other: object) -> None:
    if not isinstance(other, Network):
        raise ValueError(f"{move}: other={other!r:.60}, expected a TensorNetwork")


def _identify(net: N, pairs: list[tuple[Axis, Axis]], index: int) -> tuple[N, list[tuple[Axis, Axis]]]:
    """Make the legs of one axis on both sides the same legs, splitting coarse legs where the other side is finer."""
    while True:
        mine, theirs = pairs[index]
        if not mine.size:  # there is nothing to join
            return net, pairs
        left = [leg for leg in mine.legs if net.sizes[leg] > 1]
        right = [leg for leg in theirs.legs if net.sizes[leg] > 1]
        if left == right:
            return net, pairs
        if not (mine.is_plain(net.sizes) and theirs.is_plain(net.sizes)):
            raise ValueError(f"compose: cannot join the sliced axis [{mine}] with [{theirs}]; compose, then simplify")
        a, b = next((a, b) for a, b in zip(reversed(left), reversed(right), strict=False) if a != b)
        size_a, size_b = net.sizes[a], net.sizes[b]
        if size_a == size_b:
            net, pairs = _substitute(net, pairs, b, ((a, 1),), {})
        elif size_a % size_b == 0:
            high = _fresh(a, net.sizes)
            net, pairs = _substitute(net, pairs, a, ((high, size_b), (b, 1)), {high: size_a // size_b})
        elif size_b % size_a == 0:
            high = _fresh(b, net.sizes)
            net, pairs = _substitute(net, pairs, b, ((high, size_a), (a, 1)), {high: size_b // size_a})
        else:
            raise ValueError(f"compose: cannot align the groups [{mine}] with [{theirs}]: {size_a} against {size_b}")


def _substitute(
    net: N,
    pairs: list[tuple[Axis, Axis]],
    leg: str,
    terms: tuple[tuple[str, int], ...],
    sizes: Mapping[str, int],
) -> tuple[N, list[tuple[Axis, Axis]]]:
    """Replace a leg by others everywhere."""
    pairs = [(a.replace(leg, terms), b.replace(leg, terms)) for a, b in pairs]
    if len(terms) == 1:
        name = {leg: terms[0][0]}
        nodes = tuple(node.rename(name) for node in net.nodes)
    else:
        if any(leg in node.legs and not isinstance(node, Operand) for node in net.nodes):
            raise ValueError(f"compose: leg {leg!r} belongs to a pattern or an index and cannot be split")
        nodes = tuple(
            replace(node, axes=tuple(axis.replace(leg, terms) for axis in node.axes))
            if isinstance(node, Operand)
            else node
            for node in net.nodes
        )
    new_sizes = {name: size for name, size in {**net.sizes, **sizes}.items() if name != leg}
    output = tuple(axis.replace(leg, terms) for axis in net.output)
    return replace(net, nodes=nodes, leg_sizes=tuple(sorted(new_sizes.items())), output=output), pairs


def _renamed_apart(net: N, taken: set[str], keep: set[str]) -> N:
    """The network with primes added to its legs until none of them is taken."""
    names: dict[str, str] = {}
    for leg in net.sizes:
        if leg in keep:
            continue
        name = leg
        while name in taken or name in keep or name in names.values() or (name != leg and name in net.sizes):
            name += "'"
        if name != leg:
            names[leg] = name
    return rename(net, names)


def _fresh(leg: str, taken: Mapping[str, int]) -> str:
    name = f"{leg}^"
    while name in taken:
        name += "^"
    return name


def _merged(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for slot in left.keys() & right.keys():
        if left[slot] is not right[slot]:
            raise ValueError(f"outer: slot {slot!r} is bound to different tensors on both sides; rename one")
    return {**left, **right}
