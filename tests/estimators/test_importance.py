"""Rows drawn by their norms: what is drawn, which weights it gets, and gradients that are unlike random numbers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp import Exact, IfFaster, Importance, Rounding, tn
from randbp.autograd.call import Call
from randbp.estimators import Draw, drawn_rows, if_faster
from randbp.estimators.drawn_rows import DrawnRows
from randbp.functional import conv, linear
from randbp.kernels import systematic_rows
from randbp.layers.functions import Convolution
from randbp.tn import ConvSpec

from .test_unbiased import assert_unbiased

DRAWS = 600
SPEC = ConvSpec((4, 3, 6, 5), out_channels=4, kernel_size=3, padding=1)

GRADIENTS = {
    "rows of zeros": lambda g: g * (torch.rand(4, 1, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.2),
    "ties": torch.ones_like,
    "one row": lambda g: g * _at(2, 3, 1),
    "most in one row": lambda g: g * (1 + 1e6 * _at(1, 4, 4)),
    "zeros": torch.zeros_like,
}


def _at(example: int, row: int, column: int) -> Tensor:
    place = torch.zeros(4, 1, 6, 5, dtype=torch.float64)
    place[example, 0, row, column] = 1
    return place


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (SPEC.input_shape, SPEC.weight_shape, SPEC.output_shape)
    )
    return x.to(dtype), weight.to(dtype), grad.to(dtype)


def exact(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(F.conv2d(x, weight, padding=1), (weight, x), grad)


def both(estimator: Importance, x: Tensor, weight: Tensor, grad: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Both VJPs of one sample."""
    call = Call(
        Convolution.of(stride=1, padding=1, dilation=1, groups=1), tuple(x.shape), tuple(weight.shape), *[estimator] * 2
    )
    assert call.shares_sample
    return call.both_grads(call.sketch(x, seed), grad, weight, seed)


# Each case fails with a probability of 1e-6 if the estimate is unbiased.
@pytest.mark.parametrize("unit", ["positions", "examples"])
@pytest.mark.parametrize("keep", [0.03, 0.25, 0.5])
@pytest.mark.parametrize("name", GRADIENTS)
def test_unusual_gradients_are_estimated_without_bias(name: str, keep: float, unit: str) -> None:
    x, weight, grad = tensors()
    grad = GRADIENTS[name](grad)
    draws = [both(Importance(keep, unit), x, weight, grad, seed) for seed in range(DRAWS)]  # type: ignore[arg-type]
    for estimates, true in zip(zip(*draws, strict=True), exact(x, weight, grad), strict=True):
        assert_unbiased(torch.stack(estimates), true)


def test_rows_of_zeros_are_never_drawn_and_few_others_always() -> None:
    x, weight, grad = tensors()
    grad = GRADIENTS["rows of zeros"](grad)
    some = int(grad.square().sum(1).count_nonzero())
    keep = (some + 3) / 120
    sample = Importance(keep).sample((x,), grad, SPEC, Draw(3))
    assert isinstance(sample, DrawnRows)
    drawn = sample.numbers[sample.weights > 0]
    assert len(sample.numbers) == some + 3 and len(drawn) == len(drawn.unique()) == some
    for ours, theirs in zip(both(Importance(keep), x, weight, grad, 3), exact(x, weight, grad), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("unit", ["positions", "examples"])
def test_what_is_not_finite_shows_where_it_does_in_pytorch(value: float, unit: str) -> None:
    x, weight, grad = tensors()
    grad[1, 2, 3, 4] = value
    found = both(Importance(0.1, unit), x, weight, grad, 0)  # type: ignore[arg-type]
    for ours, theirs in zip(found, exact(x, weight, grad), strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


def test_one_sample_serves_both_vjps() -> None:
    """The output gradient that the input VJP was taken of is known if the weight is the identity."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.eye(7, dtype=torch.float64, requires_grad=True)
    estimator = Importance(0.3)
    y = linear(x, weight, weight_vjp=estimator, input_vjp=Importance(0.3, bits=4))
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    sampled, of_weight = torch.autograd.grad(y, (x, weight), grad)
    assert int(sampled.abs().sum(1).count_nonzero()) == 12
    torch.testing.assert_close(of_weight, sampled.t() @ x.detach())


def test_rates_of_its_own_give_each_vjp_a_sample_of_its_own() -> None:
    call = Call(Convolution.of(stride=1, padding=1, dilation=1, groups=1), (4, 3, 6, 5), (4, 3, 3, 3), *_TWO)
    assert not call.shares_sample


_TWO = Importance(0.3), Importance(0.5)


def test_patches_with_large_inputs_are_drawn_more_often() -> None:
    x, _, _ = tensors()
    x[:, :, :3] *= 100
    numbers = Importance(0.25).sample((x,), torch.ones(SPEC.output_shape), SPEC, Draw(0)).numbers
    rows = numbers % 30 // 5
    assert int((rows < 4).sum()) > 0.7 * len(rows)  # rows 0 to 3 of the image see the large ones


def test_half_precision_does_not_overflow_where_weights_are_large() -> None:
    x = torch.full((64, 8), 1.0, dtype=torch.float16)
    grad = torch.full((64, 4), 900.0, dtype=torch.float16)
    weight = torch.full((4, 8), 0.01, dtype=torch.float16, requires_grad=True)
    y = linear(x, weight, weight_vjp=Importance(1 / 64))
    (found,) = torch.autograd.grad(y, weight, grad)
    assert found.isfinite().all()
    torch.testing.assert_close(found, torch.full_like(found, 64 * 900.0))


def test_the_input_itself_is_held_or_its_codes() -> None:
    x, _, _ = tensors(torch.float32)
    held = Importance(0.5).sketch(x, SPEC, Draw(0))
    assert held[0].data_ptr() == x.data_ptr() and Importance(0.5).holds_input
    few = Importance(0.5, bits=2).sketch(x, SPEC, Draw(0))
    assert sum(tensor.nbytes for tensor in few) < x.nbytes / 4


def test_keeping_all_rows_in_bits_leaves_the_input_vjp_exact() -> None:
    x, weight, grad = tensors()
    weight.requires_grad_(), x.requires_grad_()
    y = conv(x, weight, None, 1, 1, weight_vjp=Importance(1.0, bits=8), input_vjp=Importance(1.0, bits=8))
    of_weight, of_input = torch.autograd.grad(y, (weight, x), grad)
    true = exact(x, weight, grad)
    assert torch.equal(of_input, true[1]) and not torch.equal(of_weight, true[0])


def test_probabilities_follow_sizes() -> None:
    """The share of draws that contain a term is its probability: a two-sided binomial test for each, 1e-6 for all."""
    sizes = torch.tensor([1.0, 2.0, 3.0, 0.0, 50.0, 4.0])
    starts = torch.randint(2**32, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = torch.zeros(6)
    weights = torch.zeros(6, dtype=torch.float64)
    for start in starts:
        rows, factors = systematic_rows(sizes, 3, start)
        drawn[rows] += 1
        weights[rows] = factors
    raised = torch.where(sizes > 0, sizes + 60 / 5 / 10, 0)
    expected = torch.where(sizes == 50, 1, 2 * raised / (raised.sum() - raised[4]))
    limit = 6 * (expected * (1 - expected) / len(starts)).sqrt() + 1e-9
    assert bool(((drawn / len(starts) - expected).abs() <= limit).all())
    torch.testing.assert_close(weights[drawn > 0], 1 / expected[drawn > 0].double(), rtol=1e-6, atol=0)
    assert math.isclose(float(expected.sum()), 3, rel_tol=1e-6)


def test_small_pieces_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, grad = tensors()
    whole = both(Importance(0.5), x, weight, grad, 0)
    monkeypatch.setattr(drawn_rows, "TOGETHER", 60)
    for ours, theirs in zip(both(Importance(0.5), x, weight, grad, 0), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("faster", [True, False])
def test_what_is_not_faster_keeps_all_rows_and_the_same_codes(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race is decided by hand: who wins it depends on the machine."""
    layer = tn.ConvSpec((2, 3, 6, 6), out_channels=4, kernel_size=3)
    monkeypatch.setattr(if_faster, "_race", lambda *_: if_faster.Race(1.0, math.inf, 0.5 if faster else 1.0))
    monkeypatch.setattr(if_faster, "_RACES", if_faster.BySize())
    x, draw = torch.randn(layer.input_shape), Draw(0)
    for estimator, otherwise in ((Importance(0.5, bits=4), Rounding(4)), (Importance(0.5), Exact())):
        chosen = IfFaster(estimator).for_layer("weight_vjp", layer, x.dtype, x.device)
        assert chosen == (estimator if faster else otherwise)
        held = [each.sketch(x, layer, draw) for each in (estimator, otherwise)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*held, strict=True))
