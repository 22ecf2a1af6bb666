"""The effect of a network's contraction order on its cost, found without running anything."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from ...text.text_table import aligned
from ..network import Network
from .path import Item, Path, Search, advanced
from .relations import problem


@dataclass(frozen=True)
class PathReport:
    """Costs of a network's contraction orders.

    Args:
        network: The network's equation.
        orders: Number of different orders looked at.
        exhaustive: Whether these are all orders there are.
        multiplications: Multiply-adds of the best, the median and the worst order.
        largest: Elements of the largest intermediate in the best, the median and the worst order (each its
            own ranking).
        time: Estimated time of the best, the median and the worst order, in multiply-adds (memory traffic
            counted in).

    Example:
        >>> from randbp import tn
        >>> report = tn.kfac_reduce(tn.ConvSpec((8, 16, 32, 32), 16, 3, padding=1)).path_report()
        >>> report.spread > 10
        True
    """

    network: str
    orders: int
    exhaustive: bool
    multiplications: tuple[int, float, int]
    largest: tuple[int, float, int]
    time: tuple[float, float, float]

    @property
    def spread(self) -> float:
        """Estimated time of the worst order over that of the best: near 1 the order does not matter."""
        return self.time[2] / self.time[0] if self.time[0] else 1.0  # nothing is computed: views, or an empty batch

    def __str__(self) -> str:
        scope = "all" if self.exhaustive else "a sample"
        rows: list[Sequence[str]] = [("", "best", "median", "worst", "worst / best")]
        shown = {"estimated time": self.time, "multiplications": self.multiplications}
        for name, values in {**shown, "largest intermediate": self.largest}.items():
            ratio = f"{values[2] / values[0]:.1f}x" if values[0] else "-"
            rows.append((name, *(f"{value:,.0f}" for value in values), ratio))
        lines = aligned(rows, right=range(1, 5))
        verdict = "the order matters" if self.spread > 1.5 else "the order hardly matters"
        return "\n".join([self.network, f"{self.orders} contraction orders ({scope}): {verdict}", *lines])


def path_report(net: Network, samples: int = 200, seed: int = 0) -> PathReport:
    """Costs of the best, median and worst contraction order, without running anything.

    Steps are those of plans (a pattern is never built), so the worst order is the worst that the library would run, not
    the worst with dense patterns. Outer products are left out where a better step exists.

    Args:
        net: The network.
        samples: Number of orders to draw if there are more.
        seed: Seed of that draw.

    Raises:
        ValueError: If ``samples`` is not positive.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: expected a positive integer")
    search = Search(problem(net))
    paths = {tuple(path) for path in islice(orders(search), samples + 1)}
    exhaustive = len(paths) <= samples
    if not exhaustive:
        generator = random.Random(seed)
        paths = {tuple(path) for _ in range(samples) for path in orders(search, generator)}
    paths.add(tuple(search.path()))
    costs = [search.cost(list(path)) for path in paths]
    return PathReport(
        str(net),
        len(paths),
        exhaustive,
        _three([sum(cost.multiplications for cost in steps) for steps in costs]),
        _three([max((cost.size for cost in steps[:-1]), default=0) for steps in costs]),
        _three([sum(cost.time for cost in steps) for steps in costs]),
    )


def _three(values):  # type: ignore[no-untyped-def]
    return min(values), median(values), max(values)


def orders(search: Search, generator: random.Random | None = None) -> Iterator[Path]:
    """Contraction orders in depth-first order: all there are, or one whose every step is drawn at random."""
    stack: list[tuple[Path, list[Item]]] = [([], search.start)]
    while stack:
        path, state = stack.pop()
        if len(state) == 1:
            yield path
            continue
        moves = search.moves_from(state)
        for positions, move in moves if generator is None else [generator.choice(moves)]:
            stack.append(([*path, positions], advanced(state, positions, move.item)))
