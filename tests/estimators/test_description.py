"""What an estimator says of itself against what can be measured."""

import math
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from randbp import BiasedTopK, Channels, Estimator, Exact, Rounding, Spatial
from randbp.estimators import Draw
from randbp.functional import conv_spec, conv_transpose_spec
from randbp.tn import linear_spec
from tests.cases import Case, cases, linear_cases, transposed_cases
from tests.catalogue import ESTIMATORS

SAID = {case.name: case for case in ESTIMATORS if case.fixed_size and not case.chooses}
COUNTED = sorted(name for name, case in SAID.items() if case.counted)
pytestmark = pytest.mark.filterwarnings("ignore:BiasedTopK")


@given(
    case=st.one_of(cases(), transposed_cases(), linear_cases()),
    name=st.sampled_from(sorted(SAID)),
    keep=st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@settings(max_examples=400)
def test_held_bytes_are_those_measured(case: Case, name: str, keep: float, dtype: torch.dtype) -> None:
    estimator: Estimator = SAID[name].make(keep)
    x, spec = case.channels_second(case.tensors(dtype)[0].detach()), case.spec()
    held = (Exact() if estimator.exact else estimator).sketch(x, spec, Draw(0))
    measured = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel()}.values())
    assert estimator.describe(spec, dtype).held_bytes == measured


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("stride", [1, 2])
def test_multiply_adds_are_those_counted(name: str, stride: int) -> None:
    """PyTorch's own count of matrix products and convolutions; without padding it knows no zeros to leave out.

    The sums that a mean of all positions meets run as a product with a matrix of zeros and ones in a layer as small as
    this one; as sums they are not part of the description.
    """
    estimator: Estimator = SAID[name].make(0.25)
    x, weight = torch.randn(8, 8, 13, 11), torch.randn(12, 8, 3, 3)
    spec = conv_spec(x, weight, stride, 0, 1, 1)
    output_grad, description = torch.randn(spec.output_shape), estimator.describe(spec)
    if "weight_vjp" in estimator.serves:
        with FlopCounterMode(display=False) as counter:
            estimator.weight_vjp(estimator.sketch(x, spec, Draw(0)), output_grad, spec, Draw(0))
        sums = 8 * 12 * prod(spec.output_size) * 9 if name == "spatial" else 0
        assert description.weight_multiply_adds == counter.get_total_flops() // 2 - sums
    if "input_vjp" in estimator.serves:
        with FlopCounterMode(display=False) as counter:
            estimator.input_vjp(output_grad, weight, spec, Draw(0))
        one_mean = name == "spatial" or (name, stride) == ("low resolution", 2)
        sums = 8 * 8 * 13 * 11 * 9 if one_mean else 0
        assert description.input_multiply_adds == counter.get_total_flops() // 2 - sums


def test_narrow_layers_multiply_as_much_as_exact_ones() -> None:
    """Their kept positions are put back for the exact kernel."""
    x, weight = torch.randn(8, 3, 13, 11), torch.randn(12, 3, 3, 3)
    spec, estimator = conv_spec(x, weight, 1, 0, 1, 1), Spatial(0.25)
    with FlopCounterMode(display=False) as counter:
        estimator.weight_vjp(estimator.sketch(x, spec, Draw(0)), torch.randn(spec.output_shape), spec, Draw(0))
    assert estimator.describe(spec).weight_multiply_adds == counter.get_total_flops() // 2 == spec.multiply_adds


@pytest.mark.parametrize(
    "name", [name for name in COUNTED if name != "spatial"]
)  # whose small sums are products here or not
@pytest.mark.parametrize("layer", ["transposed", "sequence", "vectors"])
def test_multiply_adds_of_other_layers_are_those_counted(name: str, layer: str) -> None:
    """As above; transposed with stride 2 and kernel 2, where every product meets an entry."""
    estimator: Estimator = SAID[name].make(0.25)
    x_shape, spec = {
        "transposed": (
            (8, 8, 8, 8),
            conv_transpose_spec(torch.empty(8, 8, 8, 8), torch.empty(8, 12, 2, 2), 2, 0, 0, 1, 1),
        ),
        "sequence": ((8, 8, 64), linear_spec((8, 64, 8), 12)),
        "vectors": ((64, 8, 1), linear_spec((64, 8), 12)),
    }[layer]
    x, weight, output_grad = torch.randn(x_shape), torch.randn(spec.weight_shape), torch.randn(spec.output_shape)
    description = estimator.describe(spec)
    if "weight_vjp" in estimator.serves:
        with FlopCounterMode(display=False) as counter:
            estimator.weight_vjp(estimator.sketch(x, spec, Draw(0)), output_grad, spec, Draw(0))
        assert description.weight_multiply_adds == counter.get_total_flops() // 2
    if "input_vjp" in estimator.serves:
        with FlopCounterMode(display=False) as counter:
            estimator.input_vjp(output_grad, weight, spec, Draw(0))
        assert description.input_multiply_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize("estimator", [Channels(0.25), Channels(0.3, bernoulli=True)], ids=str)
def test_the_relative_variance_is_that_of_draws(estimator: Channels) -> None:
    generator = torch.Generator().manual_seed(0)
    x, output_grad = torch.rand(2, 8, 4, 4, generator=generator), torch.rand(2, 3, 2, 2, generator=generator)
    spec = conv_spec(x, torch.empty(3, 8, 3, 3), 1, 0, 1, 1)
    exact = Exact().weight_vjp((x,), output_grad, spec, Draw(0))
    draws = [estimator.weight_vjp(estimator.sketch(x, spec, Draw(s)), output_grad, spec, Draw(s)) for s in range(3000)]
    measured = sum(float((d - exact).square().sum()) for d in draws) / 3000 / float(exact.square().sum())
    stated = estimator.describe(spec).relative_variance
    assert stated is not None and math.isclose(measured, stated, rel_tol=0.05)


def test_exact_and_keep_one_say_the_same() -> None:
    x = torch.randn(2, 4, 8, 8)
    spec = conv_spec(x, torch.empty(4, 4, 3, 3), 1, 1, 1, 1)
    description = Spatial(1).describe(spec)
    assert description == Exact().describe(spec)
    assert description.held_bytes == x.nbytes and description.relative_variance == 0 and description.unbiased


def test_what_is_biased_says_so() -> None:
    spec = conv_spec(torch.empty(2, 4, 8, 8), torch.empty(4, 4, 3, 3), 1, 1, 1, 1)
    for estimator in (BiasedTopK(0.5), Rounding(4, BiasedTopK(0.5))):
        assert not estimator.unbiased and not estimator.describe(spec).unbiased
    assert Rounding(4, Spatial(0.5)).unbiased


def test_a_spec_that_is_none_ends_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"spec=\(2, 4, 8, 8\): expected a tn\.ConvSpec"):
        Spatial(0.5).describe((2, 4, 8, 8))  # type: ignore[arg-type]
