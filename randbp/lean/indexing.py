"""Functions that move entries: they hold indices in the smallest integers, masks in bits, and shapes, but no entries.

The gradient of a sum depends on where its terms came from, not on their values. The same holds for gathering, sorting
and padding.
"""

from typing import Any

import torch
from torch import Tensor

from .._torch.hooks import Hooks
from .lean_call import Call, is_activation, is_plain, is_small
from .packed import Packed, Substitute, call_with, constant, packed_mask, packing, rounded


def hold_indices(indices: Tensor, limit: int, outer: Hooks | None) -> Packed:
    """Hold indices below a limit in the smallest integers."""
    small = next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if limit <= torch.iinfo(t).max + 1)
    return Substitute((indices.to(small),), outer, Tensor.long)


def with_indices(call: Call, input: Any, *args: Any, **options: Any) -> Any:
    """Run a function that returns entries of rows and their indices along a dimension."""
    if not is_activation(input):
        return NotImplemented
    limit = max(input.shape, default=1)

    def indices(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        return hold_indices(tensor, limit, outer) if tensor.dtype == torch.int64 and not is_small(tensor) else None

    return call_with(call, [input], constant, indices)


def moved(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run a function whose gradient needs shapes, indices and masks."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not any(map(is_plain, given)):
        return NotImplemented
    copies = call.function in _COPIES
    limit = max(given[0].shape, default=1)

    def of_given(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        return constant(tensor) if tensor.is_floating_point() else packed_mask(tensor, outer)

    def of_others(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if copies and not tensor.is_floating_point() and not is_small(tensor):
            return hold_indices(tensor, limit, outer)
        return of_given(tensor, outer)

    return call_with(call, given, of_given, of_others)


_COPIES = (torch.take_along_dim, Tensor.take_along_dim)
"""Functions that hold indices of their own, which are never negative."""


def scatter_reduce(
    call: Call, input: Tensor, dim: Any, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """``scatter_reduce``, if it adds up."""
    return moved(call, input, src) if reduce in ("sum", "mean") else NotImplemented


def items(call: Call, input: Tensor, index: Any) -> Any:
    """``x[mask]``. Most other subscripts are views."""
    given = index if isinstance(index, tuple) else (index,)
    masked = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in given)
    return moved(call, input, *given) if masked else NotImplemented


def pad(call: Call, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """``pad``, if it repeats entries."""
    return moved(call, input) if mode in ("reflect", "replicate") else NotImplemented


def grid_sample(call: Call, input: Tensor, grid: Tensor, *args: Any, **options: Any) -> Any:
    """``grid_sample``: linear in the input, as is the gradient of the grid, which alone needs the input's entries."""
    if not is_activation(input) or (grid.requires_grad and not call.rounds):
        return NotImplemented
    context, needed = call.context, grid.requires_grad
    return call_with(
        call,
        [input],
        lambda tensor, outer: rounded(tensor, context, outer, None) if needed else constant(tensor),
    )


def masked(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run a function that chooses entries by a mask."""
    given = [*args, *kwargs.values()]
    has_mask = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in given)
    if not has_mask or not any(map(is_plain, given)):
        return NotImplemented
    with packing(packed_mask):
        return call.run()
