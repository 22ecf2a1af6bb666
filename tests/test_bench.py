"""The benchmarks on whole networks at a tiny size: what they compute is right, and what is measured is kept."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench import (
    curvature,
    error,
    importance,
    importance_error,
    kernels,
    lean,
    lean_settings,
    merit,
    second_order,
    step,
    tangent_kernel,
    training,
)
from bench.journal import Journal
from bench.place import Place
from experiments.data import Digits
from experiments.gradient_error.images import RealImages
from experiments.gradient_error.protocol import record, untrained_model
from experiments.models import AllCNNC
from randbp import Exact, Spatial
from randbp.diagnostics import gradient_error, memory_report

TINY = error.Setting(width=0.04, batch=4, draws=1, models=1, steps=2)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def images():
    return RealImages("digits", Digits(size=32))


def problem() -> merit.Problem:
    generator = torch.Generator().manual_seed(1)
    model = untrained_model(0.04, 100, seed=2)
    return merit.Problem(model, torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8))


def test_error_charges_bytes_and_a_second_run_measures_nothing(images, monkeypatch):
    few = (error.AXES, error.GAUSSIAN, error.DEFAULT, "Rounding, 8 to 1 bits")
    monkeypatch.setattr(error, "SERIES", tuple(series for series in error.SERIES if series.label in few))
    result = error.run(TINY, images)
    means = {(row["phase"], row["estimator"], row["parameter"]): row for row in result["means"]}
    assert len(means) == 2 * sum(len(series.parameters) for series in error.SERIES)
    assert len(result["ratios"]) == 2 * len(error.TARGETS) * len(error.RATES)
    for keep in error.RATES:
        ours, reference = means["untrained", error.DEFAULT, keep], means["untrained", error.AXES, keep]
        assert 0 < ours["held"] <= keep and ours["draws"] == 1
        ratio = next(row for row in result["ratios"] if (row["over"], row["keep"]) == (error.AXES, keep))
        assert ratio["ratio"] == pytest.approx(ours["error"] / reference["error"])
    assert means["trained", "Rounding, 8 to 1 bits", 8]["error"] < 0.05
    monkeypatch.setattr(error, "measure", None)
    assert error.run(TINY, images) == result
    assert json.loads((error.RUNS / "error-width-0.04.json").read_text())["summary"] == result
    assert (error.RUNS / "error-width-0.04.png").stat().st_size > 10_000


def test_journal_survives_a_broken_run_and_tells_rows_apart():
    journal = Journal("rows", ("a", "b"))
    journal.add({"a": 1, "b": 2, "value": 3})
    journal.add({"a": 1, "b": 3, "value": 4})
    again = Journal("rows", ("a", "b"))
    assert {"a": 1, "b": 2} in again and {"a": 2, "b": 2} not in again
    again.add({"a": 1, "b": 2, "value": 5})
    assert [row["value"] for row in Journal("rows", ("a", "b")).rows(a=1)] == [5, 4]


def test_exact_competitors_are_exact():
    exact = problem()
    gradient = exact.gradient(exact.images, exact.labels)
    for other in (exact.checkpointed(), exact.in_micro_batches(4), exact.estimated(merit.Contender("", 1, Exact()), 0)):
        torch.testing.assert_close(other, gradient)
    layers = record(exact.model, exact.images, exact.labels)
    bf16 = merit.Contender("bf16", 16, merit.Bfloat16(0.5))
    norm = sum(float(layer.weight_grad.square().sum()) for layer in layers)
    assert 0 < merit.variance(exact, layers, bf16, 1) < 1e-4 * norm
    assert merit.held_share(layers, bf16.weight_vjp) == 0.5
    held, peak = merit.checkpointed_bytes(layers, exact.model)
    sizes = [layer.input.nbytes for layer in layers]
    assert held == pytest.approx((sizes[0] + sizes[3] + sizes[6]) / sum(sizes)) and peak == pytest.approx(
        sum(sizes[:3]) / sum(sizes)
    )


def test_variance_on_the_record_is_that_of_a_backward_pass():
    exact = problem()
    layers = record(exact.model, exact.images, exact.labels)
    contender = merit.Contender("Spatial", 0.25, Spatial(0.25))
    draws = 20
    recorded = merit.variance(exact, layers, contender, draws)
    total = 0.0
    for seed in range(draws):
        estimates = exact.estimated(contender, seed)
        total += sum(float((e - layer.weight_grad).square().sum()) for e, layer in zip(estimates, layers, strict=True))
    assert recorded == pytest.approx(total / draws, rel=0.3)


def test_merit_of_exact_is_one(images, monkeypatch):
    estimated = [
        merit.Contender("Spatial", 0.5, Spatial(0.5)),
        merit.Contender("both", 0.5, Spatial(0.5), Spatial(0.5)),
    ]
    monkeypatch.setattr(merit, "contenders", lambda rates: estimated)
    tiny = merit.Setting(width=0.04, batch=8, draws=1, noise_batches=2, steps=2, rates=(0.5,))
    rows = merit.measure(tiny, 0.01, images)
    exact = rows[0]
    assert exact["curve"] == merit.EXACT and exact["merit_time"] == exact["merit_bytes"] == 1
    assert all(row["total_variance"] == 1 for row in rows if row["variance"] == 0)
    assert all(row["merit_bytes"] == row["total_variance"] * row["bytes"] for row in rows)


def test_steps_are_timed_and_leave_the_model_as_it_was(monkeypatch):
    made = []

    def make():
        made.append(AllCNNC(width=0.04, dropout=False))
        return made[-1]

    monkeypatch.setitem(step.NETWORKS, "all-cnn-c", (make, 32, 4))
    summary = step.run("all-cnn-c", 0.01, Place())["all-cnn-c"]
    assert summary["best"] in (*step.SCHEMES, step.FASTEST) and summary["ratio"] > 0
    rows = json.loads((error.RUNS / "step-all-cnn-c.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == [step.EXACT, step.FORWARD, *step.SCHEMES, step.FASTEST]
    assert len(summary["layers"]) == 9 and "_randbp" not in vars(made[0].features[1])


def test_steps_with_drawn_rows_are_timed_beside_their_rivals(quick_races, monkeypatch):
    monkeypatch.setitem(importance.NETWORKS, "all-cnn-c", (lambda: AllCNNC(width=0.04, dropout=False), 32, 4))
    assert importance.run("all-cnn-c", 0.01, Place())["all-cnn-c"]["ratio"] > 0
    rows = json.loads((error.RUNS / "importance-all-cnn-c.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == [
        importance.EXACT, importance.FORWARD, importance.AUTOCAST, *importance.SCHEMES
    ]  # fmt: skip


def test_errors_of_drawn_rows_are_compared_before_and_after_training(images):
    tiny = importance_error.Setting(width=0.04, steps=2, batch=8, draws=1)
    rows = importance_error.run("all-cnn-c", tiny, images)
    assert [(row["phase"], row["keep"]) for row in rows[:: len(importance_error.ESTIMATORS)]] == [
        (phase, keep) for phase in ("untrained", "trained") for keep in (1 / 2, 1 / 4)
    ]
    assert all(row["weight_vjp"] > 0 and row["input_vjp"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["estimator"] == "Spatial"] == [1.0] * 4


def test_steps_of_kfac_are_what_they_are_called(monkeypatch):
    """Factors, or factors and inverses, are new after a step, or nothing is; all precondition."""
    small = (lambda: AllCNNC(width=0.04, dropout=False), 32, 4, 100)
    monkeypatch.setattr(second_order, "NETWORKS", {"all-cnn-c": small})
    summary = second_order.run("", 0.01)["all-cnn-c"]
    assert len(summary) == 8 and all(ratio > 0 for ratio in summary.values())
    assert len(json.loads((error.RUNS / "second-order.json").read_text())["rows"]) == 7

    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for kind, (factors, inverses) in second_order.KINDS.items():
        made = []

        def optimizer(model, made=made, factors=factors, inverses=inverses):
            made.append(second_order.KFAC(model, 1e-4, factor_every=factors, inverse_every=inverses))
            return made[0]

        step = second_order.contender(small[0], images, labels, optimizer)
        step()
        state = max(made[0].state.values(), key=lambda state: state.get("updates", 0))
        updates, inverse = state["updates"], state["input_inverse"]
        step()
        assert (state["updates"] > updates) == (kind != "preconditions")
        assert (state["input_inverse"] is not inverse) == kind.endswith("inverts them")


def test_training_runs_once_and_reports(monkeypatch):
    monkeypatch.setattr(training, "RATES", (0.5,))
    monkeypatch.setattr(training, "SEEDS", (0, 1))
    setting = training.Setting(width=0.04, steps=3, batch=16)
    data = partial(Digits, size=32, batch_size=16)
    result = training.run(setting, data())
    assert {(row["estimator"], row["seeds"]) for row in result["means"]} == {
        (name, 2) for name in (training.EXACT, *training.ESTIMATORS)
    }
    monkeypatch.setattr(training, "train", None)
    assert training.run(setting, data()) == result


def test_smallest_keep_rate_within_needs_all_larger_ones():
    rows = [{"estimator": training.EXACT, "keep": 1.0, "gap": 0.0}]
    rows += [{"estimator": "a", "keep": keep, "gap": gap} for keep, gap in ((0.5, -0.1), (0.25, -0.6), (0.125, 0.0))]
    rows += [{"estimator": "b", "keep": 0.5, "gap": -2.0}]
    assert training.smallest_within(rows) == {"a": 0.5, "b": None}


def test_training_losses_are_those_of_plain_sgd():
    setting = training.Setting(width=0.04, steps=2, batch=16)
    data = Digits(size=32, batch_size=16)
    data.setup()
    result = training.train(Exact(), setting, data, seed=3)
    torch.manual_seed(3)
    model = AllCNNC(10, in_channels=1, width=0.04, dropout=False)
    images, labels = next(training.batches(data, 3))
    first = float(functional.cross_entropy(model(images), labels).detach())
    assert result["loss"] == pytest.approx(first, rel=0.2) and 0 <= result["accuracy"] <= 100


@pytest.mark.usefixtures("quick_races")
def test_lean_measures_what_a_memory_report_counts():
    network = lean.Network(lambda: AllCNNC(width=0.2), 6, 32, 4)
    model = network.build().train()
    for title in ("exact", "preset memory", "4 micro-batches", "held in bf16"):
        run = lean.Run(network, model, lean.SETTINGS[title], 8)
        with run.on():
            run.measure()  # fills caches of a backward pass of this size
            held, peak, gradient = run.measure()
            part = slice(8 // run.setting.parts)
            forward = nn.Module()
            forward.register_module("model", run.model)
            forward.forward = run.loss
            report = memory_report(forward, run.x[part], run.labels[part], loss=lambda loss: loss)
        assert held == pytest.approx(report.held_bytes, abs=256)  # the loss, and seeds of layers
        assert peak == pytest.approx(report.peak_bytes, rel=0.05) and peak > held
        assert gradient.numel() == sum(p.numel() for p in model.parameters())
        if title == "exact":
            exact, most = gradient, held
    assert held == pytest.approx(most / 2, rel=0.01)  # bfloat16
    assert 0 < (gradient - exact).norm() < 0.05 * exact.norm()


def test_lean_reports_what_is_missed(quick_races, monkeypatch, capsys):
    monkeypatch.setattr(lean, "NETWORKS", {"tiny": lean.Network(lambda: AllCNNC(width=0.1), 4, 32, 4)})
    strict = replace(
        lean.SETTINGS["preset memory"], limits=lean_settings.Limits(held=0.01, peak=10, error={"tiny": 1e-6})
    )
    monkeypatch.setitem(lean.SETTINGS, "preset memory", strict)
    summary = lean.run("", 0, False, ["preset", "hooks"])
    rows = json.loads(Path("runs/bench/lean.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == list(lean.chosen(lean.SETTINGS, ["preset", "hooks"]))
    assert all(row["error"] == 0 for row in rows if lean.SETTINGS[row["setting"]].limits.same_bits)
    printed = capsys.readouterr().out
    for what in ("held", "error"):
        assert any(line.startswith(f"tiny preset memory: {what} 0.") for line in summary["missed"])
        assert f"missed: tiny preset memory: {what}" in printed
    assert not any(line.startswith("tiny preset memory: peak") for line in summary["missed"])
    assert "(0.01)!" in printed and "(10)" in printed


def test_noise_of_the_minibatch_is_that_of_gradient_error():
    run = lean.Run(
        lean.Network(lambda: AllCNNC(width=0.1, dropout=False), 16, 32, 4),
        AllCNNC(width=0.1, dropout=False),
        lean.SETTINGS["exact"],
        16,
    )
    found = gradient_error(run.model, (run.x, run.labels), draws=4, micro_batches=lean.MICRO_BATCHES).model.noise
    assert found is not None and run.noise() == pytest.approx(found.estimate, rel=1e-4)


def test_kernels_are_timed_on_the_largest_calls_of_a_step(quick_races, monkeypatch, capsys):
    tiny = {"all-cnn-c": lean_settings.Network(lambda: AllCNNC(width=0.1), 16, 32, 4)}
    for name, value in {"NETWORKS": tiny, "ROWS": 2, "ENTRIES": 1000, "COPIED": 2**16}.items():
        monkeypatch.setattr(kernels, name, value)
    called = []
    monkeypatch.setattr(kernels, "STEPS", ("preset memory",))
    with monkeypatch.context() as patch:
        original = kernels.Run.step
        patch.setattr(kernels.Run, "step", lambda self: called.append(self.setting.randomize) or original(self))
        summary = kernels.run("", 0.001, False)
    rows = json.loads(Path("runs/bench/kernels.json").read_text())["rows"]
    assert called == [{"preset": "memory"}]
    names = {row["operation"] for row in rows}
    assert {"encode", "encode, dithered", "decode", "decode, dithered"} <= names
    assert {name.partition(",")[0] for name in names} | set(summary["not_called"]) == set(kernels.OPERATORS)
    encode = next(row for row in rows if row["operation"] == "encode")
    assert encode["moved"] == 2 * (1000 * 4 + 1000 // 2 + 4 * 2 * 4) and encode["of"] == "2x1000 float32"
    assert all(row["reference"] > 0 and row["bandwidth"] > 0 for row in rows)
    assert "fused operations; copying" in capsys.readouterr().out


def test_three_ways_give_one_tangent_kernel(monkeypatch):
    make, shape, _ = tangent_kernel.NETWORKS["digits-cnn"]
    monkeypatch.setattr(tangent_kernel, "NETWORKS", {"digits-cnn": (make, shape, 2)})
    summary = tangent_kernel.run("", 0.0)
    rows = json.loads(Path("runs/bench/ntk.json").read_text())["rows"]
    assert [row["way"] for row in rows] == list(summary["digits-cnn"]) == list(tangent_kernel.WAYS)
    assert all(row["seconds"] > 0 and row["bytes"] > 0 and row["error"] < 1e-4 for row in rows)


def test_curvature_measures_each_library_on_the_layers_that_it_serves(monkeypatch):
    small = partial(AllCNNC, num_classes=3, width=0.04, dropout=False), (2, 3, 32, 32), 3
    monkeypatch.setattr(curvature, "NETWORKS", {"all-cnn-c": small})
    summary = curvature.run("", 0.01)
    rows = json.loads((error.RUNS / "curvature.json").read_text())["rows"]
    assert summary.keys() == {"all-cnn-c, reduce", "all-cnn-c, expand"}
    ours = [row for row in rows if row["library"] == "randbp"]
    assert [row["layers"] for row in ours if "layers" in row] == ["9 of 9", "9 of 9"]
    assert all(row["extra_bytes"] > 0 for row in ours if "extra_bytes" in row)
    assert {row["what"] for row in ours} == {"factors alone", "with passes", "inverses", "eigenvalues"}
