"""Diagonals of the GGN and of the Hessian, against dense matrices from torch.func in double precision."""

from math import log, sqrt

import pytest
import torch
from torch import nn
from torch.func import hessian

from randbp.curvature import GGN, Hessian, ggn_diagonal, hutchinson_diagonal
from randbp.curvature.loss_hessian import loss_derivatives

from .generated_networks import generated, jacobians

ERROR_RATE = 1e-6
CASES = [
    (nn.CrossEntropyLoss(), "labels"),
    (nn.CrossEntropyLoss(reduction="sum", weight=torch.tensor([1.0, 2.0, 0.5]).double()), "labels"),
    (nn.MSELoss(), "numbers"),
    (nn.MSELoss(reduction="sum"), "numbers"),
    (nn.BCEWithLogitsLoss(), "numbers"),
]


def targets(kind, output):
    return torch.arange(len(output)) % output.shape[1] if kind == "labels" else torch.rand_like(output).detach()


def dense_diagonal(model, x, y, loss):
    """``Σ_n J_nᵀ H_n J_n`` with all Jacobians, and the Hessian of the loss as it is with respect to all outputs."""
    output = model(x).detach()
    bend = hessian(lambda f: loss(f, y))(output).reshape(output.numel(), output.numel())
    made = {}
    for name, each in jacobians(model, x).items():
        flat = each.reshape(output.numel(), -1)
        made[name] = (flat * (bend @ flat)).sum(0).view(each.shape[output.dim() :])
    return made


@pytest.mark.parametrize("seed", range(10))
def test_exact_diagonal_of_generated_networks(seed):
    model, x = generated(seed)
    loss, kind = CASES[seed % len(CASES)]
    y = targets(kind, model(x))
    made = ggn_diagonal(model, (x, y), loss)
    assert list(made) == [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(made, dense_diagonal(model, x, y, loss), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_uneven_batches_are_as_one(reduction):
    model, x = generated(5, examples=5)
    y, loss = torch.tensor([0, 2, -100, 1, 1]), nn.CrossEntropyLoss(reduction=reduction)
    made = ggn_diagonal(model, [(x[:3], y[:3]), (x[3:], y[3:])], loss)
    torch.testing.assert_close(made, ggn_diagonal(model, (x, y), loss), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(made, dense_diagonal(model, x, y, loss), rtol=1e-8, atol=1e-12)


def test_positions_with_ignored_labels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 4), nn.Tanh(), Transposed()).double()
    x, y = torch.randint(6, (3, 2)), torch.tensor([[1, 0], [-100, 3], [2, -100]])
    loss = nn.CrossEntropyLoss()
    torch.testing.assert_close(
        ggn_diagonal(model, (x, y), loss), dense_diagonal(model, x, y, loss), rtol=1e-8, atol=1e-12
    )


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampled_diagonal_is_that_of_its_columns(case):
    model, x = generated(0)
    y = targets(case[1], model(x))
    made = ggn_diagonal(model, (x, y), case[0], samples=3, seed=7)
    derivatives = loss_derivatives(case[0], model(x), y)
    columns = list(derivatives.hessian.sampled(3, torch.Generator().manual_seed(7)))
    for name, each in jacobians(model, x).items():
        pulled = torch.stack([torch.einsum("nc,ncp->np", column, each.flatten(2)) for column in columns])
        expected = pulled.square().sum((0, 1)).view_as(made[name]) * derivatives.scale
        torch.testing.assert_close(made[name], expected, rtol=1e-8, atol=1e-12)
    other = ggn_diagonal(model, (x, y), case[0], samples=3, seed=8)
    assert not torch.equal(other["10.weight"], made["10.weight"])


def test_mean_of_sampled_diagonals():
    """A sample of an entry is a sum over examples of independent numbers from 0 to ``m_n``: Hoeffding's bound."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3).double(), torch.randn(4, 2).double(), torch.arange(4) % 3
    samples, loss = 3000, nn.CrossEntropyLoss(reduction="sum")
    made, exact = ggn_diagonal(model, (x, y), loss, samples=samples), ggn_diagonal(model, (x, y), loss)
    p = model(x).softmax(1).detach()
    largest = torch.maximum(p, 1 - p).square()  # of (p - e_y)², by example and class
    widths = {"bias": largest, "weight": largest.unsqueeze(2) * x.square().unsqueeze(1)}
    for name, width in widths.items():
        bound = (width.square().sum(0) * log(2 * 9 / ERROR_RATE) / (2 * samples)).sqrt()
        assert ((made[name] - exact[name]).abs() <= bound).all()
        assert (bound < 0.3 * exact[name]).all()  # so a factor of 2 would be seen


@pytest.mark.parametrize(("of", "operator"), [("hessian", Hessian), ("ggn", GGN)])
def test_hutchinsons_error_is_that_of_signed_sums(of, operator):
    """``v_i (A v)_i - A_ii`` is a sum of ``A_ij`` with independent signs, for which Hoeffding has a bound."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)).double()
    data, samples = (torch.randn(5, 1, 3).double(), torch.arange(5) % 2), 400
    made = hutchinson_diagonal(model, data, nn.CrossEntropyLoss(), samples, of)
    matrix = operator(model, data, nn.CrossEntropyLoss())
    dense = matrix.to_dense()
    spread = (dense.square().sum(1) - dense.diagonal().square()).sqrt()
    bound = spread * sqrt(2 * log(2 * len(dense) / ERROR_RATE) / samples)
    for name, exact, allowed in zip(
        made, matrix.space.pieces(dense.diagonal()), matrix.space.pieces(bound), strict=True
    ):
        assert ((made[name] - exact).abs() <= allowed).all()
    flat = torch.cat([each.flatten() for each in made.values()])
    assert (flat - dense.diagonal()).norm() > 0.01 * bound.norm()  # it is an estimate
    assert bound.norm() < dense.diagonal().norm()


def test_hessian_differs_from_ggn_and_both_repeat_with_their_seed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    made = [hutchinson_diagonal(model, data, nn.MSELoss(), 2, of, seed=3) for of in ("hessian", "ggn", "hessian")]
    assert torch.equal(made[0]["0.weight"], made[2]["0.weight"])
    assert not torch.allclose(made[0]["0.weight"], made[1]["0.weight"])
    exact = hutchinson_diagonal(nn.Linear(1, 1, bias=False).double(), (data[0][:, :1], data[1][:, :1]), nn.MSELoss(), 1)
    torch.testing.assert_close(
        exact["weight"], 2 * data[0][:, :1].square().mean(0, keepdim=True)
    )  # one entry: no error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, data: ggn_diagonal(model, data, nn.MSELoss(), samples=0), "samples=0: expected a positive"),
        (lambda model, data: ggn_diagonal(model, data, nn.functional.l1_loss), "loss=.*: expected CrossEntropyLoss"),
        (lambda model, data: ggn_diagonal(model, data, nn.MSELoss(), 1, seed=0.5), "seed=0.5: expected"),
        (lambda model, data: hutchinson_diagonal(model, data, nn.MSELoss(), 1, seed=True), "seed=True: expected"),
        (lambda model, data: hutchinson_diagonal(model, data, nn.MSELoss(), 0), "samples=0: expected a positive"),
        (lambda model, data: hutchinson_diagonal(model, data, nn.MSELoss(), 1, "fisher"), "of='fisher': expected"),
        (lambda model, data: ggn_diagonal(model.requires_grad_(False), data, nn.MSELoss()), "model: Linear"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(nn.Linear(2, 2), (torch.ones(3, 2), torch.ones(3, 2)))
