"""The scalar that is differentiated, made from a model and a batch."""

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch.storages import leaves

Objective = Callable[[Any], Tensor]
"""Scalar loss of a batch."""


def make_objective(model: nn.Module, loss: Callable[..., Tensor] | None) -> Objective:
    """Make the loss of a batch a function of the batch alone, which raises ``ValueError`` where the two do not fit.

    A dictionary of inputs is given to the model as keywords. Of a pair ``(inputs, targets)`` it is ``loss(output,
    targets)``, by default the cross-entropy, else ``loss(output)``: a mean over the examples.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r}: expected a torch.nn.Module")
    if loss is not None and not callable(loss):
        raise ValueError(f"loss={loss!r}: expected a function such as loss(output, targets), or None")

    def objective(batch: Any) -> Tensor:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        inputs = batch[0] if pair else batch
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        if pair:
            value = (loss or _cross_entropy)(output, batch[1])
        elif loss is not None:
            value = loss(output)
        else:
            raise ValueError("loss=None: the batch has no targets, expected a pair (inputs, targets) or loss(output)")
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError("model: all parameters are frozen, expected one that requires a gradient")
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: returned {found}, expected a scalar tensor that depends on the model's parameters")
        return value.squeeze()

    return objective


def check_batch(name: str, batch: object) -> None:
    """Raise ``ValueError`` if nothing in a batch can be an input: a tensor, text, or an object of another library.

    Example:
        >>> check_batch("batch", {"x": [None, 3]})
        Traceback (most recent call last):
        ValueError: batch={'x': [None, 3]}: expected tensors, alone or in tuples, lists and dictionaries
    """
    for leaf in leaves(batch):
        plain = isinstance(leaf, Number | type) or type(leaf).__module__ in ("numpy", "builtins")
        if leaf if isinstance(leaf, str) else not plain:  # a model may have a tokeniser of its own
            return
    raise ValueError(f"{name}={batch!r:.60}: expected tensors, alone or in tuples, lists and dictionaries")


def batch_size(batch: Any) -> int:
    """Length of the first dimension of the first tensor in a batch."""
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise ValueError(f"batch: {type(batch).__name__} without a tensor, expected tensors with the examples first")


def examples(batch: Any, size: int, chosen: slice | Tensor) -> Any:
    """Some examples of a batch of a given size: of each tensor that is as long; all else is left as it is.

    Example:
        >>> examples({"x": torch.arange(3), "scale": 2.0}, 3, torch.tensor([0, 1, 2, 0]))
        {'x': tensor([0, 1, 2, 0]), 'scale': 2.0}
    """
    return map_tensors(batch, lambda value: value[chosen] if value.dim() and value.shape[0] == size else value)


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with each tensor changed, in the same tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(item, change) for key, item in batch.items()}
    if isinstance(batch, tuple | list):
        items = [map_tensors(item, change) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)  # a named tuple, or not
    return batch


def _cross_entropy(output: Any, target: Any) -> Tensor:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        kinds = f"{type(output).__name__} and {type(target).__name__}"
        raise ValueError(f"loss=None: output and targets are {kinds}, expected tensors, or a loss of your own")
    if target.dtype not in (torch.int64, torch.uint8) and target.shape != output.shape:
        raise ValueError(
            f"loss=None: targets are {target.dtype} of shape {tuple(target.shape)}, expected class indices (int64) "
            "for the cross-entropy, or a loss of your own"
        )
    return F.cross_entropy(output, target)
