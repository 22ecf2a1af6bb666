"""Layers in terms of the convolution: the transposed convolution and the linear layer."""

from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any, Literal

from torch import Tensor

from .integers import as_integers
from .pattern import IndexPattern
from .spec import ConvSpec

Side = Literal["input", "output"]


def _adjoints(name: str) -> Any:
    """An attribute that is one of the adjoint convolution's."""
    return property(attrgetter(f"adjoint.{name}"), doc=f"``{name}`` of the adjoint.")


@dataclass(frozen=True)
class ConvTransposeSpec:
    """Shapes and hyper-parameters of one transposed convolution, seen from the layer itself.

    Its attributes are those of :class:`ConvSpec`: ``input_shape`` is the shape of the layer's own input.

    Args:
        adjoint: The convolution with the same weight that maps the layer's output shape to its input shape; see
            :func:`transposed_spec`.

    Example:
        >>> from randbp import tn
        >>> spec = ConvTransposeSpec(tn.transposed_spec((2, 3, 5, 5), out_channels=4, kernel_size=3, stride=2))
        >>> spec.input_shape, spec.output_shape, spec.weight_shape
        ((2, 3, 5, 5), (2, 4, 11, 11), (3, 4, 3, 3))
    """

    adjoint: ConvSpec

    batch_size = _adjoints("batch_size")
    in_channels = _adjoints("out_channels")
    out_channels = _adjoints("in_channels")
    groups = _adjoints("groups")
    kernel_size = _adjoints("kernel_size")
    input_size = _adjoints("output_size")
    output_size = _adjoints("input_size")
    input_shape = _adjoints("output_shape")
    output_shape = _adjoints("input_shape")
    weight_shape = _adjoints("weight_shape")
    dims = _adjoints("dims")
    patterns = _adjoints("patterns")  # the layer's outputs are their inputs, see :func:`role`
    multiply_adds = _adjoints("multiply_adds")


@dataclass(frozen=True, init=False)
class LinearSpec(ConvSpec):
    """A linear layer: the convolution along a sequence whose kernel has one entry.

    See :func:`linear_spec`. Only where PyTorch's own kernel for a linear layer is another one does it differ from a
    :class:`ConvSpec`.
    """


LayerSpec = ConvSpec | ConvTransposeSpec


def linear_spec(input_shape: tuple[int, ...], out_features: int) -> LinearSpec:
    """Spec of a linear layer on vectors or sequences.

    Args:
        input_shape: ``(C,)``, ``(N, C)`` or ``(N, *sequence, C)``, as PyTorch's linear layers take it.
        out_features: Number of output features ``D``.

    Returns:
        The spec of the input seen as ``[N, C, T]`` with ``T`` the product of the sequence's sizes (1 without one), and
        of the weight seen as ``[D, C, 1]``.

    Raises:
        ValueError: If the shape has no dimension or a size that is not positive.

    Example:
        >>> linear_spec((8, 10, 64), out_features=32).input_shape
        (8, 64, 10)
    """
    shape = as_integers(input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape={input_shape!r}: expected (C,), (N, C) or (N, *sequence, C) with positive sizes")
    return LinearSpec((shape[0] if len(shape) > 1 else 1, shape[-1], prod(shape[1:-1])), out_features, 1)


def as_sequence(tensor: Tensor) -> Tensor:
    """A linear layer's tensor ``[C]``, ``[N, C]`` or ``[N, *sequence, C]`` as ``[N, C, T]``, a view if contiguous."""
    examples = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
    length = prod(examples.shape[1:-1])
    return examples.reshape(examples.shape[0], length, examples.shape[-1]).transpose(1, 2)


def role(spec: LayerSpec, side: Side) -> Literal["i", "o"]:
    """The leg of the index patterns that stands for the positions on one side of a layer."""
    return "i" if (side == "input") != isinstance(spec, ConvTransposeSpec) else "o"


def is_identity(pattern: IndexPattern) -> bool:
    """Whether each input position is the output position of the same number, as in a linear layer."""
    one = pattern.kernel_size == pattern.stride == 1
    return one and pattern.padding == 0 and pattern.input_size == pattern.output_size


def replace_batch(spec: LayerSpec, batch: int) -> LayerSpec:
    """Replace a layer's number of examples."""
    return _rebuilt(spec, batch, spec.groups, spec.in_channels, spec.out_channels)


def replace_channels(spec: LayerSpec, groups: int, inner: int, outer: int) -> LayerSpec:
    """Replace a layer's channels by ``groups`` groups of ``inner`` input and ``outer`` output channels each."""
    return _rebuilt(spec, spec.batch_size, groups, groups * inner, groups * outer)


def _rebuilt(spec: LayerSpec, batch: int, groups: int, inner: int, outer: int) -> LayerSpec:
    if isinstance(spec, ConvTransposeSpec):
        made = _rebuilt(spec.adjoint, batch, groups, outer, inner)
        assert isinstance(made, ConvSpec)
        return ConvTransposeSpec(made)
    shape = (batch, inner, *spec.input_size)
    return type(spec)(shape, outer, spec.kernel_size, spec.stride, spec.padding, spec.dilation, groups)
