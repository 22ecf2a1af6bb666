"""YAML files: configurations, and sweep files, in which no key may be given twice and every key is text."""

from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError


class _Strict(yaml.SafeLoader):
    """Refuse keys that YAML 1.1 does not read as text (``on``, ``yes``, ``1``), and keys that are given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            kind = key.tag.rpartition(":")[2]
            if not isinstance(key, yaml.ScalarNode):
                problem = f"the key is a {kind}, expected text"
            elif kind not in ("str", "merge"):
                problem = f"the key {key.value} is read as {kind}, expected text: write '{key.value}' in quotes"
            elif key.value in keys and kind == "str":
                problem = f"the key {key.value} is there already, expected each key once"
            else:
                keys.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node


def read_yaml(path: Path | str, strict: bool = False) -> Any:
    """Read a YAML file; whatever is wrong with it is one line with the file and the place."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Strict if strict else yaml.SafeLoader)
    except OSError as error:
        fault = str(error.strerror)
    except UnicodeDecodeError:
        fault = "not text, expected YAML in UTF-8"
    except RecursionError:
        fault = "not YAML: too many lists and mappings within each other"
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-41
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        fault = f"not YAML: {' '.join(str(getattr(error, 'problem', None) or error).split())}{line}"
    raise UsageError(f"{path}: {fault}")


def read_options(path: Path | str) -> dict[Any, Any]:
    """Read a configuration file."""
    content = read_yaml(path)
    if isinstance(content, dict):
        return content
    found = "is empty" if content is None else f"has a {type(content).__name__}"
    raise UsageError(f"{path}: {found}, expected options such as model:, data:, trainer:")
