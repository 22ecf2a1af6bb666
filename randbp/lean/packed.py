"""Substitutes for tensors that operations of PyTorch save, put in place by saved-tensor hooks."""

import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .._torch.hooks import Hooks, hooks_in_force
from ..codecs import Mask, Uniform
from ..tn.execute.convolution_kernels import memory_format_of, placeholder
from .lean_call import Call, Context, is_small
from .memory_order import flatten, memory_order, unexpanded, unflatten
from .recompute import Recipe, follow


class Packed(Protocol):
    """Base class of objects that can restore a saved tensor."""

    def tensor(self) -> Tensor:
        """Restore the tensor, or return an unbiased estimate of it."""


@contextmanager
def packing(pack: Callable[[Tensor, Hooks | None], Packed | None]) -> Iterator[None]:
    """A context in which operations hold what a function makes of the tensors that they save.

    Args:
        pack: Gets the tensor, and the saved-tensor hooks around, to which what is held goes on. ``None`` for a tensor
            that is held as usual.
    """
    outer = hooks_in_force()

    def packed(tensor: Tensor) -> Any:
        with torch.no_grad():
            held = pack(tensor, outer)
            return held or (tensor if outer is None else _Passed(tensor, outer))

    with torch.autograd.graph.saved_tensors_hooks(packed, _unpacked):
        yield


Pack = Callable[[Tensor, Hooks | None], Packed | None]
"""Substitutes a saved tensor, given the hooks around; ``None`` leaves it as it is."""


def call_with(call: Call, sources: Iterable[Tensor], pack: Pack, others: Pack = lambda tensor, outer: None) -> Any:
    """Run a call that holds a substitute for each saved tensor that shares the memory of a source, or another one."""
    storages = {id(x.untyped_storage()) for x in sources}
    with packing(lambda tensor, outer: (pack if id(tensor.untyped_storage()) in storages else others)(tensor, outer)):
        return call.run()


def _unpacked(held: Any) -> Tensor:
    with torch.no_grad():
        tensor: Tensor = held if isinstance(held, Tensor) else held.tensor()
        return tensor


class _Passed:
    """A tensor that was passed on to the outer saved-tensor hooks."""

    def __init__(self, tensor: Tensor, outer: Hooks) -> None:
        self._held, self._unpack = outer[0](tensor), outer[1]

    def tensor(self) -> Tensor:
        """Return what the outer hooks give back."""
        return self._unpack(self._held)


class Entries:
    """The entries of a tensor in memory order, as a substitute for saved tensors.

    Args:
        source: The tensor.
        held: The data that are held of the entries.
        outer: Saved-tensor hooks that were in force, and that get what is held in the tensor's place.
    """

    def __init__(self, source: Tensor, held: tuple[Tensor, ...], outer: Hooks | None) -> None:
        self.source, self._outer = weakref.ref(source.untyped_storage()), outer
        self._held = held if outer is None else tuple(outer[0](part) for part in held)

    def _parts(self) -> tuple[Tensor, ...]:
        return self._held if self._outer is None else tuple(map(self._outer[1], self._held))


class Rounded(Entries):
    """Entries in a few bits each.

    Args:
        flat: The entries as they lie in memory.
        bits: Bits per entry.
        seed: Seed of the noise.
        outer: See :class:`Entries`.
    """

    def __init__(self, flat: Tensor, bits: int, seed: int, outer: Hooks | None) -> None:
        self._dtype, self._layout = flat.dtype, Uniform(bits, flat.numel(), dithered=True)
        # The seed travels with the codes: a checkpoint packs both again when it runs the forward pass again.
        held = (*self._layout.encode(flat.view(1, -1), seed), torch.tensor(seed))
        super().__init__(flat, held, outer)

    def flat(self) -> Tensor:
        """Return unbiased estimates of the entries."""
        codes, scales, seed = self._parts()
        return self._layout.decode(codes, scales, int(seed), dtype=self._dtype).view(-1)


@dataclass(frozen=True)
class Constant:
    """Replaces a tensor of which a backward pass reads only the shape, or compares entries with those of a stand-in."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    value: float = 0

    @staticmethod
    def like(tensor: Tensor, value: float = 0) -> "Constant":
        """Make the substitute for a tensor."""
        return Constant(tensor.shape, tensor.dtype, tensor.device, value)

    @staticmethod
    def of_saved(tensor: Tensor, outer: Hooks | None) -> "Constant":
        """Make the substitute for a saved tensor."""
        return Constant.like(tensor)

    def tensor(self) -> Tensor:
        """Return one number, repeated."""
        return torch.tensor(self.value, dtype=self.dtype, device=self.device).expand(self.shape)


class ShapeOf:
    """Replaces a tensor of which a backward pass reads only the shape and the memory format."""

    def __init__(self, tensor: Tensor) -> None:
        self._shape, self._format = tensor.shape, memory_format_of(tensor)
        self._dtype, self._device = tensor.dtype, tensor.device

    def tensor(self) -> Tensor:
        """Return a tensor of that shape, whose entries are arbitrary."""
        like = torch.empty(0, dtype=self._dtype, device=self._device)
        return placeholder(like, self._shape, self._format, dense=False)


class _Bits(Entries):
    """Entries of a mask in one bit each, without repetitions."""

    def __init__(self, mask: Tensor, outer: Hooks | None) -> None:
        once = unexpanded(mask)
        self._order, self._shape = memory_order(once), once.shape
        super().__init__(mask, (Mask().encode(flatten(once, self._order)),), outer)

    def once(self) -> Tensor:
        """Return the entries."""
        (bits,) = self._parts()
        return unflatten(Mask().decode(bits, self._shape.numel()), self._shape, self._order)


@dataclass(frozen=True)
class _View:
    """A tensor that is a view of rounded entries."""

    entries: Rounded
    shape: torch.Size
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Return an unbiased estimate of the tensor."""
        return self.entries.flat().as_strided(self.shape, self.stride)


class Again:
    """A tensor that is recomputed by its recipe; the base of the recipe is held in its place."""

    def __init__(self, recipe: Recipe, outer: Hooks | None) -> None:
        self._steps, self._constants, self._outer = recipe.steps, recipe.constants, outer
        self._held = recipe.base if outer is None else outer[0](recipe.base)
        self._versions = self._now()

    def tensor(self) -> Tensor:
        """Recompute the tensor, bit for bit."""
        if self._now() != self._versions:
            raise RuntimeError(
                "lean: a tensor needed for backward was modified in place after its use; "
                "avoid that, or set lean=False for the module that used it"
            )
        return follow(self._steps, self._held if self._outer is None else self._outer[1](self._held))

    def _now(self) -> list[int]:
        tensors = [self._held, *self._constants] if self._outer is None else self._constants
        return [tensor._version for tensor in tensors]


Roundings = MutableMapping[Any, Rounded]

ROUNDED: WeakValueDictionary[Any, Rounded] = WeakValueDictionary()
"""Entries that have been rounded already, for tensors that several layers save."""

_MASKS: WeakValueDictionary[Any, _Bits] = WeakValueDictionary()
"""Masks that have been packed already."""


def rounded(tensor: Tensor, context: Context, outer: Hooks | None, known: Roundings | None) -> Packed:
    """Round a saved tensor to a few bits per entry, once for all operations that save it.

    Args:
        tensor: Any.
        context: Supplies bits and seeds.
        outer: The hooks around.
        known: A table of entries that have been rounded already; ``None`` for independent noise.
    """
    tensor = tensor.detach()
    if not tensor.permute(memory_order(tensor)).is_contiguous():
        tensor = tensor.contiguous()
    known = {} if known is None else known
    key = (*_place(tensor), context.bits, outer)
    found = known.get(key)
    if found is None or found.source() is not tensor.untyped_storage():
        flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
        known[key] = found = Rounded(flat, context.bits, context.seed(), outer)
    return _View(found, tensor.shape, tensor.stride())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Identify the memory of a tensor without gaps."""
    return id(tensor.untyped_storage()), tensor.storage_offset(), tensor.numel(), tensor.dtype, tensor._version


@dataclass(frozen=True)
class _Mask:
    """A mask that is a view of bits, and may repeat them."""

    bits: _Bits
    shape: torch.Size

    def tensor(self) -> Tensor:
        """Restore the mask."""
        return self.bits.once().expand(self.shape)


def packed_mask(tensor: Tensor, outer: Hooks | None) -> Packed | None:
    """Pack a saved ``bool`` tensor to one bit per entry, once for all that save it; ``None`` for other tensors."""
    if tensor.dtype != torch.bool or tensor.layout != torch.strided or is_small(unexpanded(tensor)):
        return None
    key = (*_place(tensor), tensor.shape, tensor.stride(), outer)
    found = _MASKS.get(key)
    if found is None or found.source() is not tensor.untyped_storage():
        _MASKS[key] = found = _Bits(tensor, outer)
    return _Mask(found, tensor.shape)
