"""Substitutes for tensors that operations of PyTorch save, put in place by saved-tensor hooks."""

import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .._torch.hooks import Hooks, hooks_in_force
from ..codecs import Mask, Uniform
from ..tn.execute.convolution_kernels import memory_format_of, placeholder
from .lean_call import Call, Context, is_small
from .memory_order import flatten, memory_order, unexpanded, unflatten
from .recompute import Recipe, follow

Packed = Callable[[], Tensor]
"""Restores a saved tensor, or an unbiased estimate of it. It must not keep that tensor alive."""

Pack = Callable[[Tensor, Hooks | None], Packed | None]
"""Substitutes a saved tensor, given the hooks around, to which what is held goes on; ``None`` leaves it as it is."""


@contextmanager
def packing(pack: Pack) -> Iterator[None]:
    """A context in which operations hold substitutes for the tensors that they save."""
    outer = hooks_in_force()

    def packed(tensor: Tensor) -> Any:
        with torch.no_grad():
            held = pack(tensor, outer)
            return held or (tensor if outer is None else Substitute((tensor,), outer, lambda tensor: tensor))

    with torch.autograd.graph.saved_tensors_hooks(packed, _unpacked):
        yield


def _unpacked(held: Any) -> Tensor:
    with torch.no_grad():
        tensor: Tensor = held if isinstance(held, Tensor) else held()
        return tensor


def call_with(call: Call, sources: Iterable[Tensor], pack: Pack, others: Pack = lambda tensor, outer: None) -> Any:
    """Run a call that holds a substitute for each saved tensor that shares the memory of a source, or another one."""
    storages = {id(x.untyped_storage()) for x in sources}
    with packing(lambda tensor, outer: (pack if id(tensor.untyped_storage()) in storages else others)(tensor, outer)):
        return call.run()


Restore = Callable[..., Tensor]
"""Makes a saved tensor of what is held of it."""


class Substitute:
    """Tensors, or what the hooks around make of them, from which a function restores another one.

    Operations that share it are counted: the hooks are asked once for all of them, since a checkpoint answers once.
    """

    def __init__(self, parts: tuple[Tensor, ...], outer: Hooks | None, restore: Restore) -> None:
        self._restore, self._unpack = restore, None if outer is None else outer[1]
        self._held: tuple[Any, ...] = parts if outer is None else tuple(map(outer[0], parts))
        self._parts: tuple[Tensor, ...] = ()
        self.savers, self._left = 1, 0

    def __call__(self) -> Tensor:
        """Restore the tensor."""
        if self._unpack is None:
            return self._restore(*self._held)
        if not self._left:
            self._parts, self._left = tuple(map(self._unpack, self._held)), self.savers
        parts, self._left = self._parts, self._left - 1
        self._parts = parts if self._left else ()
        return self._restore(*parts)


def constant(tensor: Tensor, outer: Hooks | None = None, value: float = 0) -> Packed:
    """Hold the shape of a tensor, of which a backward pass reads nothing else, or compares entries with a stand-in."""
    shape, dtype, device = tensor.shape, tensor.dtype, tensor.device
    return lambda: torch.tensor(value, dtype=dtype, device=device).expand(shape)


def shape_of(tensor: Tensor) -> Packed:
    """Hold the shape and the memory format of a tensor, of which a backward pass reads nothing else."""
    shape, format, dtype, device = tensor.shape, memory_format_of(tensor), tensor.dtype, tensor.device
    return lambda: placeholder(torch.empty(0, dtype=dtype, device=device), shape, format, dense=False)


def recomputed(recipe: Recipe, outer: Hooks | None) -> Packed:
    """Hold the base of a recipe, which makes a tensor again, bit for bit."""
    steps, watched = recipe.steps, (*recipe.constants, *([recipe.base] if outer is None else []))
    versions = [tensor._version for tensor in watched]

    def restore(base: Tensor) -> Tensor:
        if [tensor._version for tensor in watched] != versions:
            raise RuntimeError(
                "lean: a tensor needed for backward was modified in place after its use; "
                "avoid that, or set lean=False for the module that used it"
            )
        return follow(steps, base)

    return Substitute((recipe.base,), outer, restore)


Known = MutableMapping[Any, Substitute]

ROUNDED: WeakValueDictionary[Any, Substitute] = WeakValueDictionary()
"""Entries that have been rounded already, for tensors that several layers save."""

_MASKS: WeakValueDictionary[Any, Substitute] = WeakValueDictionary()
"""Masks that have been packed already."""


def _shared(known: Known, tensor: Tensor, key: tuple[Any, ...], make: Callable[[], Substitute]) -> Substitute:
    """Find what is held of the memory of a tensor without gaps, for one more operation, or make it."""
    storage = weakref.ref(tensor.untyped_storage())
    key = (storage, tensor.storage_offset(), tensor.numel(), tensor.dtype, tensor._version, *key)
    found = known.get(key)
    if found is None:
        known[key] = found = make()
    else:
        found.savers += 1
    return found


def rounded(tensor: Tensor, context: Context, outer: Hooks | None, known: Known | None) -> Packed:
    """Round a saved tensor to a few bits per entry.

    ``known`` has entries that were rounded already, for all operations that save them; ``None``: noise is independent.
    """
    tensor = tensor.detach()
    if not tensor.permute(memory_order(tensor)).is_contiguous():
        tensor = tensor.contiguous()
    shape, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype

    def make() -> Substitute:
        layout, seed = Uniform(context.bits, shape.numel(), dithered=True), context.seed()
        flat = tensor.as_strided((1, shape.numel()), (shape.numel(), 1), tensor.storage_offset())
        # The seed travels with the codes: a checkpoint packs both again when it runs the forward pass again.
        return Substitute(
            (*layout.encode(flat, seed), torch.tensor(seed)),
            outer,
            lambda codes, scales, seed: layout.decode(codes, scales, int(seed), dtype=dtype).view(-1),
        )

    found = _shared({} if known is None else known, tensor, (context.bits, outer), make)
    return lambda: found().as_strided(shape, stride)


def packed_mask(tensor: Tensor, outer: Hooks | None) -> Packed | None:
    """Pack a saved ``bool`` tensor to one bit per entry, once for all that save it; ``None`` for other tensors."""
    if tensor.dtype != torch.bool or tensor.layout != torch.strided or is_small(unexpanded(tensor)):
        return None
    shape = tensor.shape

    def make() -> Substitute:
        once = unexpanded(tensor)  # without repetitions
        order, size = memory_order(once), once.shape
        bits = Mask().encode(flatten(once, order))
        return Substitute((bits,), outer, lambda bits: unflatten(Mask().decode(bits, size.numel()), size, order))

    found = _shared(_MASKS, tensor, (shape, tensor.stride(), outer), make)
    return lambda: found().expand(shape)
