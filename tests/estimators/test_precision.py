"""VJPs in a narrow type: as near as it promises, unbiased, with the forward pass and what is held as they were."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import randbp
from randbp import Estimator, Exact, IfFaster, Precision, Rounding, Spatial
from randbp.estimators import Draw, configure, precision
from randbp.estimators.precision import _GRAD, _HELD, _WEIGHT, narrowed
from randbp.functional import conv, conv_spec, linear
from randbp.kernels import use
from tests.cases import Case, cases, linear_cases, transposed_cases
from tests.functional.observe import held_by

LAYERS = st.one_of(cases(), transposed_cases(), linear_cases())
UNIT = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # distance of neighbours, relative to the smaller one


def both(estimator: Estimator) -> dict[str, Estimator]:
    return {"weight_vjp": estimator, "input_vjp": estimator if "input_vjp" in estimator.serves else Precision()}


def gradients(case: Case, x: Tensor, weight: Tensor, grad: Tensor, seed: int, **vjps: Estimator) -> tuple[Tensor, ...]:
    y = case.estimated(x, weight, None, **vjps, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(y, (weight, x), grad)


@pytest.mark.parametrize("together", [2**20, 40])
@given(case=LAYERS, dtype=st.sampled_from(sorted(UNIT)), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_no_gradient_strays_further_than_operands_and_result_are_rounded(
    together: int, case: Case, dtype: Any, seed: int
) -> None:
    """Against autograd in double precision, entry by entry, over layers of all kinds, at once and in parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "TOGETHER", together)
        check_errors(case, dtype, seed)


def check_errors(case: Case, dtype: Any, seed: int) -> None:
    x, weight, _ = case.tensors(torch.float32)
    output_grad = case.output_grad(case.native(x, weight, None))
    output_grad = output_grad * torch.randn(output_grad.shape, generator=torch.Generator().manual_seed(seed))
    found = gradients(case, x, weight, output_grad, seed, **both(Precision(dtype)))
    precise = [tensor.detach().double().requires_grad_() for tensor in (weight, x)]
    y = case.native(precise[1], precise[0], None)
    expected = torch.autograd.grad(y, precise, output_grad.double(), retain_graph=True)
    sizes = torch.autograd.grad(
        y, precise, output_grad.double().abs()
    )  # of all products; input and weight are positive
    for ours, theirs, size in zip(found, expected, sizes, strict=True):
        assert ours.dtype == torch.float32
        # Two operands, then the result (rounded to the nearest) and sums in single precision.
        limit = ((1 + UNIT[dtype]) ** 2 * (1 + UNIT[dtype] / 2) - 1 + 1e-4) * size
        if dtype == "float16":
            limit += 2.0**-23  # numbers below its normal ones
        assert ((ours.double() - theirs).abs() <= limit).all()


# Nearest rounding would be off by 2^-9 in every entry here, since all entries lie just above a number of the type.
ABOVE = 1 + 2.0**-9


@pytest.mark.parametrize("estimator", [Precision(), Precision(estimator=Rounding(8))], ids=str)
@pytest.mark.parametrize("layer", ["convolution", "linear"])
def test_both_vjps_are_unbiased(estimator: Estimator, layer: str) -> None:
    """t-test of the whole VJP's component along the exact one, over 60 draws; error probability below 1e-5 per VJP.

    The last rounding, of a result, is to the nearest. In thousands of entries it goes up as often as down.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((8, 16, 12, 12), (16, 16, 3, 3)) if layer == "convolution" else ((32, 20, 48), (40, 48))

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return ABOVE * 2.0 ** torch.randint(-2, 3, shape, generator=generator)

    x, weight = (drawn(shape).requires_grad_() for shape in shapes)

    def run(**vjps: Estimator) -> Tensor:
        return conv(x, weight, padding=1, **vjps) if layer == "convolution" else linear(x, weight, **vjps)

    with torch.no_grad():
        output_grad = drawn(run().shape)
    exact = torch.autograd.grad(run(weight_vjp=Exact()), (weight, x), output_grad)
    shares: list[list[float]] = [[], []]
    for _ in range(60):
        y = run(**both(estimator), generator=generator)
        for share, ours, theirs in zip(shares, torch.autograd.grad(y, (weight, x), output_grad), exact, strict=True):
            share.append(float((ours.double() * theirs).sum() / theirs.double().square().sum()))
    for share in map(torch.tensor, shares):
        error = 5.5 * float(share.std()) / 60**0.5
        assert abs(float(share.mean()) - 1) < error + 2.0**-13
        assert error < 2.0**-11


def test_operands_are_rounded_independently_and_anew_by_each_draw() -> None:
    """Correlations of 2^16 pairs of errors have a standard error of 2^-8: six of them are exceeded once in 5e8."""
    x = torch.full((4, 16, 32, 32), ABOVE)
    first, again, other = (narrowed(x, torch.bfloat16, Draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    operands = [Precision()._narrow(x, Draw(1), key, number) for key in (_GRAD, _HELD, _WEIGHT) for number in (0, 4)]
    errors = [tensor.double().flatten() - ABOVE for tensor in (first, other, *operands)]
    units = [(error - error.mean()) / error.std() for error in errors]
    for number, one in enumerate(units):
        for another in units[:number]:
            assert abs((one * another).mean()) < 6 / 2**8


def test_each_part_of_a_batch_is_rounded_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[Draw] = []

    def noted(tensor: Tensor, dtype: torch.dtype, draw: Draw, *more: Any) -> Tensor:
        draws.append(draw)
        return narrowed(tensor, dtype, draw, *more)

    monkeypatch.setattr(precision, "TOGETHER", 2**11)
    monkeypatch.setattr(precision, "narrowed", noted)
    x, weight = torch.ones(4, 8, 16, 16, requires_grad=True), torch.ones(8, 8, 3, 3, requires_grad=True)
    conv(x, weight, **both(Precision())).sum().backward()
    assert len(draws) == len(set(draws)) == 4 * 2 + 4 + 1  # inputs and gradients; gradients again; the weight


@given(case=LAYERS, dtype=st.sampled_from([torch.float64, torch.bfloat16]))
@settings(max_examples=40)
def test_other_precisions_have_pytorchs_own_vjps(case: Case, dtype: torch.dtype) -> None:
    if not case.is_defined(dtype):
        return
    x, weight, _ = case.tensors(dtype)
    grad = case.output_grad(case.native(x, weight, None))
    found = gradients(case, x, weight, grad, 0, **both(Precision()))
    for ours, theirs in zip(found, torch.autograd.grad(case.native(x, weight, None), (weight, x), grad), strict=True):
        assert torch.equal(ours, theirs)


@given(case=LAYERS)
@settings(max_examples=40)
def test_the_forward_pass_and_dtypes_stay(case: Case) -> None:
    x, weight, bias = case.tensors(torch.float32)
    y = case.estimated(x, weight, bias, **both(Precision()))
    assert torch.equal(y, case.native(x, weight, bias))
    y.sum().backward()  # of a gradient whose entries share one place in memory
    assert x.grad is not None and weight.grad is not None and x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("inner", [Exact(), Rounding(4), Rounding(2, block="channel")], ids=str)
def test_it_holds_what_the_estimator_within_holds(inner: Estimator) -> None:
    x, weight = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3, requires_grad=True)
    outputs = [
        held_by(lambda e=e: conv(x, weight, padding=1, weight_vjp=e), apart_from=(weight,))[1]
        for e in (inner, Precision(estimator=inner))
    ]
    assert abs(outputs[0] - outputs[1]) <= 8  # the seed
    assert Precision(estimator=inner).keep == inner.keep
    spec = conv_spec(x, weight, 1, 1, 1, 1)
    wide, narrow = inner.describe(spec), Precision(estimator=inner).describe(spec)
    assert narrow.held_bytes == wide.held_bytes and narrow.weight_multiply_adds == wide.weight_multiply_adds
    assert "2^-15" in narrow.variance and narrow.relative_variance is None and narrow.unbiased
    assert Precision(estimator=inner).describe(spec, torch.float64) == inner.describe(spec, torch.float64)


def test_channels_last_stays_and_what_lies_in_memory_otherwise_has_the_same_noise() -> None:
    last = torch.channels_last
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(6, 8, 3, 3)
    leaves = [t.to(memory_format=last).requires_grad_() for t in (x, weight)]
    y = conv(*leaves, padding=1, **both(Precision()))
    for grad, exact in zip(
        torch.autograd.grad(y, leaves, torch.ones_like(y)),
        torch.autograd.grad(conv(*leaves, padding=1, weight_vjp=Exact()), leaves, torch.ones_like(y)),
        strict=True,
    ):
        assert grad.is_contiguous(memory_format=last)
        assert 0 < (grad - exact).norm() < 0.01 * exact.norm()
    gaps = torch.randn(4, 5, 14)[:, :, ::2]
    assert torch.equal(narrowed(gaps, torch.bfloat16, Draw(1)), narrowed(gaps.contiguous(), torch.bfloat16, Draw(1)))
    rows = gaps.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(*(narrowed(t, torch.bfloat16, Draw(1), channels_last=True) for t in (gaps, rows)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 5),
    )  # fmt: skip


def step(model: nn.Module, x: Tensor, forward: Any = None) -> list[Tensor]:
    model.zero_grad()
    (forward or model)(x).float().square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None][::2]  # of weights


def test_references_and_kernels_autocast_checkpoints_and_pickles() -> None:
    model, x = network(), torch.randn(4, 3, 8, 8, requires_grad=True)
    plain = step(copy.deepcopy(model), x)
    with randbp.randomize(model, **both(Precision(estimator=Rounding(8))), layers="*", seed=1) as handle:

        def run(forward: Any = None, **at: int) -> list[Tensor]:
            handle.set_step(at.get("at", 0))
            return step(model, x, forward)

        found = run()
        for ours, theirs in zip(found, plain, strict=True):
            assert 0 < (ours - theirs).norm() < 0.05 * theirs.norm()
        with use("reference"):
            for ours, theirs in zip(run(), found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
        assert all(map(torch.equal, run(lambda x: checkpoint(model, x, use_reentrant=False)), found))
        assert not all(map(torch.equal, run(at=1), found))
        with torch.autocast("cpu", torch.bfloat16):
            assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in run())
    estimator = Precision("float16", Rounding(4))
    assert pickle.loads(pickle.dumps(estimator)) == estimator == copy.deepcopy(estimator)
    assert pickle.loads(pickle.dumps(estimator)).serves == {"weight_vjp"}
    inner = {"class_path": "randbp.Rounding", "init_args": {"bits": 4}}
    assert configure(estimator)["init_args"] == {"dtype": "float16", "estimator": inner}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float32"}, "Precision: dtype='float32', expected 'bfloat16' or 'float16'"),
        ({"dtype": torch.bfloat16}, "Precision: dtype=torch.bfloat16, expected 'bfloat16' or 'float16'"),
        ({"estimator": 3}, r"Precision: estimator=3, expected Exact\(\) or Rounding\(bits\)"),
        ({"estimator": Precision()}, "estimator=Precision.*, expected Exact"),
        ({"estimator": Rounding(4, Spatial(0.5))}, "estimator=Rounding.*, expected Exact"),
        ({"estimator": IfFaster(Rounding(4))}, "estimator=IfFaster.*, expected Exact"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Precision(**arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"input_vjp=Precision.*: Precision serves only weight_vjp"):
        randbp.randomize(nn.Conv2d(2, 2, 3), input_vjp=Precision(estimator=Rounding(4)))


def test_where_it_is_not_faster_the_estimator_within_serves() -> None:
    """Whichever wins, the bytes are those of four bits; and without one within, PyTorch's own layer may win."""
    x, weight = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3, requires_grad=True)
    spec, cpu = conv_spec(x, weight, 1, 1, 1, 1), torch.device("cpu")
    chosen = IfFaster(Precision(estimator=Rounding(4))).for_layer("weight_vjp", spec, torch.float32, cpu)
    assert chosen in (Rounding(4), Precision(estimator=Rounding(4)))
    assert IfFaster(Precision()).for_layer("weight_vjp", spec, torch.float64, cpu) == Exact()
    wide, narrow = (
        held_by(lambda e=e: conv(x, weight, padding=1, weight_vjp=e), apart_from=(weight,))[1]
        for e in (Rounding(4), IfFaster(Precision(estimator=Rounding(4))))
    )
    assert wide == narrow
