"""Functions whose gradient depends on comparisons of numbers: one or two bits per entry.

Whether ``x`` or ``y`` was larger, where a row has its maximum, which sign a number has: the backward pass of
``maximum``, ``amax`` or ``abs`` needs nothing else of the tensors that PyTorch holds for it. In their place are held
stand-ins that compare in the same way, ``-1``, ``0``, ``1`` and NaN. PyTorch's own backward pass does the rest: it
divides gradients among ties and NaN as usual, and gradients can be differentiated again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._torch.hooks import Hooks
from ..codecs import Codes
from .indexing import with_indices
from .lean_call import Call, is_activation, is_unadorned
from .memory_order import broadcast, flatten, memory_order, pieces, reduced_shape, unflatten
from .packed import Packed, Substitute, constant, packing

_ORDER = (-1.0, 1.0, 0.0, torch.nan)
"""Less, greater, equal, and none of these; a function that distinguishes two cases takes one bit."""


def stand_ins(codes: Tensor, values: tuple[float, ...], dtype: torch.dtype, outer: Hooks | None) -> Packed:
    """Hold a tensor whose entries take two to four values, given their numbers as ``uint8``."""
    shape, order, codec = codes.shape, memory_order(codes), Codes(1 if len(values) <= 2 else 2)

    def restore(packed: Tensor) -> Tensor:
        count = shape.numel()
        numbers = codec.decode(packed, count)
        table = torch.tensor(values, dtype=dtype).to(numbers.device, non_blocking=True)
        flat = torch.empty(count, dtype=dtype, device=numbers.device)
        for part in pieces(count, numbers.device):
            torch.index_select(table, 0, numbers[part].int(), out=flat[part])
        return unflatten(flat, shape, order)

    return Substitute((codec.encode(flatten(codes, order)),), outer, restore)


def _are_compared(*values: Any) -> bool:
    """Whether these are tensors of one kind whose comparison takes fewer bytes than PyTorch would hold."""
    first = values[0]
    if not all(
        is_unadorned(value)
        and value.layout is torch.strided
        and value.dtype == first.dtype
        and value.device == first.device
        for value in values
    ):
        return False
    shape = broadcast(values)
    return shape is not None and shape.numel() // 4 < sum(value.nbytes for value in values if is_activation(value))


def _order(x: Tensor, y: Tensor) -> Tensor:
    """Indices into :data:`_ORDER` of the comparison of two tensors."""
    codes = torch.add((x > y).to(torch.uint8), x == y, alpha=2)
    return codes.add_((x != x).logical_or(y != y), alpha=3)


def _run(call: Call, pack: Callable[..., Packed], *operands: Any) -> Any:
    """Run the function; ``pack`` replaces a saved tensor, given the outer hooks and the operands."""
    lent: list[Any] = list(operands)
    made: dict[Any, Packed] = {}

    def once(tensor: Tensor, outer: Hooks | None) -> Packed:
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        found = made.get(place)
        if found is None:
            made[place] = found = pack(tensor, outer, *lent)
        elif isinstance(found, Substitute):
            found.savers += 1
        return found

    with packing(once):
        y = call.run()
    lent.clear()  # autograd keeps the hooks, and would keep the operands with them
    return y


def _compared(
    code: Callable[..., Tensor], values: tuple[float, ...], constants: tuple[float, ...], call: Call, *given: Any
) -> Any:
    """Hold codes for the stand-ins of the first tensor; those of the others are constants, each of all its entries."""
    if not _are_compared(*(value for value in given if value is not None)):
        return NotImplemented

    def pack(tensor: Tensor, outer: Hooks | None, x: Tensor, *others: Tensor | None) -> Packed:
        if tensor.is_set_to(x):
            return stand_ins(code(x, *others), values, x.dtype, outer)
        found = [
            value
            for value, other in zip(constants, others, strict=True)
            if other is not None and tensor.is_set_to(other)
        ]
        return constant(tensor, value=found[0] if found else constants[-1])

    return _run(call, pack, *given)


def choose(
    compare: Callable[[Tensor, Tensor], Tensor], values: tuple[float, ...], call: Call, input: Any, other: Any
) -> Any:
    """Functions that choose between two tensors, entry by entry; the second tensor's stand-in is 0."""
    return _compared(compare, values, (0.0,), call, input, other)


between = partial(choose, _order, _ORDER)
"""``maximum`` and ``minimum``."""

larger = partial(choose, lambda x, y: (x >= y).logical_or(y.isnan()).to(torch.uint8), (-1.0, 1.0))
"""``fmax``."""

smaller = partial(choose, lambda x, y: (x <= y).logical_or(y.isnan()).to(torch.uint8), (1.0, -1.0))
"""``fmin``."""


def clamp_between(call: Call, x: Tensor, low: Tensor | None, high: Tensor | None) -> Any:
    """``clamp`` between tensors, whose stand-ins are -1/2 and 1/2."""
    return _compared(_sides, _ORDER, (-0.5, 0.5), call, x, low, high)


def _sides(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Indices into :data:`_ORDER` of entries below, above and within the bounds."""
    no = torch.zeros((), dtype=torch.bool, device=x.device)
    below, above = no if low is None else x < low, no if high is None else x > high
    if low is not None and high is not None:
        above = above.logical_or(high < low)  # then PyTorch takes the upper bound
    wrong = (x != x).logical_or(no if low is None else low != low).logical_or(no if high is None else high != high)
    if low is not None and high is not None:
        wrong = wrong.logical_or(below.logical_and(low == high))  # nothing has a gradient below bounds that meet
    within = wrong.logical_or(below).logical_or(above).logical_not_()
    codes = torch.add(within.to(torch.uint8), within).masked_fill_(wrong, 3)
    return codes.masked_fill_(below.logical_and(wrong.logical_not_()), 0).masked_fill_(above, 1)


def _extreme(call: Call, x: Any, dim: Any = (), nan_too: bool = True) -> Any:
    """Functions that return one entry of each row: its stand-in is 1, as is the result's, and others are 0."""
    if not is_activation(x):
        return NotImplemented
    made: list[Packed] = []

    def pack(tensor: Tensor, outer: Hooks | None, x: Tensor) -> Packed:
        if tensor.is_set_to(x):
            return lambda: made[0]()  # known only after the function has run
        result = tensor.view(reduced_shape(x.shape, dim))
        found = x == result
        if nan_too:
            found.logical_or_((x != x).logical_and_(result != result))
        made[:] = [stand_ins(found.view(torch.uint8), (0.0, 1.0), x.dtype, outer)]
        return constant(tensor, value=1)

    return _run(call, pack, x)


def extreme_of_rows(call: Call, input: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    """``amax`` and ``amin``."""
    return _extreme(call, input, dim, nan_too=False)


def extreme_or_choice(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """``max(x)``, ``max(x, y)`` or ``max(x, dim)``."""
    if not args and not options:
        return _extreme(call, input)
    other = options.get("other", args[0] if args else None)
    return between(call, input, other) if isinstance(other, Tensor) else with_indices(call, input, *args, **options)


def median(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """``median(x)`` or ``median(x, dim)``."""
    return with_indices(call, input, *args, **options) if args or options else _extreme(call, input)


def hold_codes(
    code: Callable[[Tensor], Tensor], values: tuple[float, ...], call: Call, input: Any, *args: Any, **options: Any
) -> Any:
    """Run a function of one tensor, holding codes in place of the tensor."""
    if not is_activation(input):
        return NotImplemented
    count, dtype = input.numel(), input.dtype

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if tensor.numel() != count or tensor.dtype != dtype:
            return None
        return stand_ins(code(tensor), values, dtype, outer)

    with packing(pack):
        return call.run()


signs = partial(hold_codes, lambda tensor: _order(tensor, tensor.new_zeros(())), _ORDER)
"""Functions whose gradient needs the signs of a tensor."""

not_a_number = partial(hold_codes, lambda tensor: tensor.isnan().view(torch.uint8), (0.0, torch.nan))
"""Sums without NaN."""

finite = partial(hold_codes, lambda tensor: tensor.isfinite().view(torch.uint8), (torch.nan, 0.0))
"""``nan_to_num``."""
