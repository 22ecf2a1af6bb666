"""Weight VJPs of depthwise convolutions from sampled inputs.

Inputs that are not sampled are served by the kernels of contraction plans (:mod:`randbp.tn.execute.diagonals`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import fused


@fused(lambda *args: args[3].new_empty(args[3].shape[1], *args[4]))
def depthwise_weight_vjp(
    kept: Tensor,
    numbers: Tensor,
    middle: Tensor,
    output_grad: Tensor,
    kernel_size: Sequence[int],
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Compute the weight VJP of a depthwise convolution from kept entries of its input.

    This is ``V_W[d, k] = Σ_n Σ_{o} X[n, c, s o + d k - p] V_Y[n, d, o]`` with ``c = d C // D``, ``[D, *K]``.

    ``X`` is ``m + x`` where an entry ``x`` was kept, and ``m`` elsewhere.

    Args:
        kept: Kept entries less their mean ``[N, C, S]``.
        numbers: ``[N or 1, S]``, their flat positions.
        middle: ``m``, ``[N, C]``.
        output_grad: ``[N, D, *O]`` of two spatial dimensions.
        kernel_size: ``K``.
        input_size: ``I``.
        stride: ``s``.
        padding: ``p``, before the first input.
        dilation: ``d``.

    Example:
        >>> kept, numbers, middle = torch.ones(1, 1, 2), torch.tensor([[2, 3]]), torch.zeros(1, 1)
        >>> grad = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> depthwise_weight_vjp(kept, numbers, middle, grad, [1, 1], [2, 2], [1, 1], [0, 0], [1, 1])
        tensor([[[7.]]])
    """
    (batch, channels, _), values = kept.shape, kept + middle.unsqueeze(2)
    where = numbers.unsqueeze(1).expand(batch, channels, -1)
    size = input_size[0] * input_size[1]
    input = middle.unsqueeze(2).expand(-1, -1, size).scatter(2, where, values)
    # An input padded by hand, and cut to what outputs reach: a layer with the same gradient and no padding.
    reach = [
        s * (o - 1) + d * (k - 1) + 1
        for s, o, d, k in zip(stride, output_grad.shape[2:], dilation, kernel_size, strict=True)
    ]
    padded = input.new_zeros(
        batch, channels, *(max(r, i + p) for r, i, p in zip(reach, input_size, padding, strict=True))
    )
    padded[:, :, padding[0] : padding[0] + input_size[0], padding[1] : padding[1] + input_size[1]] = input.unflatten(
        2, tuple(input_size)
    )
    padded = padded[:, :, : reach[0], : reach[1]].repeat_interleave(output_grad.shape[1] // channels, 1)
    weight = padded.new_empty(padded.shape[1], 1, *kernel_size)
    grad: Tensor = torch.ops.aten.convolution_backward(
        output_grad.to(padded.dtype), padded, weight, None, list(stride), [0, 0], list(dilation), False, [0, 0],
        padded.shape[1], [False, True, False],
    )[1]  # fmt: skip
    return grad.squeeze(1).to(output_grad.dtype)
