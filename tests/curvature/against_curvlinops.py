"""Factors against curvlinops: equal, but that a factor 1/O (O positions) of "expand" stands in its input factors.

Run by ``make peers``. Its layers are linear and 2-dimensional ones without groups. With "forward-only" and "expand"
there is nothing that makes up for 1/O, so its matrix is 1/O of this one. Where outputs have positions, its "type-2"
sends columns of the same class at all positions back together, which is exact only if positions do not mix.
"""

import pytest
import torch
from curvlinops import KFACLinearOperator
from torch import nn

from randbp.curvature import factors

F64 = torch.float64


def images():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, (2, 1), stride=2, dilation=(1, 2), bias=False)),
        *(nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 3)),
    )
    return model.double(), torch.randn(5, 2, 4, 5, dtype=F64), {"0": 20, "2": 6, "5": 1}


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Turned()).double()
    return model, torch.randn(5, 6, 4, dtype=F64), {"0": 6, "2": 6}


def targets(loss, shape):
    if isinstance(loss, nn.CrossEntropyLoss):
        return torch.arange(5 * shape[1:].numel() // shape[1]).view(5, *shape[2:]) % 3
    drawn = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    return drawn if isinstance(loss, nn.MSELoss) else (drawn > 0).double()


CASES = [(images, nn.CrossEntropyLoss), (images, nn.MSELoss), (images, nn.BCEWithLogitsLoss)]
CASES += [(tokens, nn.CrossEntropyLoss)]


@pytest.mark.parametrize("kind", ["empirical", "mc", "type-2", "forward-only"])
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("net", "kind_of_loss"), CASES)
def test_factors(net, kind, approximation, reduction, kind_of_loss):
    model, x, positions = net()
    loss = kind_of_loss(reduction=reduction)
    y = targets(loss, model(x).shape)
    samples = 2 if kind == "mc" else 1
    found = factors(model, (x, y), loss, kind, approximation, samples=samples, seed=3)
    data = [(x, y)]
    theirs = KFACLinearOperator(
        *(model, loss, list(model.parameters()), data),
        fisher_type=kind,
        mc_samples=samples,
        seed=3,  # labels are drawn in the same order
        kfac_approx=approximation,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    theirs.compute_kronecker_factors()
    if net is tokens and kind == "type-2" and approximation == "reduce":
        return
    for name, product in found.items():
        shared = positions[name] if approximation == "expand" else 1
        torch.testing.assert_close(product.input_factor[0] / shared, theirs._input_covariances[name])
        gain = 1 if kind == "forward-only" else shared
        torch.testing.assert_close(product.output_grad_factor[0] * gain, theirs._gradient_covariances[name])


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_products_inverses_and_determinants(approximation):
    """Of a model: gradients in, gradients out; its determinants and traces are those of all layers together."""
    from curvlinops import KFACInverseLinearOperator

    model, x, _ = images()
    loss, y = nn.CrossEntropyLoss(), torch.arange(5) % 3
    found = factors(model, (x, y), loss, "type-2", approximation)
    theirs = KFACLinearOperator(
        *(model, loss, list(model.parameters()), [(x, y)]),
        fisher_type="type-2",
        kfac_approx=approximation,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    gradients = dict(zip(dict(model.named_parameters()), map(torch.randn_like, model.parameters()), strict=True))

    def ours(operate):
        made = {}
        for name, (weight, bias) in found.parameters.items():
            pair = gradients[weight], None if bias is None else gradients[bias]
            made[weight], other = operate(found[name]) @ pair
            if bias is not None:
                made[bias] = other
        return [made[name] for name in gradients]

    given = [gradient.unsqueeze(-1) for gradient in gradients.values()]
    torch.testing.assert_close(ours(lambda product: product), [each.squeeze(-1) for each in theirs._matmat(given)])
    torch.testing.assert_close(sum(product.trace() for product in found.values()), theirs.trace)
    exact = KFACInverseLinearOperator(theirs, damping=1e-2, use_exact_damping=True)
    inverted = ours(lambda product: product.eigh().inverse(1e-2))
    torch.testing.assert_close(inverted, [each.squeeze(-1) for each in exact._matmat(given)])
    if approximation == "reduce":  # where shares of the damping do not depend on which factor has 1/O
        heuristic = KFACInverseLinearOperator(theirs, damping=1e-2, use_heuristic_damping=True)
        inverted = ours(lambda product: product.inverse(1e-2))
        torch.testing.assert_close(inverted, [each.squeeze(-1) for each in heuristic._matmat(given)])
