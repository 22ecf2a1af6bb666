"""Which modules are layers, and which calls are theirs."""

import functools
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import conv2d as convolve
from torch.nn.utils import parametrizations, prune

from randbp.layers import Layer, LayerCall, LayerCalls, is_convolution, layer, runs_pytorchs_forward, weights
from tests.randomize.test_own_forward import Product, SamePadded, Upsampling


class Imported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self.kernel)


class ByModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, input: Tensor) -> Tensor:
        return (lambda kernel: functional.conv2d(input, kernel) + torch.nn.functional.relu(kernel).sum())(self.kernel)


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, 3, 3))

    @logged
    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self.kernel)


class NotOne(nn.Module):
    """Has a parameter of two dimensions and layers as attributes, but calls no function itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 6))
        self.linear, self.conv2d = nn.Linear(6, 6), nn.Conv2d(3, 3, 3)

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(input + self.positions)


class Scale(nn.Module):
    """Calls a function with a parameter that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.scale)


@pytest.mark.parametrize(
    ("module", "expected", "pytorchs"),
    [
        (nn.Conv3d(1, 1, 1), Layer(True), True),
        (nn.ConvTranspose1d(1, 1, 1), Layer(True), True),
        (nn.Linear(1, 1), Layer(False), True),
        (parametrizations.spectral_norm(nn.Linear(2, 2)), Layer(False), True),
        (parametrizations.weight_norm(Upsampling()), Layer(True), False),
        (prune.l1_unstructured(nn.Conv2d(1, 1, 2), "weight", 0.5), Layer(True), True),
        (SamePadded(1, 1, 1), Layer(True), False),
        (Product(2, 2), Layer(False), False),
        (Imported(), Layer(True), False),
        (ByModule(), Layer(True), False),
        (Decorated(), Layer(True), False),
        (NotOne(), None, False),
        (Scale(), None, False),
        (nn.Embedding(2, 2), None, False),
        (nn.LSTM(2, 2), None, False),
        (nn.Bilinear(2, 2, 2), None, False),
        (nn.Sequential(nn.Linear(2, 2)), None, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_a_layer(module: nn.Module, expected: Layer | None, pytorchs: bool) -> None:
    assert layer(module) == expected and runs_pytorchs_forward(module) == pytorchs
    assert is_convolution(module) == (expected is not None and expected.convolution)


def test_why_a_layer_stays_exact() -> None:
    attention = nn.MultiheadAttention(4, 2)
    for module in (nn.LazyConv2d(3, 3), nn.LazyLinear(3), attention, attention.out_proj):
        found = layer(module)
        assert found is not None and found.exact


def test_methods_put_into_a_layer() -> None:
    for name in ("forward", "_conv_forward"):
        module = nn.Conv2d(1, 1, 1)
        setattr(module, name, MethodType(lambda self, *args: args[0], module))
        assert layer(module) == Layer(True) and not runs_pytorchs_forward(module)
        delattr(module, name)
        assert runs_pytorchs_forward(module)


def test_weights() -> None:
    made = parametrizations.weight_norm(nn.Linear(3, 2))
    assert torch.equal(weights(made)[0], made.weight) and len(weights(made)) == 1
    normed = parametrizations.weight_norm(Upsampling())
    assert {id(weight) for weight in weights(normed)} == {id(p) for p in normed.parameters()}
    assert [weight.shape for weight in weights(Product(3, 2))] == [(3, 2)]


class Calls(nn.Linear):
    """Runs what it is given with its weight."""

    def forward(self, run: Any) -> Tensor:
        result: Tensor = run(self.weight, self.bias)
        return result


X = torch.arange(12.0).view(4, 3)

SEEN = {
    "linear": lambda w, b: F.linear(X, w, b),
    "keywords": lambda w, b: F.linear(weight=w, input=X),
    "masked": lambda w, b: F.linear(X, w * (X[:2] > 1), b),
    "padded": lambda w, b: F.conv1d(X.t()[None], F.pad(w[..., None], (0, 1)), b),
    "addmm": lambda w, b: torch.addmm(b, X, w.t()),
    "method": lambda w, b: b.addmm(X, w.t()),
    "names of addmm": lambda w, b: torch.addmm(input=b, mat1=X, mat2=w.t()),
    "operator": lambda w, b: X @ w.t(),
    "general": lambda w, b: torch.convolution(X.t()[None], w.view(2, 3, 1), b, [1], [0], [1], False, [0], 1),
    "transposed": lambda w, b: F.conv_transpose1d(X[:2][None], w[..., None], dilation=2),
}

UNSEEN = {
    "another weight": lambda w, b: F.linear(X, torch.ones(2, 3, requires_grad=True)),
    "made from others, too": lambda w, b: F.linear(X, w * torch.ones(1, requires_grad=True)),
    "as an input": lambda w, b: torch.addmm(b, torch.einsum("dc,de->ce", w, w), torch.ones(3, 2)),
    "scaled": lambda w, b: torch.addmm(b, X, w.t(), alpha=2),
    "added to a matrix": lambda w, b: torch.addmm(torch.ones(4, 2), X, w.t()),
    "without grad": lambda w, b: torch.no_grad()(F.linear)(X, w),
}


@pytest.mark.parametrize("name", [*SEEN, *UNSEEN])
def test_which_calls_are_seen(name: str) -> None:
    """Calls are seen with their weight as PyTorch's modules have it, and their results are what they were."""
    module, calls = Calls(3, 2), list[LayerCall]()
    run = (SEEN | UNSEEN)[name]
    expected = module(run)

    def answer(call: LayerCall) -> Tensor:
        calls.append(call)
        return call.run()

    with LayerCalls(module, answer):
        found = module(run)
    assert torch.equal(found, expected) and len(calls) == (name in SEEN)
    for call in calls:
        again = call.function.native(call.input, call.weight, call.bias)
        torch.testing.assert_close(again.view_as(expected), expected)


@pytest.mark.parametrize(
    "run", [lambda w, b: F.linear(X, w, b, 3), lambda w, b: F.linear(X), lambda w, b: F.linear(None, w)]
)
def test_wrong_calls_get_pytorchs_error(run: Any) -> None:
    module = Calls(3, 2)
    with pytest.raises(TypeError) as expected:
        module(run)
    with LayerCalls(module, lambda call: call.run()), pytest.raises(TypeError) as found:
        module(run)
    assert str(found.value) == str(expected.value)
