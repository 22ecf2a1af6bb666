"""K-FAC with factors of low rank beside whole factors, their eigendecompositions, and two processes."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from randbp.curvature import EKFAC, KFAC, KroneckerInverse, LowRankInverse
from randbp.curvature.gathering import Seen
from randbp.curvature.inverse import damped_inverses
from randbp.curvature.low_rank_inverse import largest_rows

LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (8, 3, 6, 6)),
    "grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2, bias=False), (8, 4, 7)),
    "volumes": (lambda: nn.Conv3d(2, 3, 2, dilation=2, padding="same"), (8, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2), (8, 4, 3, 3)),
    "tokens": (lambda: nn.Linear(5, 3), (8, 6, 5)),
}


def trained(name, steps=4, **options):
    """Parameters after some steps of a layer with another one behind it."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(steps, *shape, dtype=torch.float64)
    model(x[0])
    optimizer = KFAC(model, lr=0.1, factor_every=1, inverse_every=1, decay=0.8, **options)
    for batch in x:
        optimizer.zero_grad()
        cross_entropy(model(batch), torch.arange(len(batch)) % 3).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", LAYERS)
def test_with_enough_rows_it_is_kfac(name):
    torch.testing.assert_close(trained(name, rank=500), trained(name), rtol=1e-8, atol=1e-10)
    assert not torch.allclose(trained(name, rank=1), trained(name), rtol=1e-3, atol=1e-5)


def seen(generator, groups, sizes, examples):
    found = Seen(examples=examples)
    for moment, size in zip(found.moments, sizes, strict=True):
        moment.add_rows(torch.randn(groups, examples, size, generator=generator, dtype=torch.float64))
    return found


@pytest.mark.parametrize(("sizes", "examples"), [((9, 4), 3), ((5, 30), 12), ((7, 7), 20)])
def test_what_is_cut_off_becomes_its_mean(sizes, examples):
    """After one update: the largest eigenvalues and vectors of the factor, and the mean of the others in each place."""
    generator, rank = torch.Generator().manual_seed(0), 2
    method, whole, state = LowRankInverse(rank=rank), KroneckerInverse(), {}
    method.update(state, seen(generator, 2, sizes, examples), (0.5, 2.0))
    dense: dict = {}
    whole.update(dense, seen(torch.Generator().manual_seed(0), 2, sizes, examples), (0.5, 2.0))
    factors = []
    for side in ("input", "output_grad"):
        values, vectors = torch.linalg.eigh(dense[f"{side}_factor"])
        rest = values[:, :-rank].sum(1) / values.shape[1]
        kept = (vectors[:, :, -rank:] * values[:, None, -rank:]) @ vectors[:, :, -rank:].mT
        expected = kept + rest.view(-1, 1, 1) * torch.eye(values.shape[1]).double()
        rows = state[f"{side}_rows"]
        assert rows.shape[1] == rank
        torch.testing.assert_close(state[f"{side}_rest"], rest)
        torch.testing.assert_close(rows.mT @ rows, kept, rtol=1e-9, atol=1e-9)
        factors.append(expected)
    method.refresh(state, 0.1)
    grad = torch.randn(2, sizes[1], sizes[0], generator=generator, dtype=torch.float64)
    right, left = damped_inverses(*factors, 0.1)
    torch.testing.assert_close(method.direction(state, grad), left @ grad @ right, rtol=1e-9, atol=1e-11)
    assert method.direction(state, grad[:, :, 1:]) is None


def test_a_running_average_of_many_batches_stays_close_to_the_whole_one():
    """Rows that have few directions in common: what is kept after 30 updates is the average's largest part."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(4, 40, generator=generator, dtype=torch.float64)
    low, whole = {}, {}
    for _ in range(30):
        rows = torch.randn(1, 6, 4, generator=generator).double() @ basis
        rows = rows + 0.05 * torch.randn(rows.shape, generator=generator).double()
        for method, state in ((LowRankInverse(rank=8), low), (KroneckerInverse(), whole)):
            found = Seen(examples=6)
            for moment in found.moments:
                moment.add_rows(rows)
            method.update(state, found, (1 / 6, 1 / 6))
    factor, rows = whole["input_factor"], low["input_rows"]
    error = factor - rows.mT @ rows - low["input_rest"] * torch.eye(40).double()
    assert rows.shape == (1, 8, 40) and error.norm() < 0.02 * factor.norm()
    trace = rows.square().sum() + 40 * low["input_rest"].sum()
    torch.testing.assert_close(trace, factor.diagonal(dim1=1, dim2=2).sum())


def test_rows_are_orthogonal_and_not_more_than_columns():
    rows = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, cut = largest_rows(rows, 100)
    gram = found @ found.mT
    assert found.shape == (2, 4, 4) and torch.equal(cut, torch.zeros(2).double())
    torch.testing.assert_close(found.mT @ found, rows.mT @ rows)
    torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankInverse("expand"), "approximation='expand' with rank=128: expected 'reduce'"),
        (lambda: LowRankInverse(rank=0), "rank=0"),
        (lambda: EKFAC(nn.Linear(2, 2), rank=3), "rank=3: expected None, as EKFAC needs whole factors"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
