"""The reference curve: the record equals a randomised backward pass, files are complete, the verdict is computed."""

from functools import partial
from itertools import product
from math import sqrt

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

import randbp
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.gradient_error import command, images, main
from experiments.gradient_error.images import RandomImages, real_images
from experiments.gradient_error.protocol import estimate, measure, record, untrained_model
from experiments.gradient_error.results import COLUMNS, finding
from experiments.gradient_error.series import REFERENCE_CHANNELS, REFERENCE_SPATIAL, SERIES
from randbp.estimators import Channels, Exact

SMALL = ["--width", "0.05", "--batch-size", "4", "--draws", "2", "--keep", "1/2", "1/4"]


def small_case():
    model = untrained_model(width=0.1, num_classes=100, seed=3)
    return model, *RandomImages().batch(6, torch.Generator().manual_seed(4))


def kernel_gradients(model, batch, labels) -> dict[str, torch.Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(batch), labels).backward()
    return {name.removesuffix(".weight"): p.grad for name, p in model.named_parameters() if p.dim() == 4}


# What is measured


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.label)
def test_estimates_on_the_record_are_those_of_a_randomised_backward_pass(series):
    model, batch, labels = small_case()
    layers = record(model, batch, labels)
    exact = kernel_gradients(model, batch, labels)
    with randbp.randomize(model, weight_vjp=series.estimator(0.25), seed=11):
        estimated = kernel_gradients(model, batch, labels)
    assert [layer.name for layer in layers] == list(exact) and len(layers) == 9
    for layer in layers:
        torch.testing.assert_close(layer.weight_grad, exact[layer.name], rtol=0, atol=0)
        torch.testing.assert_close(estimate(layer, series.estimator(0.25), seed=11)[0], estimated[layer.name])
    g, ĝ = (torch.cat([grads[layer.name].flatten() for layer in layers]) for grads in (exact, estimated))
    measured = measure(layers, series.estimator(0.25), seed=11)
    assert measured != measure(layers, series.estimator(0.25), seed=12)
    assert measured.error == pytest.approx(float((g - ĝ).norm() / g.norm()), rel=1e-4)
    if not series.reference and not isinstance(series.estimator(0.25), Channels):
        assert 0.15 < measured.held <= 0.25


def test_the_exact_estimator_has_no_error_and_holds_everything():
    measured = measure(record(*small_case()), Exact(), seed=0)
    assert (measured.error, measured.held) == (0, 1)


@pytest.mark.parametrize("keep", [0.125, 0.5])
def test_bernoulli_channels_have_the_error_that_theory_gives(keep):
    """The mean square of the error is 1/p - 1, whatever the data; false alarm in 1 of 15,000 tests (4 sigma)."""
    layers = record(*small_case())
    squares = np.array([measure(layers, REFERENCE_CHANNELS.estimator(keep), seed).error ** 2 for seed in range(150)])
    assert abs(squares.mean() - (1 / keep - 1)) < 4 * squares.std(ddof=1) / sqrt(len(squares)) + 1e-6
    assert (squares.std() > 0.1) == (keep != 0.5)  # at 1/2 every single draw has error 1


def test_untrained_models_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (untrained_model(0.1, 100, seed).features[1].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.p == 0 for m in untrained_model(0.1, 100, 1).modules() if isinstance(m, torch.nn.Dropout))


# Images


def assert_normalised(source, name: str) -> None:
    batch, labels = source.batch(64, torch.Generator().manual_seed(0))
    assert name in source.name and source.real
    assert batch.shape == (64, 3, 32, 32) and batch.dtype == torch.float32
    assert abs(float(batch.mean())) < 0.15 and abs(float(batch.std()) - 1) < 0.15
    assert labels.shape == (64,) and len(labels.unique()) > 5
    assert len(torch.unique(batch.flatten(1), dim=0)) == 64


def test_digits_stand_in_where_fashion_mnist_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FashionMNIST", partial(FashionMNIST, root=str(tmp_path)))
    source = real_images(None)
    assert_normalised(source, "scikit-learn digits")
    grey = source.batch(8, torch.Generator())[0]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_cifar_100_is_read_from_the_given_folder(tmp_path):
    random = np.random.default_rng(0)
    mean, std = (np.array(values)[None, :, None] * 255 for values in ((0.5071, 0.4866, 0.4409), (0.267, 0.256, 0.276)))
    for part in ("train", "test"):
        pixels = (mean + std * random.standard_normal((200, 3, 1024))).clip(0, 255).reshape(200, -1)
        labels = random.integers(0, 100, (200, 1))
        np.concatenate([labels // 5, labels, pixels], axis=1).astype(np.uint8).tofile(tmp_path / f"{part}.bin")
    assert_normalised(real_images(tmp_path), "CIFAR-100")


# The verdict


def draws_of(error) -> pd.DataFrame:
    """Two draws at two keep rates, with the error that a function of (estimator, real, keep, draw) gives."""
    labels = (REFERENCE_CHANNELS.label, REFERENCE_SPATIAL.label)
    rows = [
        ("photos" if real else "noise", real, draw, label, keep, error(label, real, keep, draw), keep)
        for real, draw, label, keep in product((True, False), (0, 1), labels, (0.25, 0.75))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_finding_holds_if_spatial_sampling_is_better_in_every_mean():
    def error(label, real, keep, draw):
        if label == REFERENCE_CHANNELS.label:
            return 1.0
        return 0.4 + 0.2 * draw if (real, keep) != (True, 0.25) else (0.5, 1.25)[draw]

    line = finding(draws_of(error))
    assert "\n" not in line
    assert ": HOLDS (" in line
    assert "photos: 3/4: 0.50 < 1.00, 1/4: 0.88 < 1.00; noise: 3/4: 0.50 < 1.00, 1/4: 0.50 < 1.00" in line
    assert "7 of 8 single draws" in line


def test_one_keep_rate_on_one_kind_of_data_refutes_the_finding():
    def error(label, real, keep, draw):
        if label == REFERENCE_CHANNELS.label:
            return 1.75
        return 2.0 if (real, keep) == (False, 0.75) else 0.5

    line = finding(draws_of(error))
    assert ": DOES NOT HOLD (" in line
    assert "photos: 3/4: 0.50 < 1.75, 1/4: 0.50 < 1.75; noise: 3/4: 2.00 ≥ 1.75, 1/4: 0.50 < 1.75" in line


def test_equal_errors_refute_the_finding():
    assert "DOES NOT HOLD" in finding(draws_of(lambda *_: 1.0))


@pytest.mark.parametrize("lost", ["data == 'noise'", "data == 'noise' and keep == 0.25", "estimator.str.len() > 0"])
def test_the_finding_is_not_decided_while_something_is_not_measured(lost):
    draws = draws_of(lambda label, *_: 0.5 if label == REFERENCE_SPATIAL.label else 1.0)
    assert "NOT DECIDED" in finding(draws.query(f"not ({lost})"))


# The command


def test_a_run_writes_everything_and_the_next_one_leaves_it_alone(tmp_path, capsys):
    state = torch.get_rng_state()
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    assert set(first) == {
        "draws.csv",
        "summary.csv",
        "settings.json",
        "finding.txt",
        "gradient_error.png",
        "gradient_error.svg",
    }
    draws = pd.read_csv(tmp_path / "0" / "draws.csv")
    assert len(draws) == len(draws.drop_duplicates(["data", "draw", "estimator", "keep"])) == 2 * 2 * len(SERIES) * 2
    assert draws["error"].gt(0).all() and draws["error"].nunique() > 0.8 * len(draws)

    summary = pd.read_csv(tmp_path / "0" / "summary.csv")
    row = summary.iloc[-1]
    errors = draws[(draws.data == row.data) & (draws.estimator == row.estimator) & (draws.keep == row.keep)].error
    assert row.draws == 2 and row["mean"] == pytest.approx(errors.sum() / 2)
    assert row["std"] == pytest.approx(abs(errors.iloc[0] - errors.iloc[1]) / sqrt(2))

    picture = matplotlib.image.imread(tmp_path / "0" / "gradient_error.png")
    assert picture.shape[0] > 1000 and picture.shape[1] > 2000 and len(np.unique(picture)) > 50
    assert all(series.label in first["gradient_error.svg"].decode() for series in SERIES)
    printed = capsys.readouterr().out
    assert first["finding.txt"].decode().strip() in printed and str(tmp_path / "0") in printed

    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()} == first
    assert (tmp_path / "1" / "draws.csv").read_bytes() == first["draws.csv"]  # same seed, same numbers
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("out of\nmemory"), 1)])
def test_what_was_measured_before_a_failure_is_kept_and_reported(tmp_path, monkeypatch, capsys, raised, code):
    done = 37

    def measure_then_fail(*arguments):
        nonlocal done
        done -= 1
        if done < 0:
            raise raised
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", measure_then_fail)
    assert main([*SMALL, "--out", str(tmp_path)]) == code
    assert len(pd.read_csv(tmp_path / "0" / "draws.csv")) == 37
    assert (tmp_path / "0" / "gradient_error.png").exists()
    message = capsys.readouterr().err
    assert message.startswith("gradient-error: ") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--draws", "0"], "--draws=0, expected at least 1"),
        (["--batch-size", "-3"], "--batch-size=-3"),
        (["--batch-size", "100000"], "--batch-size=100000"),
        (["--keep", "1/2", "1"], "--keep=1, expected"),
        (["--keep", "a"], "'a', expected a number"),
        (["--width", "0.001"], "width"),
        (["--cifar-root", "nowhere"], "nowhere"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_no_folder(tmp_path, capsys, options, expected):
    assert experiments(["gradient-error", "--out", str(tmp_path / "out"), *options]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
