"""VJPs of a layer's positions, class by class: the networks that samplers of positions sub-sample.

The networks serve convolutions, linear layers and transposed convolutions alike; `LayerLegs` names their legs.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod

from ...layers.layer_specs import LayerSpec, Side, is_identity, role
from ...layers.pattern import IndexPattern
from ..interface import TensorNetwork
from .layer_legs import LayerLegs


@dataclass(frozen=True)
class PositionClass:
    """Positions on one side of a layer that meet the same kernel entries, and the patterns between them.

    Positions that are the leg ``i`` of the index pattern (inputs of a convolution, outputs of a transposed one) split
    into residue classes: with stride ``s``, ``Π[i, o, k]`` vanishes unless ``i ≡ d·k - p (mod s)``. On one class, with
    the kernel entries that match it, the pattern is again an index pattern, of stride 1 and dilation
    ``d / gcd(s, d)``. Positions that are the leg ``o`` meet all kernel entries: they are one class.

    Args:
        positions: Per dimension, the positions of the class that the other side may use.
        kernels: Per dimension, the kernel entries of the class.
        patterns: Per dimension, the pattern between positions, the other side and kernel entries counted within the
            class.
    """

    positions: tuple[range, ...]
    kernels: tuple[range, ...]
    patterns: tuple[IndexPattern, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return prod(map(len, self.positions))

    @property
    def is_pointwise(self) -> bool:
        """Whether each position meets exactly the position of the same number on the other side."""
        return all(map(is_identity, self.patterns))


@lru_cache(maxsize=1024)
def position_classes(spec: LayerSpec, side: Side) -> tuple[PositionClass, ...]:
    """Partition of the used positions on one side of a layer.

    Example:
        >>> from randbp import tn
        >>> spec = tn.ConvSpec((1, 1, 5), 1, 3, stride=2)
        >>> [c.positions for c in position_classes(spec, "input")]
        [(range(0, 5, 2),), (range(1, 4, 2),)]
        >>> [c.positions for c in position_classes(spec, "output")]
        [(range(0, 2),)]
    """
    if role(spec, side) == "o":
        return (whole_class(spec, side),)
    per_dimension = [_classes(pattern) for pattern in spec.patterns]
    return tuple(
        PositionClass(*(zip(*choice, strict=True) if choice else ((), (), ()))) for choice in product(*per_dimension)
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
def whole_class(spec: LayerSpec, side: Side) -> PositionClass:
    """All positions on one side and all kernel entries as one class, for samples too small to be split."""
    sizes = spec.input_size if side == "input" else spec.output_size
    return PositionClass(tuple(map(range, sizes)), tuple(map(range, spec.kernel_size)), spec.patterns)


@lru_cache(maxsize=1024)
def weight_vjp_of_positions(spec: LayerSpec, positions: PositionClass, channels_last: bool = False) -> TensorNetwork:
    """A class's share of the weight VJP: ``Σ_{n i o} X Π V_Y`` over its input positions, for its kernel entries.

    Slots: ``input`` ``[N, C, *positions of the class]``, ``output_grad`` ``[N, D, *O]``, or ``[N, *O, D]`` with
    ``channels_last``. Result: as the weight, with the kernel entries of the class; summed over `position_classes`, at
    their kernel entries, this is the weight VJP.

    Example:
        >>> from randbp import tn
        >>> spec = tn.ConvTransposeSpec(tn.transposed_spec((2, 3, 5), out_channels=4, kernel_size=3))
        >>> weight_vjp_of_positions(spec, position_classes(spec, "input")[0]).output_shape
        (3, 4, 3)
    """
    legs = LayerLegs(spec, positions.patterns)
    examples, channels, *rest = legs.output
    output = (examples, *rest, channels) if channels_last else legs.output
    return legs.network("weight_vjp", {"input": legs.input}, legs.weight, {"output_grad": output})


@lru_cache(maxsize=1024)
def input_vjp_of_positions(spec: LayerSpec, positions: PositionClass) -> TensorNetwork:
    """A class's share of the input VJP: ``Σ_{d o k} W Π V_Y`` over its output positions and kernel entries.

    Slots: ``output_grad`` ``[N, D, *positions of the class]``, ``weight`` with the kernel entries of the class.
    Result: ``[N, C, *I]``; summed over `position_classes` this is the input VJP.

    Example:
        >>> from randbp import tn
        >>> spec = tn.ConvTransposeSpec(tn.transposed_spec((2, 3, 5), 4, kernel_size=3, stride=2))
        >>> [input_vjp_of_positions(spec, c).slots["weight"] for c in position_classes(spec, "output")]
        [(3, 4, 2), (3, 4, 1)]
    """
    legs = LayerLegs(spec, positions.patterns)
    return legs.network("input_vjp", {"output_grad": legs.output}, legs.input, {"weight": legs.weight})


@lru_cache(maxsize=1024)
def constant_input_weight_vjp(spec: LayerSpec) -> TensorNetwork:
    """The weight VJP of an input that is constant over positions: ``Σ_n m[n, g c] Σ_{i o} Π V_Y[n, g d, o]``.

    Slots: ``mean`` ``[N, C]``, ``output_grad`` ``[N, D, *O]``. Result: as the weight.
    """
    legs = LayerLegs(spec)
    mean, output = legs.input[:2], {"output_grad": legs.output}
    return legs.network("weight_vjp of a constant", {"mean": mean}, legs.weight, output)


@lru_cache(maxsize=1024)
def constant_output_grad_input_vjp(spec: LayerSpec) -> TensorNetwork:
    """The input VJP of an output gradient that is constant over positions: ``Σ_{d k} m[n, g d] W Σ_o Π``.

    Slots: ``mean`` ``[N, D]``, ``weight``. Result: ``[N, C, *I]``.
    """
    legs = LayerLegs(spec)
    return legs.network("input_vjp of a constant", {"mean": legs.output[:2]}, legs.input, {"weight": legs.weight})
