"""Estimates of spectra against dense matrices: exact where they must be, unbiased elsewhere."""

import pytest
import torch
from torch import nn

from randbp.curvature import GGN, Hessian, LinearOperator, estimate_trace, spectral_density
from randbp.curvature.parameter_space import ParameterSpace
from tests.curvature.small_nets import net


@pytest.fixture(scope="module")
def hessian():
    model, x, y, function = net("2d", "squares", seed=5)
    return Hessian(model, (x, y), function)


@pytest.fixture(scope="module")
def eigenvalues(hessian):
    return torch.linalg.eigvalsh(hessian.to_dense())


def test_traces_are_exact_if_the_rank_is_small_or_all_vectors_are_used(hessian, eigenvalues):
    model, x, y, function = net("1d", "classes", seed=5)
    ggn = GGN(model, (x[:2], y[:2]), function)  # of rank 2·2: softmax is blind in one direction
    torch.testing.assert_close(estimate_trace(ggn, 12), ggn.to_dense().trace())
    torch.testing.assert_close(estimate_trace(hessian, 10**4), eigenvalues.sum())


class Known(LinearOperator):
    """A dense matrix whose eigenvalues fall."""

    def __init__(self):
        super().__init__(ParameterSpace(nn.Linear(60, 1, bias=False).double()))
        generator = torch.Generator().manual_seed(0)
        vectors, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator))
        self.matrix = vectors * 0.7 ** torch.arange(60) @ vectors.T

    def product(self, matrix):
        return self.matrix @ matrix


def test_traces_are_unbiased_and_better_than_hutchinsons():
    """Means of 400 traces differ from the trace by less than 5.3 standard errors (a chance of 1e-6)."""
    operator = Known()
    found = torch.stack([estimate_trace(operator, 30, seed) for seed in range(400)])
    assert (found.mean() - operator.matrix.trace()).abs() < 5.3 * found.std() / 20
    off_diagonal = operator.matrix.clone().fill_diagonal_(0).square().sum()
    assert found.var() < 0.1 * (2 * off_diagonal / 30)  # the variance of 30 products with random signs


def test_narrow_parameters():
    model = nn.Linear(4, 1, bias=False).bfloat16()
    operator = GGN(model, (torch.ones(1, 4).bfloat16(), torch.zeros(1, 1).bfloat16()), nn.MSELoss())
    torch.testing.assert_close(estimate_trace(operator, 3), torch.tensor(8.0), rtol=1e-2, atol=0)
    assert spectral_density(operator, 2)[0].dtype == torch.float32


def test_all_steps_find_all_eigenvalues(hessian, eigenvalues):
    values, weights = spectral_density(hessian, steps=10**4)
    found = values[weights > 1e-12]
    distances = (found.unsqueeze(1) - eigenvalues).abs().amin(1)
    assert distances.max() < 1e-8
    torch.testing.assert_close(values[0, [0, -1]], eigenvalues[[0, -1]])
    torch.testing.assert_close(weights.sum(1), torch.ones(1, dtype=torch.float64))


def test_moments_are_those_of_the_starting_vectors(hessian):
    """Weights of m values are exact for polynomials of degree 2 m - 1."""
    values, weights = spectral_density(hessian, steps=4, draws=3, seed=1)
    generator = torch.Generator().manual_seed(1)
    start = 2 * torch.randint(2, (hessian.shape[0], 3), generator=generator).double() - 1
    start /= hessian.shape[0] ** 0.5
    moved = start
    for power in range(8):
        expected = (start * moved).sum(0)
        torch.testing.assert_close((weights * values**power).sum(1), expected, rtol=1e-8, atol=1e-12)
        moved = hessian @ moved
    assert values.shape == weights.shape == (3, 4) and not torch.equal(values[0], values[1])


def test_invariant_subspaces_end_it_without_harm():
    """A matrix with two distinct eigenvalues is known after two steps; later ones weigh nothing."""
    model, batch = nn.Linear(3, 1, bias=False).double(), (torch.eye(3).double()[:1], torch.zeros(1, 1).double())
    values, weights = spectral_density(GGN(model, batch, nn.MSELoss()), steps=3)
    assert values.isfinite().all() and weights.isfinite().all()
    torch.testing.assert_close((weights * values).sum(), torch.tensor(2 / 3, dtype=torch.float64))


def test_wrong_arguments(hessian):
    for call, message in (
        (lambda: estimate_trace(hessian, 2), "products=2: expected an integer from 3"),
        (lambda: estimate_trace(hessian, 0), "products=0: expected a positive integer"),
        (lambda: spectral_density(hessian, 0), "steps=0: expected a positive integer"),
        (lambda: spectral_density(hessian, seed=0.5), "seed=0.5: expected an integer"),
        (lambda: spectral_density(hessian, draws=0), "draws=0: expected a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
