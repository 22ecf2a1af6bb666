"""Views of a layer's weight with separate dimensions for groups, output channels and input channels."""

from torch import Tensor

from .layer_specs import ConvTransposeSpec, LayerSpec


def by_group(weight: Tensor, spec: LayerSpec) -> Tensor:
    """View of a weight as ``[G, D / G, C / G, *K]``: convolutions store it in this order, transposed ones do not."""
    grouped = weight.unflatten(0, (spec.groups, -1))
    return grouped.transpose(1, 2) if isinstance(spec, ConvTransposeSpec) else grouped


def from_groups(grouped: Tensor, spec: LayerSpec) -> Tensor:
    """Inverse of :func:`by_group`; copies where the order of memory demands it."""
    return (grouped.transpose(1, 2) if isinstance(spec, ConvTransposeSpec) else grouped).flatten(0, 1)
