"""Weight gradients of depthwise convolutions as matrix products of which only some diagonals are summed.

``W[g, k] = Σ_{n o} X[n, g, s·o + d·k - p] Y[n, g, o]`` has neither a channel nor a batch leg to make a matrix product
of, and large kernels are where native ones are slowest. But the product of all inputs with all outputs of a small
range, ``M[g, i, o] = Σ_n X Y``, is one, and ``W[g, k]`` is the sum of ``M`` over a diagonal. Some multiplications are
wasted, but they run so fast that even several times as many can be worthwhile.

Where numba is installed, a fused operation multiplies the pairs of positions that meet and no others, all channels
side by side (:mod:`.meetings`). It wins where images are small, and where channels lie innermost in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_zeros

from ...layers.pattern import IndexPattern
from . import meetings
from .dense import lying

Kernel = Callable[..., Tensor]

BLOCK = 16  # outputs of the last dimension per product [outputs]
CHUNK = 2**20  # operands or products handled at a time, so that they stay in the cache [elements]


# Times [multiply-adds of a wide product], measured on two cores with AVX2 (PyTorch 2.13):
NATIVE = 15  # one multiply-add of a native kernel
NATIVE_3X3 = 4.5  # one multiply-add of a native kernel that was written for the size
NATIVE_ENTRY = 400  # one kernel entry of an example, where no native kernel was written for the size
SUMS = 30  # summing the diagonals, for each pair of positions
DIAGONAL = 200  # starting the sum of one diagonal, for few are long
COPY = 20  # laying out one element in blocks
START = 12_500  # starting one product
WIDE = 16  # products of fewer outputs take as long [outputs]
MARGIN = 0.8  # largest ratio of times at which products replace native kernels, which need no memory


@dataclass(frozen=True)
class Method:
    """One method of computing the gradient.

    Args:
        name: Name in the printed plan.
        make: Makes the kernel for some patterns.
        multiplications: Multiply-adds per example and group.
        time: Time per group [multiply-adds of a wide product].
    """

    name: str
    make: Callable[[tuple[IndexPattern, ...]], Kernel]
    multiplications: int
    time: float


def serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether native depthwise weight gradients are slow, and matrix products fast."""
    return device.type == "cpu" and dtype in (torch.float32, torch.float64)


def choose(patterns: tuple[IndexPattern, ...], examples: int) -> Method | None:
    """The faster of the two methods for a number of examples; ``None`` if a native kernel is faster."""
    if not patterns or any(p.nonzeros == 0 for p in patterns):
        return None
    tuned = all(p.kernel_size == 3 and p.dilation == 1 for p in patterns) and len(patterns) == 2
    entries = 0 if tuned else NATIVE_ENTRY * prod(p.kernel_size for p in patterns)
    native = ((NATIVE_3X3 if tuned else NATIVE) * prod(p.nonzeros for p in patterns) + entries) * examples
    ways = [_pairs(patterns, examples), _rows(patterns, examples)]
    if meetings.serve(patterns):
        ways.append(_meetings(patterns, examples))
    best = min(ways, key=lambda method: method.time)
    return best if best.time < MARGIN * native else None


def _pairs(patterns: tuple[IndexPattern, ...], examples: int) -> Method:
    count = prod(p.input_size * p.output_size for p in patterns)
    sums = sum(
        prod(p.kernel_size for p in patterns[: dim + 1])
        * prod(p.input_size * p.output_size for p in patterns[dim + 1 :])
        for dim in range(len(patterns))
    )
    return Method("pairs + diagonal sums", pairs, count, (examples + SUMS) * count + DIAGONAL * sums)


def _meetings(patterns: tuple[IndexPattern, ...], examples: int) -> Method:
    count = prod(p.nonzeros for p in patterns)
    return Method(meetings.MEETING_SUMS, meetings.meeting_sums, count, meetings.time(patterns, examples))


def _rows(patterns: tuple[IndexPattern, ...], examples: int) -> Method:
    *outer, last = patterns
    block = _block(last)
    reach, blocks = _reach(last, block), -(-last.output_size // block)
    lines = prod(p.nonzeros for p in outer) * blocks
    entries = prod(p.kernel_size for p in outer)
    copied = blocks * (reach * prod(p.input_size for p in outer) + block * prod(p.output_size for p in outer))
    if len(outer) > 1 or any(p.stride > 1 for p in outer):  # what an entry meets does not lie in one piece
        copied += lines * (reach + block) // 4
    time = examples * (lines * reach * max(block, WIDE) + COPY * copied) + START * entries
    return Method("row products + diagonal sums", row_products, lines * reach * block, time)


def pairs(patterns: tuple[IndexPattern, ...]) -> Kernel:
    """``(x [N, G, *I], y [N, G, *O]) → w [G, *K]`` through all pairs of positions, for small maps."""
    dims = len(patterns)
    inputs, outputs = (tuple(getattr(p, f"{side}_size") for p in patterns) for side in ("input", "output"))
    size = max(1, CHUNK // (prod(inputs) * prod(outputs)))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        left, right = x.flatten(2).permute(1, 2, 0), y.flatten(2).transpose(0, 1)
        parts = []
        for a, b in zip(left.split(size), right.split(size), strict=True):
            m = torch.bmm(lying(a), lying(b)).unflatten(2, outputs).unflatten(1, inputs)
            for dim, p in enumerate(patterns):  # m [g, k…, i, i…, o, o…]
                m = torch.stack([_diagonal(m, p, k, dim + 1, dims + 1) for k in range(p.kernel_size)], dim + 1)
            parts.append(m)
        return torch.cat(parts)

    return kernel


def _diagonal(m: Tensor, p: IndexPattern, k: int, i: int, o: int) -> Tensor:
    """The sum over the pairs of dimensions ``i`` and ``o`` that a kernel entry joins."""
    low, high = _outputs(p, k)
    if low == high:
        return m.select(i, 0).select(o - 1, 0) * 0
    m = _inputs(m, p, k, i).narrow(o, low, high - low)
    return m.diagonal(0, i, o).sum(-1, dtype=m.dtype)


def row_products(patterns: tuple[IndexPattern, ...]) -> Kernel:
    """``(x [N, G, *I], y [N, G, *O]) → w [G, *K]``: entry by entry in all dimensions but the last, where blocks of
    outputs are multiplied with all the inputs that they meet."""
    *outer, last = patterns
    block = _block(last)
    reach, count = _reach(last, block), -(-last.output_size // block)
    length = last.stride * block * (count - 1) + reach
    left = (last.padding, length - last.padding - last.input_size)
    right = (0, block * count - last.output_size)
    kernels = tuple(p.kernel_size for p in patterns)
    entries = tuple(product(*(range(size) for size in kernels[:-1])))
    order = (1, *range(2, len(patterns) + 1), 0, len(patterns) + 1)
    area = prod(p.input_size for p in outer) * count * reach + prod(p.output_size for p in outer) * count * block

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        size = max(1, CHUNK // (area * max(1, len(x))))
        return torch.cat([chunk(*part) for part in zip(x.split(size, 1), y.split(size, 1), strict=True)])

    def chunk(x: Tensor, y: Tensor) -> Tensor:
        groups = x.shape[1]
        x, y = x.permute(order), y.permute(order)  # [g, i…, n, i]
        x = pad_zeros(x, left).unfold(-1, reach, last.stride * block).contiguous()  # [g, i…, n, block, i in reach]
        y = (pad_zeros(y, right) if any(right) else y).unflatten(-1, (count, block)).contiguous()
        m = x.new_zeros(groups, len(entries), reach, block)
        for index, entry in enumerate(entries):
            a, b = x, y
            for at, (p, k) in enumerate(zip(outer, entry, strict=True), 1):
                low, high = _outputs(p, k)
                a, b = _inputs(a, p, k, at), b.narrow(at, low, high - low)
            m[:, index] = torch.bmm(a.reshape(groups, -1, reach).transpose(1, 2), b.reshape(groups, -1, block))
        across = last.dilation * block, last.stride * block + 1  # a step of k, and a step of o along its diagonal
        diagonals = m.as_strided((groups, len(entries), kernels[-1], block), (*m.stride()[:2], *across))
        return diagonals.sum(-1, dtype=m.dtype).reshape(groups, *kernels)

    return kernel


def _outputs(p: IndexPattern, k: int) -> tuple[int, int]:
    """The range of outputs at which a kernel entry lies on the input."""
    shift = p.dilation * k - p.padding
    low = min(p.output_size, max(0, -(shift // p.stride)))
    return low, max(low, min(p.output_size, (p.input_size - 1 - shift) // p.stride + 1))


def _inputs(x: Tensor, p: IndexPattern, k: int, dim: int) -> Tensor:
    """The inputs that meet these outputs, as a view."""
    low, high = _outputs(p, k)
    if low == high:
        return x.narrow(dim, 0, 0)
    first = p.stride * low + p.dilation * k - p.padding
    x = x.narrow(dim, first, p.stride * (high - low - 1) + 1)
    if p.stride == 1:
        return x
    return x[(slice(None),) * dim + (slice(None, None, p.stride),)]


def _block(p: IndexPattern) -> int:
    return min(BLOCK, p.output_size)


def _reach(p: IndexPattern, outputs: int) -> int:
    """Number of inputs, padding included, that a number of neighbouring outputs meet."""
    return p.stride * (outputs - 1) + p.dilation * (p.kernel_size - 1) + 1
