"""Simplification: index patterns that are reshapes, slices or identities are replaced by these."""

from dataclasses import replace
from itertools import combinations

from .moves import pruned
from .network import N
from .nodes import Axis, Node, Operand, Pattern, Selection, leg_counts


def simplify(net: N) -> N:
    """Replace patterns by reshapes or slices where possible (dense, down-sampling, identity, size-1 patterns).

    A pattern is removed if no kernel position meets the padding and if no two pairs ``(o, k)`` meet the same input:
    kernels that do not overlap (dense and down-sampling convolutions), a kernel of size one, a single output. Its leg
    ``i`` then is the affine function ``stride·o + dilation·k - padding`` of the other two, and moves into the layout of
    the one tensor (operand or output) that holds it. A pattern with ``i = o`` or ``i = k`` throughout joins the legs,
    and one that is summed on its own becomes a number. Two selections of one sample choose the same values: their legs
    are joined. A pattern or an index that occurs twice with the same legs says the same twice.

    Example:
        >>> from randbp import tn
        >>> print(tn.conv(tn.ConvSpec((2, 3, 8), 4, kernel_size=2, stride=2)).simplify())
        conv: input[n g·c o1·k1] weight[g·d c k1] → [n g·d o1]
    """
    net = _without_repetitions(_with_shared_targets(net))
    while simpler := next(filter(None, (_without(net, node) for node in net.nodes if isinstance(node, Pattern))), None):
        net = simpler
    return pruned(net)


def _with_shared_targets(net: N) -> N:
    """Join legs that selections with the same index and sample choose, where one of them goes nowhere else."""
    counts = leg_counts(net.nodes)
    for first, second in combinations((node for node in net.nodes if isinstance(node, Selection)), 2):
        if (first.slot, first.batch, first.sample) == (second.slot, second.batch, second.sample):
            for kept, gone in zip(first.targets, second.targets, strict=True):
                if kept != gone and 1 in (counts[kept], counts[gone]):
                    joined = _joined(net, net.nodes, gone, kept)
                    if joined is not None:
                        return _with_shared_targets(joined)
    return net


def _without_repetitions(net: N) -> N:
    relations = dict.fromkeys(node for node in net.nodes if not isinstance(node, Operand))
    nodes = tuple(node for node in net.nodes if isinstance(node, Operand) or relations.pop(node, ...) is None)
    return replace(net, nodes=nodes) if len(nodes) < len(net.nodes) else net


def _without(net: N, node: Pattern) -> N | None:
    """Remove one pattern from the network, if the pattern is simple."""
    pattern = node.pattern
    rest = tuple(other for other in net.nodes if other is not node)
    held = {*net.open_legs, *(leg for other in rest for leg in other.legs)}
    if all(net.sizes[leg] == 1 for leg in held & set(node.legs)):  # summed on its own: a number
        return replace(net, nodes=rest, scale=net.scale * pattern.nonzeros)
    if not pattern.nonzeros or pattern.nonzeros != pattern.output_size * pattern.kernel_size:
        return None  # some pairs (o, k) meet the padding
    outputs, entries = (node.o, pattern.stride, pattern.output_size), (node.k, pattern.dilation, pattern.kernel_size)
    # Row-major where the steps allow it, so that the axis prints and reads as a plain group.
    steps = sorted((each for each in (outputs, entries) if each[2] > 1), key=lambda each: -each[1])
    if len(steps) == 2 and steps[0][1] <= steps[1][1] * (steps[1][2] - 1):
        return None  # several pairs (o, k) meet one input
    terms = tuple((leg, step) for leg, step, _ in steps)
    holders = [other for other in rest if node.i in other.legs]
    if len(terms) == 1 and terms[0][1] == 1 and pattern.padding == 0 and pattern.input_size == net.sizes[terms[0][0]]:
        return _joined(net, rest, node.i, terms[0][0])
    if node.i in net.open_legs:
        if holders or {leg for leg, _ in terms} & set(net.open_legs):
            return None
        return replace(net, nodes=rest, output=_replaced(net.output, node.i, terms, -pattern.padding))
    if len(holders) != 1 or not isinstance(holders[0], Operand):
        return None
    if set(holders[0].legs) & {leg for leg, _ in terms}:
        return None
    axes = _replaced(holders[0].axes, node.i, terms, -pattern.padding)
    nodes = tuple(replace(other, axes=axes) if other is holders[0] else other for other in rest)
    return replace(net, nodes=nodes)


def _joined(net: N, rest: tuple[Node, ...], i: str, other: str) -> N | None:
    """Identify two legs of the same size, unless one tensor holds both (that is a diagonal)."""
    both = {i, other}
    if both <= set(net.open_legs) or any(both <= set(node.legs) for node in rest):
        return None
    gone, kept = (i, other) if i not in net.open_legs else (other, i)
    name = {gone: kept}
    return replace(
        net,
        nodes=tuple(node.rename(name) for node in rest),
        output=Operand("", net.output).rename(name).axes,
    )


def _replaced(axes: tuple[Axis, ...], leg: str, terms: tuple[tuple[str, int], ...], start: int) -> tuple[Axis, ...]:
    return tuple(axis.replace(leg, terms, start) for axis in axes)
