"""Recomputation of a tensor, bit for bit, from one that is held anyway.

In conv - batch norm - ReLU - conv, the first normalisation holds its input, and the second convolution the ReLU's
output: two tensors of one size, of which the second is a cheap function of the first. Where the normalisation is exact,
the convolution therefore holds a *recipe* instead: that very input, and the functions to apply to it again. The same
kernels on the same numbers give the same bits.

Source: Bulo, Porzi and Kontschieder, In-place activated BatchNorm for memory-optimized training of DNNs, CVPR 2018
(arXiv:1712.02616), whose "checkpointing" variant this is; here without a layer of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A held, detached tensor, the functions that make another one of it, and further tensors that they read."""

    base: Tensor
    steps: tuple[Step, ...]
    constants: tuple[Tensor, ...] = ()

    def then(self, step: Step) -> "Recipe":
        """Return the recipe of a function of the result."""
        return replace(self, steps=(*self.steps, step))

    def then_relu(self, step: Step) -> "Recipe":
        """Return the recipe of the result's ReLU, which ``step`` computes; one pass with the last step, if that can."""
        with_relu = getattr(self.steps[-1], "with_relu", None)
        return self.then(step) if with_relu is None else replace(self, steps=(*self.steps[:-1], with_relu()))


def follow(steps: tuple[Step, ...], base: Tensor) -> Tensor:
    """Recompute a tensor from its base, without autocast, whose casts precede the base."""
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        for step in steps:
            base = step(base)
    return base


_RECIPES: WeakKeyDictionary[torch.UntypedStorage, tuple[tuple[Any, ...], Recipe]] = WeakKeyDictionary()
"""By the storage that a recipe makes: where in it, and the recipe."""


def remember(tensor: Tensor, recipe: Recipe) -> None:
    """Note that a recipe makes this tensor."""
    _RECIPES[tensor.untyped_storage()] = (_place(tensor), recipe)


def recipe_of(tensor: Tensor) -> Recipe | None:
    """Return the recipe of a tensor, unless it has been changed since."""
    place, recipe = _RECIPES.get(tensor.untyped_storage(), ((), None))
    return recipe if place == _place(tensor) else None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
