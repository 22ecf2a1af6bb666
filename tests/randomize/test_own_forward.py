"""randomize() on layers whose forward pass is not their class's own, or not PyTorch's."""

import copy
import functools
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import randbp
from randbp import Batch, Channels, Exact, Spatial
from tests.randomize.test_randomize import grads, same


class SamePadded(nn.Conv2d):
    """Pads in its own forward pass, as networks ported from TensorFlow do."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (var + 1e-5).sqrt()
        return self._conv_forward(input, weight, self.bias)


class Masked(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.rand(self.weight.shape) > 0.5)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class Product(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, input: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, input.view(-1, input.shape[-1]), self.weight)
        return flat.view(*input.shape[:-1], -1)


class Method(Product):
    def forward(self, input: Tensor) -> Tensor:
        return self.bias.addmm(input.flatten(0, 1), self.weight)


def upsample(input: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose1d(input, weight=weight, stride=2, groups=2)


class Upsampling(nn.Module):
    """Calls a function of its module, which calls PyTorch's with keywords; its weight is parametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 4))

    def forward(self, input: Tensor) -> Tensor:
        return upsample(input, weight=self.weight)


class Several(nn.Module):
    """Several calls with slices of one parameter, and results that are no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 5, 6))

    def forward(self, input: Tensor) -> dict[str, Any]:
        return {"both": [F.linear(input, weight) for weight in self.weight]}


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.several = Several()

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat(self.several(input)["both"], -1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "same padding": (lambda: nn.Sequential(SamePadded(3, 4, 2, dilation=1)), (6, 3, 7, 7)),
    "standardised": (lambda: nn.Sequential(Standardised(4, 6, 3, groups=2, padding="same")), (6, 4, 7, 7)),
    "masked": (lambda: nn.Sequential(Masked(6, 5)), (6, 7, 6)),
    "addmm": (lambda: nn.Sequential(Product(6, 5)), (6, 7, 6)),
    "method": (lambda: nn.Sequential(Method(6, 5)), (6, 7, 6)),
    "transposed": (lambda: nn.Sequential(Upsampling()), (6, 4, 9)),
    "parametrised": (lambda: nn.Sequential(parametrizations.weight_norm(Upsampling())), (6, 4, 9)),
    "several": (Joined, (6, 7, 6)),
}


@pytest.mark.parametrize(
    ("name", "lean"),
    [*((name, False) for name in MODELS), ("standardised", True), ("addmm", "exact"), ("several", True)],
)
def test_the_function_that_is_called_is_estimated(name: str, lean: Any) -> None:
    """Forward as before, gradients as autograd's in the mean over draws: each mean within 7 standard deviations."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape, requires_grad=True)
    expected, exact = model(x), grads(model, x)
    handle = randbp.randomize(model, Spatial(0.5), Channels(0.5), layers="*", lean=lean)
    assert list(handle.keep_rates.values()) == [0.5] and not handle.left_exact
    assert torch.equal(model(x), expected)
    drawn = [grads(model, x) for _ in range(100)]
    for column, correct in zip(zip(*drawn, strict=True), exact, strict=True):
        stack = torch.stack(column).double()
        spread = stack.std(0) / len(stack) ** 0.5
        assert ((stack.mean(0) - correct).abs() <= 7 * spread + 1e-4 * correct.abs().max()).all()
    weight = max(range(len(exact)), key=lambda number: exact[number].dim() * 1000 + exact[number].numel())
    assert not torch.equal(drawn[0][weight], drawn[1][weight])
    handle.remove()
    assert same(grads(model, x), exact) and torch.equal(model(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_less_is_held(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make(), torch.randn((64, *shape[1:]))
    with randbp.diagnostics.held_for_backward(exclude=[*model.parameters(), *model.buffers()]) as exact:
        _ = kept = model(x)
    with (
        randbp.randomize(model, Batch(1 / 8), layers="*"),
        randbp.diagnostics.held_for_backward(exclude=[*model.parameters(), *model.buffers()]) as held,
    ):
        _ = also_kept = model(x)
    assert kept.shape == also_kept.shape
    assert held.bytes <= 0.3 * exact.bytes


def circular(layer: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """How image generators make tiles."""
    return F.conv2d(F.pad(input, (1, 1, 1, 1), mode="circular"), weight, bias)


def patch_conv_forward(layer: Any) -> Callable[[], None]:
    layer._conv_forward = types.MethodType(circular, layer)
    return lambda: delattr(layer, "_conv_forward")


def hook_forward(layer: Any) -> Callable[[], None]:
    """How accelerate hooks a module: the old method is kept beside, and put back as an attribute."""
    layer._old_forward = old = layer.forward
    layer.forward = functools.update_wrapper(functools.partial(lambda self, input: 2 * old(input + 1), layer), old)

    def unhook() -> None:
        layer.forward = layer._old_forward
        del layer._old_forward

    return unhook


def replace_forward(layer: Any) -> Callable[[], None]:
    layer.forward = lambda input: F.conv2d(input * 3, layer.weight, layer.bias, padding=2)
    return lambda: delattr(layer, "forward")


def patch_class(layer: Any) -> Callable[[], None]:
    def convolve(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return circular(self, input, weight, bias) if self is layer else before(self, input, weight, bias)

    before = nn.Conv2d._conv_forward
    nn.Conv2d._conv_forward = convolve  # type: ignore[method-assign]
    return lambda: setattr(nn.Conv2d, "_conv_forward", before)


PATCHES = [patch_conv_forward, hook_forward, replace_forward, patch_class]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("order", ["patch first", "patch second"])
@pytest.mark.parametrize("undo", ["patch first", "patch second"])
def test_patches_and_estimates_go_together_in_any_order(patch: Any, order: str, undo: str) -> None:
    torch.manual_seed(0)
    layer, other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(8, 3, 8, 8)
    plain, plain_grads = layer(x), grads(layer, x)
    unpatch_other = patch(other)
    patched, patched_grads = other(x), grads(other, x)
    unpatch_other()
    assert not torch.equal(plain[..., :8, :8], patched[..., :8, :8])

    if order == "patch first":
        unpatch = patch(layer)
        handle = randbp.randomize(layer, Batch(0.25))
    else:
        handle = randbp.randomize(layer, Batch(0.25))
        unpatch = patch(layer)
    assert torch.equal(layer(x), patched) and torch.equal(layer.eval()(x), patched)
    assert handle.keep_rates == {"": 0.25} and not handle.left_exact
    estimated = grads(layer.train(), x)
    assert not torch.equal(estimated[0], patched_grads[0])
    torch.testing.assert_close(estimated[1], patched_grads[1])

    def check(forward: Tensor, exact: list[Tensor], estimated: bool) -> None:
        assert torch.equal(layer(x), forward)
        assert same(grads(layer, x)[:1], exact[:1]) != estimated

    if undo == "patch first":
        unpatch()
        check(plain, plain_grads, estimated=True)
        handle.remove()
    else:
        handle.remove()
        check(patched, patched_grads, estimated=False)
        unpatch()
    check(plain, plain_grads, estimated=False)
    assert type(layer) is nn.Conv2d and "_randbp" not in vars(layer)
    with randbp.randomize(layer, Batch(0.25)):
        check(plain, plain_grads, estimated=True)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_layers_with_a_forward_pass_of_their_own(how: Any) -> None:
    model, x = nn.Sequential(Standardised(3, 4, 3)), torch.randn(8, 3, 8, 8)
    exact = grads(model, x)
    with randbp.randomize(model, Spatial(0.25)):
        twin = how(model)
        assert same(grads(twin, x), grads(model, x)) and not same(grads(twin, x), exact)


def test_the_class_stays_where_nothing_is_estimated() -> None:
    """Others look classes up: BackPACK, or `fuse_modules`."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SamePadded(4, 4, 2), nn.Conv2d(4, 4, 3))
    estimators = {"0": Exact(), "1": Spatial(1.0), "2": Spatial(0.5)}
    with randbp.randomize(model, estimators) as handle:
        assert [type(layer).__name__ for layer in model] == ["Conv2d", "SamePadded", "RandomizedConv2d"]
        assert handle.keep_rates == {"0": 1.0, "1": 1.0, "2": 0.5}
        with pytest.raises(ValueError, match="'0' is already randomised"):
            randbp.randomize(model)
    assert [type(layer).__name__ for layer in model] == ["Conv2d", "SamePadded", "Conv2d"]


def test_other_calls_within_a_layer_stay_exact() -> None:
    """Weights that depend on the input, and other layers' weights, are not the layer's own."""

    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))
            self.inner = nn.Linear(6, 6)

        def forward(self, input: Tensor) -> Tensor:
            scaled = F.linear(input, self.weight * input.mean())
            return scaled.sum() + F.linear(input, self.inner.weight) + torch.addmm(input[:, 0], input, input.t())[:, :1]

    model, x = Dynamic(), torch.randn(6, 6, requires_grad=True)
    exact = grads(model, x)
    with randbp.randomize(model, Batch(0.5), layers=["", "inner"]) as handle:
        assert same(grads(model, x), exact)
        assert list(handle.left_exact) == [""] and "with a weight made from its own" in handle.left_exact[""]
        assert handle.keep_rates == {"": 1.0, "inner": 0.5}


def test_under_autocast_and_in_channels_last() -> None:
    model, x = nn.Sequential(Standardised(16, 8, 3)), torch.randn(8, 16, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with randbp.randomize(model, Spatial(0.25)):
            found = model(x)
            found.float().square().sum().backward()
    assert torch.equal(found, expected) and found.dtype == torch.bfloat16
    assert model[0].weight.grad.dtype == torch.float32


def test_compiled_around_the_layer() -> None:
    """The graph breaks at a layer with a forward pass of its own, and its samples are those of eager mode."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Standardised(4, 4, 3)), torch.randn(4, 3, 9, 9)
    with randbp.randomize(model, Spatial(0.25)) as handle:
        handle.set_step(3)
        eager = grads(model, x)
        handle.set_step(3)
        compiled = grads(torch.compile(model, backend="aot_eager"), x)
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other)
