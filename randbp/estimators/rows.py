"""VJPs of a convolution from kept positions: gathered rows into matrix products.

A kernel entry pairs every kept position with at most one partner position. The sum over the index pattern is therefore
a row gather (weight VJP) or a row scatter (input VJP) beside a dense matrix product, one kernel entry at a time.
Nothing is scattered into a full-size zero tensor, and the multiplications left are those of the kept positions.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..tn import ConvSpec, IndexPattern


def flat_spatial(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` with its spatial dimensions flattened, ``[N, C, P]``; one position if it has none."""
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)


def gather_rows(tensor: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[N, S, C]`` of ``[N, C, *P]`` at flat positions ``[N or 1, S]``."""
    index = positions.unsqueeze(1).expand(*tensor.shape[:2], -1)
    return flat_spatial(tensor).gather(2, index).transpose(1, 2).contiguous()


def rows_with_blank(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` as rows ``[N, P + 1, C]`` whose last row is zero: the partner of positions that have none."""
    flat = flat_spatial(tensor)
    rows = tensor.new_empty(flat.shape[0], flat.shape[2] + 1, flat.shape[1])
    rows[:, :-1].copy_(flat.transpose(1, 2))
    rows[:, -1].zero_()
    return rows


def add_weight_vjp(
    weight_grad: Tensor,
    rows: Tensor,
    output_rows: Tensor,
    table: Tensor,
    local: Tensor,
    kernels: Sequence[int],
    weight: float,
) -> None:
    """Add the weight VJP of kept input rows: ``V_W[g d c k] += w Σ_{n s} rows[n s g c] V_Y[n o(s, k) g d]``.

    Args:
        weight_grad: Added to, ``[G, D / G, C / G, K]`` with the kernel flattened.
        rows: Kept input entries ``[N, S, C]``.
        output_rows: The output gradient as ``[N, O + 1, D]``, see :func:`rows_with_blank`.
        table: Output position per kernel entry and position of the class, ``[len(kernels), size]``.
        local: Which positions of the class are kept, ``[N or 1, S]``.
        kernels: The flat kernel entries that the rows of ``table`` stand for.
        weight: The weight ``w`` of every kept entry.
    """
    batch, length = output_rows.shape[:2]
    groups = weight_grad.shape[0]
    flat_rows, flat_output = rows.flatten(0, 1), output_rows.flatten(0, 1)
    offsets = torch.arange(batch, device=local.device).unsqueeze(1) * length
    for row, kernel in enumerate(kernels):
        index = (table[row][local] + offsets).flatten()
        product = _row_product(flat_output.index_select(0, index), flat_rows, groups)
        weight_grad[..., kernel].add_(product, alpha=weight)


def input_vjp_rows(
    output_rows: Tensor, weight: Tensor, table: Tensor, local: Tensor, kernels: Sequence[int], spec: ConvSpec
) -> Tensor:
    """Input VJP of kept output rows: ``V_X[n i g c] = Σ_{s k: i(s, k) = i} Σ_d rows[n s g d] W[g d c k]``.

    Args:
        output_rows: Kept entries of the output gradient, ``[N, S, D]``.
        weight: ``[D, C / G, *K]``.
        table: Input position per kernel entry and output position, ``[len(kernels), size]``.
        local: Which positions are kept, ``[N or 1, S]``.
        kernels: The flat kernel entries that the rows of ``table`` stand for.
        spec: The convolution.

    Returns:
        ``[N, C, *I]``, a view of memory ordered by rows.
    """
    batch = output_rows.shape[0]
    length = prod(spec.input_size) + 1  # the blank row collects what falls into the padding
    result = output_rows.new_zeros(batch * length, spec.in_channels)
    offsets = torch.arange(batch, device=local.device).unsqueeze(1) * length
    matrices = weight.reshape(spec.groups, -1, spec.in_channels // spec.groups, prod(spec.kernel_size))
    flat_rows = output_rows.flatten(0, 1)
    for row, kernel in enumerate(kernels):
        index = (table[row][local] + offsets).flatten()
        result.index_add_(0, index, _rows_times(flat_rows, matrices[..., kernel]))
    return result.view(batch, length, -1)[:, :-1].transpose(1, 2).reshape(spec.input_shape)


def ones_on_inputs(output_grad: Tensor, spec: ConvSpec) -> Tensor:
    """Contract every pattern with ones on its input leg: ``[M, *O]`` to ``[M, *K]``, sums over the valid outputs."""
    for pattern in reversed(spec.patterns):
        output_grad = (output_grad @ _in_range(pattern, output_grad)).movedim(-1, 1)
    return output_grad


def ones_on_outputs(kernel: Tensor, spec: ConvSpec) -> Tensor:
    """Contract every pattern with ones on its output leg: ``[M, *K]`` to ``[M, *I]``."""
    for pattern in reversed(spec.patterns):
        inputs = torch.arange(pattern.input_size, device=kernel.device)
        meets = torch.stack([pattern.outputs_at(inputs, k)[1] for k in range(pattern.kernel_size)])
        kernel = (kernel @ meets.to(kernel.dtype)).movedim(-1, 1)
    return kernel


def _in_range(pattern: IndexPattern, like: Tensor) -> Tensor:
    """``Σ_i Π[i, o, k]`` as ``[O, K]``: 1 where the kernel entry does not lie in the padding."""
    outputs = torch.arange(pattern.output_size, device=like.device)
    inside = [pattern.inputs_at(outputs, k)[1] for k in range(pattern.kernel_size)]
    return torch.stack(inside, dim=1).to(like.dtype)


def _row_product(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """``[R, G·A]`` and ``[R, G·B]`` to ``[G, A, B]``: the product over rows within each group."""
    if groups == 1:
        return (left.t() @ right).unsqueeze(0)
    left, right = left.unflatten(1, (groups, -1)), right.unflatten(1, (groups, -1))
    if min(left.shape[2], right.shape[2]) == 1:  # depthwise: a weighted sum over rows, no matrix product
        return (left.unsqueeze(3) * right.unsqueeze(2)).sum(0)
    return torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Rows ``[R, G·A]`` times one matrix ``[G, A, B]`` per group to ``[R, G·B]``."""
    groups, inner, outer = matrices.shape
    if groups == 1:
        return rows @ matrices[0]
    if inner == 1:
        return (rows.unsqueeze(2) * matrices.reshape(groups, outer)).flatten(1)
    return torch.bmm(rows.unflatten(1, (groups, -1)).transpose(0, 1), matrices).transpose(0, 1).flatten(1)
