"""Every estimator is unbiased in every layer type: the mean over draws is the exact VJP, entry by entry.

Error probability: each case tests all entries at once with a two-sided z-test, Bonferroni-corrected to a probability
of 1e-6 per case that a correct estimator fails. Cases and draws are fixed, so a verdict does not change between runs.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from randbp import Axes, Batch, Channels, Estimator, Exact, Spatial
from randbp.estimators import Draw
from randbp.functional import conv_spec, conv_transpose_spec
from randbp.tn import LayerSpec, linear_spec
from tests import catalogue
from tests.cases import Case, cases, linear_cases, transposed_cases

DRAWS = 400
LAYER_DRAWS = 200
FIRST_DRAWS = 40
ERROR = 1e-6

ESTIMATORS = {
    case.name: case for case in catalogue.ESTIMATORS if not (case.biased or case.narrow or case.chooses or case.exact)
}
SIMPLE = [name for name, case in ESTIMATORS.items() if isinstance(case.make(0.5), Spatial | Axes | Channels | Batch)]
WEIGHT = sorted(ESTIMATORS)
INPUT = [name for name in WEIGHT if "input_vjp" in ESTIMATORS[name].vjps]


def z_limit(entries: int) -> float:
    return math.sqrt(2) * torch.erfinv(torch.tensor(1 - ERROR / entries, dtype=torch.float64)).item()


def assert_unbiased(draws: Tensor, exact: Tensor) -> None:
    mean, scale = draws.mean(0), exact.abs().max().clamp_min(1e-12)
    error = draws.std(0) / math.sqrt(len(draws))
    z = (mean - exact).abs() / error.clamp_min(1e-9 * scale)
    assert z.max() < z_limit(exact.numel()), f"z = {z.max():.1f}, mean {mean.flatten()[z.argmax()]:.4g}"


def drawn(estimate: Callable[[int], tuple[Tensor, ...]], exact: tuple[Tensor, ...], draws: int) -> list[Tensor]:
    """Estimates of one or two VJPs with seeds ``0 … draws - 1``, stacked.

    Many small layers have nothing to leave out. Where all of the first draws are exact, no more are made: only what
    happens in fewer than one of ten draws could then still differ.
    """
    found = []
    for seed in range(draws):
        found.append(estimate(seed))
        if seed + 1 == FIRST_DRAWS and all(map(all_exact, zip(*found, strict=True), exact)):
            break
    return [torch.stack(each) for each in zip(*found, strict=True)]


def all_exact(draws: tuple[Tensor, ...], exact: Tensor) -> bool:
    return bool((torch.stack(draws) - exact).abs().max() <= 1e-12 * exact.abs().max())


def exact_vjps(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, weight, _ = case.tensors()
    output = case.native(x, weight, None)
    output_grad = case.output_grad(output)
    x_grad, weight_grad = torch.autograd.grad(output, (x, weight), output_grad)
    return x.detach(), weight.detach(), output_grad, x_grad, weight_grad


def check_weight_vjp(name: str, case: Case, keep: float) -> None:
    estimator: Estimator = ESTIMATORS[name].make(keep)
    x, weight, output_grad, _, exact = exact_vjps(case)
    spec = conv_spec(x, weight, **case.geometry)

    def estimate(seed: int) -> tuple[Tensor]:
        draw = Draw(seed)
        return (estimator.weight_vjp(estimator.sketch(x, spec, draw), output_grad, spec, draw),)

    (draws,) = drawn(estimate, (exact,), DRAWS)
    assert_unbiased(draws, exact)


def check_input_vjp(name: str, case: Case, keep: float) -> None:
    estimator: Estimator = ESTIMATORS[name].make(keep)
    x, weight, output_grad, exact, _ = exact_vjps(case)
    spec = conv_spec(x, weight, **case.geometry)

    def estimate(seed: int) -> tuple[Tensor]:
        return (estimator.input_vjp(output_grad, weight, spec, Draw(seed)),)

    (draws,) = drawn(estimate, (exact,), DRAWS)
    assert_unbiased(draws, exact)


# The simple samplers see more cases than what is built from the same parts.
@pytest.mark.parametrize("name", [name for name in WEIGHT if name in SIMPLE])
@given(case=cases(largest=5), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=8)
def test_weight_vjp_is_unbiased(name: str, case: Case, keep: float) -> None:
    check_weight_vjp(name, case, keep)


@pytest.mark.parametrize("name", [name for name in WEIGHT if name not in SIMPLE])
@given(case=cases(largest=5), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=5)
def test_weight_vjp_is_unbiased_in_fewer_cases(name: str, case: Case, keep: float) -> None:
    check_weight_vjp(name, case, keep)


@pytest.mark.parametrize("name", [name for name in INPUT if name in SIMPLE])
@given(case=cases(largest=5), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=8)
def test_input_vjp_is_unbiased(name: str, case: Case, keep: float) -> None:
    check_input_vjp(name, case, keep)


@pytest.mark.parametrize("name", [name for name in INPUT if name not in SIMPLE])
@given(case=cases(largest=5), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=5)
def test_input_vjp_is_unbiased_in_fewer_cases(name: str, case: Case, keep: float) -> None:
    check_input_vjp(name, case, keep)


def check_layer(name: str, case: Case, keep: float) -> None:
    """Both VJPs at once, through the whole layer."""
    estimator: Estimator = ESTIMATORS[name].make(keep)
    x, weight, _ = case.tensors()
    output_grad = case.output_grad(case.native(x, weight, None))
    exact = torch.autograd.grad(case.native(x, weight, None), (weight, x), output_grad)
    options = {"weight_vjp": estimator, "input_vjp": estimator if name in INPUT else Exact()}

    def estimate(seed: int) -> tuple[Tensor, ...]:
        y = case.estimated(x, weight, None, **options, generator=torch.Generator().manual_seed(seed))
        return torch.autograd.grad(y, (weight, x), output_grad)

    weights, inputs = drawn(estimate, exact, LAYER_DRAWS)
    assert_unbiased(weights, exact[0])
    if name in INPUT:
        assert_unbiased(inputs, exact[1])


@pytest.mark.parametrize("name", WEIGHT)
@given(case=transposed_cases(), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=3)
def test_transposed_convolutions_are_unbiased(name: str, case: Case, keep: float) -> None:
    check_layer(name, case, keep)


@pytest.mark.parametrize("name", WEIGHT)
@given(case=linear_cases(), keep=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=3)
def test_linear_layers_are_unbiased(name: str, case: Case, keep: float) -> None:
    check_layer(name, case, keep)


Layer = Callable[[Tensor, Tensor], Tensor]
DEVIATING: dict[str, tuple[Layer, tuple[int, ...], tuple[int, ...], Callable[[Tensor, Tensor], LayerSpec]]] = {
    "convolution": (
        lambda x, w: F.conv2d(x, w, padding=1),
        (8, 2, 12, 12),
        (2, 2, 3, 3),
        lambda x, w: conv_spec(x, w, 1, 1, 1, 1),
    ),
    "strided convolution": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        (8, 2, 12, 12),
        (2, 2, 3, 3),
        lambda x, w: conv_spec(x, w, 2, 1, 1, 1),
    ),
    "transposed convolution": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
        (8, 2, 8, 8),
        (2, 2, 3, 3),
        lambda x, w: conv_transpose_spec(x, w, 2, 1, 0, 1, 1),
    ),
    "linear layer": (
        lambda x, w: F.linear(x.transpose(1, 2), w[..., 0]).transpose(1, 2),
        (8, 2, 100),
        (2, 2, 1),
        lambda x, w: linear_spec((8, 100, 2), 2),
    ),
}


@pytest.mark.parametrize("layer", DEVIATING)
@pytest.mark.parametrize("name", ["spatial", "low resolution", "norm spatial", "norm spatial cells"])
def test_deviations_from_means_have_the_right_weight(name: str, layer: str) -> None:
    """Where nearly all of the gradient comes from them: other factors that follow the input. Error: 6e-7 per VJP."""
    native, input_shape, weight_shape, make_spec = DEVIATING[layer]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(input_shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(weight_shape, generator=generator, dtype=torch.float64)
    spec, output_grad = make_spec(x, weight), native(x, weight)
    estimator, exact, draws = ESTIMATORS[name].make(0.5), Exact(), [Draw(seed) for seed in range(150)]
    weights = [estimator.weight_vjp(estimator.sketch(x, spec, draw), output_grad, spec, draw) for draw in draws]
    inputs = [estimator.input_vjp(output_grad, weight, spec, draw) for draw in draws]
    for found, true in (
        (weights, exact.weight_vjp((x,), output_grad, spec, Draw(0))),
        (inputs, exact.input_vjp(output_grad, weight, spec, Draw(0))),
    ):
        share = (torch.stack(found) * true).flatten(1).sum(1) / true.square().sum()
        error = 5 * share.std() / math.sqrt(len(draws))
        assert abs(share.mean() - 1) < error < 0.04
