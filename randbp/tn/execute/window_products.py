"""Weight gradients of layers with few input channels: a product of the input's windows and the outputs for each image.

    W[d, c k] = Σ_n Y_n[d, o] U_n[c k, o],    U_n[c k, o] = X_n[c, s·o + d·k - p].

With few channels the unfolded input ``U`` is not much larger than the output gradient, so laying it out for some
examples at a time takes little. Native weight gradients work on blocks of 16 channels, filled up with zeros, and copy
the output gradient into an order of their own.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ...layers.pattern import IndexPattern
from .dense import lying, windows

Kernel = Callable[..., Tensor]

CHUNK = 2**21  # windows that are laid out at a time [elements]
FEWEST, MOST = 4, 12  # products are faster for these inputs (two cores); there is a native kernel for three [channels]
WIDE = 64  # products are faster from this number of output channels on [channels]


def pay(patterns: tuple[IndexPattern, ...], channels: tuple[int, int]) -> bool:
    """Whether products by image are faster than a native kernel for a number of input and output channels."""
    narrow, wide = channels
    if not (FEWEST <= narrow <= MOST and wide >= WIDE) or all(p.kernel_size == 1 for p in patterns):
        return False
    rows, outputs = narrow * prod(p.kernel_size for p in patterns), prod(p.output_size for p in patterns)
    # Neither windows nor products of an image may be much larger than the image.
    return rows <= 2 * wide and rows * outputs <= CHUNK and rows * wide <= outputs * (rows + wide)


def window_products(patterns: tuple[IndexPattern, ...]) -> Kernel:
    """``(x [N, C, *I], y [N, D, *O]) → w [D, C, *K]``."""
    dims = len(patterns)
    unfold = windows(patterns, 2)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    sizes = [p.kernel_size for p in patterns]
    entries, outputs = prod(sizes), prod(p.output_size for p in patterns)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        channels = x.shape[1]
        at_once = min(CHUNK, max(CHUNK // 16, y.numel() // 4))
        together = max(1, at_once // (channels * entries * max(outputs, y.shape[1])))
        total: Tensor | None = None
        for part, met in zip(x.split(together), y.split(together), strict=True):
            unfolded = unfold(part).permute(order).reshape(len(part), channels * entries, outputs)
            product = torch.bmm(lying(met.flatten(2)), lying(unfolded).transpose(1, 2)).sum(0)
            total = product if total is None else total.add_(product)
        if total is None:
            return x.new_zeros(y.shape[1], channels, *sizes)
        return total.view(-1, channels, *sizes)

    return kernel
