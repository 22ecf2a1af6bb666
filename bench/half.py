"""Activations held in bfloat16 between forward and backward pass, and computed in single precision."""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class _Half:
    """A saved tensor in half the bytes."""

    def __init__(self, tensor: Tensor) -> None:
        self.source = weakref.ref(tensor.untyped_storage())
        self.half = tensor.detach().bfloat16()


def held_in_half(exclude: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Saved activations in bfloat16, each once, however many operations save it.

    This is the memory of ``autocast`` without its arithmetic, for which many processors have no instructions: there,
    convolutions of bfloat16 take ten to forty times as long.

    Args:
        exclude: Parameters and inputs, which live anyway.
    """
    excluded = {id(tensor.untyped_storage()) for tensor in exclude}
    known: WeakValueDictionary[Any, _Half] = WeakValueDictionary()

    def pack(tensor: Tensor) -> Tensor | _Half:
        storage = tensor.untyped_storage()
        if tensor.dtype != torch.float32 or id(storage) in excluded:
            return tensor
        key = id(storage), tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride()
        half = known.get(key)
        if half is None or half.source() is not storage:
            half = known[key] = _Half(tensor)
        return half

    def unpack(held: Tensor | _Half) -> Tensor:
        return held if isinstance(held, Tensor) else held.half.float()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
