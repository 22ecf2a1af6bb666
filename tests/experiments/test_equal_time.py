"""Accuracy at equal time: the cuts, the page and what is done only once."""

import json

import pytest
import torch

from experiments import equal_time
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples
from experiments.equal_time import run_equal_time
from experiments.equal_time.controlled import train_controlled
from experiments.equal_time.settings import (
    CONTROLLED,
    EXACT,
    FEWER_IMAGES,
    FEWER_STEPS,
    HALF,
    NETWORKS,
    SETTINGS,
    Training,
)
from experiments.short_training import batches_of, gradients_of, trained
from randbp import Importance

TINY = ["equal-time", "--width", "0.125", "--steps", "3", "--batch", "4", "--test-images", "8", "--seeds", "2"]
FEW = ["--settings", EXACT, "2 micro-batches", HALF, CONTROLLED]


def _faster(contenders, *_):
    """Readings by which sampling saves a quarter of the time, whatever the machine."""
    return {name: [{HALF: 0.75, "exact, batch 1/2": 0.6}.get(name, 1.0)] * 3 for name in contenders}


@pytest.fixture
def random_images(quick_races, monkeypatch, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)


def test_the_page_has_all_settings_and_a_second_run_trains_nothing(random_images, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run_equal_time, "interleave", _faster)
    assert experiments([*TINY, *FEW]) == 0
    folder = tmp_path / "runs" / "equal_time"
    wanted = {EXACT, "2 micro-batches", HALF, CONTROLLED, FEWER_IMAGES, FEWER_STEPS}
    rows = [json.loads(line) for line in (folder / "six-layers.jsonl").read_text().splitlines()]
    assert {(row["setting"], row["seed"]) for row in rows} == {(name, seed) for name in wanted for seed in (0, 1)}
    assert all(row["steps"] <= 3 and row["images"] <= 4 for row in rows)
    page, told = (folder / "six-layers.md").read_text(), capsys.readouterr().out
    assert all(f"| {name} |" in page for name in wanted) and "Importance(1/2), 4 bits less" in told
    assert (folder / "six-layers.png").stat().st_size > 10_000
    costs = json.loads((folder / "six-layers.json").read_text())["costs"]
    assert all(cost["seconds"] > 0 and cost["bytes"] > 0 for cost in costs.values()) and CONTROLLED in costs
    controlled = next(row for row in rows if row["setting"] == CONTROLLED)
    assert all(0 < rate <= 1 for rates in controlled["rates"].values() for rate in rates.values())
    assert len(controlled["rates"]) == 6  # the convolutions

    monkeypatch.setattr(run_equal_time, "_run", None)
    monkeypatch.setattr(run_equal_time, "interleave", None)
    assert experiments([*TINY, *FEW]) == 0
    assert (folder / "six-layers.md").read_text() == page
    assert experiments([*TINY, "--settings", EXACT, HALF]) == 0  # the others' rows are left alone
    assert CONTROLLED not in (folder / "six-layers.md").read_text()


@pytest.mark.parametrize("network", NETWORKS)
def test_all_networks_train_in_all_settings(quick_races, network):
    images, labels = torch.rand(4, 1, 32, 32), torch.arange(4)
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
    images, labels = torch.rand(6, 1, 32, 32), torch.arange(6)
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


def test_nothing_is_cut_where_sampling_saves_no_time(random_images, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run_equal_time, "interleave", lambda contenders, *_: {name: [1.0] for name in contenders})
    assert experiments([*TINY, "--settings", EXACT, HALF]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/equal_time/six-layers.jsonl").read_text().splitlines()]
    assert {row["setting"] for row in rows} == {EXACT, HALF}


def _constant(optimizer, total_steps=0):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def test_a_controlled_training_sees_the_same_batches():
    images, found = torch.randn(32, 1, 32, 32), []
    for controlled in (False, True):
        torch.manual_seed(0)
        model = NETWORKS["six-layers"].build(0.125)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        data = images, torch.arange(32) % 10
        if controlled:
            exact = {"weight_vjp": Importance(1.0), "input_vjp": Importance(1.0)}
            batches = list(batches_of(32, 4, 8, seed=3))
            row = train_controlled(model, 1e-12, exact, None, batches, data, optimizer, _constant(optimizer), seed=0)
            assert {rate for rates in row["rates"].values() for rate in rates.values()} == {1.0}
        else:
            trained(gradients_of(model), optimizer, 3, data, 4, 8, _constant)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_command_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        experiments(["equal-time", "--help"])
    assert "smaller batch" in capsys.readouterr().out and "smaller batch" in str(equal_time.__doc__)
