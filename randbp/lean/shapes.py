"""Output shapes of PyTorch's layers that treat examples one by one, by arithmetic, without running a layer."""

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any, cast

from torch import nn

from .._torch.class_swap import own_class
from ..layers import has_class_forward, kind_of, runs_pytorchs_forward

Shape = tuple[int, ...]


def _each(value: Any, dims: int) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,) * dims


def _windows(layer: Any, sizes: Shape) -> Shape:
    """Number of windows of a convolution or pooling along each dimension."""
    if layer.padding == "same":
        return sizes
    ceil, dims = getattr(layer, "ceil_mode", False), len(sizes)
    padding = 0 if layer.padding == "valid" else layer.padding
    settings = (layer.kernel_size, layer.stride, padding, getattr(layer, "dilation", 1))
    counts = []
    for size, k, s, p, d in zip(sizes, *(_each(setting, dims) for setting in settings), strict=True):
        reach = size + 2 * p - d * (k - 1) - 1
        count = (reach + (s - 1 if ceil else 0)) // s + 1
        counts.append(count - (ceil and (count - 1) * s >= size + p))  # none starts in the padding behind
    return tuple(counts)


def _convolution(layer: Any, shape: Shape) -> Shape | None:
    return (layer.out_channels, *_windows(layer, shape[1:])) if shape[0] == layer.in_channels else None


def _transposed(layer: Any, shape: Shape) -> Shape | None:
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding)
    sizes = [(i - 1) * s - 2 * p + d * (k - 1) + o + 1 for i, k, s, p, d, o in zip(shape[1:], *settings, strict=True)]
    return (layer.out_channels, *sizes) if shape[0] == layer.in_channels else None


def _pooling(layer: Any, shape: Shape) -> Shape:
    return (shape[0], *_windows(layer, shape[1:]))


def _adaptive(layer: Any, shape: Shape) -> Shape:
    wanted = _each(layer.output_size, len(shape) - 1)
    return (shape[0], *(size if out is None else out for size, out in zip(shape[1:], wanted, strict=True)))


def _upsampled(layer: Any, shape: Shape) -> Shape:
    dims = len(shape) - 1
    if layer.size is not None:
        return (shape[0], *_each(layer.size, dims))
    scales = _each(layer.scale_factor, dims)
    return (shape[0], *(floor(size * scale) for size, scale in zip(shape[1:], scales, strict=True)))


def _same(layer: Any, shape: Shape) -> Shape:
    return shape


Rule = Callable[[Any, Shape], Shape | None]


def _by_dims(rule: Rule, *names: str) -> dict[type[nn.Module], tuple[Rule, int]]:
    """Register a rule for layers of one, two and three spatial dimensions."""
    return {getattr(nn, f"{name}{dims}d"): (rule, dims) for name in names for dims in (1, 2, 3)}


_LAYERS: Mapping[type[nn.Module], tuple[Rule, int | None]] = {
    **_by_dims(_convolution, "Conv"),
    **_by_dims(_transposed, "ConvTranspose"),
    **_by_dims(_pooling, "MaxPool", "AvgPool"),
    **_by_dims(_adaptive, "AdaptiveMaxPool", "AdaptiveAvgPool"),
    **_by_dims(_same, "InstanceNorm"),
    nn.GroupNorm: (_same, None),
    nn.Upsample: (_upsampled, None),
}
"""How shapes change, and how many spatial dimensions there are: ``None`` for any but none."""

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity),
)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""Layers that, in parts, would draw other masks than PyTorch does from the same state of its generator."""


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
    rule, dims = _LAYERS.get(kind, (None, 0))
    if rule is None or not (len(shape) > 1 if dims is None else len(shape) == 1 + dims):
        return None
    try:
        found = rule(layer, shape)
    except (TypeError, ValueError, ArithmeticError):  # PyTorch will say what is wrong with its settings
        return None
    return found if found is not None and min(found) > 0 else None


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
