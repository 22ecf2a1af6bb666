"""Parameters that are broadcast over examples and positions as factors or summands."""

from math import prod

from torch import Tensor

from .places import View


def broadcast_layout(shape: tuple[int, ...], own: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The layout of a tensor that a smaller one of shape ``own`` is broadcast over, if it is over examples, too.

    Example:
        >>> broadcast_layout((8, 3, 5, 5), (3, 1, 1)), broadcast_layout((8, 5, 6), (1, 5, 6))
        ((8, 1, 3, 25), (8, 1, 30, 1))
    """
    sizes = (1,) * (len(shape) - len(own)) + own
    used = [dim for dim, size in enumerate(sizes) if size != 1]
    first, after = (used[0], used[-1] + 1) if used else (len(shape), len(shape))
    if not shape or first == 0 or sizes[first:after] != shape[first:after]:
        return None
    return shape[0], prod(shape[1:first]), prod(shape[first:after]), prod(shape[after:])


def in_order_of(view: View | None, parameter: Tensor) -> bool:
    """Whether a view has a parameter's entries in their order."""
    if view is None:
        return True
    both = (view.size, view.stride), (parameter.size(), parameter.stride())
    seen, own = ([pair for pair in zip(*each, strict=True) if pair[0] > 1] for each in both)
    return seen == own
