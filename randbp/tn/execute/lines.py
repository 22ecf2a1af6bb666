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
from typing import Any, NamedTuple

from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.steps import Join
from . import convolution_kernels
from .convolutions import WeightGradient
from .kernel import Kind
from .pattern_steps import patterns_of
from .program import TensorFunction


class Stretch(NamedTuple):
    """Where one kernel entry of the last dimension meets outputs: ``length`` from ``output``, at inputs from ``input``
    of a residue class."""

    residue: int
    output: int
    input: int
    length: int


def line_products(patterns: tuple[IndexPattern, ...]) -> TensorFunction:
    """``(x [N, C, *I], y [N, D, *O]) → w [D, C, *K]``."""
    *outer, last = patterns
    stretches = [stretch(last, entry) for entry in range(last.kernel_size)]
    residues = sorted({one.residue for one in stretches})
    meetings = [_lines(outer, entry) for entry in product(*(range(p.kernel_size) for p in outer))]
    sizes = [p.kernel_size for p in patterns]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        (examples, columns), rows = x.shape[:2], y.shape[1]
        outputs = _positions_first(y).view(-1, last.output_size, examples * rows)
        inputs = _positions_first(x).view(-1, last.input_size, examples * columns)
        classes = {r: inputs[:, r :: last.stride].contiguous() for r in residues}
        result = x.new_zeros(len(meetings), len(stretches), rows, columns)
        for meeting, lines in enumerate(meetings):
            for entry, (residue, first, source, length) in enumerate(stretches):
                if length:
                    place = result[meeting, entry]  # what iterating gives, autograd lets nobody write to
                    for output, input_ in lines:
                        left = outputs[output, first : first + length].view(-1, rows)
                        right = classes[residue][input_, source : source + length].view(-1, columns)
                        place.addmm_(left.t(), right)
        return result.flatten(0, 1).permute(1, 2, 0).reshape(rows, columns, *sizes)

    return kernel


def stretch(pattern: IndexPattern, entry: int) -> Stretch:
    """The outputs and inputs that a kernel entry joins.

    Example:
        >>> stretch(IndexPattern(8, 4, 3, stride=2, dilation=1, padding=1), 0)
        Stretch(residue=1, output=1, input=0, length=3)
    """
    offset, residue = divmod(pattern.dilation * entry - pattern.padding, pattern.stride)
    positions = len(range(residue, pattern.input_size, pattern.stride))
    first = max(0, -offset)
    return Stretch(residue, first, first + offset, max(0, min(pattern.output_size, positions - offset) - first))


def _lines(outer: list[IndexPattern], entry: tuple[int, ...]) -> list[tuple[int, int]]:
    """The lines of outputs and of inputs that an entry joins, numbered over all outer dimensions."""
    joined = [(0, 0)]
    for pattern, k in zip(outer, entry, strict=True):
        offset = pattern.dilation * k - pattern.padding
        pairs = [(o, o * pattern.stride + offset) for o in range(pattern.output_size)]
        pairs = [(o, i) for o, i in pairs if 0 <= i < pattern.input_size]
        joined = [(a * pattern.output_size + o, b * pattern.input_size + i) for a, b in joined for o, i in pairs]
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
