"""What stays exact is told: at once where it is known, else after the first step of an optimiser."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import Channels, Exact, Spatial
from randbp.diagnostics import gradient_error, memory_report
from randbp.diagnostics.objective import make_objective
from randbp.lean.shapes import example_shape
from randbp.tune.measure import measure
from tests.randomize.test_own_forward import Joined, Product, SamePadded
from tests.randomize.test_randomize import grads


class Fused(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.idle = nn.Conv1d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) + F.conv1d(x, self.read.weight)


class Einsum(nn.Linear):
    """Multiplies by something that is no call of a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("nc,dc->nd", input, self.weight)


def step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    model(x).square().sum().backward()
    (optimizer or torch.optim.SGD(model.parameters(), 1e-3)).step()


def test_layers_that_do_not_run_are_told_once() -> None:
    model, x = Fused(), torch.randn(4, 3, 9)
    handle = randbp.randomize(model, Spatial(0.25))
    assert not handle.left_exact and handle.keep_rates == {"called": 0.25, "read": 0.25, "idle": 0.25}
    with pytest.warns(UserWarning, match="2 of 3 chosen layers stay exact: .*'read'") as seen:
        step(model, x)
    assert len(seen) == 1
    assert set(handle.left_exact) == {"read", "idle"}
    assert "other code reads its weight" in handle.left_exact["read"] and "not called" in handle.left_exact["idle"]
    assert handle.keep_rates == {"called": 0.25, "read": 1.0, "idle": 1.0}
    with warnings.catch_warnings(action="error"):
        step(model, x)
    model.idle(x).sum().backward()  # it runs after all
    assert set(handle.left_exact) == {"read"} and handle.keep_rates["idle"] == 0.25
    handle.remove()
    assert not handle.left_exact


def test_layers_that_run_are_not_told() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), SamePadded(4, 4, 2)), torch.randn(4, 3, 9, 9)
    model.append(nn.Flatten()).append(nn.LazyLinear(3))(x)
    for estimators in [(Spatial(0.25), Exact()), (Exact(), Channels(0.5)), (Exact(), Exact())]:
        with warnings.catch_warnings(action="error"), randbp.randomize(model, *estimators, layers="*") as handle:
            step(model, x)
            step(model, x)
            assert not handle.left_exact


def test_only_layers_that_the_optimiser_trains_are_meant() -> None:
    """Where optimisers take turns, the parts of the others have not run yet; frozen layers need not run."""
    model, x = Fused(), torch.randn(4, 3, 9)
    model.idle.requires_grad_(False)
    with randbp.randomize(model, Spatial(0.25)) as handle, warnings.catch_warnings(action="error"):
        step(model, x, torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))
        step(model, x, torch.optim.SGD(model.called.parameters(), 0.1))
        assert not handle.left_exact


def test_compiled_layers_are_not_told() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.randn(4, 3, 9, 9)
    with randbp.randomize(model, Spatial(0.25)) as handle, warnings.catch_warnings():
        warnings.filterwarnings("error", message="randomize")
        step(torch.compile(model, backend="eager"), x)
        assert not handle.left_exact


def test_a_forward_pass_without_a_call_that_can_be_estimated() -> None:
    model, x = nn.Sequential(Einsum(6, 5), nn.Linear(5, 4)), torch.randn(4, 6)
    exact = grads(model, x)
    with randbp.randomize(model, Spatial(0.25), layers="*") as handle:
        found = grads(model, x)
        assert torch.equal(found[-1], exact[-1]) and not torch.equal(found[-2], exact[-2])
        assert list(handle.left_exact) == ["0"] and handle.keep_rates == {"0": 1.0, "1": 0.25}
        with pytest.warns(UserWarning, match=r"1 of 2 chosen layers stay exact: '0' \(its forward pass calls none of"):
            step(model, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["1", "lazy"]},
            r"layers='lazy': matches none of the .*'1'.*, only layers .*: 'lazy' \(a lazy layer",
        ),
        (
            {"weight_vjp": {"l*": Spatial(0.5), "1": Spatial(0.5)}},
            r"weight_vjp: key 'l\*' matches only layers that stay",
        ),
        (
            {"layers": lambda name, module: name == "lazy"},
            r"layers=<function.*true for none of the .* only layers that",
        ),
    ],
)
def test_a_choice_of_layers_that_all_stay_exact_is_refused(options: dict[str, Any], message: str) -> None:
    model = nn.ModuleDict({"1": nn.Conv2d(1, 1, 1), "lazy": nn.LazyConv2d(1, 1)})
    with pytest.raises(ValueError, match=message):
        randbp.randomize(model, **options)
    assert type(model["1"]) is nn.Conv2d


def test_what_to_pass_for_a_model_of_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Product(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers='\*' means its linear layers '0', '1', '2', … \(4 in all\)$"):
        randbp.randomize(model)
    with pytest.raises(ValueError, match=r"Sequential has as convolutions only layers that stay exact: '0' \(a lazy"):
        randbp.randomize(nn.Sequential(nn.LazyConv1d(3, 1)))


def test_what_can_be_undone_is_undone_and_the_rest_told() -> None:
    """`fully_shard` gives each module a class of its own, which the estimates of that module lie below."""
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), torch.randn(4, 3, 9, 9)
    exact = grads(model, x)
    handle = randbp.randomize(model, Spatial(0.25), lean=True)
    made = type(model[0])
    model[0].__class__ = type("Sharded", (made,), {})
    with pytest.raises(RuntimeError, match=r"layers '0' \(Sharded\): its class was changed after randomize\(\)"):
        handle.remove()
    assert type(model[2]) is nn.Conv2d and not handle.layers and not handle.keep_rates
    assert all(torch.equal(a, b) for a, b in zip(grads(model, x), exact, strict=True))
    with randbp.randomize(model, Spatial(0.25), layers="0"):
        assert not torch.equal(grads(model, x)[0], exact[0])
    assert torch.equal(grads(model, x)[0], exact[0])
    model[0].__class__ = made
    handle.remove()
    assert type(model[0]) is nn.Conv2d
    handle.remove()


def mixed() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Einsum(8, 8), nn.Tanh(), Product(8, 5)).double()
    return model, (torch.randn(16, 6).double(), torch.randint(5, (16,)))


def test_tables_list_what_stays_exact() -> None:
    model, batch = mixed()
    error = gradient_error(model, batch, weight_vjp=Spatial(0.5), layers="*", draws=6)
    assert [row.name for row in error.rows if row.error.estimate > 0] == ["0", "4"]
    tuned = randbp.autotune(model, batch, 0.5, layers="*", rounds=0)
    assert list(tuned) == ["0", "4"]
    with randbp.randomize(model, Spatial(0.5), layers="*"):
        report = memory_report(model, batch[0])
    for table in (error, tuned, tuned.with_budget(0.7), report):
        assert list(table.left_exact) == ["2"]
        assert "left exact: '2' (its forward pass calls none of F.conv*" in str(table)


def test_tuning_serves_layers_with_a_forward_pass_of_their_own() -> None:
    """The variance measured layer by layer is that of the whole model's gradient."""
    model, batch = mixed()
    model[0].forward = lambda input: F.linear(input.tanh(), model[0].weight)
    for layers in ("0", "4"):
        row = gradient_error(model, batch, weight_vjp=Spatial(0.5), layers=layers, draws=6, seed=3).total
        made = measure(model, [batch], make_objective(model, None), [Spatial(0.5)], layers, draws=6, rounds=0, seed=3)
        assert made[0].norm_square == pytest.approx(row.norm**2)
        assert made[0].candidates[0].variance / made[0].norm_square == pytest.approx(row.variance.estimate)
        assert made[0].candidates[0].held_bytes < made[0].exact.held_bytes


def test_tuning_of_layers_that_return_no_tensor() -> None:
    model = nn.Sequential(Joined(), nn.Flatten(), nn.LazyLinear(3)).double()
    batch = torch.randn(8, 7, 6).double(), torch.randint(3, (8,))
    model(batch[0])
    tuned = randbp.autotune(model, batch, 0.6, layers="0.*", rounds=0)
    assert list(tuned) == ["0.several"] and not tuned["0.several"].exact


def test_methods_put_into_a_layer_do_not_see_parts_of_a_batch() -> None:
    """What a stranger's forward pass does to a batch is not known: such a layer always sees it whole."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 1)),
        torch.randn(8, 4, 128, 128),
    )
    model[1]._conv_forward = lambda input, weight, bias: F.conv2d(input - input.mean(0), weight, bias)
    expected = grads(model, x)
    with randbp.randomize(model, Exact(), Exact(), lean="exact"):
        assert all(torch.equal(a, b) for a, b in zip(grads(model, x), expected, strict=True))
    with randbp.randomize(model, Exact(), Exact(), lean=True):
        y = model(x)
    assert torch.equal(y, model(x))


def test_a_class_that_somebody_changed_is_not_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert example_shape(layer, (3, 9, 9)) == (4, 7, 7)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, input: input)
    assert example_shape(layer, (3, 9, 9)) is None
