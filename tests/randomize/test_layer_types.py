"""randomize() on transposed convolutions and linear layers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import Batch, Channels, Estimator, Exact, Spatial
from tests.catalogue import ESTIMATORS, FIXED_SIZE
from tests.randomize.test_randomize import grads, same


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.code = nn.Linear(8, 6)
        self.up = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.ConvTranspose1d(8, 1, 3, groups=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.code(self.encoder(x).tanh().movedim(1, -1)).movedim(-1, 1)
        wide = self.up(hidden, output_size=x.shape[-2:]).tanh()
        return self.last(wide.flatten(2)).view_as(x)


class OwnLinear(nn.Linear):
    """A user's own layer with its own forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.tanh(), self.bias)


class NamedLinear(nn.Linear):
    """A user's own layer that only adds a method."""

    def rank(self) -> int:
        return min(self.weight.shape)


def data() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["encoder", "up", "last"]),
        ("*", ["encoder", "code", "up", "last"]),
        ("*c*", ["encoder", "code"]),
        (["last", "c?de"], ["code", "last"]),
        (("up",), ["up"]),
        (lambda name, module: isinstance(module, nn.Linear), ["code"]),
        (lambda name, module: isinstance(module, nn.ConvTranspose2d), ["up"]),
    ],
)
def test_linear_layers_are_randomised_where_they_are_named(layers: Any, expected: list[str]) -> None:
    model, x = Autoencoder(), data()
    exact, output = dict(zip(dict(model.named_parameters()), grads(model, x), strict=True)), model(x)
    types = {name: type(module) for name, module in model.named_modules()}
    with randbp.randomize(model, Spatial(0.25), layers=layers) as handle:
        assert handle.layers == expected and handle.keep_rates == dict.fromkeys(expected, 0.25)
        assert torch.equal(model(x), output)
        estimated = dict(zip(exact, grads(model, x), strict=True))
        for name in ("encoder", "code", "up", "last"):
            assert torch.equal(estimated[f"{name}.weight"], exact[f"{name}.weight"]) == (name not in expected), name
            torch.testing.assert_close(estimated[f"{name}.bias"], exact[f"{name}.bias"], rtol=1e-4, atol=1e-4)
    assert {name: type(module) for name, module in model.named_modules()} == types and handle.layers == []
    assert same(grads(model, x), list(exact.values()))


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_eval_and_keep_one_are_exact(keep: float) -> None:
    model, x = Autoencoder(), data()
    exact = grads(model, x)
    with randbp.randomize(model, Spatial(keep), Spatial(keep), layers="*"):
        assert same(grads(model.eval(), x), exact)
        assert same(grads(model.train(), x), exact) == (keep == 1)


def test_both_estimates_are_unbiased_through_the_model() -> None:
    """First-layer gradient through all layer types, input VJPs estimated. Error probability 2e-6 (72 entries)."""
    torch.manual_seed(0)
    model, x = Autoencoder().double(), data().double()
    exact = grads(model, x)[0]
    target = torch.randn_like(x)
    exact = torch.autograd.grad((model(x) * target).sum(), model.encoder.weight)[0]
    with randbp.randomize(model, Spatial(0.4), Spatial(0.5), layers="*"):
        draws = [torch.autograd.grad((model(x) * target).sum(), model.encoder.weight)[0] for _ in range(400)]
    stack = torch.stack(draws)
    z = (stack.mean(0) - exact).abs() / (stack.std(0) / 400**0.5)
    assert z.max() < 5.7


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_output_size_as_pytorch_takes_it(dims: int, batched: bool) -> None:
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer = make(4, 2, 3, stride=2, padding=1, dilation=2)
    x = torch.randn(*([3] if batched else []), 4, *[4] * dims, requires_grad=True)
    least = 9
    with randbp.randomize(nn.Sequential(layer), Spatial(0.5), Spatial(0.5)):
        for size in ([least] * dims, [least + 1] * dims):
            whole = (*([3] if batched else []), 2, *size)
            for given in (size, tuple(whole)):
                output = layer(x, output_size=list(given))
                assert "Estimated" in str(output.grad_fn) or not batched
                assert torch.equal(output, layer.eval()(x, given)) and output.shape == whole
                layer.train()(x, given).sum().backward()
        for wrong in ([least + 2] * dims, [least - 1] * dims, [least] * (dims + 3)):
            with pytest.raises((ValueError, IndexError)) as found:
                layer(x, output_size=wrong)
            with pytest.raises(type(found.value)) as expected:
                layer.eval()(x, wrong)
            layer.train()
            assert str(found.value) == str(expected.value)
    assert layer.weight.grad is not None and x.grad is not None


def test_layers_whose_calls_cannot_be_told_are_left_out() -> None:
    """`nn.MultiheadAttention` reads the weight of its output projection; nothing could be estimated there."""
    model = nn.ModuleDict(
        {
            "block": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            "own": OwnLinear(8, 8),
            "named": NamedLinear(8, 8),
            "lazy": nn.LazyLinear(4),
        }
    )
    with pytest.warns(UserWarning, match="3 of 7 chosen layers stay exact"):
        handle = randbp.randomize(model, Spatial(0.25), layers="*")
    with handle:
        assert handle.layers == ["block.linear1", "block.linear2", "own", "named"]
        assert list(handle.left_exact) == ["block.self_attn", "block.self_attn.out_proj", "lazy"]
        assert model["named"].rank() == 8 and isinstance(pickle.loads(pickle.dumps(model))["named"], NamedLinear)
        x = torch.randn(4, 10, 8)
        block = model["block"]
        exact = grads(block.eval(), x)
        changed = [not torch.equal(a, b) for a, b in zip(grads(block.train(), x), exact, strict=True)]
        names = [name for (name, _), differs in zip(block.named_parameters(), changed, strict=True) if differs]
        assert {"linear1.weight", "linear2.weight"} <= set(names)
        assert "self_attn.in_proj_weight" not in names and "self_attn.out_proj.weight" not in names
    with pytest.raises(
        ValueError, match=r"none of the linear layers 'block\.linear1', 'block\.linear2', 'own', .*only"
    ):
        randbp.randomize(model, layers="block.self_attn.out_proj")


@pytest.mark.parametrize("estimators", [(Spatial(0.5), Exact()), (Spatial(1.0), Exact()), (Exact(), Channels(0.5))])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3), nn.Linear(8, 5)], ids=repr)
def test_a_parametrised_weight_is_computed_once(layer: nn.Module, frozen: bool, estimators: Any) -> None:
    """Spectral norm goes a step of its power iteration on whenever its weight is read in training mode."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer))).requires_grad_(not frozen)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    with randbp.randomize(model, *estimators, layers="*"):
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
    assert all(map(torch.equal, model.buffers(), twin.buffers()))


def test_linear_layers_on_vectors_sequences_and_nothing() -> None:
    layer = nn.Linear(6, 4)
    with randbp.randomize(nn.Sequential(layer), Spatial(0.5), Spatial(0.5), layers="0"):
        for shape in [(6,), (8, 6), (3, 5, 6), (2, 3, 4, 6), (0, 6), (2, 0, 6)]:
            x = torch.randn(shape, requires_grad=True)
            layer(x).sum().backward()
            assert x.grad is not None and x.grad.shape == shape
        with pytest.raises(RuntimeError):  # PyTorch's own words
            layer(torch.randn(2, 5))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            nn.Linear(2, 2),
            {},
            r"Linear has no nn\.Conv1d/2d/3d or nn\.ConvTranspose1d/2d/3d to randomise; layers='\*' means its linear",
        ),
        (nn.ReLU(), {}, r"ReLU has no nn\.Conv1d/2d/3d or nn\.ConvTranspose1d/2d/3d to randomise$"),
        (nn.ReLU(), {"layers": "*"}, r"matches none of the convolutions or linear layers \(there are none\)"),
        (Autoencoder(), {"layers": "x"}, r"none of the convolutions 'encoder', 'up', 'last' or linear layers 'code'$"),
        (Autoencoder(), {"layers": "code", "input_vjp": Batch(0.5)}, r"Batch serves only weight_vjp"),
    ],
)
def test_errors_end_in_one_line(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        randbp.randomize(model, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "estimator", [*FIXED_SIZE, *(case.make(0.25) for case in ESTIMATORS if not case.fixed_size)], ids=str
)
def test_an_empty_batch_gives_zero_gradients_as_in_pytorch(estimator: Estimator) -> None:
    layers = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Flatten(), nn.Linear(338, 5)
    model = nn.Sequential(*layers)
    randbp.randomize(model, weight_vjp=estimator)
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
