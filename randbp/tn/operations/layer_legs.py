"""Names of a layer's legs: the same for convolutions, linear layers and transposed convolutions."""

from collections.abc import Mapping

from ...layers.layer_specs import ConvTransposeSpec, LayerSpec
from ...layers.pattern import IndexPattern
from ...layers.spec import ConvSpec
from ..interface import TensorNetwork
from ..moves import pruned
from ..nodes import Axis, Node, Operand, Pattern

Axes = tuple[tuple[str, ...], ...]


class LayerLegs:
    """Legs of a layer's tensors, named from the layer's own view: ``i`` and ``c`` belong to its input.

    A transposed convolution is the network of a convolution with the roles of ``i`` and ``o`` exchanged: its index
    patterns are reversed.

    Args:
        spec: The layer.
        patterns: Index patterns per dimension, by default the layer's.

    Attributes:
        sizes: Size of every leg.
        patterns: The index patterns as nodes.
        i, o, k: Spatial legs of the input, the output and the kernel.
        input, output, weight: Legs of each dimension of these tensors.

    Raises:
        TypeError: If the spec is not a layer's.
    """

    def __init__(self, spec: LayerSpec, patterns: tuple[IndexPattern, ...] | None = None) -> None:
        if not isinstance(spec, ConvSpec | ConvTransposeSpec):
            raise TypeError(f"spec={spec!r}: expected a tn.ConvSpec, tn.ConvTransposeSpec or tn.linear_spec(…)")
        turned = isinstance(spec, ConvTransposeSpec)
        inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self.sizes = {"n": spec.batch_size, "g": spec.groups, "c": inner, "d": outer}
        self.i, self.o, self.k = (tuple(f"{name}{dim}" for dim in range(1, spec.dims + 1)) for name in "iok")
        nodes = []
        for pattern, i, o, k in zip(patterns or spec.patterns, self.i, self.o, self.k, strict=True):
            pair = (o, i) if turned else (i, o)
            self.sizes |= {pair[0]: pattern.input_size, pair[1]: pattern.output_size, k: pattern.kernel_size}
            nodes.append(Pattern(pattern, *pair, k))
        self.patterns = tuple(nodes)
        self.input: Axes = (("n",), ("g", "c"), *singles(self.i))
        self.output: Axes = (("n",), ("g", "d"), *singles(self.o))
        self.weight: Axes = (*((("g", "c"), ("d",)) if turned else (("g", "d"), ("c",))), *singles(self.k))

    def network(
        self,
        name: str,
        first: Mapping[str, Axes],
        output: Axes,
        last: Mapping[str, Axes] | None = None,
        *,
        patterns: bool = True,
    ) -> TensorNetwork:
        """The network of operands ``{slot: legs of each dimension}`` before and after the index patterns, if any."""
        before, after = (
            [Operand(slot, self._grouped(axes)) for slot, axes in (some or {}).items()] for some in (first, last)
        )
        nodes: tuple[Node, ...] = (*before, *(self.patterns if patterns else ()), *after)
        leg_sizes = tuple(sorted(self.sizes.items()))
        return pruned(TensorNetwork(nodes, leg_sizes, self._grouped(output), name=name))

    def _grouped(self, axes: Axes) -> tuple[Axis, ...]:
        return tuple(Axis.grouped(legs, self.sizes) for legs in axes)


def singles(legs: tuple[str, ...]) -> Axes:
    """Each leg as a dimension of its own."""
    return tuple((leg,) for leg in legs)
