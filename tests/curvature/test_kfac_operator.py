"""The operator of K-FAC has the layers' Kronecker products as blocks, in the model's order of parameters."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg
from torch import nn

from randbp.curvature import GGN, KFACOperator, ModelFactors, factors
from tests.curvature.small_nets import KINDS, net


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def eye(operator):
    return torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_layers(kind, approximation):
    model, x, y, function = net(kind, "classes", seed=3)
    model.insert(1, nn.LayerNorm(model[0](x).shape[1:]).double())
    found = factors(model, (x, y), function, approximation=approximation)
    operator = KFACOperator(model, found)
    places, start = {}, 0
    for name, parameter in model.named_parameters():
        places[name] = torch.arange(start, start := start + parameter.numel())
    expected = torch.zeros(start, start, dtype=torch.float64)
    for key, product in found.items():
        rows = torch.cat([places[name] for name in found.parameters[key] if name is not None])
        expected[rows[:, None], rows] = product.to_dense()
    close(operator.to_dense(), expected)
    assert operator.left == ["1.weight", "1.bias"]
    v = torch.randn(start, dtype=torch.float64)
    for name, part in (
        operator @ {name: v[rows].view_as(model.get_parameter(name)) for name, rows in places.items()}
    ).items():
        close(part.flatten(), (expected @ v)[places[name]])
    close(operator.trace(), expected.trace())
    damped = expected + 0.1 * eye(operator)
    close(operator.logdet(0.1), torch.logdet(damped))
    exact = operator.eigh()
    close(exact.to_dense(), expected)
    close(exact.inverse(0.1).to_dense(), torch.linalg.inv(damped))
    close(exact.inverse(0.1).trace(), torch.linalg.inv(damped).trace())
    inverse = operator.inverse(0.1).to_dense()
    for key, product in found.items():
        rows = torch.cat([places[name] for name in found.parameters[key] if name is not None])
        close(inverse[rows[:, None], rows], product.inverse(0.1).to_dense())
    close(inverse[places["1.weight"]] @ v, 10 * v[places["1.weight"]])


def test_of_one_example_without_weight_sharing_blocks_are_those_of_the_ggn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    batch = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        found = KFACOperator(model, factors(model, batch, loss, kind="type-2")).to_dense()
        ggn = GGN(model, batch, loss).to_dense()
        close(found[:16, :16], ggn[:16, :16])
        close(found[16:, 16:], ggn[16:, 16:])
        assert not found[:16, 16:].any()


def test_it_preconditions_scipys_conjugate_gradients():
    """Of squares of a linear model K-FAC is the GGN, so that one step solves it."""
    torch.manual_seed(0)
    model, function = nn.Linear(4, 3).double(), nn.MSELoss()
    x, y = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([0.01, 0.1, 1, 10]), torch.randn(50, 3).double()
    ggn = GGN(model, (x, y), function)
    damped = (ggn.to_dense() + 1e-4 * eye(ggn)).numpy()
    kfac = KFACOperator(model, factors(model, (x, y), function, kind="type-2"))
    right, steps = np.ones(len(damped)), []
    for preconditioner in (None, kfac.eigh().inverse(1e-4).to_scipy()):
        count = []
        solved, failed = cg(damped, right, rtol=1e-8, M=preconditioner, callback=count.append)
        assert not failed and np.allclose(damped @ solved, right, atol=1e-6)
        steps.append(len(count))
    assert steps[0] > steps[1] == 1


def test_frozen_parameters_and_wrong_arguments():
    model, x, y, function = net("1d", "classes", seed=6)
    found = factors(model, (x, y), function)
    with pytest.raises(ValueError, match=r"factors=\{\}: expected what randbp.curvature.factors returns"):
        KFACOperator(model, {})
    operator = KFACOperator(model, found)
    for call in (operator.inverse, operator.eigh().inverse, operator.logdet):
        with pytest.raises(ValueError, match="damping=0: expected a number above 0"):
            call(0)
    other = net("3d", "classes", seed=6)[0]
    with pytest.raises(
        ValueError, match=r"factors: those of '0' are not of the model's present parameters \['0.weight"
    ):
        KFACOperator(other, found)
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="factors: those of '0' are not of the model's present parameters"):
        KFACOperator(model, found)
    kept = KFACOperator(model, factors(model, (x, y), function))
    assert set(kept.blocks) == {"3"} and not kept.left
    close(kept.to_dense(), operator.to_dense()[-kept.shape[0] :, -kept.shape[0] :])
    assert isinstance(found, ModelFactors)
