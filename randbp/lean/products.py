"""Products: each factor is held for the other's gradient, which is linear in it, so rounding it keeps that unbiased."""

import weakref
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from .dithered import Dithered
from .hooks import Hooks, hooks_in_force
from .rules import Call, is_plain, lean_version_of

_SMALL = 2**12
"""Tensors of fewer entries are not worth the time."""

_ROW = 2**12


class Rounded:
    """A tensor in a few bits per entry, in the place of a saved tensor of autograd.

    Args:
        tensor: What would be saved.
        bits: Bits per entry.
        seed: Of the noise.
        outer: Saved-tensor hooks that were in force, and that get what is held in the tensor's place.
    """

    def __init__(self, tensor: Tensor, bits: int, seed: int, outer: Hooks | None) -> None:
        self.source = weakref.ref(tensor.untyped_storage())
        self._shape, self._dtype, self._outer = tensor.shape, tensor.dtype, outer
        entries = min(tensor.numel(), _ROW)
        rows = tensor.detach().reshape(-1)
        if missing := -tensor.numel() % entries:
            rows = torch.cat([rows, rows[-1:].expand(missing)])
        self._layout = Dithered(bits, entries)
        # The seed travels with the codes: a checkpoint packs both again when it runs the forward pass again.
        held = (*self._layout.encode(rows.view(-1, entries), seed), torch.tensor(seed))
        self._held = held if outer is None else tuple(outer[0](part) for part in held)

    def tensor(self) -> Tensor:
        """The entries, unbiased."""
        codes, scales, seed = self._held if self._outer is None else tuple(map(self._outer[1], self._held))
        flat = self._layout.decode(codes, scales, int(seed)).view(-1)[: self._shape.numel()]
        return flat.to(self._dtype).view(self._shape)


class _Passed:
    """A tensor that went to the saved-tensor hooks around ours."""

    def __init__(self, tensor: Tensor, outer: Hooks) -> None:
        self._held, self._unpack = outer[0](tensor), outer[1]

    def tensor(self) -> Tensor:
        """What those hooks give back."""
        return self._unpack(self._held)


_KNOWN: WeakValueDictionary[Any, Rounded] = WeakValueDictionary()
"""What is rounded already, for tensors that several operations save."""


def _rounded(tensor: Tensor, call: Call, outer: Hooks | None) -> Rounded:
    storage = tensor.untyped_storage()
    place = (id(storage), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    key = (*place, tensor._version, call.session.bits, outer)
    found = _KNOWN.get(key)
    if found is None or found.source() is not storage:
        found = Rounded(tensor, call.session.bits, call.session.seed(), outer)
        _KNOWN[key] = found
    return found


_PRODUCTS = [
    *(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    *(torch.baddbmm, Tensor.baddbmm, torch.addmm, Tensor.addmm),
]
_CAST_BY_AUTOCAST = {
    *_PRODUCTS[6:],
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}


@lean_version_of({*_PRODUCTS, *_CAST_BY_AUTOCAST}, exact=False)
def _product(call: Call, *args: Any, **kwargs: Any) -> Any:
    given = [*args, *kwargs.values()]
    # Leaves are parameters and inputs: they live anyway.
    if "out" in kwargs or not any(map(_is_factor, given)):
        return NotImplemented
    if call.function in _CAST_BY_AUTOCAST:
        args, kwargs = tuple(map(_cast, args)), {name: _cast(value) for name, value in kwargs.items()}
        given = [*args, *kwargs.values()]
    storages = {id(factor.untyped_storage()) for factor in given if _is_factor(factor)}
    outer = hooks_in_force()

    def pack(tensor: Tensor) -> Any:
        with torch.no_grad():
            if id(tensor.untyped_storage()) in storages:
                return _rounded(tensor, call, outer)
            return tensor if outer is None else _Passed(tensor, outer)

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        return call.function(*args, **kwargs)


def _unpack(held: Tensor | Rounded | _Passed) -> Tensor:
    with torch.no_grad():
        return held if isinstance(held, Tensor) else held.tensor()


def _is_factor(value: Any) -> bool:
    return is_plain(value) and not value.is_leaf and value.numel() >= _SMALL


def _cast(value: Any) -> Any:
    """An activation as autocast would make it, so that what is saved can be recognised."""
    if not _is_factor(value) or not torch.is_autocast_enabled(value.device.type) or value.dtype == torch.float64:
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))
