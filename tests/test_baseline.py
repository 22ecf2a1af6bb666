"""The baseline sees what it is meant to see, and nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import baseline
from tests.catalogue import named

FOUND: dict[str, Any] = {
    "environment": {"torch": "2"},
    "described": {"layer": {"held": 100, "weight": 10, "input": None}},
    "variances": {"layer": {"stated": None, "weight": [1.0, 0.01]}},
    "plans": {"layer": {"hash": "a", "printed": ["one"]}},
    "steps": {"network": {"held": 1000, "peak": 2000}},
    "times": {"layer": {"ratio": 0.5, "noise": 0.05}},
}


@pytest.mark.parametrize(
    ("part", "key", "what", "within", "beyond"),
    [
        ("described", "layer", "held", 100, 101),
        ("described", "layer", "held", 100, 99),
        ("described", "layer", "weight", 10, 11),
        ("described", "layer", "input", None, 1),
        ("variances", "layer", "weight", [1.05, 0.01], [1.08, 0.01]),
        ("variances", "layer", "stated", None, 1.0),
        ("plans", "layer", "hash", "a", "b"),
        ("steps", "network", "held", 1000, 1001),
        ("steps", "network", "peak", 2019, 2021),
        ("times", "layer", "ratio", 0.59, 0.61),
    ],
)
def test_differences_beyond_a_tolerance_are_named(part: str, key: str, what: str, within: Any, beyond: Any) -> None:
    new = copy.deepcopy(FOUND)
    new[part][key][what] = within
    assert list(baseline.differences(FOUND, new)) == []
    new[part][key][what] = beyond
    (line,) = baseline.differences(FOUND, new)
    assert line.startswith(f"{part}: {key}: {what} ")


def test_rows_that_come_or_go_are_named() -> None:
    new = copy.deepcopy(FOUND)
    new["plans"]["other"] = new["plans"].pop("layer")
    assert sorted(baseline.differences(FOUND, new)) == ["plans: layer: gone", "plans: other: new"]


def test_a_second_measurement_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LAYERS", "VARIED"):
        monkeypatch.setattr(baseline, name, "all-cnn-c.8")
    monkeypatch.setattr(baseline, "ESTIMATORS", named("spatial", "channels", "rounding"))
    monkeypatch.setattr(baseline, "RULES", list(baseline.RULES)[:3])
    monkeypatch.setattr(baseline, "NETWORKS", {})
    monkeypatch.setattr(baseline, "DRAWS", 8)
    file = tmp_path / "baseline.json"
    assert baseline.run(0, str(file), None) == 0
    found = json.loads(file.read_text())
    assert found["described"]["all-cnn-c.8 | rounding, Rounding(bits=4)"]["held"] > 0
    row = found["variances"]["all-cnn-c.8 | channels, Channels(keep=0.25)"]
    assert abs(row["weight"][0] - row["stated"]) < 5 * row["weight"][1] + 0.2
    assert baseline.run(0, None, str(file)) == 0 and "nothing differs" in capsys.readouterr().out
    key = next(iter(found["rules"]))
    found["rules"][key]["rounded"] -= 1
    file.write_text(json.dumps(found))
    assert baseline.run(0, None, str(file)) == 1 and f"rules: {key}: rounded" in capsys.readouterr().out
