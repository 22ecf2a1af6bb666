"""A strided weight VJP as a sum of stride-1 networks, one per residue of the input positions modulo the stride."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod

from ..network import TensorNetwork, network
from ..nodes import Axis, Operand, Pattern
from ..pattern import IndexPattern
from ..spec import ConvSpec
from .convolution import leg_sizes, singles, spatial


@dataclass(frozen=True)
class ResidueClass:
    """Input positions that meet the same kernel entries, and the stride-1 patterns between them.

    With stride ``s``, ``Π[i, o, k]`` vanishes unless ``i ≡ d·k - p (mod s)``. On one residue class of ``i``, with the
    kernel entries that match it, the pattern is again an index pattern, of stride 1 and dilation ``d / gcd(s, d)``.

    Args:
        inputs: Per dimension, the input positions of the class that some output may use.
        kernels: Per dimension, the kernel entries of the class.
        patterns: Per dimension, the pattern between positions, outputs and kernel entries counted within the class.
    """

    inputs: tuple[range, ...]
    kernels: tuple[range, ...]
    patterns: tuple[IndexPattern, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return prod(map(len, self.inputs))


@lru_cache(maxsize=1024)
def residue_classes(patterns: tuple[IndexPattern, ...]) -> tuple[ResidueClass, ...]:
    """Partition of the input positions that outputs use; one class at stride 1.

    Example:
        >>> from randbp import tn
        >>> [c.inputs for c in residue_classes((tn.IndexPattern(5, 2, 3, stride=2),))]
        [(range(0, 5, 2),), (range(1, 4, 2),)]
    """
    per_dimension = [_classes(pattern) for pattern in patterns]
    return tuple(
        ResidueClass(*(zip(*choice, strict=True) if choice else ((), (), ()))) for choice in product(*per_dimension)
    )


def _classes(pattern: IndexPattern) -> list[tuple[range, range, IndexPattern]]:
    stride, dilation = pattern.stride, pattern.dilation
    common = gcd(stride, dilation)
    step = stride // common
    found = []
    for first in range(min(step, pattern.kernel_size)):
        kernels = range(first, pattern.kernel_size, step)
        offset = dilation * first - pattern.padding
        lowest = offset + stride * max(0, -(offset // stride))  # the first used position that is not in the padding
        highest = min(
            pattern.input_size - 1, offset + stride * (pattern.output_size - 1) + dilation * (kernels[-1] - first)
        )
        inputs = range(lowest, highest + 1, stride)
        if inputs:
            left = (lowest - offset) // stride
            inner = IndexPattern(len(inputs), pattern.output_size, len(kernels), 1, dilation // common, left)
            found.append((inputs, kernels, inner))
    return found


@lru_cache(maxsize=1024)
def whole_class(patterns: tuple[IndexPattern, ...]) -> ResidueClass:
    """All input positions and all kernel entries as one class, for samples too small to be split."""
    return ResidueClass(
        tuple(range(p.input_size) for p in patterns), tuple(range(p.kernel_size) for p in patterns), patterns
    )


@lru_cache(maxsize=1024)
def residue_weight_vjp(spec: ConvSpec, residue: ResidueClass) -> TensorNetwork:
    """A class's share of the weight VJP: ``Σ_{n i o} X Π V_Y`` over its positions, for its kernel entries.

    Slots: ``input`` ``[N, C, *positions of the class]``, ``output_grad`` ``[N, D, *O]``. Result: ``[D, C/G, *entries of
    the class]``; summed over `residue_classes`, at their kernel entries, this is the weight VJP.
    """
    sizes = leg_sizes(spec)
    nodes: list[Pattern] = []
    for dim, pattern in enumerate(residue.patterns, 1):
        sizes |= {f"i{dim}": pattern.input_size, f"k{dim}": pattern.kernel_size}
        nodes.append(Pattern(pattern, f"i{dim}", f"o{dim}", f"k{dim}"))
    operands = (
        Operand(
            "input", tuple(Axis.grouped(legs, sizes) for legs in (("n",), ("g", "c"), *singles(spatial("i", spec))))
        ),
        Operand(
            "output_grad",
            tuple(Axis.grouped(legs, sizes) for legs in (("n",), ("g", "d"), *singles(spatial("o", spec)))),
        ),
    )
    output = (("g", "d"), ("c",), *singles(spatial("k", spec)))
    return network("weight_vjp", (operands[0], *nodes, operands[1]), sizes, output)


@lru_cache(maxsize=1024)
def constant_input_weight_vjp(spec: ConvSpec) -> TensorNetwork:
    """The weight VJP of an input that is constant over positions: ``Σ_n m[n, g c] Σ_{i o} Π V_Y[n, g d, o]``.

    Slots: ``mean`` ``[N, C]``, ``output_grad`` ``[N, D, *O]``. Result: ``[D, C/G, *K]``.
    """
    sizes = leg_sizes(spec)
    nodes = tuple(Pattern(p, f"i{dim}", f"o{dim}", f"k{dim}") for dim, p in enumerate(spec.patterns, 1))
    mean = Operand("mean", (Axis.grouped(("n",), sizes), Axis.grouped(("g", "c"), sizes)))
    grad_axes = (("n",), ("g", "d"), *singles(spatial("o", spec)))
    grad = Operand("output_grad", tuple(Axis.grouped(legs, sizes) for legs in grad_axes))
    output = (("g", "d"), ("c",), *singles(spatial("k", spec)))
    return network("weight_vjp of a constant", (mean, *nodes, grad), sizes, output)


@lru_cache(maxsize=1024)
def constant_output_grad_input_vjp(spec: ConvSpec) -> TensorNetwork:
    """The input VJP of an output gradient that is constant over positions: ``Σ_{d k} m[n, g d] W[g d, c, k] Σ_o Π``.

    Slots: ``mean`` ``[N, D]``, ``weight`` ``[D, C/G, *K]``. Result: ``[N, C, *I]``.
    """
    sizes = leg_sizes(spec)
    nodes = tuple(Pattern(p, f"i{dim}", f"o{dim}", f"k{dim}") for dim, p in enumerate(spec.patterns, 1))
    mean = Operand("mean", (Axis.grouped(("n",), sizes), Axis.grouped(("g", "d"), sizes)))
    weight_axes = (("g", "d"), ("c",), *singles(spatial("k", spec)))
    weight = Operand("weight", tuple(Axis.grouped(legs, sizes) for legs in weight_axes))
    output = (("n",), ("g", "c"), *singles(spatial("i", spec)))
    return network("input_vjp of a constant", (mean, *nodes, weight), sizes, output)
