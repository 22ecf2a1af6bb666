"""Training in lean mode: every run is done once, the verdict is computed."""

import json

import pytest
import torch

from experiments import lean_training
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples

TINY = ["lean-training", "--width", "0.05", "--steps", "2", "--batch", "4", "--test-images", "8", "--seeds", "2"]


@pytest.fixture
def random_images(monkeypatch, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)


def test_finished_runs_are_not_done_again(random_images, monkeypatch, capsys, tmp_path):
    assert experiments(TINY) == 0
    path = tmp_path / "runs" / "lean_training.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6 and {row["setting"] for row in rows} == set(lean_training.DEFAULT)
    first = capsys.readouterr().out.splitlines()[-3:]
    assert all(" mean " in line for line in first)

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))  # as if it had been interrupted
    done = []
    run = lean_training.run
    monkeypatch.setattr(lean_training, "run", lambda *args, **options: done.append(args[1]) or run(*args, **options))
    assert experiments(TINY) == 0
    assert done == [1] and capsys.readouterr().out.splitlines()[-3:] == first  # the same seed gives the same run
    assert experiments([*TINY[:-1], "1"]) == 0 and done == [1]
    assert experiments([*TINY, "--settings", "exact", "Spatial(1/2), lean"]) == 0 and done == [1, 0, 1]


def test_the_verdict():
    def rows(setting, *accuracies):
        return [{"setting": setting, "accuracy": accuracy} for accuracy in accuracies]

    lean, bits = list(lean_training.SETTINGS)[1:3]
    lines = lean_training.summary(rows("exact", 0.8, 0.9) + rows(lean, 0.7, 0.8) + rows(bits, 0.8, 0.9))
    assert "mean 0.8500, from 0.8000 to 0.9000" in lines[0]
    assert "0.0500 below the range of exact" in lines[1] and "within the range" in lines[2]
