"""Sums of products of pairs of positions, channel by channel: weight VJPs of depthwise convolutions on small images."""

from itertools import pairwise

import torch
from torch import Tensor

from .operator import fused


@fused(lambda left, right, pairs, starts: left.new_empty(left.shape[2], len(starts) - 1))
def pair_sums(left: Tensor, right: Tensor, pairs: Tensor, starts: Tensor) -> Tensor:
    """Sum products of pairs of positions: ``V[c, k] = Σ_n Σ_{(i, o) of k} left[n, i, c] right[n, o, c]``.

    With the pairs of input and output positions that an entry of a kernel joins this is the weight VJP of a depthwise
    convolution. It is fast where channels are innermost in memory, whatever the positions.

    Args:
        left: ``[N, I, C]``.
        right: ``[N, O, C]``, of the same dtype.
        pairs: ``int64 [P, 2]``, positions ``i`` and ``o``, those of the first ``k`` first.
        starts: ``int64 [K + 1]``, where the pairs of each ``k`` begin, and their number.

    Returns:
        ``[C, K]``.

    Example:
        >>> left, right = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])
        >>> pair_sums(left, right, torch.tensor([[0, 0], [1, 1], [1, 0]]), torch.tensor([0, 2, 3]))
        tensor([[11.,  6.]])
    """
    precise = torch.promote_types(left.dtype, torch.float32)
    result = left.new_empty(left.shape[2], len(starts) - 1)
    for k, (first, last) in enumerate(pairwise(starts.tolist())):
        i, o = pairs[first:last].unbind(1)
        result[:, k] = (left[:, i].to(precise) * right[:, o].to(precise)).sum((0, 1))
    return result
