"""Places for the vertices of a diagram: stress majorisation, so that drawn distances match distances in the graph."""

import math
import random

import torch
from torch import Tensor

Point = tuple[float, float]

STARTS = 60
EDGE = {"node": 1.55, "joint": 1.0, "stub": 0.85}


def place(nodes: int, joints: int, stubs: int, edges: list[tuple[int, int]], rounds: int = 150) -> list[Point]:
    """Coordinates for nodes, joints and open ends (numbered in this order), the same at every call.

    Several starts on a circle are majorised; the one with the least crossings, then the least stress, is
    kept.
    """
    count = nodes + joints + stubs
    if not count:
        return []
    goal = _distances(["node"] * nodes + ["joint"] * joints + ["stub"] * stubs, edges)
    goal *= 1.0 if nodes <= 6 else 1.3  # crowded networks get more room
    starts = [_circle(count, nodes, edges, start) for start in range(STARTS)]
    points = _majorised(torch.tensor(starts, dtype=torch.double), goal, rounds)
    ends = torch.tensor(edges, dtype=torch.long).reshape(-1, 2)
    score = 8 * _crossings(points, ends) + 30 * _near(points, nodes + joints, ends) + _stress(points, goal)
    return _upright([(float(x), float(y)) for x, y in points[int(score.argmin())]])


def _distances(kind: list[str], edges: list[tuple[int, int]]) -> Tensor:
    """Lengths of shortest paths ``[V, V]`` (Floyd, 1962)."""
    far = torch.full((len(kind), len(kind)), math.inf, dtype=torch.double).fill_diagonal_(0)
    for a, b in edges:
        kinds = {kind[a], kind[b]}
        length = EDGE["stub"] if "stub" in kinds else EDGE["joint"] if "joint" in kinds else EDGE["node"]
        far[a, b] = far[b, a] = min(float(far[a, b]), length)
    for middle in range(len(kind)):
        far = torch.minimum(far, far[:, middle : middle + 1] + far[middle])
    return far.where(far < math.inf, far[far < math.inf].max() + 1.5)


def _circle(count: int, nodes: int, edges: list[tuple[int, int]], start: int) -> list[Point]:
    """Nodes on a circle in an order drawn for the start; joints and open ends near their neighbours."""
    order = list(range(nodes))
    random.Random(start).shuffle(order)
    points: list[Point] = [(0.0, 0.0)] * count
    for position, index in enumerate(order):
        angle = 2 * math.pi * position / max(nodes, 1) + 0.3
        points[index] = (2.0 * math.cos(angle), 1.6 * math.sin(angle))
    for vertex in range(nodes, count):
        near = [points[a if b == vertex else b] for a, b in edges if vertex in (a, b)] or [(0.0, 0.0)]
        scale = 1.5 if len(near) == 1 else 0.9
        x, y = (scale * sum(along) / len(near) for along in zip(*near, strict=True))
        points[vertex] = (x + 0.13 * math.cos(vertex), y + 0.13 * math.sin(vertex))
    return points


def _majorised(points: Tensor, goal: Tensor, rounds: int) -> Tensor:
    """Points ``[S, V, 2]`` moved to less stress, start by start (SMACOF; J. de Leeuw, 1977)."""
    weights = goal.pow(-2).fill_diagonal_(0)
    inverse = torch.linalg.pinv(weights.sum(1).diag() - weights)
    for _ in range(rounds):
        ratio = weights * goal / torch.cdist(points, points).clamp_min(1e-6)
        moved = inverse @ ((ratio.sum(2).diag_embed() - ratio) @ points)
        done = bool((moved - points).abs().max() < 1e-3)
        points = moved
        if done:
            break
    return points


def _stress(points: Tensor, goal: Tensor) -> Tensor:
    a, b = torch.triu_indices(len(goal), len(goal), 1)
    return (torch.cdist(points, points)[:, a, b] / goal[a, b] - 1).square().sum(1)


def _crossings(points: Tensor, ends: Tensor) -> Tensor:
    """Number of pairs of lines that cross."""
    start, end = points[:, ends[:, 0]], points[:, ends[:, 1]]

    def sides(of: Tensor) -> Tensor:
        """The side of each line on which a point of each line lies ``[S, E, E]``."""
        along, to = (end - start).unsqueeze(2), of.unsqueeze(1) - start.unsqueeze(2)
        return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]

    parted = sides(start) * sides(end) < 0
    joined = (ends[:, None, :, None] == ends[None, :, None, :]).any(3).any(2)
    return (parted & parted.transpose(1, 2) & ~joined).sum((1, 2)) / 2


def _near(points: Tensor, inner: int, ends: Tensor) -> Tensor:
    """Number of nodes and joints on lines that are not theirs, and of pairs of vertices that coincide."""
    start = points[:, ends[:, 0]].unsqueeze(1)
    along, to = points[:, ends[:, 1]].unsqueeze(1) - start, points[:, :inner].unsqueeze(2) - start
    share = ((to * along).sum(3) / along.square().sum(3).clamp_min(1e-12)).clamp(0, 1)
    own = (ends[None, :, :] == torch.arange(inner)[:, None, None]).any(2)
    on = ((to - share.unsqueeze(3) * along).norm(dim=3) < 0.42) & ~own
    close = (torch.cdist(points, points) < 0.45).sum((1, 2)) - points.shape[1]
    return on.sum((1, 2)) + close / 2


def _upright(points: list[Point]) -> list[Point]:
    """Rotate the drawing so that its longest extent is horizontal and the first vertex on the left, and centre it."""
    count = len(points)
    mx, my = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    sxx = sum((x - mx) ** 2 for x, _ in points)
    syy = sum((y - my) ** 2 for _, y in points)
    sxy = sum((x - mx) * (y - my) for x, y in points)
    angle = 0.5 * math.atan2(2 * sxy, sxx - syy)
    c, s = math.cos(angle), math.sin(angle)
    turned = [((x - mx) * c + (y - my) * s, -(x - mx) * s + (y - my) * c) for x, y in points]
    flip = -1.0 if turned and turned[0][0] > 0 else 1.0
    return [(flip * x, y) for x, y in turned]
