"""The graph of operations that a forward pass leaves to autograd."""

from collections import Counter
from typing import Any

from torch import Tensor


class Graph:
    """The graph of a forward pass.

    Args:
        root: The node of the pass's output.

    Attributes:
        edges: Following nodes of each node.
        uses: How often each leaf is used.
        hidden: Whether it has parts that cannot be seen.
    """

    def __init__(self, root: Any) -> None:
        self.edges: dict[Any, list[Any]] = {}
        self.uses: Counter[Tensor] = Counter()
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if node in self.edges:
                continue
            self.edges[node] = following = [each for each, _ in node.next_functions if each is not None]
            nodes += following
        for following in self.edges.values():
            self.uses.update(node.variable for node in following if hasattr(node, "variable"))
        self.hidden = any(node.name() == "CheckpointFunctionBackward" for node in self.edges)

    def without_any_below(self, marked: set[Any]) -> set[Any]:
        """The marked nodes from which no other marked node is reached."""
        above: dict[Any, list[Any]] = {}
        for node, following in self.edges.items():
            for each in following:
                above.setdefault(each, []).append(node)
        reaching: set[Any] = set()
        nodes = [each for node in marked for each in above.get(node, [])]
        while nodes:
            node = nodes.pop()
            if node not in reaching:
                reaching.add(node)
                nodes += above.get(node, [])
        return marked - reaching
