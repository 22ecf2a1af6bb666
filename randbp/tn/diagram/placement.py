"""Places for the vertices of a diagram: stress majorisation, so that drawn distances match distances in the
graph."""

import math
import random

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
    kind = ["node"] * nodes + ["joint"] * joints + ["stub"] * stubs
    goal = _distances(count, edges, kind)
    spread = 1.0 if nodes <= 6 else 1.3  # crowded networks get more room
    goal = [[spread * value for value in row] for row in goal]
    best: tuple[float, list[Point]] | None = None
    for start in range(STARTS):
        points = _majorised(_circle(count, nodes, edges, start), goal, rounds)
        score = 8 * _crossings(points, edges) + 30 * _near(points, nodes + joints, edges) + _stress(points, goal)
        if best is None or score < best[0] - 1e-9:
            best = (score, points)
    assert best is not None
    return _upright(best[1])


def _distances(count: int, edges: list[tuple[int, int]], kind: list[str]) -> list[list[float]]:
    far = [[math.inf] * count for _ in range(count)]
    for index in range(count):
        far[index][index] = 0.0
    for a, b in edges:
        kinds = {kind[a], kind[b]}
        length = EDGE["stub"] if "stub" in kinds else EDGE["joint"] if "joint" in kinds else EDGE["node"]
        far[a][b] = far[b][a] = min(far[a][b], length)
    for middle in range(count):
        for a in range(count):
            for b in range(count):
                far[a][b] = min(far[a][b], far[a][middle] + far[middle][b])
    finite = [value for row in far for value in row if value < math.inf]
    apart = max(finite, default=1.0) + 1.5
    return [[value if value < math.inf else apart for value in row] for row in far]


def _circle(count: int, nodes: int, edges: list[tuple[int, int]], start: int) -> list[Point]:
    """Nodes on a circle in an order drawn for the start; joints and open ends near their neighbours."""
    order = list(range(nodes))
    random.Random(start).shuffle(order)
    points: list[Point] = [(0.0, 0.0)] * count
    for position, index in enumerate(order):
        angle = 2 * math.pi * position / max(nodes, 1) + 0.3
        points[index] = (2.0 * math.cos(angle), 1.6 * math.sin(angle))
    for vertex in range(nodes, count):
        near = [a if b == vertex else b for a, b in edges if vertex in (a, b)]
        xs = [points[index][0] for index in near] or [0.0]
        ys = [points[index][1] for index in near] or [0.0]
        scale = 1.5 if len(near) == 1 else 0.9
        points[vertex] = (
            scale * sum(xs) / len(xs) + 0.13 * math.cos(vertex),
            scale * sum(ys) / len(ys) + 0.13 * math.sin(vertex),
        )
    return points


def _majorised(points: list[Point], goal: list[list[float]], rounds: int) -> list[Point]:
    count = len(points)
    weights = [[0.0 if a == b else goal[a][b] ** -2 for b in range(count)] for a in range(count)]
    for _ in range(rounds):
        largest = 0.0
        for a in range(count):
            x = y = total = 0.0
            ax, ay = points[a]
            for b in range(count):
                if a == b:
                    continue
                bx, by = points[b]
                distance = max(1e-6, math.hypot(ax - bx, ay - by))
                weight = weights[a][b]
                x += weight * (bx + goal[a][b] * (ax - bx) / distance)
                y += weight * (by + goal[a][b] * (ay - by) / distance)
                total += weight
            if total:
                moved = (x / total, y / total)
                largest = max(largest, abs(moved[0] - ax), abs(moved[1] - ay))
                points[a] = moved
        if largest < 1e-3:
            break
    return points


def _stress(points: list[Point], goal: list[list[float]]) -> float:
    total = 0.0
    for a in range(len(points)):
        for b in range(a):
            distance = math.hypot(points[a][0] - points[b][0], points[a][1] - points[b][1])
            total += (distance / goal[a][b] - 1) ** 2
    return total


def _crossings(points: list[Point], edges: list[tuple[int, int]]) -> int:
    count = 0
    for index, (a, b) in enumerate(edges):
        for c, d in edges[:index]:
            if len({a, b, c, d}) == 4 and _cross(points[a], points[b], points[c], points[d]):
                count += 1
    return count


def _near(points: list[Point], inner: int, edges: list[tuple[int, int]]) -> int:
    """Number of nodes and joints on lines that are not theirs, and of pairs of vertices that coincide."""
    count = 0
    for a, b in edges:
        for vertex in range(inner):
            if vertex not in (a, b) and _to_segment(points[vertex], points[a], points[b]) < 0.42:
                count += 1
    for a in range(len(points)):
        for b in range(a):
            if math.hypot(points[a][0] - points[b][0], points[a][1] - points[b][1]) < 0.45:
                count += 1
    return count


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _to_segment(p: Point, a: Point, b: Point) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = dx * dx + dy * dy or 1.0
    along = max(0.0, min(1.0, ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length))
    return math.hypot(p[0] - a[0] - along * dx, p[1] - a[1] - along * dy)


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
