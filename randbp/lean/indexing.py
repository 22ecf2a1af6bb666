"""Functions that move entries: they hold indices in the smallest integers, masks in bits, and shapes, but no entries.

The gradient of a sum depends on where its terms came from, not on their values. The same holds for gathering, sorting
and padding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.hooks import Hooks
from .packed import Constant, Entries, Packed, packed_mask, packing, rounded
from .rules import Call, is_activation, is_plain, is_small, lean_version_of


class _Indices(Entries):
    """Indices below a limit, held in the smallest integers."""

    def __init__(self, indices: Tensor, limit: int, outer: Hooks | None) -> None:
        small = next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if limit <= torch.iinfo(t).max + 1)
        super().__init__(indices, (indices.to(small),), outer)

    def tensor(self) -> Tensor:
        """Restore the indices."""
        (small,) = self._parts()
        return small.long()


def with_indices(call: Call, input: Any, *args: Any, **options: Any) -> Any:
    """Run a function that returns entries of rows and their indices along a dimension."""
    if options.get("out") is not None or not is_activation(input):
        return NotImplemented
    limit, source = max(input.shape, default=1), id(input.untyped_storage())

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if id(tensor.untyped_storage()) == source:
            return Constant.like(tensor)
        return _Indices(tensor, limit, outer) if tensor.dtype == torch.int64 and not is_small(tensor) else None

    with packing(pack):
        return call.run()


_ORDERED = ("cummax", "cummin", "kthvalue", "mode", "msort", "sort", "topk")
lean_version_of([getattr(space, name) for space in (torch, Tensor) for name in _ORDERED], exact=True)(with_indices)


def _of_shapes(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run a function whose gradient needs shapes, indices and masks."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if kwargs.get("out") is not None or not any(map(is_plain, given)):
        return NotImplemented
    copies = call.function in _COPIES
    storages, limit = {id(value.untyped_storage()) for value in given}, max(given[0].shape, default=1)

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if tensor.is_floating_point():
            return Constant.like(tensor)
        if copies and not is_small(tensor) and id(tensor.untyped_storage()) not in storages:
            return _Indices(tensor, limit, outer)
        return packed_mask(tensor, outer)

    with packing(pack):
        return call.run()


_COPIES = (torch.take_along_dim, Tensor.take_along_dim)
"""Functions that hold indices of their own, which are never negative."""

_MOVES = (
    *("gather", "take", "take_along_dim", "masked_select"),
    *("index_add", "index_add_", "index_copy", "index_copy_"),
)
lean_version_of([getattr(space, name) for space in (torch, Tensor) for name in _MOVES if hasattr(space, name)], True)(
    _of_shapes
)


@lean_version_of([torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_], exact=True)
def _scatter_reduce(
    call: Call, input: Tensor, dim: Any, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    if reduce not in ("sum", "mean"):
        return NotImplemented
    return _of_shapes(call, input, src)


@lean_version_of([Tensor.__getitem__], exact=True)
def _items(call: Call, input: Tensor, index: Any) -> Any:
    """``x[mask]``. Most other subscripts are views."""
    given = index if isinstance(index, tuple) else (index,)
    masked = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in given)
    return _of_shapes(call, input, *given) if masked else NotImplemented


@lean_version_of([F.pad], exact=True)
def _pad(call: Call, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    return _of_shapes(call, input) if mode in ("reflect", "replicate") else NotImplemented


@lean_version_of([F.grid_sample], exact=True)
def _grid_sample(call: Call, input: Tensor, grid: Tensor, *args: Any, **options: Any) -> Any:
    """``grid_sample``: linear in the input, as is the gradient of the grid, which alone needs the input's entries."""
    if not is_activation(input) or (grid.requires_grad and not call.rounds):
        return NotImplemented
    source, needed, session = id(input.untyped_storage()), grid.requires_grad, call.session

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if id(tensor.untyped_storage()) != source:
            return None
        return rounded(tensor, session, outer, None) if needed else Constant.like(tensor)

    with packing(pack):
        return call.run()


@lean_version_of(
    [
        *(torch.where, Tensor.where, torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_),
        *(torch.masked_scatter, Tensor.masked_scatter, Tensor.masked_scatter_, Tensor.__setitem__),
    ],
    exact=True,
)
def _selection(call: Call, *args: Any, **kwargs: Any) -> Any:
    given = [*args, *kwargs.values()]
    masked = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in given)
    if kwargs.get("out") is not None or not masked or not any(map(is_plain, given)):
        return NotImplemented
    with packing(packed_mask):
        return call.run()
