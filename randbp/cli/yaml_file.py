"""YAML files: configurations, and sweep files, in which no key may be given twice and every key is text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """Read a YAML file strictly; whatever is wrong with it is one line with the file, and the key or the place.

    YAML 1.1 reads the keys ``on``, ``yes`` and ``1`` as true and as a number, and of a key that is given twice only the
    last; what a user meant by them is lost. Both are refused.
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


def read_mapping(path: Path) -> tuple[dict[Any, Any], str]:
    """Read a configuration file; return its content and what is wrong with it, one of which is empty."""
    if not path.is_file():
        return {}, "not a file" if path.exists() else "no such file"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return {}, "not text, expected YAML in UTF-8"
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        return {}, f"not YAML: {getattr(error, 'problem', None) or error}{line}"
    if isinstance(content, dict):
        return content, ""
    found = "is empty" if content is None else f"has a {type(content).__name__}"
    return {}, f"{found}, expected options such as model:, data:, trainer:"


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
        keys: set[str] = set()
        for key, value in node.value:
            where = f"{place}.{key.value}" if place else str(key.value)
            if key.tag == _MERGE:
                where = place
            elif fault := _fault_of_key(key, keys):
                text = isinstance(key, yaml.ScalarNode)
                yield f"{where if text else place or 'top level'}, line {key.start_mark.line + 1}: {fault}"
            keys.add(str(key.value))
            yield from _faults(value, where, looked_at)
    looked_at[id(node)] = True


def _fault_of_key(key: yaml.Node, earlier: set[str]) -> str:
    kind = key.tag.rpartition(":")[2]
    if not isinstance(key, yaml.ScalarNode):
        return f"the key is a {kind}, expected text"
    if key.tag != _TEXT:
        return f"YAML reads this key as {kind}, expected text: write '{key.value}' in quotes"
    return "this key is there already, expected each key once" if key.value in earlier else ""
