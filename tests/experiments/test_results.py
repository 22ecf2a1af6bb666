"""The tables of the documentation are what the committed results of experiments give."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.equal_time.page import write_page

DOCS = Path(__file__).parents[2] / "docs"


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DOCS / "results" / name).read_text().splitlines()]


def equal_time_table(network: str, folder: Path) -> list[str]:
    """The table that the command writes of these results, without p-values."""
    costs = json.loads((DOCS / f"results/equal_time_{network}.json").read_text())["costs"]
    lines = write_page(folder, network, {}, rows_of(f"equal_time_{network}.jsonl"), costs)
    return [line.split(", p = ")[0] + " |" if ", p = " in line else line for line in lines if line.startswith("|")]


@pytest.mark.parametrize("network", ["transformer", "resnet", "resnet-group-norm"])
def test_accuracies_at_equal_time(network: str, tmp_path: Path) -> None:
    table = equal_time_table(network, tmp_path)
    assert len(table) > 6
    assert "\n".join(table) in (DOCS / "equal_time.md").read_text(encoding="utf-8")
