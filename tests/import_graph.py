"""Which file of the package imports which: ``python -m tests.import_graph`` prints circles, and names used twice.

Imports inside of functions count, too: they only postpone a circle.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import randbp

FOLDER = Path(randbp.__file__).parent
Graph = Mapping[str, frozenset[str]]


def files(folder: Path = FOLDER) -> dict[str, Path]:
    """Dotted name of each module or package below a folder, and its file."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    return found


@cache
def import_graph(folder: Path = FOLDER) -> Graph:
    """Each module, and the modules below the same folder that it imports by name."""
    known = files(folder)
    return {name: frozenset(_imports(name, path, known) & known.keys() - {name}) for name, path in known.items()}


def _imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = (f"{source}.{alias.name}" for alias in node.names)
            found |= {each if each in known else source for each in names}
    return found


def imported_from_outside(folder: Path = FOLDER) -> dict[str, set[str]]:
    """Top-level names of other packages that each module imports."""
    known = files(folder)
    return {
        name: {each.partition(".")[0] for each in _imports(name, path, known) - known.keys() if each}
        for name, path in known.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """Largest sets of modules each of which imports, directly or not, all others of the set (Tarjan, 1972).

    >>> circles({"a": frozenset("b"), "b": frozenset("ca"), "c": frozenset()})
    [['a', 'b']]
    """
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in number:
            visit(node)
    return sorted(found, key=len, reverse=True)


def shared_names(graph: Graph) -> dict[str, list[str]]:
    """File names that several modules have, packages' own files aside, and these modules."""
    by_name: dict[str, list[str]] = {}
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    for name in graph.keys() - packages:
        by_name.setdefault(name.rpartition(".")[2], []).append(name)
    return {name: sorted(modules) for name, modules in sorted(by_name.items()) if len(modules) > 1}


def upward(graph: Graph, floors: list[tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Imports of a part by one below it; ``floors`` begins at the ground, and parts of one floor may import each other.

    >>> list(upward({"p.a.x": frozenset({"p.b"}), "p.b": frozenset()}, [("a",), ("b",)]))
    [('p.a.x', 'p.b')]
    """
    floor = {part: number for number, parts in enumerate(floors) for part in parts}
    for name, imported in graph.items():
        for other in sorted(imported):
            if name.count(".") and other.count(".") and floor[name.split(".")[1]] < floor[other.split(".")[1]]:
                yield name, other


def main() -> None:
    """Print circles, shared names, files and lines."""
    graph = import_graph()
    lines = sum(len(path.read_text().splitlines()) for path in files().values())
    print(f"{len(graph)} files, {lines} lines")
    for members in circles(graph):
        print(f"circle of {len(members)}: {', '.join(members)}")
    for name, modules in shared_names(graph).items():
        print(f"{name}.py: {', '.join(modules)}")


if __name__ == "__main__":
    main()
