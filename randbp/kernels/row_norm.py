"""Backward of layer and root-mean-square normalisation, straight from the codes of the input."""

import torch
from torch import Tensor

from .channel_norm import room_for
from .decode import decode
from .levels import PIECE
from .noise import BLOCK
from .operator import fused
from .planes import of_entries


@fused(lambda codes, scales, seed, bits, grad, rstd, *rest: room_for(grad, rstd, grad.shape[1], rest[-1]))
def row_norm_backward(
    codes: Tensor,
    scales: Tensor,
    seed: int,
    bits: int,
    grad: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    centred: bool,
    corrected: bool,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute the gradients of a normalisation of rows, ``y = γ x̂ + β`` with ``x̂ = (x - μ) r``, column by column.

    With the output gradient ``v``, ``x̂`` as it is decoded, and means over the ``M`` entries of a row,

        γ̄ = Σ v x̂,    β̄ = Σ v,    x̄ = r (γ v - mean(γ v) - x̂ mean(γ v x̂))  [+ (h²/12) γ r v / M]

    where the bracket, of a block with step ``h``, makes up for the noise of ``x̂`` that meets itself.

    Args:
        codes: ``[1, bytes]``, of :func:`.encode_normalised`.
        scales: ``[1, blocks, 2]``.
        seed: Of the noise, which began with block 0.
        bits: Bits per entry.
        grad: Output gradient ``[R, M]``.
        rstd: ``r``, ``[R]`` in the precision of the scales.
        weight: ``[M]``, likewise, or none.
        centred: Whether a mean was taken off; else the term with ``mean(γ v)`` is not there.
        corrected: Whether the bracket is added.
        needs_input: Whether the input's gradient is wanted.

    Returns:
        The gradients of the input, like ``grad`` (empty if not wanted), of ``γ`` and of ``β`` (``[M]``).

    Example:
        >>> from randbp.kernels import encode_normalised
        >>> x, v, mean, rstd = (torch.tensor(each).view(1, -1) for each in ([1.0, 3.0], [1.0, 0.0], [2.0], [1.0]))
        >>> codes, scales = encode_normalised(x.view(1, 1, 1, 2), mean, rstd, 0, 8)
        >>> found = row_norm_backward(codes, scales, 0, 8, v, rstd[0], None, True, False, True)
        >>> [each.flatten().round(decimals=1) + 0 for each in found]
        [tensor([0., 0.]), tensor([-1., 0.]), tensor([1., 0.])]
    """
    count, columns = grad.shape
    value = decode(codes, scales, seed, 0, bits, BLOCK, grad.numel(), True, scales.dtype).view(grad.shape)
    weight_grad = torch.zeros(columns, dtype=value.dtype, device=value.device)
    bias_grad = torch.zeros_like(weight_grad)
    most = PIECE if value.device.type == "cpu" else 2**26
    each = max(1, most // columns)
    for first in range(0, count, each):
        some = slice(first, first + each)
        v, x, r = grad[some].to(value.dtype), value[some], rstd[some, None]
        weight_grad += torch.linalg.vecdot(v, x, dim=0)
        bias_grad += v.sum(0)
        if not needs_input:
            continue
        v = v if weight is None else v * weight
        x.mul_(torch.linalg.vecdot(v, x, dim=1).unsqueeze(1).mul_(r / -columns))
        if centred:
            x.sub_(v.mean(1, keepdim=True).mul_(r))
        factor = r
        if corrected:
            steps = of_entries(scales[0, :, 1], x.storage_offset(), x.numel()).view(x.shape)
            factor = steps.square().div_(12).mul_(r / columns).add_(r)
        x.add_(v * factor)
    return value.to(grad.dtype) if needs_input else grad.new_empty(0), weight_grad, bias_grad
