"""Backward of batch, group and instance normalisation, straight from the codes of the input."""

import torch
from torch import Tensor

from .decode import decode
from .noise import BLOCK
from .operator import fused
from .planes import of_entries, pieces


@fused(lambda codes, scales, seed, bits, grad, rstd, *rest: room_for(grad, rstd, grad.shape[2], rest[-1]))
def channel_norm_backward(
    codes: Tensor,
    scales: Tensor,
    seed: int,
    bits: int,
    grad: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    groups: int,
    over_batch: bool,
    corrected: bool,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute the gradients of a normalisation ``y = γ x̂ + β``, ``x̂ = (x - μ) r``, with parameters per channel.

    With the output gradient ``v``, ``x̂`` as it is decoded, and means over the ``m`` entries normalised together,

        γ̄ = Σ v x̂,    β̄ = Σ v,    x̄ = r γ v - r mean(γ v) - x̂ r mean(γ v x̂)  [+ (h²/12) γ r v / m]

    where the bracket, of a block with step ``h``, makes up for the noise of ``x̂`` that meets itself.

    Args:
        codes: ``[1, bytes]``, of :func:`.encode_normalised`.
        scales: ``[1, blocks, 2]``.
        seed: Of the noise, which began with block 0.
        bits: Bits per entry.
        grad: Output gradient ``[N, P, C, S]`` without gaps, channels ``C`` among positions before and behind them, in
            the order of the codes: ``P = 1`` for a contiguous tensor, ``S = 1`` for one whose channels lie last.
        rstd: ``r``, ``[N or 1, C]`` in the precision of the scales.
        weight: ``[C]``, likewise, or none.
        groups: How many groups of neighbouring channels there are.
        over_batch: Whether all examples are normalised together, else each by itself.
        corrected: Whether the bracket is added.
        needs_input: Whether the input's gradient is wanted.

    Returns:
        The gradients of the input, like ``grad`` (empty if not wanted), of ``γ`` and of ``β`` (``[C]``).

    Example:
        >>> from randbp.kernels import encode_normalised
        >>> x, v, mean, rstd = (torch.tensor(each).view(1, 1, 1, -1) for each in ([1.0, 3.0], [1.0, 0.0], [2.0], [1.0]))
        >>> codes, scales = encode_normalised(x, mean[0, 0], rstd[0, 0], 0, 8)
        >>> found = channel_norm_backward(codes, scales, 0, 8, v, rstd[0, 0], None, 1, True, False, True)
        >>> [each.flatten().round(decimals=1) + 0 for each in found]
        [tensor([0., 0.]), tensor([-1.]), tensor([1.])]
    """
    examples, before, channels, after = grad.shape
    value = decode(codes, scales, seed, 0, bits, BLOCK, grad.numel(), True, scales.dtype).view(grad.shape)
    sums = torch.zeros(2, examples, channels, dtype=value.dtype, device=value.device)
    for n, p, c in pieces(grad.shape, value.device):
        x, v = value[n, p, c], grad[n, p, c].to(value.dtype)
        sums[0, n, c] += v.sum((1, 3))
        sums[1, n, c] += (x * v).sum((1, 3))
    together = examples * before * after if over_batch else channels // groups * before * after
    weight_grad, bias_grad, coefficients = terms(sums, rstd, weight, groups, over_batch, together)
    if not needs_input:
        return grad.new_empty(0), weight_grad, bias_grad
    scale, slope, shift, excess = (each.expand(examples, -1)[:, None, :, None] for each in coefficients)
    for n, p, c in pieces(grad.shape, value.device):
        x, v, factor = value[n, p, c], grad[n, p, c].to(value.dtype), scale[n, :, c]
        x.mul_(slope[n, :, c]).add_(shift[n, :, c])
        if corrected:
            steps = of_entries(scales[0, :, 1], x.storage_offset(), x.numel()).view(x.shape)
            factor = steps.square().div_(12).mul_(excess[n, :, c]).add_(factor)
        x.add_(factor * v)
    return value.to(grad.dtype), weight_grad, bias_grad


def room_for(grad: Tensor, rstd: Tensor, parameters: int, needs_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors for the gradients of an input, if it is needed, and of ``γ`` and ``β``."""
    input_grad = grad.new_empty(grad.shape if needs_input else 0)
    return input_grad, rstd.new_empty(parameters), rstd.new_empty(parameters)


def terms(
    sums: Tensor, rstd: Tensor, weight: Tensor | None, groups: int, over_batch: bool, together: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What sums ``[2, N, C]`` of ``v`` and of ``v x̂`` determine, if so many entries together share a mean.

    ``N`` may be 1 if all examples are normalised together.

    Returns:
        Gradients of ``γ`` and of ``β``, ``[C]``; and ``[N or 1, C]`` each: scale ``a``, slope ``b``, shift ``c`` and
        excess ``e`` of ``x̄ = (a + e h²/12) v + (b x̂ + c)``.
    """
    sums = sums.sum(1, keepdim=True) if over_batch else sums
    plain, products = sums
    weight_grad, bias_grad = products.sum(0), plain.sum(0)
    scale = rstd.clone() if weight is None else rstd * weight
    if weight is not None:
        plain, products = plain * weight, products * weight
    factor = (rstd / together).neg_()
    slope = _over_groups(products, groups) * factor
    shift = _over_groups(plain, groups) * factor
    return weight_grad, bias_grad, (scale, slope, shift, scale / together)


def _over_groups(sums: Tensor, groups: int) -> Tensor:
    """Sums over groups of channels, repeated for each channel."""
    channels = sums.shape[1]
    if groups == channels:
        return sums
    each = sums.unflatten(1, (groups, -1)).sum(2, keepdim=True)
    return each.expand(-1, -1, channels // groups).flatten(1)
