"""Linear operators beside those of curvlinops 3.0.1: equal, scales included, wherever it serves a network."""

from itertools import count

import curvlinops
import pytest
import torch

from randbp.curvature import GGN, EmpiricalFisher, Hessian, KFACOperator, MCFisher, factors
from tests.curvature.small_nets import KINDS, net

OPERATORS = {
    Hessian: curvlinops.HessianLinearOperator,
    GGN: curvlinops.GGNLinearOperator,
    EmpiricalFisher: curvlinops.EFLinearOperator,
}
LOSSES = ("classes", "squares", "binary")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def drawn(model):
    return torch.randn(sum(each.numel() for each in model.parameters()), 3, dtype=torch.float64)


@pytest.mark.parametrize("loss", (*LOSSES, "positions"))
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_the_whole_model(kind, loss):
    model, x, y, function = net(kind, loss, seed=8)
    y = y.clamp_min(0)  # labels that are ignored count as terms there
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    v, parameters = drawn(model), list(model.parameters())
    for ours, theirs in OPERATORS.items():
        found, expected = ours(model, data, function) @ v, theirs(model, function, parameters, data) @ v
        if ours is EmpiricalFisher and loss == "positions" and y[0].numel() > 1:
            assert (found - expected).norm() > 1e-3 * expected.norm()  # there each position is an example of its own
        else:
            close(found, expected)


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["linear", "tokens", "2d"])
def test_kfac(kind, loss, approximation):
    nets = (net(kind, loss, seed) for seed in count())  # of grouped layers it averages the groups, which ours keep
    model, x, y, function = next(each for each in nets if getattr(each[0][0], "groups", 1) == 1)
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    v, parameters = drawn(model), list(model.parameters())
    for fisher in ("type-2", "empirical", "forward-only")[: 3 - (approximation == "expand")]:  # a mean over positions
        theirs = curvlinops.KFACLinearOperator(
            model,
            function,
            parameters,
            data,
            fisher_type=fisher,
            kfac_approx=approximation,
            separate_weight_and_bias=False,
        )
        ours = KFACOperator(model, factors(model, data, function, kind=fisher, approximation=approximation))
        close(ours @ v, theirs @ v)
        close(ours.trace(), theirs.trace)
        heuristic = curvlinops.KFACInverseLinearOperator(theirs, damping=0.1, use_heuristic_damping=True, cache=False)
        close(ours.inverse(0.1) @ v, heuristic @ v)
        exact = curvlinops.KFACInverseLinearOperator(theirs, damping=0.1, use_exact_damping=True, cache=False)
        close(ours.eigh().inverse(0.1) @ v, exact @ v)


@pytest.mark.parametrize("kind", ["1d", "3d", "1dt", "2dt", "3dt"])
def test_layers_that_it_has_no_kfac_for(kind):
    model, x, y, function = net(kind, "classes", seed=10)
    data = [(x, y)]
    assert not KFACOperator(model, factors(model, data, function)).left
    with pytest.raises(NotImplementedError):
        curvlinops.KFACLinearOperator(model, function, list(model.parameters()), data, fisher_type="empirical")


def test_sampled_fisher_has_the_same_mean():
    """Traces of 200 draws of 50 labels each: means differ by less than 5 standard errors (a chance of 1e-6)."""
    model, x, y, function = net("linear", "classes", seed=11)
    data, v = [(x, y)], drawn(model)[:, :1]
    ours = [MCFisher(model, data, function, samples=50, seed=seed) for seed in range(100)]
    theirs = [
        curvlinops.FisherMCLinearOperator(
            model, function, list(model.parameters()), data, mc_samples=50, seed=seed, check_deterministic=False
        )
        for seed in range(100)
    ]
    sizes = [torch.stack([(v.T @ (each @ v)).squeeze() for each in some]) for some in (ours, theirs)]
    error = (sizes[0].var() / 100 + sizes[1].var() / 100).sqrt()
    assert (sizes[0].mean() - sizes[1].mean()).abs() < 5.3 * error


def test_inverse_by_conjugate_gradients():
    model, x, y, function = net("2d", "squares", seed=12)
    v, parameters = drawn(model), list(model.parameters())
    theirs = curvlinops.GGNLinearOperator(model, function, parameters, [(x, y)])
    ours = GGN(model, [(x, y)], function)
    expected = torch.linalg.solve(theirs @ torch.eye(len(v), dtype=v.dtype) + 0.1 * torch.eye(len(v), dtype=v.dtype), v)
    close(ours.inverse(0.1, tolerance=1e-11) @ v, expected)
