"""SINGD beside singd's, whose steps ours are wherever both serve a layer; run by ``make peers``.

Scales: singd's input factor with ``kfac_approx="expand"`` is a mean over positions where ours is a sum, and its output
factor a sum where ours is a mean. Steps have the product of both, except with ``kfac_like=True``. Its curvature of a
sum of losses is a sum over examples where ours is a mean. A layer with groups is another one there: its input is
averaged over groups. Of blocks it takes the transpose to be the block itself, which holds for the first update alone.
"""

import pytest
import torch
from singd.optim.optimizer import SINGD as Theirs
from torch import nn
from torch.nn.functional import cross_entropy

from randbp.curvature import SINGD

STRUCTURES = {
    "dense": "dense",
    "diagonal": "diagonal",
    "block": "block30diagonal",
    "hierarchical": "hierarchical15_15",
}
PAIRS = [*((name, name) for name in STRUCTURES), ("diagonal", "block"), ("hierarchical", "diagonal")]
NETWORKS = {
    "linear": lambda: [nn.Flatten(), nn.Linear(3 * 8 * 7, 35), nn.Tanh(), nn.Linear(35, 4)],
    "conv": lambda: [
        nn.Conv2d(3, 34, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(34, 5, (3, 2), stride=2, dilation=(1, 2)),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ],
}


def network(name):
    torch.manual_seed(0)
    return nn.Sequential(*NETWORKS[name]())


def trained(model, optimizer, steps):
    """The parameters' changes."""
    generator = torch.Generator().manual_seed(0)
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    for _ in range(steps):
        x = torch.randn(6, 3, 8, 7, generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x), torch.arange(6) % 4).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - before


def steps_of(pair):
    """How many steps are the same."""
    return 1 if "block" in pair else 6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_theirs(name, pair, approximation, normalize):
    numbers = {"lr": 0.05, "momentum": 0.8, "damping": 0.02, "weight_decay": 0.01}
    model, other = network(name), network(name)
    ours = SINGD(
        model,
        factor_lr=0.2,
        factor_momentum=0.6,
        normalize=normalize,
        structures=pair,
        approximation=approximation,
        factor_every=1,
        **numbers,
    )
    theirs = Theirs(
        other,
        lr_cov=0.2,
        alpha1=0.6,
        normalize_lr_cov=normalize,
        structures=tuple(STRUCTURES[each] for each in pair),
        kfac_approx=approximation,
        T=1,
        **numbers,
    )
    found, expected = trained(model, ours, steps_of(pair)), trained(other, theirs, steps_of(pair))
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_inverse_free_kfac_is_theirs(pair):
    model, other = network("conv"), network("conv")
    numbers = {"lr": 0.05, "momentum": 0.8, "damping": 0.02}
    structures = tuple(STRUCTURES[each] for each in pair)
    theirs = Theirs(
        other, lr_cov=0.2, alpha1=0.0, T=1, kfac_approx="reduce", kfac_like=True, structures=structures, **numbers
    )
    ours = SINGD(
        model,
        factor_lr=0.2,
        factor_momentum=0.0,
        factor_every=1,
        adaptive=False,
        normalize=False,
        structures=pair,
        **numbers,
    )
    found, expected = trained(model, ours, steps_of(pair)), trained(other, theirs, steps_of(pair))
    assert (found - expected).norm() < 1e-5 * expected.norm()
