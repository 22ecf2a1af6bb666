"""Accuracy at equal time: the cuts, the page and what is done only once."""

import json

import pytest
import torch

from experiments import equal_time
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples
from experiments.equal_time import run_equal_time
from experiments.equal_time.settings import EXACT, FEWER_IMAGES, FEWER_STEPS, HALF, NETWORKS, SETTINGS, Training

TINY = ["equal-time", "--width", "0.125", "--steps", "3", "--batch", "4", "--test-images", "8", "--seeds", "2"]
FEW = ["--settings", EXACT, "2 micro-batches", HALF]


@pytest.fixture
def random_images(quick_races, monkeypatch, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)


def test_the_page_has_all_settings_and_a_second_run_trains_nothing(random_images, monkeypatch, capsys, tmp_path):
    assert experiments([*TINY, *FEW]) == 0
    folder = tmp_path / "runs" / "equal_time"
    wanted = {EXACT, "2 micro-batches", HALF, FEWER_IMAGES, FEWER_STEPS}
    rows = [json.loads(line) for line in (folder / "six-layers.jsonl").read_text().splitlines()]
    assert {(row["setting"], row["seed"]) for row in rows} == {(name, seed) for name in wanted for seed in (0, 1)}
    assert all(row["steps"] <= 3 and row["images"] <= 4 for row in rows)
    page, told = (folder / "six-layers.md").read_text(), capsys.readouterr().out
    assert all(f"| {name} |" in page for name in wanted) and "Importance(1/2), 4 bits less" in told
    assert (folder / "six-layers.png").stat().st_size > 10_000
    costs = json.loads((folder / "six-layers.json").read_text())["costs"]
    assert all(cost["seconds"] > 0 and cost["bytes"] > 0 for cost in costs.values())

    monkeypatch.setattr(run_equal_time, "_run", None)
    monkeypatch.setattr(run_equal_time, "interleave", None)
    assert experiments([*TINY, *FEW]) == 0
    assert (folder / "six-layers.md").read_text() == page


@pytest.mark.parametrize("network", NETWORKS)
def test_all_networks_train_in_all_settings(quick_races, network):
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    for setting in SETTINGS.values():
        torch.manual_seed(0)
        model = NETWORKS[network].build(0.125)
        if setting.checkpoints:
            run_equal_time.add_checkpoints(model, NETWORKS[network].block)
        training = Training(model, setting, NETWORKS[network].layers)
        with training.around:
            assert training.gradients(images, labels) > 0
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_parts_and_checkpoints_leave_gradients_as_they_are():
    images, labels = torch.rand(6, 1, 28, 28), torch.arange(6)
    found = []
    for name in (EXACT, "2 micro-batches", "checkpoint per block"):
        torch.manual_seed(0)
        network = NETWORKS["transformer"]
        model = network.build(0.125)
        if SETTINGS[name].checkpoints:
            run_equal_time.add_checkpoints(model, network.block)
        loss = Training(model, SETTINGS[name]).gradients(images, labels)
        found.append((loss, [parameter.grad for parameter in model.parameters()]))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0])
        for ours, theirs in zip(grads, found[0][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_command_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        experiments(["equal-time", "--help"])
    assert "smaller batch" in capsys.readouterr().out and "smaller batch" in str(equal_time.__doc__)
