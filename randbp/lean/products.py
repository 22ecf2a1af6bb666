"""Products: each factor is held for the other's gradient, which is linear in it, so rounding it keeps that unbiased.

Several layers that read one tensor share its rounding: it only enters the gradients of their weights, which go no
further. A product of activations draws noise of its own: in ``x (x y)`` the gradient of ``y`` passes through both
products, and ``E[x̃ x̃]`` would not be ``x²``, but for independent ``x̃`` and ``x̃'`` it is.

Where nothing may be rounded, a factor that can be made again from what is held anyway is not held (:mod:`.recipes`).
"""

import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.hooks import Hooks, hooks_in_force
from .dithered import Dithered
from .layout import memory_order
from .recipes import Recipe, follow, recipe_of
from .rules import Call, Session, is_activation, lean_version_of

_ROW = 2**12


class Rounded:
    """The entries of a tensor in a few bits each, in the place of saved tensors of autograd.

    Args:
        flat: The entries as they lie in memory.
        bits: Bits per entry.
        seed: Of the noise.
        outer: Saved-tensor hooks that were in force, and that get what is held in the tensor's place.
    """

    def __init__(self, flat: Tensor, bits: int, seed: int, outer: Hooks | None) -> None:
        self.source = weakref.ref(flat.untyped_storage())
        self._count, self._dtype, self._outer = flat.numel(), flat.dtype, outer
        entries = min(self._count, _ROW)
        if missing := -self._count % entries:
            flat = torch.cat([flat, flat[-1:].expand(missing)])
        self._layout = Dithered(bits, entries)
        # The seed travels with the codes: a checkpoint packs both again when it runs the forward pass again.
        held = (*self._layout.encode(flat.view(-1, entries), seed), torch.tensor(seed))
        self._held = held if outer is None else tuple(outer[0](part) for part in held)

    def flat(self) -> Tensor:
        """The entries, unbiased."""
        codes, scales, seed = self._held if self._outer is None else tuple(map(self._outer[1], self._held))
        return self._layout.decode(codes, scales, int(seed)).view(-1)[: self._count].to(self._dtype)


@dataclass(frozen=True)
class _View:
    """One tensor that looks at rounded entries."""

    entries: Rounded
    shape: torch.Size
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """It, unbiased."""
        return self.entries.flat().as_strided(self.shape, self.stride)


class _Again:
    """A tensor that is made again by its recipe; the recipe's base is held in its place."""

    def __init__(self, recipe: Recipe, outer: Hooks | None) -> None:
        self._steps, self._constants, self._outer = recipe.steps, recipe.constants, outer
        self._held = recipe.base if outer is None else outer[0](recipe.base)
        self._versions = self._now()

    def tensor(self) -> Tensor:
        """It, bit for bit."""
        if self._now() != self._versions:
            raise RuntimeError(
                "lean: a tensor needed for backward was modified in place after its use; "
                "avoid that, or set lean=False for the module that used it"
            )
        return follow(self._steps, self._held if self._outer is None else self._outer[1](self._held))

    def _now(self) -> list[int]:
        tensors = [self._held, *self._constants] if self._outer is None else self._constants
        return [tensor._version for tensor in tensors]


class _Passed:
    """A tensor that went to the saved-tensor hooks around ours."""

    def __init__(self, tensor: Tensor, outer: Hooks) -> None:
        self._held, self._unpack = outer[0](tensor), outer[1]

    def tensor(self) -> Tensor:
        """What those hooks give back."""
        return self._unpack(self._held)


_KNOWN: WeakValueDictionary[Any, Rounded] = WeakValueDictionary()
"""What is rounded already, for tensors that several layers save."""


def _rounded(tensor: Tensor, session: Session, outer: Hooks | None, known: MutableMapping[Any, Rounded]) -> _View:
    tensor = tensor.detach()
    if not tensor.permute(memory_order(tensor)).is_contiguous():
        tensor = tensor.contiguous()
    storage, count, offset = tensor.untyped_storage(), tensor.numel(), tensor.storage_offset()
    key = (id(storage), offset, count, tensor.dtype, tensor._version, session.bits, outer)
    found = known.get(key)
    if found is None or found.source() is not storage:
        flat = tensor.as_strided((count,), (1,), offset)
        found = Rounded(flat, session.bits, session.seed(), outer)
        known[key] = found
    return _View(found, tensor.shape, tensor.stride())


_PRODUCTS = [
    *(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    *(torch.baddbmm, Tensor.baddbmm, torch.addmm, Tensor.addmm),
]
_CAST_BY_AUTOCAST = {
    *_PRODUCTS[6:],
    torch.einsum,
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}


@lean_version_of({*_PRODUCTS, *_CAST_BY_AUTOCAST}, exact=True)
def _product(call: Call, *args: Any, **kwargs: Any) -> Any:
    given = [*args, *kwargs.values()]
    # In products of products one rounding may meet itself.
    if call.function is torch.einsum and (len(given) > 3 or not call.rounds):
        return NotImplemented
    if "out" in kwargs or not any(map(is_activation, given)):
        return NotImplemented
    if call.rounds and call.function in _CAST_BY_AUTOCAST:
        args, kwargs = tuple(map(_cast, args)), {name: _cast(value) for name, value in kwargs.items()}
        given = [*args, *kwargs.values()]
    factors = [factor for factor in given if is_activation(factor)]
    if not call.rounds and not any(recipe_of(factor) for factor in factors):
        return NotImplemented
    storages = {id(factor.untyped_storage()) for factor in factors}
    weights = [value for value in given if isinstance(value, Tensor) and not any(value is f for f in factors)]
    ends_here = len(factors) == 1 and all(weight.is_leaf for weight in weights)
    known: MutableMapping[Any, Rounded] = _KNOWN if ends_here else WeakValueDictionary()
    # Not the call itself: autograd keeps these functions, and so would keep its arguments.
    outer, session, rounds = hooks_in_force(), call.session, call.rounds

    def pack(tensor: Tensor) -> Any:
        with torch.no_grad():
            if id(tensor.untyped_storage()) in storages:
                if rounds:
                    return _rounded(tensor, session, outer, known)
                if (recipe := recipe_of(tensor)) is not None:
                    return _Again(recipe, outer)
            return tensor if outer is None else _Passed(tensor, outer)

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        return call.function(*args, **kwargs)


def _unpack(held: Tensor | _View | _Again | _Passed) -> Tensor:
    with torch.no_grad():
        return held if isinstance(held, Tensor) else held.tensor()


def _cast(value: Any) -> Any:
    """An activation as autocast would make it, so that what is saved can be recognised."""
    if not is_activation(value) or not torch.is_autocast_enabled(value.device.type) or value.dtype == torch.float64:
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))
