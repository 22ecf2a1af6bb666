"""Bytes that autograd graphs hold for the backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor


class _Saved:
    """Stored by a graph in place of a saved tensor; it dies together with the graph's reference."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class HeldTensors:
    """The tensors held for backward by the graphs that were built under :func:`held_for_backward`.

    A storage counts once, with its whole size, however many nodes or views hold it: that is what the
    allocator cannot give back. The numbers are those of the present moment, so they fall when a graph runs
    backward or dies.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        # PyTorch keeps one Python object per storage, so identity tells storages apart; holding the excluded
        # ones keeps their identities from being reused.
        self._excluded = [part.untyped_storage() for tensor in exclude for part in _strided_parts(tensor)]
        self._excluded_ids = frozenset(map(id, self._excluded))
        self._saved: WeakSet[_Saved] = WeakSet()

    @property
    def bytes(self) -> int:
        """Bytes of all distinct storages held now."""
        return sum(storage.nbytes() for storage in self._storages().values())

    @property
    def count(self) -> int:
        """Number of distinct storages held now."""
        return len(self._storages())

    def _storages(self) -> dict[int, torch.UntypedStorage]:
        storages = [part.untyped_storage() for saved in self._saved for part in _strided_parts(saved.tensor)]
        return {id(storage): storage for storage in storages if id(storage) not in self._excluded_ids}

    def _pack(self, tensor: Tensor) -> _Saved:
        # Detached, because a graph that holds its own output through a hook would be a reference cycle.
        saved = _Saved(tensor.detach())
        self._saved.add(saved)
        return saved


@contextmanager
def held_for_backward(exclude: Iterable[Tensor] = ()) -> Iterator[HeldTensors]:
    """Measure the bytes that graphs built inside the block hold for their backward pass.

    Read the result after the forward and before the backward pass; it also shows when the backward pass has released
    everything. Values and gradients are unchanged. Only autograd's saved tensors count (``ctx.save_for_backward`` in a
    custom function); tensors hidden in attributes are invisible to PyTorch and so to this function. Inside the block
    autograd does not detect that a saved tensor was modified in place.

    Args:
        exclude: Tensors whose storages do not count: parameters and buffers, which live anyway.

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
    held = HeldTensors(exclude)
    with torch.autograd.graph.saved_tensors_hooks(held._pack, lambda saved: saved.tensor):
        yield held


def _strided_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with a storage of their own that a (possibly sparse) tensor consists of."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)
