"""Output shapes of PyTorch's layers that treat examples one by one, found without computing an output."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from .._torch.class_swap import own_class
from ..layers import has_class_forward, kind_of, runs_pytorchs_forward
from ..layers.functions import spec_of

Shape = tuple[int, ...]

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity),
)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""Layers that, in parts, would draw other masks than PyTorch does from the same state of its generator."""

_LAYERS = ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "InstanceNorm")
_DIMS = {getattr(nn, f"{name}{dims}d"): dims for name in _LAYERS for dims in (1, 2, 3)}
"""Number of spatial dimensions."""

_ANY_DIMS = (nn.GroupNorm, nn.Upsample)
"""Layers of one spatial dimension or more."""


def example_shape(layer: nn.Module, shape: Shape) -> Shape | None:
    """Shape of one example of a layer's output, given that of its input, both without the batch.

    It is ``None`` unless the layer is one of PyTorch's that treat the examples of a batch one by one, and takes
    examples of that shape.

    Example:
        >>> example_shape(nn.Conv2d(3, 8, kernel_size=3, stride=2), (3, 9, 9))
        (8, 4, 4)
        >>> example_shape(nn.BatchNorm2d(3), (3, 9, 9)) is example_shape(nn.Conv2d(3, 8, 3), (4, 9, 9)) is None
        True
    """
    kind = own_class(layer)
    if not has_class_forward(layer) or is_observed(layer):  # who knows what it does; somebody wants the whole output
        return None
    if kind_of(layer) is not None and not runs_pytorchs_forward(layer):
        return None
    if kind is nn.Sequential:
        inside = list(layer.children())
        shapes = chain_shapes(inside, shape)
        return shapes[-1] if len(shapes) > len(inside) else None
    if kind in _ELEMENTWISE or (kind in _DROPOUTS and not cast(Any, layer).p):
        return shape
    if getattr(layer, "return_indices", False) or any(True for _ in layer.buffers()):
        return None  # buffers are a state, such as running statistics or the vectors of spectral normalisation
    if not (len(shape) > 1 if kind in _ANY_DIMS else len(shape) == 1 + _DIMS.get(kind, -1)):
        return None
    try:
        found = _output_shape(layer, kind, torch.empty(1, *shape, device="meta"))[1:]
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # PyTorch will say what is wrong with its settings
        return None
    return found if min(found) > 0 else None


def _output_shape(layer: Any, kind: type[nn.Module], x: torch.Tensor) -> Shape:
    """Shape of a layer's output for an input without data."""
    if (function := kind_of(layer)) is not None:
        made, x = function.of_module(layer, layer.weight, x) or (function(), x)
        return spec_of(made, x.shape, layer.weight.shape).output_shape
    if "Norm" in kind.__name__:
        return x.shape
    # (Of other modes, PyTorch computes a tensor without data by way of indices.)
    y = F.interpolate(x, layer.size, layer.scale_factor) if kind is nn.Upsample else kind.forward(layer, x)
    return y.shape


def is_observed(layer: nn.Module) -> bool:
    """Whether a layer has forward hooks other than those that only count calls."""
    hooks, always = getattr(layer, "_forward_hooks", {}), getattr(layer, "_forward_hooks_always_called", {})
    return any(number not in always for number in hooks)


def chain_shapes(layers: Sequence[nn.Module], shape: Shape) -> list[Shape]:
    """Shapes of one example of the input and of each layer's output, as far as layers treat examples one by one.

    Example:
        >>> chain_shapes([nn.Conv1d(1, 2, 3), nn.ReLU(), nn.BatchNorm1d(2), nn.ReLU()], (1, 6))
        [(1, 6), (2, 4), (2, 4)]
    """
    shapes = [tuple(shape)]
    for layer in layers:
        found = example_shape(layer, shapes[-1])
        if found is None:
            break
        shapes.append(found)
    return shapes
