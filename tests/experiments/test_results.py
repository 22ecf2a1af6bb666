"""The tables of the documentation are what the committed results of experiments give."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.equal_time.page import write_page
from experiments.second_order import page as second_order

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


def test_trainings_of_second_order(tmp_path: Path) -> None:
    rows, costs = rows_of("second_order_trainings.jsonl"), rows_of("second_order_steps.jsonl")
    table = second_order.trainings_table([row for row in rows if row["seed"] >= 2], second_order.best_settings(rows))
    text = (DOCS / "second_order.md").read_text(encoding="utf-8")
    assert len(table) == 11 and "\n".join(table) in text
    steps = next(row for row in costs if row["run"].get("network") == "vgg-19")["costs"]
    ratio = steps["KFAC (reduce, rank 64)"]["seconds"] / steps["SGD"]["seconds"]
    assert f"| `KFAC(model, rank=64)` | 1.13, 1.03 | {ratio:.2f}, " in text


COSTS = ("resnet-18", "all-cnn-c", "convnext-base")


def cells(setting: str, networks: tuple[str, ...] = COSTS) -> str:
    """Held, peak, time and error over exact of networks, as on the pages."""
    found = []
    for network in networks:
        rows = json.loads((DOCS / f"results/lean-{network}.json").read_text())["rows"]
        row = next((row for row in rows if row["setting"] == setting), None)
        found.append("" if row is None else ", ".join([*(f"{row[f'{key}_ratio']:.2f}" for key in KEYS), error(row)]))
    return " | ".join(found)


KEYS = ("held", "peak", "time")


def error(row: dict[str, Any]) -> str:
    return f"{row['error']:.1g}" if row["error"] else "0"


def settings_of(network: str) -> list[str]:
    rows = json.loads((DOCS / f"results/lean-{network}.json").read_text())["rows"]
    return [row["setting"] for row in rows if row["setting"] != "exact"]


def test_costs_of_presets_and_their_rivals() -> None:
    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    for setting in settings_of("resnet-18"):
        assert f"| {setting} | {cells(setting)} |\n" in page, setting
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for setting in ("preset exact", "preset memory", "preset time", "checkpoint per block", "held in bf16"):
        assert f" | {cells(setting)} |\n" in readme, setting
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    for setting in settings_of("vgg-19"):
        assert f"| {setting} | {cells(setting, ('vgg-19', 'mobilenet-v2'))} |\n" in page, setting
