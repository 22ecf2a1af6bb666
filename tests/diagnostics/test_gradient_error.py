"""Measured errors against formulas, planted biases, and a model that is left as it was found."""

from collections import UserDict
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import randbp
from randbp import Axes, Batch, Channels, Exact, Spatial
from randbp.diagnostics import GradientError, gradient_error
from randbp.diagnostics.significance import holm, t_distribution, t_quantile, t_test


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 16, channels: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, channels, 8, 8, generator=generator(), dtype=torch.float64)
    return x, torch.arange(size) % 3


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    body = (nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), *between, nn.Conv2d(6, 6, 3, stride=2), nn.Tanh())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(54, 3)).double()


def single(channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


# --- errors


def test_error_and_cosine_are_those_of_randomize_and_backward() -> None:
    model, data, draws = network(), batch(), 6
    choice = {"0": Spatial(0.25), "2": Channels(0.5)}
    result = gradient_error(model, data, weight_vjp=choice, input_vjp={"2": Axes(0.5)}, draws=draws, seed=5)

    def gradients() -> list[Tensor]:
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = gradients()
    estimates = []
    with randbp.randomize(model, choice, {"2": Axes(0.5)}, seed=5) as handle:
        for step in range(draws):
            handle.set_step(step)
            estimates.append(gradients())
    for row, chosen in (
        (result.rows[0], [0]),
        (result.rows[1], [2]),
        (result.total, [0, 2]),
        (result.model, list(range(6))),
    ):
        g = torch.cat([exact[i].flatten() for i in chosen])
        found = [torch.cat([estimate[i].flatten() for i in chosen]) for estimate in estimates]
        errors = torch.stack([(e - g).norm() / g.norm() for e in found])
        assert row.norm == pytest.approx(g.norm().item())
        assert row.parameters == len(g)
        assert row.error.estimate == pytest.approx(errors.mean().item())
        assert row.variance.estimate == pytest.approx(errors.square().mean().item())
        half = t_quantile(0.975, draws - 1) * errors.std().item() / sqrt(draws)
        assert (row.error.high - row.error.low) / 2 == pytest.approx(half)
        cosines = [nn.functional.cosine_similarity(e, g, dim=0).item() for e in found]
        assert row.cosine.estimate == pytest.approx(sum(cosines) / draws)
        cross = sum((a - g) @ (b - g) for a in found for b in found if a is not b) / draws / (draws - 1)
        assert row.bias == pytest.approx(sqrt(max(0.0, float(cross))) / row.norm, abs=1e-9)
    assert "input VJP Axes(keep=0.5)" in str(result)


def test_channels_at_one_half_have_error_one_in_every_draw() -> None:
    row = gradient_error(single(), batch(), weight_vjp=Channels(0.5), draws=5).total
    assert [row.error.low, row.error.estimate, row.error.high] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("bernoulli", [False, True])
def test_channels_have_the_relative_variance_of_the_formula(bernoulli: bool) -> None:
    """Mean of 400 draws within 5 standard errors of 1/p - 1."""
    estimator = Channels(0.25, bernoulli=bernoulli)
    variance = gradient_error(single(8), batch(8, 8), weight_vjp=estimator, draws=400, micro_batches=0).total.variance
    error = (variance.high - variance.low) / 2 / t_quantile(0.975, 399)
    assert abs(variance.estimate - 3) < 5 * error < 1


@pytest.mark.parametrize("bernoulli", [False, True])
def test_examples_have_the_variance_of_the_formula(bernoulli: bool) -> None:
    """Within 5 standard errors of (1/p - 1) Σ ‖g_n‖² (Bernoulli), (1/p - 1) N/(N-1) Σ ‖g_n - ḡ‖² (fixed size)."""
    model, (x, y) = single(), batch(8)
    found = []
    for n in range(8):
        loss = nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]) / 8
        found.append(torch.autograd.grad(loss, model[0].weight)[0].flatten())
    g = torch.stack(found)
    absolute = 3 * (g.square().sum() if bernoulli else 8 / 7 * (g - g.mean(0)).square().sum())
    true = (absolute / g.sum(0).square().sum()).item()
    estimator = Batch(0.25, bernoulli=bernoulli)
    variance = gradient_error(model, (x, y), weight_vjp=estimator, draws=400, micro_batches=0).total.variance
    error = (variance.high - variance.low) / 2 / t_quantile(0.975, 399)
    assert abs(variance.estimate - true) < 5 * error < 0.4 * true


def test_exact_layers_have_no_error() -> None:
    result = gradient_error(network(), batch(), weight_vjp={"2": Spatial(0.5)}, layers=["0", "2"], draws=4)
    first, second = result.rows
    assert first.error.estimate == 0 and first.cosine.estimate == pytest.approx(1) and first.bias_p == 1
    assert second.error.estimate > 0.05
    assert result.total.variance.estimate < second.variance.estimate


def test_dropped_units_are_the_same_in_every_pass() -> None:
    assert gradient_error(network(nn.Dropout(0.5)), batch(), weight_vjp=Exact(), draws=4).model.error.high == 0


# --- bias


@dataclass(frozen=True)
class Scaled(Channels):
    """Keeps channels with weights that are too large by one part in ten."""

    def weight_vjp(self, *arguments: Any) -> Tensor:
        return super().weight_vjp(*arguments) * 1.1


@dataclass(frozen=True)
class Shifted(Spatial):
    """Adds the same to every estimate."""

    def weight_vjp(self, held: Any, output_grad: Tensor, spec: Any, draw: Any) -> Tensor:
        estimate = super().weight_vjp(held, output_grad, spec, draw)
        pattern = torch.randn(estimate.shape, generator=generator(7), dtype=estimate.dtype)
        return estimate + 2 * output_grad.norm() * pattern / pattern.norm()


@pytest.mark.parametrize("planted", [Scaled(0.75), Shifted(0.25)])
def test_a_planted_bias_is_found_and_only_there(planted: randbp.Estimator) -> None:
    result = gradient_error(network(), batch(32), weight_vjp={"0": Spatial(0.25), "2": planted}, draws=200)
    assert result.biased(1e-4) == ["2"]
    assert result.rows[1].bias > 0.05 and result.total.bias_p < 1e-3
    assert "biased at the 1% level: 2" in str(result)


def test_unbiased_estimators_are_called_biased_at_the_stated_rate() -> None:
    """Of 120 runs, the number below 5% exceeds 14 with probability 1e-3 if each has probability 5%."""
    model, data = single(), batch(8)
    limit = int(stats.binom.ppf(1 - 1e-3, 120, 0.05))
    for estimator in (Spatial(0.25), Channels(0.5, bernoulli=True)):
        p_values = [
            gradient_error(
                model, data, weight_vjp=estimator, draws=16, micro_batches=0, seed=s, confidence=0.5
            ).total.bias_p
            for s in range(120)
        ]
        assert sum(p < 0.05 for p in p_values) <= limit
        assert sum(p < 0.8 for p in p_values) > 30  # and the p-values are not all large either


def test_p_values_of_the_sum_over_layers_are_adjusted() -> None:
    result = gradient_error(network(), batch(), draws=8)
    assert list(result.bias_p.values()) == holm([row.bias_p for row in result.rows])


# --- minibatch noise


class Mean(nn.Module):
    """A 1x1 convolution whose weight's gradient is the mean of the inputs: of known variance."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dimensions, 1, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("size", [32, 47])  # 47: seven examples are left over, with 40 in micro-batches
def test_noise_is_the_standard_deviation_of_the_minibatch(size: int) -> None:
    """Mean over 80 batches within 5 standard errors of σ²·D/B."""
    model, found = Mean(10), []
    for seed in range(80):
        x = 1 + 2 * torch.randn(size, 10, 1, 1, generator=generator(seed), dtype=torch.float64)
        result = gradient_error(model, x, loss=torch.mean, draws=4, micro_batches=8)
        assert result.total.noise is not None and result.micro_batches == 8
        found.append((result.total.noise.estimate * result.total.norm) ** 2)
    squares = torch.tensor(found)
    assert abs(squares.mean() - 4 * 10 / size) < 5 * squares.std() / sqrt(80) < 0.2


def test_noise_interval_covers() -> None:
    """80% intervals of 100 batches: fewer than 60 cover with probability 1e-6."""
    model, covered = Mean(10), 0
    for seed in range(100):
        x = 1 + 2 * torch.randn(32, 10, 1, 1, generator=generator(seed), dtype=torch.float64)
        total = gradient_error(model, x, loss=torch.mean, draws=4, confidence=0.8).total
        assert total.noise is not None
        covered += total.noise.low * total.norm <= sqrt(40 / 32) <= total.noise.high * total.norm
    assert 60 <= covered < 96


def test_noise_where_it_cannot_be_measured() -> None:
    small = gradient_error(network(), batch(3), draws=4)
    assert small.total.noise is None and "too small" in small.notes[0] and small.total.noise_ratio != 1
    without = gradient_error(network(), batch(), draws=4, micro_batches=0)
    assert without.total.noise is None and not without.notes and "–" in str(without)
    norm = nn.BatchNorm2d(6)
    assert "BatchNorm" in gradient_error(network(norm).eval(), batch(), draws=4).notes[0]


# --- what it leaves behind


@pytest.mark.parametrize("lean", [False, True])
def test_a_randomised_model_is_measured_and_draws_on_as_if_nothing_had_been(lean: bool) -> None:
    data = batch()

    def run(measure: bool) -> tuple[list[Tensor], GradientError | None]:
        model, found, result = network(), [], None
        handle = randbp.randomize(model, Spatial(0.25), layers="2", seed=3, lean=lean)
        for step in range(3):
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
            found.append(torch.autograd.grad(loss, model[2].weight)[0])
            if measure and step == 1:
                result = gradient_error(model, data, draws=4, seed=3)
        assert handle.keep_rates == {"2": 0.25}
        return found, result

    (without, _), (beside, result) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(without, beside, strict=True))
    plain = gradient_error(network(), data, weight_vjp=Spatial(0.25), layers="2", draws=4, seed=3)
    assert result is not None and (result.rows == plain.rows) != lean


def test_no_gradient_mode_and_inference_mode_do_not_matter() -> None:
    model, data = network(), batch()
    outside = gradient_error(model, data, draws=4)
    with torch.no_grad():
        assert gradient_error(model, data, draws=4).rows == outside.rows


# --- batches, losses, refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 3}, "draws=3: expected an integer >= 4"),
        ({"draws": 8.0}, r"draws=8\.0: expected an integer >= 4"),
        ({"micro_batches": 2}, "micro_batches=2: expected 0 or an integer >= 4"),
        ({"confidence": 95}, "confidence=95: expected a number between 0 and 1, both excluded"),
        ({"confidence": 1}, "confidence=1: expected a number between 0 and 1, both excluded"),
        ({"loss": 3}, "loss=3: expected a function"),
        ({"layers": "nope"}, "layers='nope': matches none"),
        ({"loss": lambda output, target: output}, r"loss: returned \(16, 3\), expected a scalar tensor"),
        ({"loss": lambda output, target: 1.0}, "loss: returned float, expected a scalar tensor"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_error(network(), batch(), **options)


def test_what_does_not_fit_together_is_named() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="loss=None: the batch has no targets"):
        gradient_error(network(), x)
    with pytest.raises(ValueError, match=r"loss=None: targets are torch\.float64 of shape \(16,\)"):
        gradient_error(network(), (x, y.double()))
    with pytest.raises(ValueError, match="model=None: expected a torch"):
        gradient_error(None, (x, y))  # type: ignore[arg-type]
    frozen = network()
    for layer in (0, 2):
        frozen[layer].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no randomised layer has a trainable weight, of 0, 2"):
        gradient_error(frozen, (x, y))
    model = network()
    randbp.randomize(model)
    with pytest.raises(ValueError, match=r"weight_vjp=.*the model is randomised already"):
        gradient_error(model, (x, y), weight_vjp=Spatial(0.5))


def test_gradients_that_are_not_finite_are_named() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="loss: the gradient of layer '0' is not finite, expected finite numbers"):
        gradient_error(network(), (x.log(), y), draws=4)


class Pair(NamedTuple):
    """A batch as data sets with named columns give it."""

    images: Tensor
    labels: Tensor


def test_a_named_tuple_is_a_batch() -> None:
    pair = Pair(*batch())
    assert repr(gradient_error(network(), pair, draws=4)) == repr(gradient_error(network(), tuple(pair), draws=4))


def test_only_the_trainable_layers_have_rows() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    result = gradient_error(model, batch(), draws=4)
    assert [row.name for row in result.rows] == ["2"] and type(model[0]) is nn.Conv2d


# --- looks


def test_table_and_figure_show_every_layer() -> None:
    result = gradient_error(network(), batch(), draws=8)
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["0", "2"]
    assert len({len(line) for line in lines[1:2] + lines[4:5]}) == 1
    axes = result.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "all of these", "whole model"]
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.get_lines() if len(line.get_xdata()) == 4)
    low, high = axes.get_xlim()
    assert low <= min(drawn) and max(drawn) <= high


# --- statistics


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 16, 31, 100])
def test_student(degrees: int) -> None:
    for t in (-4.0, -0.3, 0.0, 1.0, 2.5, 30.0):
        assert t_distribution(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-12)
    for probability in (0.6, 0.9, 0.995):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees))


def test_t_tests() -> None:
    values = torch.randn(20, generator=generator()) + 0.3
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values.double().numpy(), 0).pvalue)
    one_sided = stats.ttest_1samp(values.double().numpy(), 0, alternative="greater").pvalue
    assert t_test(values, one_sided=True) == pytest.approx(one_sided)
    assert t_test(torch.zeros(4)) == 1 and t_test(torch.ones(4)) == 0
    assert t_test(torch.full((4,), 1e-7), rounding=1e-5) > 0.9


# --- dictionaries of inputs


class Output(dict[str, Any]):
    """In the manner of Hugging Face, whose outputs are dictionaries with attributes."""

    @property
    def loss(self) -> Tensor:
        loss: Tensor = self["loss"]
        return loss


class Keywords(nn.Module):
    """A model of keywords only, with the targets among them or not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, *, pixel_values: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.net(pixel_values if mask is None else pixel_values * mask)
        return logits if labels is None else Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_inputs_in_a_dictionary_are_keywords(kind: type) -> None:
    (x, labels), model = batch(), Keywords()
    inputs = {"pixel_values": x, "mask": torch.ones(16, 1, 1, 1, dtype=torch.float64)}
    plain = gradient_error(model.net, (x, labels), draws=4)
    paired = gradient_error(model, [kind(inputs), labels], draws=4)
    own = gradient_error(model, kind({**inputs, "labels": labels}), loss=lambda output: output.loss, draws=4)
    for found in (paired, own):
        assert [row.name for row in found.rows] == ["net.0", "net.2"]
        for row, expected in zip(found.rows, plain.rows, strict=True):
            assert row.norm == pytest.approx(expected.norm) and row.noise is not None and expected.noise is not None
            assert row.noise.estimate == pytest.approx(expected.noise.estimate)
    tuned = [
        randbp.autotune(model, kind({**inputs, "labels": labels}), 0.5, loss=lambda output: output.loss, rounds=0),
        randbp.autotune(model, (kind(inputs), labels), 0.5, rounds=0),
    ]
    assert list(tuned[0]) == ["net.0", "net.2"] and dict(tuned[0]) == dict(tuned[1])
    with pytest.raises(ValueError, match="loss=None: the batch has no targets"):
        gradient_error(model, kind({**inputs, "labels": labels}))
