"""Factors that are held as rows against the same ones as matrices, and against dense matrices of all parameters."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from randbp.curvature import KFACOperator, KroneckerProduct, factors
from randbp.curvature.factor_matrices import Dense, Rows

F64 = torch.float64
NETWORKS = {
    "1d, grouped": (lambda: nn.Conv1d(8, 12, 3, padding=1, groups=2), (2, 8, 5)),
    "2d, padded": (lambda: nn.Conv2d(2, 9, 3, padding="same", dilation=2), (3, 2, 4, 5)),
    "2d, strided": (lambda: nn.Conv2d(3, 8, (2, 3), stride=2, padding=(1, 0), bias=False), (2, 3, 5, 5)),
    "3d": (lambda: nn.Conv3d(2, 8, 2, padding=1, padding_mode="circular"), (2, 2, 3, 2, 3)),
    "transposed, 1d, grouped": (lambda: nn.ConvTranspose1d(6, 8, 3, stride=2, groups=2, bias=False), (2, 6, 3)),
    "transposed, 2d": (lambda: nn.ConvTranspose2d(4, 6, 2, output_padding=1, stride=2), (3, 4, 3, 2)),
    "transposed, 3d": (lambda: nn.ConvTranspose3d(2, 6, (2, 1, 2)), (2, 2, 2, 3, 2)),
    "tokens": (lambda: nn.Linear(7, 6), (2, 3, 7)),
}
KINDS = ("empirical", "mc", "type-2", "recursive", "forward-only")


def found_by(kind, name, data=None):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.randn(shape, dtype=F64), torch.arange(shape[0]) % 3
    model(x)
    if kind == "recursive" and "circular" in str(model):
        return None
    return factors(model, (x, y), nn.CrossEntropyLoss(), kind)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_matrix(name, kind):
    found, damping = found_by(kind, name), 0.03
    if found is None:
        return
    product = found["0"]
    inner, outer = product.factors
    assert isinstance(inner, Rows) and inner.rows.shape[1] < product.shape[2]
    assert isinstance(outer, Dense if kind in ("recursive", "forward-only", "type-2") else Rows)
    twin = KroneckerProduct(product.input_factor, product.output_grad_factor, product.layout)
    dense, one = product.to_dense(), torch.eye(product.size, dtype=F64)
    close(dense, twin.to_dense())
    pairs = [(product, twin), (product.inverse(damping), twin.inverse(damping)), (product.eigh(), twin.eigh())]
    for _ in range(2):
        pairs += [(mine.inverse(damping), its.inverse(damping)) for mine, its in pairs[-2:]]
    for mine, its in pairs:
        assert mine.shape == its.shape
        close(mine.to_dense(), its.to_dense())
        for gradient in (one, one[1], torch.randn(product.shape, dtype=F64)):
            close(mine @ gradient, its @ gradient)
        close(mine.trace(), its.trace())
        close(mine.logdet(damping), its.logdet(damping))
        if not isinstance(mine, KroneckerProduct):
            close(mine.from_basis(mine.values), mine @ mine.from_basis(torch.ones_like(mine.values)))
    damped = dense + damping * one
    close(product.logdet(damping), damped.logdet())
    close(product.eigh().inverse(damping).to_dense() @ damped, one)
    close(product.inverse(damping).eigh().to_dense(), product.inverse(damping).to_dense())


def test_batches_are_rows_until_these_are_half_a_matrix():
    torch.manual_seed(0)
    model, x, y = nn.Linear(19, 3).double(), torch.randn(11, 19, dtype=F64), torch.arange(11) % 3
    for examples, held in [(10, Rows), (11, Dense)]:
        batches = list(zip(x[:examples].split(3), y[:examples].split(3), strict=True))
        product = factors(model, batches, nn.CrossEntropyLoss())[""]
        assert isinstance(product.factors[0], held)
        rows = torch.cat([x[:examples], torch.ones(examples, 1, dtype=F64)], 1)
        close(product.input_factor, (rows.mT @ rows / examples)[None])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_that_are_zero_or_equal_do_no_harm(dtype):
    torch.manual_seed(0)
    rows = torch.randn(2, 1, 9, dtype=dtype).expand(2, 3, 9) * torch.tensor([0, 0.3], dtype=dtype).view(2, 1, 1)
    product = KroneckerProduct(Rows(rows, rows.new_ones(2, 1)), Rows(rows[:, :2], rows.new_ones(2, 2)))
    assert product.logdet() == product.eigh().logdet() == -torch.inf
    one = torch.eye(product.size, dtype=dtype)
    inverse = product.eigh().inverse(1e-2) @ (product.to_dense() + 1e-2 * one)
    torch.testing.assert_close(inverse, one, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9)
    assert product.inverse(1e-2).to_dense().isfinite().all()


class Largest(TorchDispatchMode):
    """Notes the number of entries of the largest result."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.entries = max([self.entries, *(each.numel() for each in tensors)])
        return made


def test_no_matrix_of_a_large_layer_is_made():
    model = nn.Conv2d(40, 4, 3)
    with Largest() as largest:
        found = factors(model, (torch.randn(3, 40, 4, 4), torch.randn(3, 4, 2, 2)), nn.MSELoss())
        operator = KFACOperator(model, found)
        vector = torch.ones(operator.shape[1])
        for made in (operator, operator.inverse(0.1), operator.eigh(), operator.eigh().inverse(0.1)):
            made @ vector
            made.trace()
            made.logdet(0.1)
    assert largest.entries < 361**2 / 4
