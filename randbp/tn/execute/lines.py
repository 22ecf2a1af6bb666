"""Weight gradients of layers with many channels: a matrix product per line of outputs and kernel entry.

Along the last dimension, the outputs that meet an input through kernel entry ``k`` are one stretch, and so are these
inputs (within their residue class modulo the stride). With positions outermost in memory, ``[line, position, n, c]``,
a stretch of all examples is one matrix, and

    W[d, c, k1 k2] = Σ_{o1} Y[o1, stretch]ᵀ X[i1, stretch'],    i1 = s·o1 + d·k1 - p,

needs neither an unfolded input nor a multiplication by the padding's zeros. Where the matrices are wide, these
products run at the processor's speed, which native weight gradients do not reach; with AVX-512 they nearly do, except
where maps are small.
"""

from itertools import product
from typing import Any

from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.steps import Join
from . import convolution_kernels
from .convolutions import WeightGradient
from .kernel import Kind
from .pattern_steps import patterns_of
from .program import TensorFunction


def line_products(patterns: tuple[IndexPattern, ...]) -> TensorFunction:
    """``(x [N, C, *I], y [N, D, *O]) → w [D, C, *K]``."""
    *outer, last = patterns
    stretches = [last.met(entry) for entry in range(last.kernel_size)]
    residues = {met.start % last.stride for _, met in stretches}
    meetings = [_lines(outer, entry) for entry in product(*(range(p.kernel_size) for p in outer))]
    sizes = [p.kernel_size for p in patterns]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        (examples, columns), rows = x.shape[:2], y.shape[1]
        outputs = _positions_first(y).view(-1, last.output_size, examples * rows)
        inputs = _positions_first(x).view(-1, last.input_size, examples * columns)
        classes = {r: inputs[:, r :: last.stride].contiguous() for r in residues}
        result = x.new_zeros(len(meetings), len(stretches), rows, columns)
        for meeting, lines in enumerate(meetings):
            for entry, (here, there) in enumerate(stretches):
                if here:
                    place = result[meeting, entry]  # what iterating gives, autograd lets nobody write to
                    source, residue = divmod(there.start, last.stride)
                    for output, input_ in lines:
                        left = outputs[output, here.start : here.stop].view(-1, rows)
                        right = classes[residue][input_, source : source + len(here)].view(-1, columns)
                        place.addmm_(left.t(), right)
        return result.flatten(0, 1).permute(1, 2, 0).reshape(rows, columns, *sizes)

    return kernel


def _lines(outer: list[IndexPattern], entry: tuple[int, ...]) -> list[tuple[int, int]]:
    """The lines of outputs and of inputs that an entry joins, numbered over all outer dimensions."""
    joined = [(0, 0)]
    for p, k in zip(outer, entry, strict=True):
        joined = [
            (a * p.output_size + o, b * p.input_size + i) for a, b in joined for o, i in zip(*p.met(k), strict=True)
        ]
    return joined


def _positions_first(tensor: Tensor) -> Tensor:
    """``[N, C, *P]`` as ``[P, N·C]``: the transpose of a plain matrix, which PyTorch copies block by block."""
    return tensor.flatten(2).flatten(0, 1).t().contiguous()


class LineProducts(WeightGradient):
    """A weight gradient without groups by products of lines, where these pay."""

    name, kind, make, native = "line products", Kind.PRODUCT, staticmethod(line_products), False

    def fits(self, join: Join) -> Any:
        """Whether products by lines are faster than a native kernel."""
        if not super().fits(join) or not join.legs.target.fast_products:
            return False
        (x, y), encode, patterns = self.ordered(join), join.legs.encode, patterns_of(join)
        x = x & ~join.roles.i | encode(leg for p in patterns[self.dims :] for leg in (p.o, p.k))
        y = y & ~encode(p.o for p in patterns[: self.dims])
        if join.volume(x & y & join.out) > 1:
            return False
        channels = join.volume(x & ~y), join.volume(y & ~x)
        return self.pay(tuple(p.pattern for p in patterns[: self.dims]), join.volume(x & y), channels)

    @staticmethod
    def pay(patterns: tuple[IndexPattern, ...], examples: int, channels: tuple[int, int]) -> bool:
        """Whether they are, for a number of examples, and of input and output channels."""
        cpu, outputs = machine.cpu, patterns[-1].output_size
        wide = min(channels) >= cpu.line_wide and max(channels) >= cpu.line_widest
        slower = outputs <= cpu.line_small or not convolution_kernels.has_avx512()  # of native kernels
        return wide and any(p.kernel_size > 1 for p in patterns) and slower and examples * outputs >= cpu.line_long
