"""What lean mode holds exactly gives PyTorch's values and gradients, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import Call, assert_same, lean, values_and_grads

FORMATS = ["contiguous", "channels_last", "transposed", "sliced"]
ORDERS = (torch.contiguous_format, torch.channels_last)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, float("nan"), float("inf"), -float("inf"), 0.5, 2.0]


def tensor(format: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 5, 7, 6)) -> Tensor:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    x.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)  # the kinks themselves, and what is not a number
    if format == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif format == "transposed":
        x = x.permute(1, 3, 0, 2)
    elif format == "sliced":
        x = x[:, ::2, 1:]
    return x.requires_grad_()


KINKS = {
    "relu": F.relu,
    "relu inplace": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "relu_ of a part": lambda x: x[:, 1:3].relu_() + 1,
    "relu6": F.relu6,
    "relu6 inplace": lambda x: F.relu6(x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu inplace": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "threshold": lambda x: F.threshold(x, 0.5, 7.0),
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: x.clamp(-1, 0.5),
    "clamp min": lambda x: torch.clamp(x, min=0),
    "clamp max": lambda x: torch.clamp(x, max=0.5),
    "clamp_min": lambda x: x.clamp_min(-1),
    "clamp_": lambda x: x.clamp_(-1, 0.5),
    "clamp_, a statement": lambda x: (x.clamp_(-1, 0.5), x)[1],
    "clip_": lambda x: torch.clip_(x, max=2.0),
    "clamp_min_": lambda x: x.clamp_min_(-1),
    "clamp_max_": lambda x: torch.clamp_max_(x, 2.0),
    "clamp_max": lambda x: torch.clamp_max(x, 2.0),
    "clip": lambda x: x.clip(0, 1),
}


OUT_OF_PLACE = [name for name in KINKS if not ("place" in name or "_," in name or "part" in name or name.endswith("_"))]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", KINKS)
def test_activations_with_a_kink(name: str, format: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = tensor(format, dtype)
        if "tanh" in name or "relu6" in name:  # PyTorch's own kernels disagree about NaN there
            x = x.detach().nan_to_num(1.5).requires_grad_()
        assert_same(values_and_grads(lean(KINKS[name]), x), values_and_grads(KINKS[name], x))


@pytest.mark.parametrize("name", OUT_OF_PLACE)
def test_gradients_of_kinks_lie_in_memory_as_pytorchs_do(name: str) -> None:
    """Sums over them, such as the gradient of a bias, are taken in that order."""
    for order in ORDERS:
        whole = torch.randn(2, 6, 4, 5).contiguous(memory_format=order)
        for start, stop in ((0, 6), (1, 4), (3, 6)):
            for v in (
                *(torch.randn(2, stop - start, 4, 5).contiguous(memory_format=of) for of in ORDERS),
                torch.ones(()),
            ):
                found: list[Tensor] = []
                for function in (lean(KINKS[name]), KINKS[name]):
                    x = (whole + 0).requires_grad_()[:, start:stop]
                    x.register_hook(found.append)
                    function(x).backward(v.expand_as(x))
                assert torch.equal(*found) and found[0].stride() == found[1].stride()


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_holds_one_bit(name: str) -> None:
    x = torch.randn(2, 4, 16, 16)
    report = memory_report(lean(lambda x: KINKS[name](x + 1)), x.requires_grad_())
    entries = x.numel() // 2 if "part" in name else x.numel()
    assert report.held_bytes == entries // 8
    assert [row.operation for row in report.rows] == ["Piecewise"]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_dropout_draws_what_pytorch_draws(rate: float, inplace: bool, format: str) -> None:
    def dropout(x: Tensor) -> Tensor:
        return F.dropout(x, rate, training=True, inplace=inplace)

    x = torch.nan_to_num(tensor(format).detach(), 1, 2, 3).requires_grad_()
    assert_same(values_and_grads(lean(dropout), x), values_and_grads(dropout, x))
    big = torch.randn(2, 4, 16, 16).requires_grad_()
    held = memory_report(lean(lambda x: dropout(x + 1)), big).held_bytes
    assert held == {0.0: 0, 1.0: 4}.get(rate, big.numel() // 8)  # for 1 PyTorch holds a number


def test_dropout_of_a_network_that_does_not_train() -> None:
    x = torch.randn(4, 33).requires_grad_()
    assert torch.equal(lean(lambda x: F.dropout(x, 0.3, training=False))(x), x)


@st.composite
def poolings(draw: Any, average: bool) -> tuple[Tensor, dict[str, Any], int]:
    dims = draw(st.integers(1, 3))
    kernel = tuple(draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims)))
    stride = tuple(draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = tuple(draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims)))
    if average:
        dilation = (1,) * dims
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [draw(st.integers(least_size, least_size + 5)) for least_size in least]
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    x = torch.randn(*batch, 2, *size, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    if draw(st.booleans()):
        x = (2 * x).round()  # ties
    if draw(st.booleans()) and x.dim() in (4, 5) and batch:
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    options = dict(kernel_size=kernel, stride=draw(st.sampled_from([stride, None])), padding=padding)
    options["ceil_mode"] = draw(st.booleans())
    if average:
        options["count_include_pad"] = draw(st.booleans())
    else:
        options["dilation"] = dilation
    if draw(st.booleans()):
        options["kernel_size"] = kernel[0]
        options["padding"] = min(padding[0], kernel[0] // 2)
        options["stride"] = stride[0]
        if not average:
            options["dilation"] = 1
        x = F.pad(x, [0, 4] * dims)
    return x.requires_grad_(), options, dims


@given(poolings(average=False), st.booleans())
def test_max_pooling(pooling: tuple[Tensor, dict[str, Any], int], indices: bool) -> None:
    x, options, dims = pooling
    pool = getattr(F, f"max_pool{dims}d")

    def function(x: Tensor) -> Any:
        return pool(x, **options, return_indices=indices)

    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@given(poolings(average=True), st.sampled_from([None, 3]))
def test_average_pooling(pooling: tuple[Tensor, dict[str, Any], int], divisor: int | None) -> None:
    x, options, dims = pooling
    pool = getattr(F, f"avg_pool{dims}d")
    if dims > 1:
        options["divisor_override"] = divisor

    def function(x: Tensor) -> Tensor:
        return pool(x, **options)

    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@given(st.integers(1, 3), st.integers(0, 10), st.data(), st.sampled_from(["max", "avg"]))
def test_adaptive_pooling(dims: int, seed: int, data: Any, kind: str) -> None:
    size = [data.draw(st.integers(1, 20)) for _ in range(dims)]
    options = [st.integers(1, 7)] + ([st.none()] if dims > 1 else [])
    output = [data.draw(st.one_of(options)) for _ in range(dims)]
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    pool = getattr(F, f"adaptive_{kind}_pool{dims}d")
    wanted = output if dims > 1 else output[0]
    for options in [{}, {"return_indices": True}] if kind == "max" else [{}]:

        def function(x: Tensor, options: dict[str, Any] = options) -> Any:
            return pool(x, wanted, **options)

        assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


def test_large_and_dilated_windows() -> None:
    x = torch.randn(2, 3, 40, 41).requires_grad_()
    for options in ({"kernel_size": 19}, {"kernel_size": (3, 40)}, {"kernel_size": 5, "dilation": 8, "padding": 2}):

        def function(x: Tensor, options: dict[str, Any] = options) -> Tensor:
            return F.max_pool2d(x, **options)

        assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@pytest.mark.parametrize(
    ("function", "bits"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), 4 / 4),
        (lambda x: F.max_pool2d(x, 17, 1, 8), 16),
        (lambda x: F.adaptive_max_pool2d(x, 8), 16 / 16),
        (lambda x: x + x.flip(0), 0),
        (lambda x: F.interpolate(x, scale_factor=2).flatten(1), 0),
    ],
)
def test_bits_held_per_input_entry(function: Any, bits: float) -> None:
    x = torch.randn(2, 4, 32, 32).requires_grad_()
    assert memory_report(lean(lambda x: function(x + 1)), x).held_bytes == x.numel() * bits / 8


def test_second_derivatives_of_what_is_linear_in_pieces_are_zero() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    functions = [F.relu, F.relu6, F.hardtanh, F.leaky_relu, lambda x: F.threshold(x, 0.1, 0.2)]
    functions += [lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 3)]
    functions += [
        lambda x: F.adaptive_max_pool2d(x, 3),
        lambda x: F.max_pool1d(x.flatten(2), 3),
        lambda x: x.clamp(-1, 1),
    ]
    for function in functions:
        seconds = []
        for run in (function, lean(function)):
            (first,) = torch.autograd.grad(run(x * 1).sum(), x, create_graph=True)
            # (The gradient of clamp does not depend on its input in PyTorch.)
            seconds.append(torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.empty(0))
        assert_same(*([second] for second in seconds))


@pytest.mark.parametrize(
    "size", [(3,), None, (), (3, 3, 3), 2.5, "3", (None, 3), [3, None], (None, None), 0, -1, (2.0, 3)]
)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sizes_of_adaptive_poolings_mean_what_they_do_in_pytorch(dims: int, kind: str, size: Any) -> None:
    pool = getattr(F, f"adaptive_{kind}_pool{dims}d")

    def outcome(function: Any) -> Any:
        try:
            return function(torch.ones(2, 3, *[4] * dims, requires_grad=True) * 1).shape
        except Exception as error:
            return type(error), str(error)

    assert outcome(lean(lambda x: pool(x, size))) == outcome(lambda x: pool(x, size))


def test_kinds_of_tensors_without_a_lean_version_run_as_ever() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    model = Call(torch.relu)
    assert lean(torch.relu)(x.detach()).grad_fn is None
    assert torch.equal(torch.func.grad(lambda x: lean(torch.relu)(x).sum())(x), (x > 0).float())
    assert torch.equal(torch.func.vmap(lean(torch.relu))(x), model(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(lean(torch.relu)(dual)).tangent
    assert torch.equal(tangent, (x > 0).float())
    assert lean(torch.relu)(torch.empty(0, 3, requires_grad=True)).shape == (0, 3)


@pytest.mark.parametrize("slope", [0.0, -0.0, 0.3, -2.0])
def test_gradients_times_a_slope_keep_their_sign_and_what_is_not_finite(slope: float) -> None:
    x = torch.randn(64, 128, requires_grad=True)
    grad = torch.randn(64, 128)
    grad[::3, ::2], grad[::5, ::7] = torch.inf, torch.nan
    for inplace in (False, True):
        ours, theirs = lean(nn.LeakyReLU(slope, inplace and slope >= 0)), nn.LeakyReLU(slope, inplace and slope >= 0)
        assert_same(*([torch.autograd.grad(run(x * 1), x, grad)[0]] for run in (ours, theirs)))
