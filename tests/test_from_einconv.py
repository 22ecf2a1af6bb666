"""The page for those who come from einconv: its code runs, and every name of `tn` and of networks exists."""

import re
from pathlib import Path
from typing import Any

from randbp import tn

PAGE = (Path(__file__).parents[1] / "docs" / "from_einconv.md").read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, namespace)
    assert namespace["factor"].shape == (2, 18, 18)


def test_names_exist() -> None:
    functions, methods = re.findall(r"\btn\.(\w+)", PAGE), re.findall(r"\bnet\.(\w+)", PAGE)
    assert functions and methods
    assert not [name for name in functions if not hasattr(tn, name)]
    assert not [name for name in methods if not hasattr(tn.TensorNetwork, name)]
