"""randomize(): a change of behaviour that leaves no other trace, and can be taken back."""

import copy
import io
import pickle
from itertools import combinations
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import randbp
from randbp import Spatial


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))
        self.one = nn.Conv1d(8, 4, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3))) + self.one(x.mean(2)[:, :1].repeat(1, 8, 1)).mean()


def data() -> Tensor:
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def grads(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_no_trace_is_left() -> None:
    model = Net()
    before = {name: (type(m), dict(vars(m)), id(m)) for name, m in model.named_modules()}
    parameters, state = list(map(id, model.parameters())), list(model.state_dict())
    with randbp.randomize(model) as handle:
        assert handle.layers == ["features.0", "features.2", "one"]
        assert list(map(id, model.parameters())) == parameters and list(model.state_dict()) == state
        assert isinstance(model.features[0], nn.Conv2d) and isinstance(model.one, nn.Conv1d)
        assert "weight_vjp=Spatial(keep=0.25)" in repr(model)
    handle.remove()  # twice is harmless
    after = {name: (type(m), dict(vars(m)), id(m)) for name, m in model.named_modules()}
    assert before.keys() == after.keys()
    for name, (kind, attributes, identity) in before.items():
        assert after[name][0] is kind and after[name][2] == identity
        assert after[name][1].keys() == attributes.keys()


def test_removed_after_an_exception() -> None:
    model = Net()
    with pytest.raises(KeyError), randbp.randomize(model):
        raise KeyError
    assert type(model.one) is nn.Conv1d


def copies(model: nn.Module) -> dict[str, nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(file, weights_only=False),
    }


def test_copies_work_alike_and_are_independent() -> None:
    model, x = Net(), data()
    exact = grads(model, x)
    handle = randbp.randomize(model, Spatial(0.25))
    made = copies(model)
    expected = grads(model, x)
    handle.remove()
    assert same(grads(model, x), exact)
    for how, other in made.items():
        assert isinstance(other.features[0], nn.Conv2d), how
        assert same(grads(other, x), expected) and torch.equal(other(x), model(x)), how
        assert other.features[0].weight is not model.features[0].weight
    for how, other in copies(model).items():
        assert type(other.one) is nn.Conv1d, how


def test_samples_depend_on_seed_step_micro_batch_rank_layer_and_call_only() -> None:
    x = data()
    torch.manual_seed(0)
    model = Net()

    def at(seed: int, *time: int, warm_up: int = 0) -> list[Tensor]:
        with randbp.randomize(model, Spatial(0.25), seed=seed) as handle:
            for step in range(warm_up):
                handle.set_step(step)
                grads(model, x)
            handle.set_step(*time)
            return grads(model, x)

    reference = at(0, 7, 1, 2)
    assert same(reference, at(0, 7, 1, 2, warm_up=3))
    for other in [(1, 7, 1, 2), (0, 8, 1, 2), (0, 7, 0, 2), (0, 7, 1, 3)]:
        assert not same(reference, at(*other))


def test_every_call_draws_anew_and_layers_differ() -> None:
    layer = nn.Conv2d(3, 8, 3)
    model = nn.Sequential(layer)
    twin = nn.Sequential(nn.Identity(), layer)
    x = data()
    with randbp.randomize(model, Spatial(0.25)):
        first, second = grads(model, x), grads(model, x)
    with randbp.randomize(twin, Spatial(0.25)):
        elsewhere = grads(twin, x)
    assert not same(first, second) and not same(first, elsewhere)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "nothing.*"},
            r"layers='nothing.\*': matches none of the convolutions 'features.0', 'features.2', 'on",
        ),
        ({"layers": ["one", "features.1"]}, r"layers='features.1': matches none of .* or linear layers 'head'"),
        ({"layers": lambda name, module: False}, r"true for none of the convolutions"),
        ({"layers": 3}, r"layers=3: expected names, globs or a predicate"),
        ({"layers": lambda name: True}, r"layers=<function .*: expected a predicate of two arguments"),
        ({"weight_vjp": {}}, r"weight_vjp=\{\}: expected at least one name or glob"),
    ],
)
def test_bad_arguments_end_in_one_line_and_change_nothing(options: dict[str, Any], message: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=message) as error:
        randbp.randomize(model, **options)
    assert "\n" not in str(error.value) and type(model.one) is nn.Conv1d


@pytest.mark.parametrize("value", ["a", 1.5, None, 2**70, True], ids=repr)
def test_steps_are_integers(value: Any) -> None:
    with randbp.randomize(Net()) as handle:
        for name in ("step", "micro_batch", "rank"):
            with pytest.raises(ValueError, match=f"{name}={value!r}: expected an integer of 64 bits"):
                handle.set_step(**{"step": 0, name: value})


def test_randomizing_twice_is_refused() -> None:
    model = Net()
    with randbp.randomize(model, layers="one"):
        with pytest.raises(ValueError, match="'one' is already randomised"):
            randbp.randomize(model)
        assert type(model.features[0]) is nn.Conv2d


def test_parametrized_weights() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)))
    x = data()
    exact, kind = grads(model, x), type(model[0])
    with randbp.randomize(model, Spatial(0.25)):
        assert not same(grads(model, x), exact)
    assert type(model[0]) is kind and same(grads(model, x), exact)


def test_removal_after_someone_else_changed_the_class_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    handle = randbp.randomize(model)
    parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match="its class was changed after randomize"):
        handle.remove()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_padding_modes(make: Any, padding: int | str, mode: str) -> None:
    if make is nn.Conv3d and mode == "reflect" and not hasattr(nn, "ReflectionPad3d"):
        pytest.fail("PyTorch without 3-d reflection padding")
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[make]
    layer = make(4, 6, 3, padding=padding, padding_mode=mode, groups=2).double()
    model = nn.Sequential(layer)
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64, requires_grad=True)
    output = model(x)
    output_grad = torch.randn_like(output)
    exact = torch.autograd.grad(output, (layer.weight, x, layer.bias), output_grad)
    with randbp.randomize(model, Spatial(0.5)):
        assert torch.equal(model(x), output)
        weight_grad, *others = torch.autograd.grad(model(x), (layer.weight, x, layer.bias), output_grad)
        torch.testing.assert_close(tuple(others), exact[1:])
        x = x.detach()
        draws = [weight_grad, *(torch.autograd.grad(model(x), layer.weight, output_grad)[0] for _ in range(299))]
    stack = torch.stack(draws)
    z = (stack.mean(0) - exact[0]).abs() / (stack.std(0) / 300**0.5)
    assert z.max() < 6  # Bonferroni over at most 324 entries: error probability 1e-6


def test_shared_layer_called_several_times() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64)
    exact = torch.autograd.grad(model(x).square().sum(), layer.weight)[0]
    with randbp.randomize(model, Spatial(0.5), Spatial(0.5)) as handle:
        assert handle.layers == ["0"]
        stack = torch.stack([torch.autograd.grad(model(x).square().sum(), layer.weight)[0] for _ in range(400)])
    z = (stack.mean(0) - exact).abs() / (stack.std(0) / 400**0.5)
    assert z.max() < 5.7  # Bonferroni over 144 entries: error probability 2e-6


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_steps_draw_new_samples(reentrant: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    randbp.randomize(model, weight_vjp=Spatial(0.25))
    seen = []
    for _ in range(5):
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        seen.append(cast(Tensor, model[0].weight.grad))
    assert all(not torch.equal(one, other) for one, other in combinations(seen, 2))
