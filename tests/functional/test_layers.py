"""Layers of all kinds: exact where they promise to be, and frugal where they estimate."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
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
from randbp.estimators import Draw, chunks, drawn_rows, precision
from randbp.functional import conv, conv_transpose, linear
from randbp.tn import LayerSpec
from tests.cases import Case, cases, linear_cases, transposed_cases
from tests.catalogue import EXACT_AT_ONE, FIXED_SIZE, EstimatorCase
from tests.functional.observe import LargestAllocation, held_by

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ANY = st.one_of(cases(), transposed_cases(), linear_cases())
LAYERS: dict[str, Any] = {  # name: the layer, PyTorch's layer, shapes of input and weight
    "convolution": (
        lambda x, w, **options: conv(x, w, None, 1, 1, **options),
        lambda x, w: F.conv2d(x, w, None, 1, 1),
        (64, 32, 16, 16),
        (4, 32, 3, 3),
    ),
    "channels last": (
        lambda x, w, **options: conv(x, w, None, 2, 1, **options),
        lambda x, w: F.conv2d(x, w, None, 2, 1),
        (64, 32, 16, 16),
        (4, 32, 3, 3),
    ),
    "transposed": (
        lambda x, w, **options: conv_transpose(x, w, None, 2, 1, 1, **options),
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1),
        (16, 32, 16, 16),
        (32, 4, 3, 3),
    ),
    "linear": (linear, F.linear, (2048, 256), (8, 256)),
    "sequence": (linear, F.linear, (16, 128, 64), (8, 64)),
}


def both(estimator: Estimator) -> dict[str, Estimator]:
    """The estimator for every VJP that it serves."""
    return {"weight_vjp": estimator, "input_vjp": estimator if "input_vjp" in estimator.serves else Exact()}


def layer(name: str, seed: int = 0) -> tuple[Any, Any, Tensor, Tensor]:
    estimated, native, *shapes = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=generator) for shape in shapes)
    if name == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    return estimated, native, x.requires_grad_(), weight.requires_grad_()


@given(case=ANY, dtype=st.sampled_from(DTYPES), made=st.sampled_from(EXACT_AT_ONE))
@settings(max_examples=100)
def test_keep_one_is_pytorch_bit_for_bit(case: Case, dtype: torch.dtype, made: EstimatorCase) -> None:
    assume(case.is_defined(dtype))
    x, weight, bias = case.tensors(dtype)
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    native = case.native(x, weight, bias)
    output_grad = case.output_grad(native)
    expected = torch.autograd.grad(native, inputs, output_grad)
    output = case.estimated(x, weight, bias, weight_vjp=made.make(1), input_vjp=made.make(1))
    assert torch.equal(output, native)
    for grad, exact in zip(torch.autograd.grad(output, inputs, output_grad), expected, strict=True):
        assert torch.equal(grad, exact)


@given(case=ANY, dtype=st.sampled_from(DTYPES), estimator=st.sampled_from(FIXED_SIZE), estimates_weight=st.booleans())
@settings(max_examples=150)
def test_what_is_not_estimated_is_exact(
    case: Case, dtype: torch.dtype, estimator: Estimator, estimates_weight: bool
) -> None:
    x, weight, bias = case.tensors(dtype)
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    native = case.native(x, weight, bias)
    output_grad = case.output_grad(native)
    expected = torch.autograd.grad(native, inputs, output_grad)
    if not estimates_weight and "input_vjp" not in estimator.serves:
        estimator = Spatial(0.5)
    chosen = {"weight_vjp": estimator} if estimates_weight else {"weight_vjp": Exact(), "input_vjp": estimator}
    output = case.estimated(x, weight, bias, **chosen)
    assert torch.equal(output, native)
    grads = torch.autograd.grad(output, inputs, output_grad)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for number in (0 if estimates_weight else 1, *range(2, len(inputs))):
        torch.testing.assert_close(grads[number], expected[number], rtol=tolerance, atol=tolerance)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_without_grad_mode_it_is_pytorch(name: str, estimator: Estimator) -> None:
    estimated, native, x, weight = layer(name)
    with torch.no_grad():
        output, held = held_by(lambda: estimated(x, weight, weight_vjp=estimator))
        assert torch.equal(output, native(x, weight)) and held == 0 and not output.requires_grad
    with torch.inference_mode():
        assert torch.equal(estimated(x, weight, weight_vjp=estimator), output)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unbatched_transposed_convolutions_and_lists(dims: int) -> None:
    x = torch.randn(4, *[5] * dims, requires_grad=True)
    weight = torch.randn(4, 3, *[3] * dims, requires_grad=True)
    native = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    arguments = (None, [2] * dims, 1, [1] * dims, 2, 1)
    output = conv_transpose(x, weight, *arguments, **both(Spatial(0.5)))
    assert torch.equal(output, native(x, weight, *arguments))
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and weight.grad.shape == weight.shape


@pytest.mark.parametrize("keep", [1 / 2, 1 / 4, 1 / 8, 1 / 16])
@pytest.mark.parametrize("make", [Spatial, Axes, Channels, Batch, LowResolution, NormSpatial, NormChannels, Projection])
@pytest.mark.parametrize("name", LAYERS)
def test_held_bytes_of_a_real_layer(name: str, make: Any, keep: float) -> None:
    estimated, _, x, weight = layer(name)
    _, held = held_by(lambda: estimated(x, weight, weight_vjp=make(keep)), apart_from=(weight,))
    assert 0.8 * keep * x.nbytes <= held <= 1.02 * keep * x.nbytes


@given(case=ANY, which=st.integers(0, 3), keep=st.sampled_from([0.1, 0.25, 0.5, 0.9]))
@settings(max_examples=250)
def test_held_bytes_stay_within_the_keep_rate(case: Case, which: int, keep: float) -> None:
    estimator = [Spatial(keep), Spatial(keep, center=False), Axes(keep), Batch(keep)][which]
    x, weight, bias = case.tensors()
    _, held = held_by(lambda: case.estimated(x, weight, bias, weight_vjp=estimator), apart_from=(weight,))
    seed, one_position = 8, 8 * case.groups * case.inner
    least = x.nbytes // max(1, case.batch) if isinstance(estimator, Batch) else one_position
    if isinstance(estimator, Axes):  # at least one coordinate of every axis
        positions = x.numel() // (case.groups * case.inner)
        least = one_position * positions // min(case.input_size, default=1)
    assert held - seed <= max(1.02 * keep * x.nbytes, least)


def test_nothing_is_held_for_gradients_that_nobody_needs() -> None:
    for name in LAYERS:
        estimated, _, x, weight = layer(name)
        options = both(Spatial(0.25))
        frozen = weight.detach()
        for some in (options, {"weight_vjp": Spatial(0.25)}):  # PyTorch's layer would hold the input
            assert held_by(lambda: estimated(x, frozen, **some), apart_from=(frozen,))[1] <= 8  # the seed  # noqa: B023
        assert held_by(lambda: estimated(x.detach(), frozen, **options))[1] == 0  # noqa: B023
        _, first = held_by(lambda: estimated(x.detach(), weight, **options))  # noqa: B023
        assert 0 < first <= 0.25 * x.nbytes + 8


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_no_second_copy_of_the_input(name: str, estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LITTLE", 0)  # inputs as small as here are decoded in one piece
    for module in (precision, drawn_rows):
        monkeypatch.setattr(module, "TOGETHER", 2**14)
    estimated, _, x, weight = layer(name)
    x = x.detach()
    with LargestAllocation() as largest:
        estimated(x, weight, weight_vjp=estimator).sum().backward()
    assert largest.bytes <= 0.6 * x.nbytes


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_global_random_state_is_untouched_and_generators_repeat(name: str, estimator: Estimator) -> None:
    estimated, _, x, weight = layer(name)

    def grads(**options: Any) -> tuple[Tensor, ...]:
        y = estimated(x[:24], weight, **both(estimator), **options)
        return torch.autograd.grad(y.square().sum(), (weight, x))

    before = torch.get_rng_state()
    first, again, other = (grads(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    randbp.manual_seed(5)
    stream = grads(), grads()
    randbp.manual_seed(5)
    assert all(torch.equal(one[0], grads()[0]) for one in stream) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(stream[0][0], stream[1][0])
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_two_vjps_of_a_call_draw_apart() -> None:
    draws = set()

    class Noted(Channels):
        def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
            draws.add(draw)
            return super().sketch(input, spec, draw)

        def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
            draws.add(draw)
            return super().input_vjp(output_grad, weight, spec, draw)

    estimated, _, x, weight = layer("convolution")
    estimated(x, weight, **both(Noted(0.5))).sum().backward()
    assert len(draws) == 2


@pytest.mark.parametrize("needed", ["weight and input", "weight", "input"])
@pytest.mark.parametrize("name", LAYERS)
def test_double_backward_raises(name: str, needed: str) -> None:
    estimated, _, x, weight = layer(name)
    tensors = [tensor.requires_grad_(kind in needed) for kind, tensor in (("weight", weight), ("input", x))]
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    y = estimated(x, weight, **both(Spatial(0.5)))
    for grad in torch.autograd.grad(y.square().sum(), wanted, create_graph=True):  # V_W depends on X, V_X on W
        for tensor in wanted:
            with pytest.raises(RuntimeError, match="double backward through estimated VJPs"):
                torch.autograd.grad(grad.square().sum(), tensor, retain_graph=True)
    exact = torch.autograd.grad(estimated(x, weight, **both(Spatial(1))).square().sum(), wanted, create_graph=True)
    torch.autograd.grad(sum(grad.square().sum() for grad in exact), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "output_grad"])
@pytest.mark.parametrize("name", LAYERS)
def test_non_finite_values_show_where_they_do_in_pytorch(name: str, where: str, value: float) -> None:
    estimated, native, x, weight = layer(name)
    x = x.detach()
    output_grad = torch.randn_like(native(x, weight))
    channel = 1 if x.dim() == 4 else -1
    (x if where == "x" else output_grad).select(0, 3).select(channel if channel < 0 else 0, 2).fill_(value)
    exact = torch.autograd.grad(native(x, weight), weight, output_grad)[0]
    for seed in range(5):
        y = estimated(x, weight, generator=torch.Generator().manual_seed(seed))
        grad = torch.autograd.grad(y, weight, output_grad)[0]
        bad, expected = ~grad.isfinite(), ~exact.isfinite()
        assert torch.equal(bad.view(*bad.shape[:2], -1).any(2), expected.view(*bad.shape[:2], -1).any(2))


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_in_finite_out(name: str, estimator: Estimator, dtype: torch.dtype) -> None:
    estimated, _, x, weight = layer(name)
    x, weight = (10 * x[:8].detach()).to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
    y = estimated(x, weight, **both(estimator))
    for grad in torch.autograd.grad(y, (x, weight), torch.zeros_like(y)):
        assert grad.eq(0).all()
    y = estimated(x, weight, **both(estimator))
    for grad in torch.autograd.grad(y, (x, weight), torch.full_like(y, 0.01)):
        assert grad.isfinite().all() and grad.dtype is dtype


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_computes_and_holds_what_pytorch_would(name: str) -> None:
    estimated, native, x, weight = layer(name)
    x = x.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, held = held_by(lambda: estimated(x, weight), apart_from=(weight,))
        assert y.dtype is torch.bfloat16 and torch.equal(y, native(x, weight))
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32
    assert held <= 0.25 * x.nbytes / 2 + 8


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_activation_checkpointing_uses_one_sample(name: str, reentrant: bool) -> None:
    """Were the recomputed sketch and the backward pass to draw apart, no estimate would be near the gradient."""
    estimated, native, x, weight = layer(name)
    exact = torch.autograd.grad(native(x, weight).square().sum(), weight)[0]
    y = checkpoint(lambda x: estimated(x, weight, weight_vjp=Spatial(0.5)), x, use_reentrant=reentrant)
    y.square().sum().backward()
    assert weight.grad is not None and 0 < (weight.grad - exact).norm() < 0.35 * exact.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("pytorchs", "estimated"), [(F.conv2d, conv), (F.conv_transpose2d, conv_transpose)])
def test_channels_last_leaves_the_other_gradient_exact(pytorchs: Any, estimated: Any, stride: int) -> None:
    x = torch.randn(4, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    native = pytorchs(x, weight, None, stride, 1)
    output_grad = torch.randn_like(native)
    expected = torch.autograd.grad(native, (x, weight), output_grad)
    output = estimated(x, weight, None, stride, 1, weight_vjp=Spatial(0.25))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.autograd.grad(output, x, output_grad)[0], expected[0])
    output = estimated(x, weight, None, stride, 1, weight_vjp=Exact(), input_vjp=Spatial(0.25))
    torch.testing.assert_close(torch.autograd.grad(output, weight, output_grad)[0], expected[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_weight", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_are_pytorchs(
    estimator: Estimator, memory_format: torch.memory_format, of_weight: torch.memory_format
) -> None:
    x = torch.randn(8, 8, 9, 9).contiguous(memory_format=memory_format).requires_grad_()
    for kernel in (1, 3):
        weight = torch.randn(8, 8, kernel, kernel).contiguous(memory_format=of_weight).requires_grad_()
        for native, estimated in ((F.conv2d, conv), (F.conv_transpose2d, conv_transpose)):
            expected = native(x, weight)
            output = estimated(x, weight, **both(estimator))
            output_grad = torch.randn_like(expected)
            grads = torch.autograd.grad(output, (x, weight), output_grad)
            exact = torch.autograd.grad(expected, (x, weight), output_grad)
            assert output.stride() == expected.stride()
            assert of_weight != memory_format or grads[0].stride() == exact[0].stride()
            assert grads[0].is_contiguous(memory_format=memory_format)
            assert grads[1].is_contiguous(memory_format=of_weight)  # nothing is left to copy


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "channels last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_gradients_in_the_parameters_precision(
    name: str, estimator: Estimator, dtype: torch.dtype
) -> None:
    estimated, native, x, weight = layer(name)
    x = x[:8].detach().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = estimated(x, weight, **both(estimator))
        assert y.dtype is dtype and torch.equal(y, native(x, weight))
    for grad, tensor in zip(torch.autograd.grad(y, (x, weight), torch.full_like(y, 0.01)), (x, weight), strict=True):
        assert grad.dtype is torch.float32 and grad.stride() == tensor.stride() and grad.isfinite().all()


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_autocast_does_not_reach_what_is_held(dims: int, estimator: Estimator) -> None:
    """Autocast would run some functions, such as `avg_pool3d`, in float32: what is held would grow and not fit."""
    x, weight = torch.randn(4, 8, *[5] * dims), torch.randn(4, 8, *[3] * dims, requires_grad=True)
    half = weight.detach().bfloat16().requires_grad_()
    _, expected = held_by(lambda: conv(x.bfloat16(), half, weight_vjp=estimator), apart_from=(half,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, held = held_by(lambda: conv(x, weight, weight_vjp=estimator), apart_from=(weight,))
    y.sum().backward()
    if estimator == Precision():  # layers of 16 bits are PyTorch's, which holds the weight's copy, too
        expected += half.nbytes
    assert held == expected and weight.grad is not None


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_memory_order_does_not_change_the_estimate(estimator: Estimator) -> None:
    for name in ("transposed", "linear", "sequence"):
        estimated, native, x, weight = layer(name)
        x, output_grad = x.detach()[:8], torch.randn_like(native(x, weight)[:8])
        grads = []
        for turned in (False, True):
            kept, grad = x.clone(), output_grad
            if turned:  # batch last in memory
                kept, grad = (t.movedim(0, -1).contiguous().movedim(-1, 0) for t in (x, output_grad))
            kept.requires_grad_()
            y = estimated(kept, weight, **both(estimator), generator=torch.Generator().manual_seed(0))
            grads.append(torch.autograd.grad(y, (weight, kept), grad))
        for left, right in zip(*grads, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=5e-4)  # sums in another order


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: conv_transpose(x, w, groups=2), r"weight: shape \(6, 4, 3, 3\), .* with C = 3 input channels"),
        (lambda x, w: conv_transpose(x, w[:3], groups=2), r"with C = 3 input channels, a multiple of groups=2"),
        (lambda x, w: conv_transpose(x, w[:3], groups=0), r"groups=0: expected a positive integer"),
        (lambda x, w: conv_transpose(x, w[:3], stride=0), r"stride=0: expected one integer >= 1, or 2 of them"),
        (lambda x, w: conv_transpose(x, w[:3], output_padding=1), r"output_padding=\(1, 1\): must be less than stride"),
        (lambda x, w: conv_transpose(x, w[:3], padding=9), r"padding=\(9, 9\): leaves no output"),
        (lambda x, w: conv_transpose(x, w[:3], padding="same"), r"padding='same': expected an integer or one per"),
        (lambda x, w: conv_transpose(x[0, 0], w), r"x: shape \(8, 8\), expected 4 dimensions, or 3 without a batch"),
        (lambda x, w: conv_transpose(x, w[0, 0]), r"weight: shape \(3, 3\), expected \(C, D / groups, \*K\)"),
        (lambda x, w: conv_transpose(x, w[:3], input_vjp=Batch(0.5)), r"input_vjp=Batch.*: Batch serves only weight"),
        (lambda x, w: conv_transpose(x, w[:3], weight_vjp=0.5), r"weight_vjp=0.5: expected an estimator"),
        (lambda x, w: linear(x, w), r"weight: shape \(6, 4, 3, 3\), expected \(D, C\)"),
        (lambda x, w: linear(x, w[0, 0]), r"x: shape \(2, 3, 8, 8\), expected .* with C = 3"),
        (lambda x, w: linear(x, torch.randn(2, 8), input_vjp=Rounding(4)), r"Rounding serves only weight_vjp"),
        (lambda x, w: linear(x.cfloat(), torch.randn(2, 8).cfloat().requires_grad_()), r"x: dtype torch.complex64"),
    ],
)
def test_bad_arguments_end_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(torch.randn(2, 3, 8, 8), torch.randn(6, 4, 3, 3, requires_grad=True))
    assert "\n" not in str(error.value)


def test_an_empty_linear_layer_is_pytorchs() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    output = linear(torch.zeros(0, 4), weight)
    output.sum().backward()
    assert output.shape == (0, 3) and weight.grad is not None and weight.grad.eq(0).all()


def test_the_mean_over_examples_is_kept_exactly_on_vectors() -> None:
    """A linear layer on vectors samples examples; with their mean as control variate, equal examples have no error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, generator=generator).expand(64, 16) + 0.01 * torch.randn(64, 16, generator=generator)
    weight = torch.randn(8, 16, generator=generator, requires_grad=True)
    output_grad = torch.randn(64, 8, generator=generator)
    exact = output_grad.t() @ x

    def error(estimator: Estimator) -> float:
        y = linear(x, weight, weight_vjp=estimator, generator=torch.Generator().manual_seed(1))
        return float((torch.autograd.grad(y, weight, output_grad)[0] - exact).norm() / exact.norm())

    assert error(Spatial(0.25)) < 0.05 < 0.5 < error(Spatial(0.25, center=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9,), (7, 9), (300, 9), (4, 33, 9), (8, 200, 9), (2, 3, 5, 9), (300, 1, 9)])
def test_bias_gradients_of_linear_layers_are_pytorchs_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(size, generator=generator).to(dtype) for size in (shape, (24, 9), (24,), (*shape[:-1], 24))
    )
    for output_grad in (grad, grad.transpose(0, -2).contiguous().transpose(0, -2) if grad.dim() > 1 else grad):
        leaves = [tensor.clone().requires_grad_() for tensor in (weight, bias)]
        for input_vjp in (Exact(), Channels(keep=0.5)):
            ours = linear(x, *leaves, weight_vjp=Spatial(keep=0.5), input_vjp=input_vjp)
            mine, other = (torch.autograd.grad(y, leaves, output_grad)[1] for y in (ours, F.linear(x, *leaves)))
            assert torch.equal(mine, other)
