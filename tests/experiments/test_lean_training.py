"""Training in lean mode: every run is done once, the verdict is computed."""

import json

import pytest
import scipy.stats
import torch

from experiments import lean_training
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples

TINY = ["lean-training", "--width", "0.05", "--steps", "2", "--batch", "4", "--test-images", "8", "--seeds", "2"]


@pytest.fixture
def random_images(quick_races, monkeypatch, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)


def test_finished_runs_are_not_done_again(random_images, monkeypatch, capsys, tmp_path):
    assert experiments(TINY) == 0
    path = tmp_path / "runs" / "lean_training.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * len(lean_training.DEFAULT) and {row["setting"] for row in rows} == set(
        lean_training.DEFAULT
    )
    first = capsys.readouterr().out.splitlines()[-3:]
    assert all(" %, " in line for line in first) and "p = " in first[-1]

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))  # as if it had been interrupted
    done = []
    run = lean_training.run
    monkeypatch.setattr(lean_training, "run", lambda *args, **options: done.append(args[1]) or run(*args, **options))
    assert experiments(TINY) == 0
    assert done == [1] and capsys.readouterr().out.splitlines()[-3:] == first  # the same seed gives the same run
    assert experiments([*TINY[:-1], "1"]) == 0 and done == [1]
    assert experiments([*TINY, "--settings", "exact", "Spatial(1/2), lean"]) == 0 and done == [1, 0, 1]


@pytest.mark.parametrize("network", lean_training.NETWORKS)
def test_networks_train_in_all_settings_of_memory(random_images, capsys, network):
    chosen = ["exact", "preset memory", "preset memory, 2 bits", "preset memory, 1 bit"]
    assert experiments([*TINY[:-1], "1", "--network", network, "--settings", *chosen]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[-4:]] == chosen


def test_the_verdict_compares_seed_by_seed():
    def rows(setting, *accuracies):
        return [{"setting": setting, "seed": seed, "accuracy": a} for seed, a in enumerate(accuracies)]

    exact, better, less = [0.80, 0.85, 0.90], [0.81, 0.861, 0.909], [0.5, 0.9]
    lines = lean_training.summary(rows("exact", *exact) + rows("better", *better) + rows("less", *less))
    assert lines[0].split() == ["exact", "85.00", "%,", "80.00", "to", "90.00"]
    expected = scipy.stats.ttest_rel(better, exact).pvalue
    assert f"from exact +1.00 points (+0.75 to +1.25), p = {expected:.3f}, 3 seeds" in lines[1]
    assert f"p = {scipy.stats.ttest_rel(less, exact[:2]).pvalue:.3f}, 2 seeds" in lines[2]
