"""Learning beside the kernel's prediction: where this is exact, and the command."""

import json

import pytest
import torch
from torch import nn

from experiments.__main__ import main as experiments
from experiments.ntk import run_ntk
from experiments.ntk.run_ntk import Linearised, data
from experiments.runs_once import runs_once


def test_a_linear_model_learns_as_predicted():
    train, test = data(12, 8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)).double()
    train, inputs = (train[0].double(), train[1].double()), test[0].double()
    linearised = Linearised(model, train, inputs)
    optimizer = torch.optim.SGD(model.parameters(), linearised.rate)
    with torch.no_grad():
        origin = model(train[0]), model(inputs)
    for step in range(41):
        if step in (0, 1, 7, 40):
            for x, start, predicted in zip((train[0], inputs), origin, linearised.at(step), strict=True):
                torch.testing.assert_close((model(x) - start).detach(), predicted, rtol=1e-7, atol=1e-9)
        optimizer.zero_grad()
        ((model(train[0]) - origin[0] - train[1]) ** 2).sum().div(2 * len(train[0])).backward()
        optimizer.step()


def test_wide_networks_follow_the_prediction_and_a_second_run_trains_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        run_ntk, "QUICK", {"widths": [4, 16, 64], "seeds": 1, "images": 8, "test_images": 6, "steps": 16}
    )
    command = ["ntk", "--quick", "--output", str(tmp_path)]
    assert experiments(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "learning.jsonl").read_text().splitlines()]
    narrow, _, wide = rows
    assert wide["deviation"] < 0.5 * narrow["deviation"] and wide["drift"] < 0.5 * narrow["drift"]
    assert wide["steps"] == [0, 1, 2, 4, 8, 16]
    real, predicted = (wide["curves"][f"{kind} training loss"] for kind in ("real", "predicted"))
    assert real[0] == predicted[0] == pytest.approx(0.45) and predicted[-1] < 0.3
    assert real == pytest.approx(predicted, rel=0.1)
    page = (tmp_path / "learning.md").read_text()
    assert all(f"| {width} |" in page for width in (4, 16, 64))
    assert (tmp_path / "learning.png").stat().st_size > 10_000
    monkeypatch.setattr(run_ntk, "learned", None)
    assert experiments(command) == 0
    assert (tmp_path / "learning.md").read_text() == page
    assert "deviation" in capsys.readouterr().out


def test_a_line_cut_short_is_done_again(tmp_path):
    path, done = tmp_path / "new" / "runs.jsonl", []

    def do(run):
        done.append(run["x"])
        return {"y": run["x"] ** 2}

    wanted = [{"x": 1, "z": [2]}, {"x": 3, "z": [2]}]
    rows = runs_once(path, wanted, do, str)
    assert rows == [{"run": wanted[0], "y": 1}, {"run": wanted[1], "y": 9}]
    path.write_text(path.read_text()[:-5])
    assert runs_once(path, wanted, do, str) == rows
    assert done == [1, 3, 3]
    assert runs_once(path, wanted[::-1], do, str) == rows[::-1] and done == [1, 3, 3]
