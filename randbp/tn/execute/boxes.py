"""Box sums: patterns whose output legs are summed, so that only small 0/1 bands between i and k are left."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..pattern import IndexPattern

Kernel = Callable[..., Tensor]

SMALL_BAND = 13_000  # entries of the joint band up to which one product with it beats separate sums
CHUNK = 2**20  # elements per pass: bounds the memory of the partial sums


def box_sums(patterns: tuple[IndexPattern, ...], dtype: torch.dtype, device: torch.device) -> Kernel:
    """``x [N, R, I1, I2, …] → [N, K1·K2·…, R]``: for each kernel entry, the sum over the inputs that it
    meets.

    Small images take one matrix product with the Kronecker product of the bands. Large ones are summed one
    dimension after the other: with stride 1 the sum for an entry is the sum of everything less a few border
    rows; the last dimension is a product with its band. Partial sums are made for a few examples at a time.
    """
    bands = [band(pattern).to(device, dtype) for pattern in patterns]
    if prod(pattern.input_size * pattern.kernel_size for pattern in patterns) <= SMALL_BAND:
        joint = bands[0]
        for other in bands[1:]:
            joint = torch.kron(joint, other)
        return lambda x: joint @ x.flatten(2).transpose(1, 2)
    last = bands[-1].T.contiguous()

    def kernel(x: Tensor) -> Tensor:
        size = max(1, CHUNK * x.shape[0] // max(1, x.numel()))
        parts = [_sum_all(part, patterns, bands, last) for part in x.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return kernel


def _sum_all(x: Tensor, patterns: tuple[IndexPattern, ...], bands: list[Tensor], last: Tensor) -> Tensor:
    """``[N, R, I1, …] → [N, K1·…, R]``."""
    n, rest = x.shape[:2]
    kernels = 1
    for pattern, matrix in zip(patterns[:-1], bands, strict=False):
        x = x.reshape(n * rest * kernels, pattern.input_size, -1)
        x = _along(x, pattern, matrix)
        kernels *= pattern.kernel_size
    if len(patterns) == 1:
        x = _along(x.reshape(n * rest, -1, 1), patterns[0], bands[0])
    else:
        x = x.reshape(-1, patterns[-1].input_size) @ last
    return x.reshape(n, rest, -1).transpose(1, 2)


def _along(x: Tensor, pattern: IndexPattern, matrix: Tensor) -> Tensor:
    """Box sums along the middle dimension: ``[B, I, T] → [B, K, T]``."""
    if pattern.stride > 1 or pattern.kernel_size > pattern.input_size:
        return matrix @ x
    everything = x.sum(1, dtype=x.dtype)
    sums = []
    for entry in range(pattern.kernel_size):
        first = entry * pattern.dilation - pattern.padding
        sums.append(everything)
        for low, high in ((0, first), (first + pattern.output_size, pattern.input_size)):
            low, high = max(0, low), min(pattern.input_size, high)
            if low < high:
                border = x[:, low] if high == low + 1 else x[:, low:high].sum(1, dtype=x.dtype)
                sums[-1] = sums[-1] - border
    return torch.stack(sums, 1)


def band(pattern: IndexPattern) -> Tensor:
    """``Π`` summed over its output leg: ``[K, I]``, one where an output exists that joins the two."""
    inputs = torch.arange(pattern.input_size)
    return torch.stack([pattern.outputs_at(inputs, entry)[1] for entry in range(pattern.kernel_size)])
