"""Kronecker products and their eigendecompositions against dense matrices, in the layouts of all kinds of layers."""

import pytest
import torch
from torch import nn

from randbp.curvature.kronecker import KroneckerEigen, KroneckerProduct, Layout
from randbp.curvature.places import View
from randbp.curvature.weight_matrices import Form

F64 = torch.float64
CASES = [
    nn.Conv1d(4, 6, 3, groups=2),
    nn.Conv2d(2, 4, (2, 3), bias=False),
    nn.Conv3d(2, 2, 2),
    nn.Conv1d(3, 3, 2, groups=3),
    nn.ConvTranspose1d(4, 6, 2, groups=2),
    nn.ConvTranspose2d(3, 2, (1, 2), bias=False),
    nn.Linear(5, 3),
    nn.Linear(4, 2, bias=False),
]


def moment(groups, rows, rank):
    factor = torch.randn(groups, rank, rows, dtype=F64)
    return factor.mT @ factor


def drawn(layout, rank=None):
    torch.manual_seed(0)
    groups, outer, inner = layout.shape
    return KroneckerProduct(moment(groups, inner, rank or inner), moment(groups, outer, rank or outer), layout)


def layouts():
    for module in CASES:
        yield Layout(Form.of(module), module.weight.detach().to("meta"), module.bias is not None)
    # A weight that is stored transposed, as that of transformers' Conv1D.
    yield Layout(Form("linear"), torch.empty(4, 3, device="meta"), True, View((3, 4), (1, 3)))


@pytest.mark.parametrize("layout", layouts(), ids=str)
def test_products_are_those_of_dense_matrices(layout):
    product = drawn(layout)
    groups, outer, _ = layout.shape
    weight = torch.randn(layout.weight.shape, dtype=F64)
    bias = torch.randn(groups * outer, dtype=F64) if layout.bias else None
    flat = torch.cat([weight.flatten()] + ([bias] if layout.bias else []))
    matrices = layout.matrices(weight, bias)
    expected = torch.einsum("gde,gea,gab->gdb", product.output_grad_factor, matrices, product.input_factor)
    for matrix in (product, product.eigh()):
        dense = matrix.to_dense()
        assert dense.shape == (product.size, product.size) == (len(flat), len(flat))
        torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-10)
        torch.testing.assert_close(matrix @ matrices, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(matrix @ flat, dense @ flat, rtol=1e-10, atol=1e-10)
        columns = torch.randn(len(flat), 3, dtype=F64)
        torch.testing.assert_close(matrix @ columns, dense @ columns, rtol=1e-10, atol=1e-10)
        made = matrix @ (weight, bias)
        assert made[0].shape == weight.shape and (made[1] is None) == (bias is None)
        joined = torch.cat([made[0].flatten()] + ([made[1]] if layout.bias else []))
        torch.testing.assert_close(joined, dense @ flat, rtol=1e-10, atol=1e-10)
        if bias is None:
            assert torch.equal(matrix @ weight, made[0])


@pytest.mark.parametrize("layout", layouts(), ids=str)
def test_inverses_determinants_and_traces_are_those_of_dense_matrices(layout):
    product, damping = drawn(layout), 0.3
    dense, one = product.to_dense(), torch.eye(product.size, dtype=F64)
    damped = dense + damping * one
    eigen = product.eigh()
    for matrix in (product, eigen):
        torch.testing.assert_close(matrix.trace(), dense.trace(), rtol=1e-10, atol=0)
        torch.testing.assert_close(matrix.logdet(damping), damped.logdet(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(matrix.logdet(), dense.logdet(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(eigen.inverse(damping).to_dense() @ damped, one, rtol=0, atol=1e-9)
    torch.testing.assert_close(eigen.from_basis(eigen.to_basis(one[0].view(layout.shape))).flatten(), one[0])
    pi = (
        product.input_factor.diagonal(dim1=1, dim2=2).mean(1)
        / product.output_grad_factor.diagonal(dim1=1, dim2=2).mean(1)
    ).sqrt()
    shifted = [
        factor + (damping**0.5 * shift).view(-1, 1, 1) * torch.eye(factor.shape[1], dtype=F64)
        for factor, shift in ((product.input_factor, pi), (product.output_grad_factor, 1 / pi))
    ]
    factored = KroneckerProduct(*shifted, layout).to_dense()
    torch.testing.assert_close(product.inverse(damping).to_dense() @ factored, one, rtol=0, atol=1e-8)


def test_singular_products_do_no_harm():
    layout = next(layouts())
    for dtype in (torch.float32, F64):
        product = drawn(layout, rank=1)
        product = KroneckerProduct(product.input_factor.to(dtype), product.output_grad_factor.to(dtype), layout)
        assert product.logdet() == -torch.inf
        dense = product.to_dense().double()
        expected = torch.linalg.eigvalsh(dense).clamp_min(0).add(1e-2).log().sum()
        torch.testing.assert_close(product.logdet(1e-2).double(), expected, rtol=1e-3, atol=1e-3)
        inverse = product.eigh().inverse(1e-2).to_dense().double()
        one = torch.eye(product.size, dtype=F64)
        torch.testing.assert_close(
            inverse @ (dense + 1e-2 * one), one, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9
        )


def test_gradients_of_other_precision_are_promoted():
    layout = Layout(Form("linear"), torch.empty(3, 2, device="meta"), False)
    product, weight = drawn(layout), torch.randn(3, 2)
    for matrix in (product, product.eigh()):
        assert (matrix @ weight).dtype == F64
        torch.testing.assert_close(matrix @ weight, matrix @ weight.double())
    single = KroneckerProduct(product.input_factor.float(), product.output_grad_factor.float(), layout)
    assert (single @ weight.double()).dtype == F64 and (single @ weight.bfloat16()).dtype == torch.float32


def test_a_matrix_without_a_layer_has_an_order_of_its_own():
    torch.manual_seed(0)
    product = KroneckerProduct(moment(2, 3, 3), moment(2, 4, 4))
    blocks = [torch.kron(*each) for each in zip(product.output_grad_factor, product.input_factor, strict=True)]
    torch.testing.assert_close(product.to_dense(), torch.block_diag(*blocks))
    vector = torch.randn(24, dtype=F64)
    torch.testing.assert_close(product @ vector, product.to_dense() @ vector)


def test_errors_are_one_line():
    with_bias = drawn(Layout(Form("linear"), torch.empty(3, 2, device="meta"), True))
    without = drawn(Layout(Form("linear"), torch.empty(3, 2, device="meta"), False))
    pairs = r"a pair \(weight \(3, 2\), bias \(3,\)\), \(9,\) or \(9, K\) or matrices \(1, 3, 3\)"
    for matrix, gradient, message in [
        (with_bias, torch.zeros(3, 2), rf"gradient=\(3, 2\): expected {pairs}"),
        (with_bias, (torch.zeros(3, 2), None), rf"gradient=\(\(3, 2\), None\): expected {pairs}"),
        (with_bias, (torch.zeros(3, 2),), rf"gradient=\(\(3, 2\)\): expected {pairs}"),
        (
            with_bias,
            (torch.zeros(2, 3), torch.zeros(3)),
            rf"gradient=\(\(2, 3\), \(3,\)\): expected {pairs}",
        ),
        (
            without,
            torch.zeros(2, 3),
            r"gradient=\(2, 3\): expected \(3, 2\), \(6,\) or \(6, K\) or matrices \(1, 3, 2\)",
        ),
        (without, "x", "gradient='x': expected"),
        (
            KroneckerEigen(*[torch.zeros(1, 2, 2)] * 3),
            torch.zeros(3),
            r"gradient=\(3,\): expected \(4,\) or \(4, K\) or matrices",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as raised:
            matrix @ gradient
        assert "\n" not in str(raised.value)
    for call in (without.inverse, without.eigh().inverse):
        with pytest.raises(ValueError, match="damping=0: expected a number above 0"):
            call(0)
    for call in (without.logdet, without.eigh().logdet):
        with pytest.raises(ValueError, match="damping=-1: expected a number from 0"):
            call(-1)
