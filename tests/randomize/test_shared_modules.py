"""A module that a model holds under several names: each of them means it, the first one names it."""

from typing import Any

import pytest
import torch
from torch import nn

import randbp
from randbp import Axes, Batch, Exact, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.diagnostics import gradient_error


class Tied(nn.Module):
    """Two parts with layers of their own and one that they share, and a linear layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), shared)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), shared)
        self.head = nn.Linear(4, 3)
        self.classifier = self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.second(self.first(x)).mean((2, 3)))
        return out


ALL = ["first.0", "first.2", "second.0"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ALL),
        ("*", [*ALL, "head"]),
        ("first.*", ["first.0", "first.2"]),
        ("second.*", ["first.2", "second.0"]),
        ("second.2", ["first.2"]),
        (["classifier", "second.2"], ["first.2", "head"]),
        (lambda name, module: name.startswith("second"), ["first.2", "second.0"]),
        (lambda name, module: name == "classifier", ["head"]),
    ],
)
def test_any_name_selects_and_the_first_is_listed(layers: Any, expected: list[str]) -> None:
    with randbp.randomize(Tied(), layers=layers) as handle:
        assert handle.layers == expected and list(handle.keep_rates) == expected


@pytest.mark.parametrize(
    ("estimators", "shared", "second"),
    [
        ({"second.*": Spatial(0.5)}, 0.5, 0.5),
        ({"second.2": Spatial(0.5), "*": Spatial(0.25)}, 0.5, 0.25),
        ({"first.*": Spatial(0.5), "*": Spatial(0.25)}, 0.5, 0.25),
        ({"*": Spatial(0.25), "second.2": Spatial(0.5)}, 0.25, 0.25),
        ({"first.2": Spatial(0.5), "second.*": Spatial(0.5)}, 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("vjp", ["weight_vjp", "input_vjp"])
def test_mappings(vjp: str, estimators: Any, shared: float, second: float) -> None:
    other = "input_vjp" if vjp == "weight_vjp" else "weight_vjp"
    for layers in (None, ALL):
        with randbp.randomize(Tied(), **{vjp: estimators, other: Exact()}, layers=layers) as handle:
            rates = handle.keep_rates if vjp == "weight_vjp" else handle.input_keep_rates
            assert (rates["first.2"], rates["second.0"]) == (shared, second)


def test_conflicting_keys() -> None:
    model = Tied()
    message = (
        r"^weight_vjp: keys 'first.\*' and 'second.\*' give one layer, shared as 'first.2' and 'second.2', "
        "different estimators$"
    )
    for layers in (None, "*"):
        with pytest.raises(ValueError, match=message):
            randbp.randomize(model, {"first.*": Spatial(0.5), "second.*": Axes(0.5)}, layers=layers)
    with pytest.raises(ValueError, match=r"^input_vjp: keys 'second.2' and 'first.2' give one layer"):
        randbp.randomize(model, Batch(0.5), {"second.2": Spatial(0.5), "first.2": Exact()})
    assert type(model.first[2]) is nn.Conv2d


def test_the_sample_is_the_same_by_any_name() -> None:
    model, x, grads = Tied(), torch.randn(4, 4, 8, 8), []
    for layers in ("first.2", "second.2"):
        with randbp.randomize(model, Spatial(0.25), layers=layers):
            grads.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_compiled_parts_share_their_names() -> None:
    model = nn.Module()
    model.net = nn.Sequential(nn.Conv2d(1, 1, 1))
    model.fast = torch.compile(model.net, backend="eager")  # type: ignore[assignment]
    with randbp.randomize(model, {"fast.0": Spatial(0.5)}) as handle:
        assert handle.keep_rates == {"net.0": 0.5}
    with randbp.randomize(torch.compile(nn.Conv2d(1, 1, 1), backend="eager"), layers="") as handle:  # type: ignore[arg-type]
        assert handle.layers == [""]


def test_tools_take_the_other_name() -> None:
    model, batch = Tied(), (torch.randn(8, 4, 6, 6), torch.arange(8) % 3)
    rows = gradient_error(model, batch, weight_vjp={"second.2": Spatial(0.5)}, draws=4, micro_batches=0).rows
    assert [row.name for row in rows] == ["first.2"]
    assert list(randbp.autotune(model, batch, 0.5, layers="second.2", candidates=[Rounding(8)], rounds=0)) == [
        "first.2"
    ]
    assert TensorDropout(layers="second.2").state_key != TensorDropout(layers="first.2").state_key


@pytest.mark.parametrize(
    ("lean", "rounded"),
    [
        ({"first": False, "second": False}, False),
        ({"": "exact", "act.1": True}, True),
        ({"*": "exact", "act.1": True}, True),  # the last entry that matches holds
        ({"": "exact", "act": True}, True),
        ({"": True, "act.1": "exact"}, False),
        ({"": True, "again.0": "exact"}, True),
        ({"": "exact", "deep.er.still": True}, True),
    ],
)
def test_lean_levels(lean: Any, rounded: bool) -> None:
    model, shared = nn.Sequential(), nn.GELU()
    model.first = nn.Conv2d(2, 8, 3, padding=1)
    model.second = nn.Identity()
    model.again = nn.Sequential(nn.Identity(), shared)
    model.act = nn.Sequential(nn.Identity(), shared)
    model.deep = nn.ModuleDict({"er": nn.ModuleDict({"still": nn.Sequential(shared)})})
    model.forward = lambda x: model.act(model.first(x))  # type: ignore[method-assign]
    if "first" in lean:
        lean = {**lean, "again": False}
    x = torch.randn(8, 2, 16, 16)
    exact = torch.autograd.grad(model(x).square().sum(), model.first.weight)[0]
    with randbp.randomize(model, Exact(), lean=lean):
        found = torch.autograd.grad(model(x).square().sum(), model.first.weight)[0]
    assert torch.equal(found, exact) != rounded
