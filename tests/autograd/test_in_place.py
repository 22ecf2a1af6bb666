"""What follows a layer may change its output in place, as it may change that of PyTorch's layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from randbp import Estimator, Exact, Importance, Precision, Rounding, Spatial, randomize
from randbp.functional import linear

ESTIMATORS = [Importance(0.5), Importance(0.5, bits=4), Precision(), Rounding(8), Spatial(0.5)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("shape", [(8,), (4, 8), (4, 6, 8), (2, 3, 4, 8)])
def test_a_linear_layer(estimator: Estimator, shape: tuple[int, ...]) -> None:
    """``F.linear`` with a bias gives a view for sequences."""
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        x, weight, bias = (torch.randn(size, requires_grad=True) for size in (shape, (5, 8), (5,)))
        serves = {vjp: estimator for vjp in ("weight_vjp", "input_vjp") if vjp in estimator.serves}
        y = linear(x, weight, bias, **serves, generator=torch.Generator().manual_seed(1))
        F.relu(y, inplace=in_place).sum().backward()
        found.append([tensor.grad for tensor in (x, weight, bias)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("settings", [{"weight_vjp": Spatial(0.5)}, {"weight_vjp": Exact(), "lean": True}])
def test_a_model_with_activations_in_place(settings: dict) -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(inplace=True), nn.Linear(5, 2), nn.SiLU(inplace=True))
    with randomize(model, layers="*", **settings):
        model(torch.randn(4, 6, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
