"""Weight gradients of depthwise convolutions as matrix products of which only some diagonals are summed.

``W[g, k] = Σ_{n o} X[n, g, s·o + d·k - p] Y[n, g, o]`` has neither a channel nor a batch leg to make a matrix product
of, and large kernels are where native ones are slowest. But the product of all inputs with all outputs of a small
range, ``M[g, i, o] = Σ_n X Y``, is one, and ``W[g, k]`` is the sum of ``M`` over a diagonal. Some multiplications are
wasted, but they run so fast that even several times as many can be worthwhile.

Where numba is installed, a fused operation multiplies the pairs of positions that meet and no others, all channels
side by side (:mod:`.meetings`). It wins where images are small, and where channels lie innermost in memory.
"""

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_zeros

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.steps import Join
from . import meetings
from .convolutions import WeightGradient
from .dense import lying
from .kernel import Kind
from .pattern_steps import patterns_of
from .program import TensorFunction

Patterns = tuple[IndexPattern, ...]
Work = tuple[int, float]


class Depthwise(WeightGradient):
    """A way to compute the gradient, where it is the fastest."""

    dims, depthwise, native = 100, True, False

    def __init__(
        self, name: str, kind: Kind, make: Callable[[Patterns], TensorFunction], work: Callable[[Patterns, int], Work]
    ) -> None:
        self.name, self.kind, self.make, self.work = name, kind, make, work  # type: ignore[misc]

    def fits(self, join: Join) -> Any:
        """The multiply-adds per example and group, if no other way is faster."""
        if not super().fits(join) or not join.legs.target.fast_products:
            return None
        left, right = join.tensors
        if join.volume((left ^ right) & ~join.roles.all) > 1:
            return None
        patterns = tuple(p.pattern for p in patterns_of(join))
        examples = join.volume(left & right & ~join.roles.all & ~join.out)
        return self.work(patterns, examples)[0] if fastest_way(patterns, examples) is self else None

    def multiplications(self, join: Join, form: Any) -> int:
        """All multiply-adds, the wasted ones too."""
        return form or super().multiplications(join, form)


def fastest_way(patterns: Patterns, examples: int) -> Depthwise | None:
    """The fastest way for a number of examples; ``None`` if a native kernel is faster."""
    if not patterns or any(p.nonzeros == 0 for p in patterns):
        return None
    cpu, count = machine.cpu, prod(p.nonzeros for p in patterns)
    if all(p.kernel_size == 3 and p.dilation == 1 for p in patterns) and len(patterns) == 2:
        native = cpu.native_3x3 * count * examples
    else:
        native = (cpu.native * count + cpu.native_entry * prod(p.kernel_size for p in patterns)) * examples
    ways = WAYS if meetings.serve(patterns) else WAYS[:2]
    time, best = min(((way.work(patterns, examples)[1], way) for way in ways), key=lambda found: found[0])
    return best if time < cpu.margin * native else None


def _pairs_work(patterns: Patterns, examples: int) -> Work:
    count = prod(p.input_size * p.output_size for p in patterns)
    sums = sum(
        prod(p.kernel_size for p in patterns[: dim + 1])
        * prod(p.input_size * p.output_size for p in patterns[dim + 1 :])
        for dim in range(len(patterns))
    )
    return count, (examples + machine.cpu.diagonal_sums) * count + machine.cpu.diagonal * sums


def _rows_work(patterns: Patterns, examples: int) -> Work:
    (*outer, last), cpu = patterns, machine.cpu
    block = _block(last)
    reach, blocks = _reach(last, block), -(-last.output_size // block)
    lines = prod(p.nonzeros for p in outer) * blocks
    entries = prod(p.kernel_size for p in outer)
    copied = blocks * (reach * prod(p.input_size for p in outer) + block * prod(p.output_size for p in outer))
    if len(outer) > 1 or any(p.stride > 1 for p in outer):  # what an entry meets does not lie in one piece
        copied += lines * (reach + block) // 4
    time = examples * (lines * reach * max(block, cpu.wide) + cpu.copy * copied) + cpu.start * entries
    return lines * reach * block, time


def pairs(patterns: Patterns) -> TensorFunction:
    """``(x [N, G, *I], y [N, G, *O]) → w [G, *K]`` through all pairs of positions, for small maps."""
    dims = len(patterns)
    inputs, outputs = (tuple(getattr(p, f"{side}_size") for p in patterns) for side in ("input", "output"))
    size = max(1, machine.cpu.chunk // (prod(inputs) * prod(outputs)))

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
    outputs, inputs = p.met(k)
    if not outputs:
        return m.select(i, 0).select(o - 1, 0) * 0
    return _at(_at(m, i, inputs), o, outputs).diagonal(0, i, o).sum(-1, dtype=m.dtype)


def row_products(patterns: Patterns) -> TensorFunction:
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
        size = max(1, machine.cpu.chunk // (area * max(1, len(x))))
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
                outputs, inputs = p.met(k)
                a, b = _at(a, at, inputs), _at(b, at, outputs)
            m[:, index] = torch.bmm(a.reshape(groups, -1, reach).transpose(1, 2), b.reshape(groups, -1, block))
        across = last.dilation * block, last.stride * block + 1  # a step of k, and a step of o along its diagonal
        diagonals = m.as_strided((groups, len(entries), kernels[-1], block), (*m.stride()[:2], *across))
        return diagonals.sum(-1, dtype=m.dtype).reshape(groups, *kernels)

    return kernel


def _at(x: Tensor, dim: int, positions: range) -> Tensor:
    """A view of evenly spaced positions of a dimension."""
    return x[(slice(None),) * dim + (slice(positions.start, positions.stop, positions.step),)]


def _block(p: IndexPattern) -> int:
    return min(machine.cpu.block, p.output_size)


def _reach(p: IndexPattern, outputs: int) -> int:
    """Number of inputs, padding included, that a number of neighbouring outputs meet."""
    return p.stride * (outputs - 1) + p.dilation * (p.kernel_size - 1) + 1


WAYS = (
    Depthwise("pairs + diagonal sums", Kind.PRODUCT, pairs, _pairs_work),
    Depthwise("row products + diagonal sums", Kind.PRODUCT, row_products, _rows_work),
    Depthwise("sums of meeting pairs", Kind.PAIR_SUMS, meetings.meeting_sums, meetings.work),
)
"""All ways, the one that needs a compiled operation last."""
