"""Costs of second-order steps, and trainings: every run is done once, and seeds decide what it does."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples
from experiments.models import ResNet18
from experiments.second_order import step_costs, trainings
from experiments.second_order.optimizers import OPTIMIZERS, SETTINGS, MatrixMuon, name_of
from experiments.second_order.page import best_settings

TINY = ["second-order", "--quick", "--steps", "2", "--batch", "4"]
SIZES = {"width": 0.05, "steps": 2, "batch": 4, "test_images": 8, "seeds": 1}

SOME = {name: make for number, (name, make) in enumerate(SETTINGS.items()) if number % 4 == 1 or number == 0}
"""One learning rate of each optimiser, and two of one."""


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    small = step_costs.Network(partial(ResNet18, 10, stem="cifar", width=0.05), (2, 3, 16, 16), (1.5, 2.5))
    monkeypatch.setattr(step_costs, "NETWORKS", {"resnet-18": small})
    monkeypatch.setattr("experiments.second_order.page.NETWORKS", {"resnet-18": small})
    monkeypatch.setattr("experiments.second_order.run_second_order.QUICK", SIZES)
    costs = {name: step_costs.OPTIMIZERS[name] for name in ("SGD", step_costs.PUBLISHED, "EKFAC (reduce)")}
    monkeypatch.setattr(step_costs, "OPTIMIZERS", costs)
    monkeypatch.setattr("experiments.second_order.run_second_order.SETTINGS", SOME)
    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.chdir(tmp_path)


def test_finished_runs_are_not_done_again(monkeypatch, capsys, tmp_path):
    assert experiments(TINY) == 0
    folder = tmp_path / "runs" / "second_order"
    rows = [json.loads(line) for line in (folder / "trainings.jsonl").read_text().splitlines()]
    assert [row["setting"] for row in rows] == list(SOME)
    assert all([point["step"] for point in row["curve"]] == [1, 2] for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)  # each optimiser takes steps of its own
    assert set(best_settings(rows)) == set(OPTIMIZERS) == {name_of(setting) for setting in SETTINGS}
    page = (folder / "second_order.md").read_text()
    assert "| 1.50 |" in page and "| 2.50 |" in page and "3.7x published" in page
    assert (folder / "second_order.svg").exists()

    path = folder / "trainings.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # as if it had been interrupted
    done, run = [], trainings.run
    monkeypatch.setattr(trainings, "run", lambda *args, **options: done.append(args[1]) or run(*args, **options))
    monkeypatch.setattr(step_costs, "measured", None)  # it is written
    capsys.readouterr()
    assert experiments(TINY) == 0
    assert done == [0]
    again = json.loads(path.read_text().splitlines()[-1])
    assert (again["loss"], again["accuracy"]) == (rows[-1]["loss"], rows[-1]["accuracy"])


def test_the_first_seeds_choose_the_learning_rates():
    accuracies = {("SGD, 0.01", 0): 0.5, ("SGD, 0.02", 0): 0.4, ("SGD, 0.01", 1): 0.4, ("SGD, 0.02", 1): 0.6}
    accuracies |= {("SGD, 0.01", 2): 0.9, ("KFAC, reduce, 0.1", 0): 0.1}
    rows = [{"setting": name, "seed": seed, "accuracy": found} for (name, seed), found in accuracies.items()]
    assert best_settings(rows) == {"SGD": "SGD, 0.02", "KFAC, reduce": "KFAC, reduce, 0.1"}


def test_steps_are_of_the_kind_that_is_asked_for():
    for name in (step_costs.PUBLISHED, "EKFAC (reduce)"):
        stepper = step_costs.Stepper(name, step_costs.NETWORKS["resnet-18"])
        states = stepper._optimizer.state

        def updates(states=states):
            return max(state.get("updates", 0) for state in states.values())

        before = updates()
        stepper.step("plain")
        assert updates() == before
        stepper.step("factors")
        assert updates() == before + 1
        assert sum(step_costs.kinds_of(name).values()) == pytest.approx(1)


def test_muon_of_a_convolution_is_muon_of_its_matrix():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3)
    matrix = nn.Parameter(layer.weight.detach().flatten(1).clone())
    ours = MatrixMuon(layer.parameters(), 0.1, weight_decay=0.01)
    theirs = torch.optim.Muon([matrix], 0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    x = torch.randn(3, 2, 5, 5)
    for _ in range(3):
        ours.zero_grad()
        layer(x).square().sum().backward()
        matrix.grad = layer.weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(layer.weight.flatten(1), matrix)
    assert not torch.equal(layer.bias, nn.Conv2d(2, 4, 3).bias)
