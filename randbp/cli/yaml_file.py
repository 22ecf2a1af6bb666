"""Strict YAML files: no key is given twice, and every key is text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    YAML 1.1 reads the keys ``on``, ``yes`` and ``1`` as true and as a number, and of a key that is given twice only the
    last; what a user meant by them is lost. Both are refused.

    Raises:
        UsageError: If the file cannot be read, is not YAML, or a key is not text or not unique; in one line that names
            the file, and the key or the place.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.yaml").write_text("a: {b: 1}")
        ...     read_yaml(Path(folder) / "a.yaml")
        {'a': {'b': 1}}
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        if (root := loader.get_single_node()) is None:
            return None
        for fault in _faults(root, "", {}):
            raise UsageError(f"{path}: {fault}")
        return loader.construct_document(root)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file: byte {error.start} is no UTF-8") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not valid YAML: too many lists and mappings within each other") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-41
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _faults(node: yaml.Node, place: str, looked_at: dict[int, bool]) -> Iterator[str]:
    """Errors below a node; each node is visited once, however many aliases refer to it."""
    if id(node) in looked_at:
        if not looked_at[id(node)]:
            yield f"{place}: an alias makes it contain itself, expected content that ends"
        return
    looked_at[id(node)] = False
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _faults(item, f"{place}[{number}]", looked_at)
    elif isinstance(node, yaml.MappingNode):
        yield from _faults_of_mapping(node, place, looked_at)
    looked_at[id(node)] = True


def _faults_of_mapping(node: yaml.MappingNode, place: str, looked_at: dict[int, bool]) -> Iterator[str]:
    keys: set[str] = set()
    for key, value in node.value:
        if key.tag == _MERGE:
            yield from _faults(value, place, looked_at)
            continue
        where = f"{place}.{key.value}" if place else str(key.value)
        line = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
            kind = key.tag.rpartition(":")[2]
            if not isinstance(key, yaml.ScalarNode):
                yield f"{place or 'top level'}, {line}: the key is a {kind}, expected text"
            else:
                yield f"{where}, {line}: YAML reads this key as {kind}, expected text: write '{key.value}' in quotes"
        elif key.value in keys:
            yield f"{where}, {line}: this key is there already, expected each key once"
        keys.add(str(key.value))
        yield from _faults(value, where, looked_at)
