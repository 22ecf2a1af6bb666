"""Layers with a forward pass of their own: served as plain layers that compute the same, or left plain and told of."""

import warnings
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from randbp import Spatial, randomize
from randbp.curvature import KFAC

F64 = torch.float64


def own(base, forward):
    """A layer's class with another forward pass."""
    return type(f"Own{base.__name__}", (base,), {"forward": forward})


def padded(self, x, weight, bias):
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, bias, self.stride, 0, self.dilation, self.groups)


def named(self, x):
    return F.conv2d(weight=self.weight, bias=self.bias, input=x, padding=[1], groups=self.groups)


plain_forward = nn.Conv2d.forward
SamePadding = own(nn.Conv2d, lambda self, x: padded(self, x, self.weight, self.bias))
# The public layout is [N, H, W, C]; the plain layer stands between permutations here.
ChannelsLast = own(nn.Conv2d, lambda self, x: plain_forward(self, x.movedim(-1, 1)).movedim(1, -1))
Cast = own(nn.Linear, lambda self, x: F.linear(x, self.weight.to(F64), self.bias.to(F64)))


class Product(nn.Module):
    """GPT-2's ``Conv1D``: a linear layer with its weight the other way round."""

    def __init__(self, plain):
        super().__init__()
        self.weight, self.bias = nn.Parameter(plain.weight.detach().t().contiguous()), plain.bias

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Pointwise(nn.Module):
    """A convolution with kernels of one entry, as the linear layer that it is."""

    def __init__(self, plain):
        super().__init__()
        self.kernel = nn.Parameter(plain.weight.detach()[:, :, None, None].clone())
        self.shift = plain.bias

    def forward(self, x):
        return F.linear(x, self.kernel.squeeze(3).squeeze(2), self.shift)


def convolution(kind, plain):
    made = kind(4, 6, 3, padding=1, groups=2, dtype=F64)
    made.load_state_dict(plain.state_dict())
    return made


def patched_forward(kind, plain):
    made = convolution(nn.Conv2d, plain)
    inner = made.forward
    made.forward = lambda input: (inner(input), None)
    return made


def patched_convolution(kind, plain):
    made = convolution(nn.Conv2d, plain)
    made._conv_forward = MethodType(padded, made)
    return made


def outputs_altered(kind, plain):
    """Another hook gives the layer another output."""
    made = convolution(nn.Conv2d, plain)
    made.register_forward_hook(lambda module, arguments, output: (output, 0))
    return made


CONVOLUTIONS = [
    (SamePadding, convolution, lambda layer, x: layer(x)),
    (ChannelsLast, convolution, lambda layer, x: layer(x.movedim(1, -1)).movedim(-1, 1)),
    (own(nn.Conv2d, lambda self, x: (plain_forward(self, x), x)), convolution, lambda layer, x: layer(x)[0]),
    (own(nn.Conv2d, lambda self, x: {"y": plain_forward(self, x)}), convolution, lambda layer, x: layer(x)["y"]),
    (own(nn.Conv2d, named), convolution, lambda layer, x: layer(x)),
    (own(nn.Conv2d, lambda self, b: [plain_forward(self, b["x"])]), convolution, lambda layer, x: layer({"x": x})[0]),
    (None, patched_forward, lambda layer, x: layer(x)[0]),
    (None, patched_convolution, lambda layer, x: layer(x)),
    (None, outputs_altered, lambda layer, x: layer(x)[0]),
]


class Network(nn.Module):
    def __init__(self, layer, call, head):
        super().__init__()
        self.layer, self.call, self.head = layer, call, head

    def forward(self, x):
        return self.head(torch.tanh(self.call(self.layer, x)).flatten(1))


def steps(model, data, call=None, **options):
    """The optimiser after a few steps."""
    call = model if call is None else call
    optimizer = KFAC(model, lr=0.1, factor_every=1, inverse_every=2, **options)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        x = torch.randn(*data, generator=generator, dtype=F64)
        y = call(x).flatten(0, -2)
        cross_entropy(y, torch.arange(len(y)) % 3).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize(("kind", "make", "call"), CONVOLUTIONS)
@pytest.mark.filterwarnings("error:KFAC")
def test_convolutions_step_as_plain_ones(kind, make, call, approximation):
    torch.manual_seed(0)
    plain, head = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=F64), nn.Linear(6 * 25, 3, dtype=F64)
    twin = nn.Linear(6 * 25, 3, dtype=F64)
    twin.load_state_dict(head.state_dict())
    other = Network(make(kind, plain), call, twin)
    optimizer = steps(other, (8, 4, 5, 5), approximation=approximation)
    model = Network(plain, lambda layer, x: layer(x), head)
    steps(model, (8, 4, 5, 5), approximation=approximation)
    assert set(optimizer.layers) == {"layer", "head"} and not optimizer.left_plain
    torch.testing.assert_close(dict(other.named_parameters()), dict(model.named_parameters()), rtol=1e-10, atol=1e-12)


def transposed(self, x):
    return (F.conv_transpose2d(x, self.weight, self.bias, 2, [1], (1, 0), 2, dilation=1),)


def dilated(self, x):
    return (F.conv1d(x, self.weight, self.bias, padding="same", dilation=2),)


def unbatched(self, x):
    return (torch.conv3d(x[0], self.weight, None, 1, (1, 0, 1)),)


OTHERS = [
    (transposed, nn.ConvTranspose2d, (4, 6, 3, 2, 1, (1, 0), 2), (3, 4, 5, 4)),
    (dilated, nn.Conv1d, (2, 4, 3, 1, "same", 2), (3, 2, 9)),
    (unbatched, nn.Conv3d, (2, 4, 3, 1, (1, 0, 1), 1, 1, False), (1, 2, 5, 5, 4)),
]


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize(("forward", "plain", "arguments", "shape"), OTHERS)
def test_factors_of_other_functions(forward, plain, arguments, shape, approximation):
    layers = own(plain, forward)(*arguments, dtype=F64), plain(*arguments, dtype=F64)
    layers[0].load_state_dict(layers[1].state_dict())
    x, factors = torch.randn(*shape, dtype=F64), []
    for layer in layers:
        optimizer = KFAC(layer, approximation=approximation)
        output = layer(x)
        (output[0] if isinstance(output, tuple) else output).sin().sum().backward()
        optimizer.step()
        state = optimizer.state[layer.weight]
        factors.append([state["input_factor"], state["output_grad_factor"]])
    torch.testing.assert_close(*factors, rtol=1e-12, atol=1e-14)


class Sequence(nn.Module):
    def __init__(self, layer, head):
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)))


def cast(plain):
    made = Cast(5, 7, dtype=F64)
    made.load_state_dict(plain.state_dict())
    return made


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("make", [Product, Pointwise, cast])
@pytest.mark.parametrize("sequence", [(), (6,)])
@pytest.mark.filterwarnings("error:KFAC")
def test_linear_layers_step_as_plain_ones(make, sequence, approximation):
    """GPT-2's layer takes a sequence as more examples, so there the plain one gets it so, too."""
    torch.manual_seed(0)
    flat = make is Product and sequence
    data = (8, *sequence, 5)
    plain, head = nn.Linear(5, 7, dtype=F64), nn.Linear(7, 3, dtype=F64)
    twin, same = nn.Linear(7, 3, dtype=F64), nn.Linear(5, 7, dtype=F64)
    twin.load_state_dict(head.state_dict())
    same.load_state_dict(plain.state_dict())
    other = Sequence(make(plain), twin)
    optimizer = steps(other, data, approximation=approximation)
    model = Sequence(nn.Sequential(nn.Flatten(0, -2), same, nn.Unflatten(0, data[:-1])) if flat else same, head)
    steps(model, data, approximation=approximation)
    assert len(optimizer.layers) == 2 and not optimizer.left_plain
    changed = next(other.layer.parameters()).detach()
    expected = same.weight.detach()
    torch.testing.assert_close(changed.t() if make is Product else changed.view(7, 5), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(twin.weight, head.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("error:KFAC")
def test_checkpoints_see_no_call_twice(reentrant):
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        layers = SamePadding(4, 6, 3, groups=2, dtype=F64), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, 3, dtype=F64)
        model = nn.Sequential(*layers)

        def call(x, model=model):
            return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

        optimizer = steps(model, (8, 4, 5, 5), call if checkpointed else None)
        results.append([*model.parameters(), optimizer.state[model[0].weight]["input_factor"]])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


class Failing(SamePadding):
    fails = False

    def forward(self, input):
        found = super().forward(input)
        if self.fails:
            raise RuntimeError("out of luck")
        return found


def test_a_forward_pass_that_fails_leaves_nothing_behind():
    model = nn.Sequential(Failing(4, 6, 3, dtype=F64), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, 3, dtype=F64))
    optimizer = KFAC(model)
    x = torch.randn(8, 4, 5, 5, dtype=F64)
    for fails in (True, False, True):
        model[0].fails = fails
        if fails:
            with pytest.raises(RuntimeError, match="out of luck"):
                model(x)
        else:
            model(x).sum().backward()
        F.conv2d(x, model[0].weight).sum().backward()  # not the layer's call
    assert {key: seen.examples for key, seen in optimizer._statistics.seen.items()} == {"0": 8, "3": 8}


@pytest.mark.parametrize("first", ["randomize", "KFAC"])
@pytest.mark.parametrize("lean", [False, "exact"])
@pytest.mark.parametrize("make", [convolution, patched_convolution])
@pytest.mark.filterwarnings("error:KFAC")
def test_estimated_calls_are_seen(make, lean, first):
    """Estimates leave inputs and outputs as they are, so the first factors are those of exact layers."""
    x, factors = torch.randn(8, 4, 5, 5, dtype=F64), []
    for estimated in (False, True):
        torch.manual_seed(0)
        plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=F64)
        model = nn.Sequential(make(SamePadding, plain), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, 3, dtype=F64))
        optimizer = KFAC(model) if first == "KFAC" else None
        if estimated:
            randomize(model, Spatial(0.5), lean=lean)
        optimizer = optimizer or KFAC(model)
        cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()
        state = optimizer.state[model[0].weight]
        factors.append([state["input_factor"], state["output_grad_factor"]])
    torch.testing.assert_close(*factors, rtol=1e-12, atol=1e-14)


class Gated(nn.Module):
    """Two weights in one module."""

    def __init__(self):
        super().__init__()
        self.up, self.gate = nn.Parameter(torch.randn(7, 5, dtype=F64)), nn.Parameter(torch.randn(7, 5, dtype=F64))

    def forward(self, x):
        return F.linear(x, self.up) * torch.sigmoid(F.linear(x, self.gate))


class GatedPlain(nn.Module):
    def __init__(self, gated):
        super().__init__()
        self.up, self.gate = (nn.Linear(5, 7, bias=False, dtype=F64) for _ in range(2))
        self.up.weight, self.gate.weight = (nn.Parameter(w.detach().clone()) for w in (gated.up, gated.gate))

    def forward(self, x):
        return self.up(x) * torch.sigmoid(self.gate(x))


@pytest.mark.filterwarnings("error:KFAC")
def test_two_weights_of_a_module_are_two_layers():
    torch.manual_seed(0)
    gated, head = Gated(), nn.Linear(7, 3, dtype=F64)
    twin = nn.Linear(7, 3, dtype=F64)
    twin.load_state_dict(head.state_dict())
    plain = Sequence(GatedPlain(gated), twin)
    steps(plain, (8, 5))
    optimizer = steps(Sequence(gated, head), (8, 5))
    assert set(optimizer.layers) == {"layer", "head"}
    torch.testing.assert_close(gated.up, plain.layer.up.weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gated.gate, plain.layer.gate.weight, rtol=1e-10, atol=1e-12)


def linear(forward):
    return lambda: own(nn.Linear, forward)(5, 5)


LEFT = [
    (linear(lambda self, x: F.linear(x, self.weight * (self.weight > 0), self.bias)), "its weight is computed from"),
    (linear(lambda self, x: F.linear(x, self.weight - self.weight.mean(), self.bias)), "its weight is computed from"),
    (linear(lambda self, x: F.linear(x, self.weight.tanh(), self.bias)), "its weight is computed from parameters"),
    (lambda: parametrizations.weight_norm(nn.Linear(5, 5)), "its weight is computed from parameters"),
    (lambda: nn.utils.spectral_norm(nn.Linear(5, 5)), "its weight is computed from parameters"),
    (linear(lambda self, x: (x.unsqueeze(-2) * self.weight).sum(-1) + self.bias), "its forward pass calls no"),
    (linear(lambda self, x: F.linear(x, self.weight, self.bias) + x @ self.weight), "its weight is used in two ways"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT)
def test_others_take_steps_of_sgd_and_are_told_of(make, reason):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = KFAC(model, lr=0.1, momentum=0, kl_clip=None)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            optimizer.zero_grad()
            cross_entropy(model(torch.randn(8, 5, dtype=F64)), torch.arange(8) % 3).backward()
            optimizer.step()
            if step == 0:
                for name, parameter in model.named_parameters():
                    if name.startswith("0"):
                        torch.testing.assert_close(parameter, before[name] - 0.1 * parameter.grad)
    told = [str(each.message) for each in caught if "KFAC" in str(each.message)]
    assert len(told) == 1 and "'0'" in told[0] and reason in told[0]
    assert list(optimizer.left_plain) == ["0"] and optimizer.left_plain["0"].startswith(reason)
    assert set(optimizer.layers) == {"2"}
