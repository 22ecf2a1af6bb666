"""Diagrams of networks: nodes for tensors, patterns and selections, lines for shared legs, open legs that hang out."""

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from ..network import Network
from ..nodes import Node, Operand, Pattern, Selection, leg_counts
from .placement import Point, place

SYMBOLS = {
    "input": "X",
    "weight": "W",
    "output_grad": r"V^{(Y)}",
    "input_tangent": r"V^{(X)}",
    "weight_tangent": r"V^{(W)}",
}
STYLES: dict[type[Node], tuple[float, str, str]] = {  # turn of a kind of node, its colour and symbol
    Operand: (0, "#cfe2f3", ""),
    Pattern: (math.pi / 4, "#fde3b8", r"\Pi"),
    Selection: (0, "#d5ecd0", r"\delta"),
}
LINE, DROPPED = "#444444", "#c0392b"
RADIUS = 0.30
FONT = 10


@dataclass(frozen=True)
class Line:
    """A bundle of legs between two vertices; the ends number nodes first, then joints and open ends."""

    ends: tuple[int, int]
    legs: tuple[str, ...]


@dataclass(frozen=True)
class Sketch:
    """The content of a diagram, without positions."""

    nodes: int  # the network's own, in order
    joints: int  # dots where more than two ends of a leg meet
    stubs: int  # open ends
    lines: tuple[Line, ...]


def sketch(net: Network) -> Sketch:
    """Vertices and lines of a network; legs of size one are left out, legs between the same ends share a line."""
    ends: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for leg, size in net.sizes.items():
        if size == 1 and any(other > 1 for other in net.sizes.values()):
            continue
        holders = tuple(index for index, node in enumerate(net.nodes) if leg in node.legs)
        if holders:
            ends.setdefault((holders, leg in net.open_legs), []).append(leg)
    nodes, joints = len(net.nodes), sum(len(holders) + is_open > 2 for holders, is_open in ends)
    lines: list[Line] = []
    joint, stub = nodes, nodes + joints
    for (holders, is_open), names in ends.items():
        legs, meeting = tuple(sorted(names, key=_order)), holders
        if len(holders) + is_open > 2:
            lines += [Line((index, joint), () if number or is_open else legs) for number, index in enumerate(holders)]
            meeting = (joint,) if is_open else ()
            joint += 1
        if len(meeting) == 1:  # it is open, or held by one node and summed
            meeting = (*meeting, stub)
            stub += 1
        lines += [Line((a, b), legs) for a, b in pairwise(meeting)]
    return Sketch(nodes, joints, stub - nodes - joints, tuple(lines))


def draw(net: Network, ax: Any = None, title: str | None = None) -> Any:
    """Draw the network as a diagram (needs matplotlib).

    Tensors are blue discs, index patterns (Π) sand squares, index selections (δ) green diamonds. Legs that end free are
    open; a leg that ends in a bar is summed by that tensor alone. A dot joins a leg that more than two tensors share.
    Legs restricted to a sample (dropped index values) are dashed and red. Legs of size one are not shown.

    Args:
        net: The network.
        ax: Axes to draw on; by default a new figure's.
        title: Title, by default the network's name.

    Returns:
        The matplotlib figure; ``figure.savefig("net.svg")`` writes it.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> from randbp import tn
        >>> figure = tn.conv(tn.ConvSpec((2, 3, 8, 8), 4, 3)).draw()
        >>> sorted(text.get_text() for text in figure.axes[0].texts)[:3]
        ['$W$', '$X$', '$\\\\Pi$']
    """
    from matplotlib.figure import Figure

    plan = sketch(net)
    points = place(plan.nodes, plan.joints, plan.stubs, [line.ends for line in plan.lines])
    if ax is None:
        width, height = (max(along) - min(along) for along in zip(*points, strict=True)) if points else (0.0, 0.0)
        figure = Figure(figsize=(width + 2.2, height + 2.5))
        ax = figure.add_axes((0.02, 0.02, 0.96, 0.86))
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(net.name if title is None else title, fontsize=FONT + 1)
    dropped = {node.sample for node in net.nodes if isinstance(node, Selection)}
    holders = leg_counts(net.nodes)
    summed = {leg for leg in net.sizes if holders.get(leg) == 1 and leg not in net.open_legs}  # by one tensor alone
    for line in plan.lines:
        _draw_line(ax, points, line, dropped, summed)
    for point in points[plan.nodes : plan.nodes + plan.joints]:
        ax.plot(*point, marker="o", markersize=3.5, color=LINE, zorder=2)
    for point, node in zip(points, net.nodes, strict=False):
        _draw_node(ax, point, node)
    _place_labels(ax, points, plan, dropped)
    return ax.figure


def _draw_line(ax: Any, points: list[Point], line: Line, dropped: set[str], summed: set[str]) -> None:
    (x0, y0), (x1, y1) = (points[end] for end in line.ends)
    gone = bool(dropped & set(line.legs))
    style = {"color": DROPPED, "linestyle": (0, (4, 2))} if gone else {"color": LINE}
    ax.plot((x0, x1), (y0, y1), linewidth=1.3, zorder=1, **style)
    if line.legs and set(line.legs) <= summed:
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = 0.1 * (y0 - y1) / length, 0.1 * (x1 - x0) / length
        ax.plot((x1 - nx, x1 + nx), (y1 - ny, y1 + ny), linewidth=1.6, color=style["color"], zorder=1)


def _draw_node(ax: Any, point: Point, node: Node) -> None:
    from matplotlib.patches import Circle, RegularPolygon

    turn, colour, known = STYLES[type(node)]
    style: dict[str, Any] = {"facecolor": colour, "edgecolor": "black", "zorder": 3}
    square = RegularPolygon(point, 4, radius=RADIUS, orientation=turn, **style)
    ax.add_patch(Circle(point, RADIUS, **style) if isinstance(node, Operand) else square)
    text = f"${symbol(node.slot) if isinstance(node, Operand) else known}$"
    size = FONT if len(text) < 6 else FONT - 2
    ax.text(*point, text, ha="center", va="center", fontsize=size, zorder=4, gid="node")


def _place_labels(ax: Any, points: list[Point], plan: Sketch, dropped: set[str]) -> None:
    """Put each line's legs where they meet no other label, node or line, nearest to the middle of the line."""
    ends = [(*points[line.ends[0]], *points[line.ends[1]]) for line in plan.lines]
    taken = [(*point, RADIUS, RADIUS, 20.0) for point in points[: plan.nodes]]  # centre, half sizes, penalty
    for x0, y0, x1, y1 in ends:
        taken += [(x0 + s / 24 * (x1 - x0), y0 + s / 24 * (y1 - y0), 0, 0, 0.5) for s in range(25)]

    def penalty(x: float, y: float, width: float, height: float) -> float:
        return sum(p for a, b, w, h, p in taken if abs(x - a) < width + w and abs(y - b) < height + h)

    for line, (x0, y0, x1, y1) in zip(plan.lines, ends, strict=True):
        if not line.legs:
            continue
        width, height = 0.0575 * _glyphs(line.legs) + 0.03, 0.1
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        options = []
        for extra in (0.05, 0.13, 0.23):
            if line.ends[1] >= plan.nodes + plan.joints:  # behind the open end
                reach = abs(ux) * width + abs(uy) * height + extra
                options.append((extra, x1 + ux * reach, y1 + uy * reach))
                continue
            reach = abs(uy) * width + abs(ux) * height + extra
            for off, side in product((0.0, -0.08, 0.08, -0.16, 0.16, -0.24, 0.24), (reach, -reach)):
                x, y = x0 + (0.5 + off) * (x1 - x0), y0 + (0.5 + off) * (y1 - y0)
                options.append((abs(off) + extra, x - uy * side, y + ux * side))
        _, x, y = min(options, key=lambda option: option[0] + penalty(option[1], option[2], width, height))
        taken.append((x, y, width, height, 20.0))
        text, colour = r"\,".join(map(leg_symbol, line.legs)), DROPPED if dropped & set(line.legs) else "black"
        ax.text(x, y, f"${text}$", ha="center", va="center", fontsize=FONT - 1, color=colour, zorder=5, gid="leg")
    reached = [[box[at] + side * box[at + 2] for box in taken] or [0.0] for at in (0, 1) for side in (-1, 1)]
    ax.set_xlim(min(reached[0]) - 0.35, max(reached[1]) + 0.35)
    ax.set_ylim(min(reached[2]) - 0.35, max(reached[3]) + 0.35)


def symbol(slot: str) -> str:
    """The usual mathematical symbol for a slot."""
    return SYMBOLS.get(slot, r"\mathrm{" + slot.replace("_", r"\_").replace(" ", r"\ ") + "}")


def leg_symbol(leg: str) -> str:
    """A leg as mathematics: ``i1'`` becomes ``i_1'``."""
    if " " in leg:
        return "".join(map(leg_symbol, leg.split()))
    base = leg.rstrip("'")
    primes = leg[len(base) :]
    name, _, copy = base.partition(".")
    head = name.rstrip("0123456789")
    digits = name[len(head) :]
    head = head.replace("^", r"\hat{\ }") if "^" in head else head
    return head + (f"_{{{digits}}}" if digits else "") + (f"^{{({copy})}}" if copy else "") + primes


def _glyphs(legs: tuple[str, ...]) -> float:
    return sum(
        1.0 + 0.75 * sum(ch.isdigit() for ch in leg) + 0.45 * leg.count("'") + 0.9 * leg.count(".") for leg in legs
    )


def _order(leg: str) -> tuple[int, str]:
    known = "ngcdiokv"
    return (known.find(leg[0]) if leg[0] in known else len(known), leg)


def equation(net: Network) -> str:
    """The network as a formula in LaTeX.

    Example:
        >>> from randbp import tn
        >>> from randbp.tn.diagram.drawing import equation
        >>> print(equation(tn.unfold(tn.ConvSpec((2, 3, 8), 4, 3))))
        R_{n,(g c k_{1}),o_{1}} = \\sum_{i_{1}} X_{n,(g c),i_{1}}\\, \\Pi_{i_{1}o_{1}k_{1}}
    """
    factors = []
    for node in net.nodes:
        if isinstance(node, Operand):
            factors.append(f"{symbol(node.slot)}_{{{_axes(node.axes)}}}")
        elif isinstance(node, Pattern):
            factors.append(rf"\Pi_{{{''.join(map(leg_symbol, node.legs))}}}")
        else:
            chosen = "".join(map(leg_symbol, node.targets))
            factors.append(rf"\delta_{{{''.join(map(leg_symbol, (*node.batch, node.sample)))},\,{chosen}}}")
    summed = [leg for leg in net.sizes if leg not in net.open_legs]
    total = rf"\sum_{{{' '.join(leg_symbol(leg) for leg in sorted(summed, key=_order))}}} " if summed else ""
    scale = "" if net.scale == 1 else r"s \cdot "
    left = f"R_{{{_axes(net.output)}}}" if net.output else "R"
    return rf"{left} = {scale}{total}" + r"\, ".join(factors)


def _axes(axes: tuple[Any, ...]) -> str:
    parts = [" ".join(map(leg_symbol, axis.legs)) for axis in axes]
    return ",".join(f"({part})" if len(axis.legs) > 1 else part for part, axis in zip(parts, axes, strict=True))
