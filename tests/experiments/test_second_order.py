"""Training with SGD and K-FAC: every run is done once, and seeds decide what it does."""

import json

import torch

from experiments import second_order
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples

TINY = ["second-order", "--width", "0.05", "--steps", "2", "--batch", "4", "--test-images", "8", "--seeds", "2"]


def test_finished_runs_are_not_done_again(monkeypatch, capsys, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)
    assert experiments(TINY) == 0
    path = tmp_path / "runs" / "second_order.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["setting"], row["seed"]) for row in rows] == [
        (s, seed) for seed in (0, 1) for s in second_order.SETTINGS
    ]
    losses = {row["setting"]: row["loss"] for row in rows if row["seed"] == 0}
    assert len(set(losses.values())) == len(losses)  # each optimiser takes steps of its own
    capsys.readouterr()

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # as if it had been interrupted
    done, run = [], second_order.run
    monkeypatch.setattr(second_order, "run", lambda *args, **options: done.append(args[1]) or run(*args, **options))
    assert experiments(TINY) == 0
    assert done == [1]
    again = json.loads(path.read_text().splitlines()[-1])
    assert (again["loss"], again["accuracy"]) == (rows[-1]["loss"], rows[-1]["accuracy"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(second_order.SETTINGS) and all(" mean:" in line for line in lines[1:])
