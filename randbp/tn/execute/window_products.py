"""Weight gradients of layers with few input channels: a product of the input's windows and the outputs for each image.

    W[d, c k] = Σ_n Y_n[d, o] U_n[c k, o],    U_n[c k, o] = X_n[c, s·o + d·k - p].

With few channels the unfolded input ``U`` is not much larger than the output gradient, so laying it out for some
examples at a time takes little. Native weight gradients work on blocks of 16 channels, filled up with zeros, and copy
the output gradient into an order of their own.
"""

from math import prod

import torch
from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from .convolutions import WeightProducts
from .dense import lying, windows
from .program import TensorFunction


def pay(patterns: tuple[IndexPattern, ...], examples: int, channels: tuple[int, int]) -> bool:
    """Whether products by image are faster than a native kernel."""
    cpu, (few, wide) = machine.cpu, channels
    if not cpu.window_fewest <= few <= cpu.window_most or wide < cpu.window_wide:
        return False
    entries = prod(p.kernel_size for p in patterns)
    rows, outputs = few * entries, prod(p.output_size for p in patterns)
    # Neither windows nor products of an image may be much larger than the image.
    small = rows <= 2 * wide and rows * outputs <= cpu.window_chunk and rows * wide <= outputs * (rows + wide)
    return entries > 1 and small


def window_products(patterns: tuple[IndexPattern, ...]) -> TensorFunction:
    """``(x [N, C, *I], y [N, D, *O]) → w [D, C, *K]``."""
    dims = len(patterns)
    unfold = windows(patterns, 2)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    sizes = [p.kernel_size for p in patterns]
    entries, outputs = prod(sizes), prod(p.output_size for p in patterns)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        channels = x.shape[1]
        at_once = min(machine.cpu.window_chunk, max(machine.cpu.window_chunk // 16, y.numel() // 4))
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


WINDOW_PRODUCTS = WeightProducts("window products", pay, window_products)
