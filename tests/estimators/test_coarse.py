"""The control variate's own VJPs against autograd on an input that is constant on cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.estimators.coarse import CoarseGrid, coarse_input_vjp, coarse_weight_vjp
from tests.cases import Case, cases, transposed_cases

LAYERS = st.one_of(cases(largest=8), transposed_cases())


def upsampled(means: torch.Tensor, grid: CoarseGrid) -> torch.Tensor:
    return means[:, :, grid.cell_of(means.device)].unflatten(2, grid.sizes)


@given(case=cases(largest=8), block=st.integers(1, 9))
def test_means_are_those_of_each_cell(case: Case, block: int) -> None:
    x = case.tensors()[0].detach()
    grid = CoarseGrid(case.input_size, block)
    cells = grid.cell_of(x.device)
    expected = torch.stack([x.flatten(2)[:, :, cells == c].mean(2) for c in range(grid.cells)], 2)
    torch.testing.assert_close(grid.means(x), expected)


@pytest.mark.parametrize("sizes", [(9,), (7, 4), (5, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_in_reduced_precision(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """PyTorch's avg_pool3d takes neither on a CPU."""
    x, grid = torch.randn(2, 3, *sizes).to(dtype), CoarseGrid(sizes, 2)
    assert grid.cells > 1 and grid.means(x).dtype is dtype
    torch.testing.assert_close(grid.means(x).float(), grid.means(x.float()), rtol=0.02, atol=0.02)


@given(case=LAYERS, block=st.integers(1, 9))
def test_weight_vjp_of_cells(case: Case, block: int) -> None:
    x, weight, _ = case.tensors()
    grid = CoarseGrid(case.input_size, block)
    means = grid.means(x.detach())
    output = case.native(upsampled(means, grid), weight, None)
    output_grad = case.output_grad(output)
    expected = torch.autograd.grad(output, weight, output_grad)[0]
    torch.testing.assert_close(coarse_weight_vjp(means, output_grad, grid, case.spec()), expected)


@given(case=LAYERS, block=st.integers(1, 9))
def test_input_vjp_of_cells(case: Case, block: int) -> None:
    x, weight, _ = case.tensors()
    output = case.native(x, weight, None)
    grid = CoarseGrid(tuple(output.shape[2:]), block)
    means = grid.means(case.output_grad(output))
    expected = torch.autograd.grad(output, x, upsampled(means, grid))[0]
    torch.testing.assert_close(coarse_input_vjp(means, weight.detach(), grid, case.spec()), expected)
