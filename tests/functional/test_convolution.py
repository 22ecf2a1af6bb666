"""randbp.functional.conv: exact where it promises to be, and frugal where it estimates."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import randbp
from randbp import (
    Axes,
    Batch,
    Channels,
    Estimator,
    Exact,
    LowResolution,
    NormChannels,
    NormSpatial,
    Precision,
    Projection,
    Rounding,
    Spatial,
)
from randbp.estimators import chunks, native, precision
from randbp.functional import conv
from tests.cases import Case, cases
from tests.catalogue import EXACT_AT_ONE, FIXED_SIZE, EstimatorCase
from tests.functional.observe import LargestAllocation, held_by

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@given(case=cases(), dtype=st.sampled_from(DTYPES), made=st.sampled_from(EXACT_AT_ONE))
@settings(max_examples=100)
def test_keep_one_is_pytorch_bit_for_bit(case: Case, dtype: torch.dtype, made: EstimatorCase) -> None:
    estimator = made.make(1)
    assume(case.is_defined(dtype))
    x, weight, bias = case.tensors(dtype)
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    native = case.native(x, weight, bias)
    output_grad = case.output_grad(native)
    expected = torch.autograd.grad(native, inputs, output_grad)
    output = conv(x, weight, bias, **case.geometry, weight_vjp=estimator, input_vjp=estimator)
    assert torch.equal(output, native)
    for grad, exact in zip(torch.autograd.grad(output, inputs, output_grad), expected, strict=True):
        assert torch.equal(grad, exact)


@given(
    case=cases(), dtype=st.sampled_from(DTYPES), estimator=st.sampled_from(FIXED_SIZE), estimates_weight=st.booleans()
)
@settings(max_examples=150)
def test_the_vjp_that_is_not_estimated_is_exact(
    case: Case, dtype: torch.dtype, estimator: Estimator, estimates_weight: bool
) -> None:
    x, weight, bias = case.tensors(dtype)
    native = case.native(x, weight, bias)
    output_grad = case.output_grad(native)
    x_grad, weight_grad = torch.autograd.grad(native, (x, weight), output_grad)
    if not estimates_weight and "input_vjp" not in estimator.serves:
        estimator = Spatial(0.5)
    chosen = {"weight_vjp": estimator} if estimates_weight else {"weight_vjp": Exact(), "input_vjp": estimator}
    output = conv(x, weight, bias, **case.geometry, **chosen)
    assert torch.equal(output, native)
    got_x, got_weight = torch.autograd.grad(output, (x, weight), output_grad)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    got, exact = (got_x, x_grad) if estimates_weight else (got_weight, weight_grad)
    torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance)


def test_the_bias_gradient_is_exact() -> None:
    x, weight = torch.randn(4, 3, 9, 9), torch.randn(8, 3, 3, 3, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    conv(x, weight, bias, weight_vjp=Spatial(0.25)).square().sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, bias).square().sum(), bias)[0]
    torch.testing.assert_close(bias.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_without_grad_mode_it_is_pytorch(estimator: Estimator) -> None:
    x, weight = torch.randn(4, 3, 9, 9), torch.randn(8, 3, 3, 3, requires_grad=True)
    with torch.no_grad():
        output, held = held_by(lambda: conv(x, weight, weight_vjp=estimator))
        assert torch.equal(output, F.conv2d(x, weight)) and held == 0 and not output.requires_grad
    with torch.inference_mode():
        assert torch.equal(conv(x, weight, weight_vjp=estimator), F.conv2d(x, weight))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_unbatched_input_and_keyword_styles(dims: int, padding: int | str) -> None:
    x = torch.randn(4, *[7] * dims, requires_grad=True)
    weight = torch.randn(6, 2, *[3] * dims, requires_grad=True)
    native = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](x, weight, None, [1] * dims, padding, 1, 2)
    output = conv(x, weight, None, [1] * dims, padding, 1, 2, weight_vjp=Spatial(0.5), input_vjp=Spatial(0.5))
    assert torch.equal(output, native)
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and weight.grad.shape == weight.shape


@given(
    case=cases(),
    which=st.sampled_from([0, 1, 2, 4]),
    keep=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
)
@settings(max_examples=150)
def test_held_bytes_stay_within_the_keep_rate(case: Case, which: int, keep: float) -> None:
    estimator = [Spatial(keep), Spatial(keep, center=False), Axes(keep), Channels(keep), Batch(keep)][which]
    x, weight, bias = case.tensors()
    _, held = held_by(lambda: conv(x, weight, bias, **case.geometry, weight_vjp=estimator), apart_from=(weight,))
    seed, one_position = 8, 8 * case.groups * case.inner
    whole = x.numel() * 8
    least = whole // case.batch if isinstance(estimator, Batch) else one_position
    if isinstance(estimator, Axes):  # at least one coordinate of every axis
        least = one_position * case.batch * max(1, x[0, 0].numel() // min(case.input_size))
    assert held - seed <= max(1.02 * keep * whole, least)


@pytest.mark.parametrize("keep", [1 / 2, 1 / 4, 1 / 8, 1 / 16])
@pytest.mark.parametrize("make", [Spatial, Axes, Channels, Batch, LowResolution, NormSpatial, NormChannels, Projection])
@pytest.mark.parametrize("stride", [1, 2])
def test_held_bytes_of_a_real_layer(make: Any, keep: float, stride: int) -> None:
    x, weight = torch.randn(16, 32, 32, 32), torch.randn(16, 32, 3, 3, requires_grad=True)
    _, held = held_by(lambda: conv(x, weight, None, stride, 1, weight_vjp=make(keep)), apart_from=(weight,))
    assert 0.8 * keep * x.nbytes <= held <= 1.02 * keep * x.nbytes


def test_nothing_is_held_for_gradients_that_nobody_needs() -> None:
    x, weight = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3)
    options = {"weight_vjp": Spatial(0.25), "input_vjp": Spatial(0.5)}
    _, frozen = held_by(lambda: conv(x.requires_grad_(), weight, **options), apart_from=(weight,))
    assert frozen <= 8  # the seed
    _, nothing = held_by(lambda: conv(x.detach(), weight, **options))
    assert nothing == 0
    _, first = held_by(lambda: conv(x.detach(), weight.requires_grad_(), **options))
    assert 0 < first <= 0.25 * x.nbytes + 8  # neither the weight nor the whole input


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_second_copy_of_the_input(
    estimator: Estimator, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LITTLE", 0)  # inputs as small as here are decoded in one piece
    monkeypatch.setattr(precision, "TOGETHER", 2**14)
    x = torch.randn(64, 32, 16, 16).contiguous(memory_format=memory_format)
    weight = torch.randn(4, 32, 3, 3, requires_grad=True)  # output and weight far smaller than the input
    with LargestAllocation() as largest:
        conv(x, weight, None, 1, 1, weight_vjp=estimator).sum().backward()
    assert largest.bytes <= 0.6 * x.nbytes


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_last_gives_the_same_exact_input_gradient(stride: int) -> None:
    x = torch.randn(4, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 8, 3, 3, requires_grad=True)
    native = F.conv2d(x, weight, None, stride, 1)
    output_grad = torch.randn_like(native)
    expected = torch.autograd.grad(native, x, output_grad)[0]
    output = conv(x, weight, None, stride, 1, weight_vjp=Spatial(0.25))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.autograd.grad(output, x, output_grad)[0], expected)


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_memory_format_does_not_change_the_estimate(estimator: Estimator) -> None:
    x, weight = torch.randn(4, 8, 9, 9), torch.randn(6, 8, 3, 3, requires_grad=True)
    grads = []
    for form in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        y = conv(x.contiguous(memory_format=form), weight, None, 2, 1, weight_vjp=estimator, generator=generator)
        grads.append(torch.autograd.grad(y.square().sum(), weight)[0])
    if isinstance(estimator, Precision):  # entries are rounded in the order of memory: two samples of one estimate
        assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()
    else:
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_global_random_state_is_untouched_and_generators_repeat(estimator: Estimator) -> None:
    x = torch.randn(24, 8, 9, 9, requires_grad=True)
    weight = torch.randn(6, 8, 3, 3, requires_grad=True)
    input_vjp = estimator if "input_vjp" in estimator.serves else Exact()

    def grads(**options: Any) -> tuple[Tensor, ...]:
        y = conv(x, weight, weight_vjp=estimator, input_vjp=input_vjp, **options)
        return torch.autograd.grad(y.square().sum(), (weight, x))

    before = torch.get_rng_state()
    first = grads(generator=torch.Generator().manual_seed(1))
    again = grads(generator=torch.Generator().manual_seed(1))
    other = grads(generator=torch.Generator().manual_seed(2))
    randbp.manual_seed(5)
    stream = grads(), grads()
    randbp.manual_seed(5)
    replay = grads(), grads()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(stream[0][0], replay[0][0]) and torch.equal(stream[1][0], replay[1][0])
    assert not torch.equal(stream[0][0], stream[1][0])


@pytest.mark.parametrize("inputs", [(True, True), (True, False), (False, True)])
def test_double_backward_raises(inputs: tuple[bool, bool]) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=inputs[0])
    weight = torch.randn(4, 3, 3, 3, requires_grad=inputs[1])
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    y = conv(x, weight, weight_vjp=Spatial(0.5), input_vjp=Spatial(0.5))
    first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
    for grad in first:
        for tensor in wanted:
            with pytest.raises(RuntimeError, match="double backward through estimated VJPs"):
                torch.autograd.grad(grad.square().sum(), tensor, retain_graph=True)
    exact = conv(x, weight, weight_vjp=Spatial(1), input_vjp=Exact())
    first = torch.autograd.grad(exact.square().sum(), wanted, create_graph=True)
    torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted)


def test_double_backward_of_a_linear_loss_raises() -> None:
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    grads = torch.autograd.grad(conv(x, weight).sum(), (weight, x), create_graph=True)
    for grad, tensor in zip(grads, (x, weight), strict=True):  # V_W depends on X, V_X on W
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(grad.sum(), tensor, allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "output_grad"])
def test_non_finite_values_show_where_they_do_in_pytorch(value: float, where: str) -> None:
    x = torch.randn(4, 3, 8, 8)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    output_grad = torch.randn(4, 5, 6, 6)
    (x if where == "x" else output_grad)[1, 2, 4, 4] = value
    exact = torch.autograd.grad(F.conv2d(x, weight), weight, output_grad)[0]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        y = conv(x, weight, weight_vjp=Spatial(0.25), generator=generator)
        grad = torch.autograd.grad(y, weight, output_grad)[0]
        bad, expected = ~grad.isfinite(), ~exact.isfinite()
        # The mean is always kept, so a bad value is never missed: the same (output, input) channel pairs are hit.
        assert torch.equal(bad.flatten(2).any(2), expected.flatten(2).any(2))


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_in_finite_out(estimator: Estimator, dtype: torch.dtype) -> None:
    x = (torch.randn(4, 3, 8, 8) * 100).to(dtype)
    weight = torch.randn(5, 3, 3, 3).to(dtype).requires_grad_()
    y = conv(x, weight, weight_vjp=estimator)
    assert torch.autograd.grad(y, weight, torch.zeros_like(y))[0].eq(0).all()
    assert torch.autograd.grad(conv(x, weight, weight_vjp=estimator), weight, torch.ones_like(y))[0].isfinite().all()


def test_autocast_computes_and_holds_what_pytorch_would() -> None:
    x, weight = torch.randn(4, 8, 9, 9), torch.randn(6, 8, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, held = held_by(lambda: conv(x, weight, weight_vjp=Spatial(0.25)), apart_from=(weight,))
        assert y.dtype is torch.bfloat16 and torch.equal(y, F.conv2d(x, weight))
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32
    assert held <= 0.25 * x.nbytes / 2 + 8


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_uses_one_sample(reentrant: bool) -> None:
    """The recomputed sketch and the sample used in backward belong together: the estimate stays unbiased."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(F.conv2d(x, weight, None, 1, 1).square().sum(), weight)[0]
    draws = []
    for _ in range(300):
        y = checkpoint(lambda x: conv(x, weight, None, 1, 1, weight_vjp=Spatial(0.25)), x, use_reentrant=reentrant)
        weight.grad = None
        y.square().sum().backward()
        assert weight.grad is not None
        draws.append(weight.grad)
    stack = torch.stack(draws)
    z = (stack.mean(0) - exact).abs() / (stack.std(0) / 300**0.5)
    assert z.max() < 5.5  # Bonferroni over 54 entries: error probability 2e-6


@pytest.mark.parametrize("padding", [((1, 2), (0, 1)), [[0, 3], [2, 0]], ((1, -1), (0, 1))], ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_uneven_padding(padding: Any, batched: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 8)[slice(None) if batched else 0].requires_grad_()
    weight, bias = torch.randn(6, 3, 3, 2, requires_grad=True), torch.randn(6, requires_grad=True)
    expected = F.conv2d(F.pad(x, [*padding[1], *padding[0]]), weight, bias, stride=2)
    output_grad = torch.randn_like(expected)
    exact = torch.autograd.grad(expected, (x, weight, bias), output_grad)

    def gradients(keep: float) -> tuple[Tensor, ...]:
        y = conv(x, weight, bias, 2, padding, weight_vjp=Spatial(keep), input_vjp=Spatial(keep))
        assert torch.equal(y, expected)
        return torch.autograd.grad(y, (x, weight, bias), output_grad)

    assert all(map(torch.equal, gradients(1), exact))
    draws = [torch.stack(found) for found in zip(*(gradients(0.5)[:2] for _ in range(200)), strict=True)]
    for stack, gradient in zip(draws, exact, strict=False):
        error = (stack.mean(0) - gradient).abs()
        assert ((error < 5.5 * stack.std(0) / 200**0.5 + 1e-5) | (error < 1e-4)).all()


def test_retain_graph_repeats_the_estimate() -> None:
    x, weight = torch.randn(4, 3, 9, 9), torch.randn(8, 3, 3, 3, requires_grad=True)
    loss = conv(x, weight, weight_vjp=Spatial(0.25)).square().sum()
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight)[0])


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, "a", None, float("nan"), True])
@pytest.mark.parametrize("make", [Spatial, Axes, Channels, Batch, LowResolution, NormSpatial, NormChannels, Projection])
def test_bad_keep_rates_are_named(make: Any, keep: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{make.__name__}: keep={keep!r}, expected a number in \(0, 1\]$"):
        make(keep=keep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_vjp": Batch(0.5)},
            r"input_vjp=Batch\(keep=0.5, bernoulli=False, center=False\): Batch serves only weight_vjp",
        ),
        ({"input_vjp": Rounding(4)}, r"input_vjp=Rounding\(bits=4, .*: Rounding serves only weight_vjp"),
        ({"weight_vjp": "spatial"}, r"weight_vjp='spatial': expected an estimator such as"),
        ({"groups": 2}, r"input channels=3: expected a positive multiple of groups=2"),
        ({"groups": 3}, r"weight: shape \(6, 3, 3, 3\), expected \(6, 1, 3, 3\) for 3 input channels in groups=3"),
        ({"stride": 0}, r"stride=0: expected one integer >= 1, or 2 of them"),
        ({"stride": 2, "padding": "same"}, r"padding='same': needs stride 1"),
        ({"padding": "half"}, r"padding='half': expected 'same', 'valid'"),
        ({"stride": 1.5}, r"stride=1.5: expected an integer or one per dimension"),
        ({"stride": (1, 1.0)}, r"stride=\(1, 1.0\): expected"),
        ({"padding": None}, r"padding=None: expected an integer"),
        ({"padding": 1.5}, r"padding=1.5: expected an integer"),
        ({"padding": ((1, 2), (0.5, 1))}, r"padding=\(\(1, 2\), \(0.5, 1\)\): expected 2 pairs"),
        ({"padding": ((1, 2),)}, r"padding=\(\(1, 2\),\): expected 2 pairs"),
        ({"generator": 3}, r"generator=3: expected a torch.Generator or None"),
        ({"bias": torch.zeros(3)}, r"bias: shape \(3,\), expected \(6,\)"),
        ({"bias": 1.0}, r"bias: float, expected a torch.Tensor"),
        ({"x": np.zeros((2, 3, 8, 8))}, r"x: ndarray, expected a torch.Tensor"),
        ({"dilation": 9}, r"kernel_size=\(3, 3\) with dilation=\(9, 9\): larger than the padded input"),
    ],
)
def test_bad_arguments_end_in_one_line(options: dict[str, Any], message: str) -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(6, 3, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=message) as error:
        conv(**{"x": x, "weight": weight, **options})
    assert "\n" not in str(error.value)


def test_wrong_ranks_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: shape \(8, 8\), expected 4 dimensions, or 3 without a batch"):
        conv(torch.randn(8, 8), torch.randn(6, 3, 3, 3))
    with pytest.raises(ValueError, match=r"weight: shape \(6, 3\), expected"):
        conv(torch.randn(2, 3, 8), torch.randn(6, 3))
    with pytest.raises(ValueError, match="complex"):
        conv(torch.randn(2, 3, 8, dtype=torch.cfloat), torch.randn(6, 3, 3, dtype=torch.cfloat, requires_grad=True))


def test_gradients_reach_what_lies_below() -> None:
    """Chained estimated convolutions give an unbiased gradient of the first weight."""
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    first = (torch.rand(3, 2, 3, 3, dtype=torch.float64) - 0.3).requires_grad_()
    second = (torch.rand(2, 3, 3, 3, dtype=torch.float64) - 0.3).requires_grad_()

    def loss(estimated: bool) -> Tensor:
        options: Any = {"weight_vjp": Spatial(0.3), "input_vjp": Spatial(0.5)} if estimated else {"weight_vjp": Exact()}
        hidden = nn.functional.gelu(conv(x, first, None, 1, 1, **options))
        return conv(hidden, second, None, 2, 1, **options).square().sum()

    exact = torch.autograd.grad(loss(False), first)[0]
    draws = torch.stack([torch.autograd.grad(loss(True), first)[0] for _ in range(500)])
    z = (draws.mean(0) - exact).abs() / (draws.std(0) / 500**0.5)
    assert z.max() < 5.5  # Bonferroni over 54 entries: error probability 2e-6


@pytest.mark.parametrize(
    ("batch", "kernel", "stride", "padding", "groups"),
    [(16, 3, 1, 1, 1), (13, 3, 1, 1, 1), (19, (1, 4), 1, (0, 1), 4), (16, 1, 1, 0, 1), (67, 5, 2, 0, 32)],
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_large_forward_pass_in_parts_is_pytorchs_bit_for_bit(
    batch: int, kernel: Any, stride: int, padding: Any, groups: int, format: torch.memory_format
) -> None:
    layer = nn.Conv2d(32, 32, kernel, stride, padding, groups=groups)
    x = torch.randn(batch, 32, 72, 72, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=format)
    whole = layer(x.requires_grad_())
    assert whole.numel() > native.LARGE
    with randbp.randomize(layer, Spatial(keep=0.1)):
        found = layer(x)
    assert torch.equal(found, whole) and found.stride() == whole.stride()
