"""The blocks of docs/recipes.md run from top to bottom of their section. Run by ``make zoo``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .without_torchvision import without_torchvision

with without_torchvision():
    import timm  # noqa: F401 -- before a recipe does

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("title", [title for title in SECTIONS if "DDP" not in title])
def test_recipe(title: str, tmp_path: Path) -> None:
    namespace = {"output_dir": str(tmp_path)}
    assert SECTIONS[title]
    for block in SECTIONS[title]:
        exec(block, namespace)


def test_two_processes(tmp_path: Path) -> None:
    (block,) = SECTIONS["PyTorch DDP"]
    script = tmp_path / "train.py"
    script.write_text(block)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
