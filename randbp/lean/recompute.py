"""Recomputation of a tensor, bit for bit, from one that is held anyway.

In conv - batch norm - ReLU - conv, the first normalisation holds its input, and the second convolution the ReLU's
output: two tensors of one size, of which the second is a cheap function of the first. Where the normalisation is exact,
the convolution therefore holds a *recipe* instead: that very input, and the functions to apply to it again. The same
kernels on the same numbers give the same bits.

Source: Bulo, Porzi and Kontschieder, In-place activated BatchNorm for memory-optimized training of DNNs, CVPR 2018
(arXiv:1712.02616), whose "checkpointing" variant this is; here without a layer of its own.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


@runtime_checkable
class TakesRelu(Protocol):
    """A step of a recipe that can include the ReLU behind it."""

    def with_relu(self) -> Step:
        """Return the step followed by ReLU."""


@dataclass(frozen=True)
class Recipe:
    """A held, detached tensor, the functions that make another one of it, and further tensors that they read."""

    base: Tensor
    steps: tuple[Step, ...]
    constants: tuple[Tensor, ...] = ()

    def then(self, step: Step) -> "Recipe":
        """Return the recipe of a function of the result."""
        return Recipe(self.base, (*self.steps, step), self.constants)

    def then_relu(self, step: Step) -> "Recipe":
        """Return the recipe of the result's ReLU, which ``step`` computes; one pass with the last step, if that can."""
        if isinstance(self.steps[-1], TakesRelu):
            return Recipe(self.base, (*self.steps[:-1], self.steps[-1].with_relu()), self.constants)
        return self.then(step)


def follow(steps: tuple[Step, ...], base: Tensor) -> Tensor:
    """Recompute a tensor from its base, without autocast, whose casts precede the base."""
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        for step in steps:
            base = step(base)
    return base


@dataclass(frozen=True)
class _Known:
    storage: "weakref.ref[torch.UntypedStorage]"
    place: tuple[Any, ...]
    recipe: Recipe


_RECIPES: dict[int, _Known] = {}
"""By identity of the storage that a recipe makes; an entry dies with the storage."""


def remember(tensor: Tensor, recipe: Recipe) -> None:
    """Note that a recipe makes this tensor."""
    storage = tensor.untyped_storage()
    key = id(storage)
    _RECIPES[key] = _Known(weakref.ref(storage, lambda gone: _forget(key, gone)), _place(tensor), recipe)


def recipe_of(tensor: Tensor) -> Recipe | None:
    """Return the recipe of a tensor, unless it has been changed since."""
    storage = tensor.untyped_storage()
    known = _RECIPES.get(id(storage))
    if known is None or known.storage() is not storage or known.place != _place(tensor):
        return None
    return known.recipe


def _forget(key: int, gone: object) -> None:
    if key in _RECIPES and _RECIPES[key].storage is gone:
        del _RECIPES[key]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
