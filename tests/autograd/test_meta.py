"""Tensors without data: shapes flow through forward and backward of a randomised model."""

from typing import Any

import pytest
import torch
from torch import nn

import randbp
from randbp import Exact, Rounding, Spatial
from tests.catalogue import ESTIMATORS, EstimatorCase

BOTH = [case for case in ESTIMATORS if "input_vjp" in case.vjps and not (case.exact or case.chooses)]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.GELU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(4, 3, 3, padding=1, bias=False),
    )  # fmt: skip


def linears() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def check(model: nn.Module, real: nn.Module) -> None:
    x = torch.empty(6, 4, 10, 10, device="meta", requires_grad=True)
    y = model(x)
    with torch.no_grad():
        expected = real(torch.zeros(6, 4, 10, 10))
    assert y.is_meta and y.shape == expected.shape and y.dtype == torch.float32
    y.sum().backward()
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None and tensor.grad.is_meta and tensor.grad.shape == tensor.shape


@pytest.mark.parametrize("make", [convolutions, linears])
@pytest.mark.parametrize("case", [case for case in ESTIMATORS if not case.exact], ids=str)
def test_weight_vjps(case: EstimatorCase, make: Any) -> None:
    estimator = case.real or case.make(0.5)
    with torch.device("meta"):
        model = make()
    with randbp.randomize(model, estimator, layers="*"):
        check(model, make())


@pytest.mark.parametrize("make", [convolutions, linears])
@pytest.mark.parametrize("case", BOTH, ids=str)
def test_input_vjps_of_a_model_moved_there(case: EstimatorCase, make: Any) -> None:
    model, estimator = make(), case.make(0.25)
    with randbp.randomize(model, Exact(), estimator, layers="*"):
        check(model.to("meta"), make())


@pytest.mark.parametrize("lean", [True, "exact"])
def test_lean_mode_and_autocast_of_another_device(lean: Any) -> None:
    model = convolutions().to("meta")
    with randbp.randomize(model, Rounding(4), lean=lean), torch.autocast("cpu", torch.bfloat16):
        check(model, convolutions())


def test_what_a_layer_holds_has_its_size() -> None:
    """As on a device with data: half of the input's bytes, the mean and the seed."""
    conv, held = nn.Conv2d(2, 3, 3), {}
    randbp.randomize(conv, Spatial(0.5))
    for device in ("cpu", "meta"):
        shapes: list[Any] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, s=shapes: s.append(t.shape) or t, lambda t: t)  # type: ignore[misc, func-returns-value]
        with hooks:
            conv.to(device)(torch.empty(4, 2, 8, 8, device=device))
        held[device] = shapes
    assert held["cpu"] == held["meta"] != []
