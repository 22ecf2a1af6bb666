"""Moves on two networks: the outer product, and composition, which plugs one network into another."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from torch import Tensor

from .moves import only_operand, pruned, rename, scaled, without_legs
from .network import N, Network
from .nodes import Operand, volume


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
    ends = target, Operand("", other.output)  # nodes for as long as their legs are made the same
    merged = replace(
        net,
        nodes=(*(node for node in net.nodes if node is not target), *other.nodes, *ends),
        leg_sizes=tuple(sorted({**net.sizes, **other.sizes}.items())),
        scale=net.scale * other.scale,
        bound=_merged({s: t for s, t in net.bound.items() if s != into}, other.bound),
    )
    for index in range(len(target.axes)):
        merged = _identify(merged, index)
    *nodes, left, right = merged.nodes
    held = {*merged.open_legs, *(leg for node in nodes for leg in node.legs)}
    # A joined leg that no tensor holds is summed over equal terms.
    repeated = volume({*left.legs, *right.legs} - held, merged.sizes)
    return pruned(scaled(replace(merged, nodes=tuple(nodes)), repeated))


def _check_network(move: str, other: object) -> None:
    if not isinstance(other, Network):
        raise ValueError(f"{move}: other={other!r:.60}, expected a TensorNetwork")


def _identify(net: N, index: int) -> N:
    """Make the legs of an axis of the last two nodes the same legs, splitting coarse legs where the other is finer."""
    while True:
        mine, theirs = (node.axes[index] for node in net.nodes[-2:] if isinstance(node, Operand))
        left, right = ([leg for leg in axis.legs if net.sizes[leg] > 1] for axis in (mine, theirs))
        if not mine.size or left == right:  # there is nothing to join
            return net
        if not (mine.is_plain(net.sizes) and theirs.is_plain(net.sizes)):
            raise ValueError(f"compose: cannot join the sliced axis [{mine}] with [{theirs}]; compose, then simplify")
        a, b = next((a, b) for a, b in zip(reversed(left), reversed(right), strict=False) if a != b)
        coarse, fine = sorted((b, a), key=net.sizes.__getitem__, reverse=True)
        times, rest = divmod(net.sizes[coarse], net.sizes[fine])
        if rest:
            sizes = f"{net.sizes[a]} against {net.sizes[b]}"
            raise ValueError(f"compose: cannot align the groups [{mine}] with [{theirs}]: {sizes}")
        net = _substitute(net, coarse, fine, times)


def _substitute(net: N, leg: str, fine: str, times: int) -> N:
    """Replace a leg everywhere by a finer one, which runs through it a number of times."""
    sizes = {name: size for name, size in net.sizes.items() if name != leg}
    if times == 1:
        nodes = tuple(node.rename({leg: fine}) for node in net.nodes)
        output = Operand("", net.output).rename({leg: fine}).axes
    elif any(leg in node.legs and not isinstance(node, Operand) for node in net.nodes):
        raise ValueError(f"compose: leg {leg!r} belongs to a pattern or an index and cannot be split")
    else:
        high = next(name for marks in count(1) if (name := leg + "^" * marks) not in net.sizes)
        sizes[high] = times
        terms = ((high, sizes[fine]), (fine, 1))
        split = lambda axes: tuple(axis.replace(leg, terms) for axis in axes)  # noqa: E731
        nodes = tuple(replace(node, axes=split(node.axes)) if isinstance(node, Operand) else node for node in net.nodes)
        output = split(net.output)
    return replace(net, nodes=nodes, leg_sizes=tuple(sorted(sizes.items())), output=output)


def _renamed_apart(net: N, taken: set[str], keep: set[str]) -> N:
    """The network with primes added to its legs until none of them is taken."""
    names: dict[str, str] = {}
    for leg in net.sizes:
        if leg in taken and leg not in keep:
            gone = {*taken, *keep, *names.values(), *net.sizes}
            names[leg] = next(name for primes in count(1) if (name := leg + "'" * primes) not in gone)
    return rename(net, names)


def _merged(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for slot in left.keys() & right.keys():
        if left[slot] is not right[slot]:
            raise ValueError(f"outer: slot {slot!r} is bound to different tensors on both sides; rename one")
    return {**left, **right}
