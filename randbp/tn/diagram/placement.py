"""Places for the vertices of a diagram: stress majorisation, so that drawn distances match distances in the graph."""

import math

import torch
from torch import Tensor

Point = tuple[float, float]

STARTS, ROUNDS = 60, 300
NODE, JOINT, STUB = 1.55, 1.0, 0.85  # lengths of lines between nodes, to a joint, and to an open end


def place(nodes: int, joints: int, stubs: int, edges: list[tuple[int, int]]) -> list[Point]:
    """Coordinates for nodes, joints and open ends (numbered in this order), the same at every call.

    Several random starts are majorised; the one with the least crossings, then the least stress, is kept.
    """
    inner, count = nodes + joints, nodes + joints + stubs
    if not count:
        return []
    goal = _distances([NODE] * nodes + [JOINT] * joints + [STUB] * stubs, edges)
    goal *= 1.0 if nodes <= 6 else 1.3  # crowded networks get more room
    generator = torch.Generator().manual_seed(0)
    points = _majorised(2 * torch.randn(STARTS, count, 2, generator=generator, dtype=torch.double), goal)
    stress = (torch.cdist(points, points) / goal - 1).square().nan_to_num().sum((1, 2)) / 2
    ends = torch.tensor(edges, dtype=torch.long).reshape(-1, 2)
    best = points[(8 * _crossings(points, ends) + 30 * _near(points, inner, ends) + stress).argmin()]
    best = best - best.mean(0)
    turned = best @ torch.linalg.eigh(best.T @ best).eigenvectors.flip(1)  # the longest extent is horizontal
    return [(float(x), float(y)) for x, y in turned * (1 - 2 * (turned[0] > 0))]


def _distances(lengths: list[float], edges: list[tuple[int, int]]) -> Tensor:
    """Lengths of shortest paths ``[V, V]`` (Floyd, 1962), where an edge is as long as its shorter end says."""
    far = torch.full((len(lengths), len(lengths)), math.inf, dtype=torch.double).fill_diagonal_(0)
    for a, b in edges:
        far[a, b] = far[b, a] = min(float(far[a, b]), lengths[a], lengths[b])
    for middle in range(len(far)):
        far = torch.minimum(far, far[:, middle : middle + 1] + far[middle])
    return far.where(far < math.inf, far[far < math.inf].max() + 1.5)


def _majorised(points: Tensor, goal: Tensor) -> Tensor:
    """Points ``[S, V, 2]`` moved to less stress, start by start (SMACOF; J. de Leeuw, 1977)."""
    weights = goal.pow(-2).fill_diagonal_(0)
    inverse = torch.linalg.pinv(weights.sum(1).diag() - weights)
    for _ in range(ROUNDS):
        ratio, before = weights * goal / torch.cdist(points, points).clamp_min(1e-6), points
        points = inverse @ ((ratio.sum(2).diag_embed() - ratio) @ points)
        if (points - before).abs().max() < 1e-3:
            break
    return points


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
