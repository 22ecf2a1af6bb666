"""Tensors that autograd graphs hold for the backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .._torch.storages import parts, storages


class _Saved:
    """Stored by a graph in place of a saved tensor; it dies together with the graph's reference."""

    __slots__ = ("__weakref__", "origin", "tensor")

    def __init__(self, tensor: Tensor, origin: Any) -> None:
        self.tensor, self.origin = tensor, origin


class HeldTensors:
    """The tensors held for backward by the graphs that were built under :func:`held_for_backward`.

    A storage counts once, with its whole size, however many nodes or views hold it: that is what the
    allocator cannot give back. The numbers are those of the present moment, so they fall when a graph runs
    backward or dies.
    """

    def __init__(self, exclude: Iterable[Tensor] = (), origin: Callable[[], Any] = lambda: None) -> None:
        self._excluded = storages(exclude)  # holding them keeps their identities from being reused
        self._origin, self._numbers = origin, count()
        self._saved: WeakValueDictionary[int, _Saved] = WeakValueDictionary()

    @property
    def bytes(self) -> int:
        """Bytes of all distinct storages held now."""
        return sum(storage.nbytes() for storage in self._storages().values())

    @property
    def count(self) -> int:
        """Number of distinct storages held now."""
        return len(self._storages())

    def holders(self) -> dict[int, dict[Any, Tensor]]:
        """For each storage held now, by identity, who saved it, and the first tensor that each of these saved."""
        found: dict[int, dict[Any, Tensor]] = {}
        for saved in self._saved.values():
            for part in parts(saved.tensor):
                if (key := id(part.untyped_storage())) not in self._excluded:
                    found.setdefault(key, {}).setdefault(saved.origin, part)
        return found

    def _storages(self) -> dict[int, torch.UntypedStorage]:
        held = storages(saved.tensor for saved in self._saved.values())
        return {key: storage for key, storage in held.items() if key not in self._excluded}

    def _pack(self, tensor: Tensor) -> _Saved:
        # Detached, because a graph that holds its own output through a hook would be a reference cycle.
        saved = self._saved[next(self._numbers)] = _Saved(tensor.detach(), self._origin())
        return saved


@contextmanager
def held_for_backward(
    exclude: Iterable[Tensor] = (), origin: Callable[[], Any] = lambda: None
) -> Iterator[HeldTensors]:
    """Measure the bytes that graphs built inside the block hold for their backward pass.

    Read the result after the forward and before the backward pass; it also shows when the backward pass has released
    everything. Values and gradients are unchanged. Only autograd's saved tensors count (``ctx.save_for_backward`` in a
    custom function); tensors hidden in attributes are invisible to PyTorch and so to this function. Inside the block
    autograd does not detect that a saved tensor was modified in place.

    Args:
        exclude: Tensors whose storages do not count: parameters and buffers, which live anyway.
        origin: Called whenever a tensor is saved; :meth:`HeldTensors.holders` has the results.

    Yields:
        The tensors held, see :class:`HeldTensors`.

    Reference:
        ``torch.autograd.graph.saved_tensors_hooks`` in the PyTorch documentation.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=3)
        >>> x = torch.zeros(2, 3, 10, 10)
        >>> with held_for_backward(exclude=conv.parameters()) as held:
        ...     loss = conv(x).relu().sum()  # holds the input of the convolution and the output of the ReLU
        >>> held.bytes == 4 * (x.numel() + 2 * 8 * 8 * 8)
        True
        >>> loss.backward()
        >>> held.bytes
        0
    """
    held = HeldTensors(exclude, origin)
    with torch.autograd.graph.saved_tensors_hooks(held._pack, lambda saved: saved.tensor):
        yield held
