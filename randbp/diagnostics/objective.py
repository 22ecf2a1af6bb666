"""The scalar that is differentiated, made from a model and a batch."""

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    if not any(_may_be_input(leaf) for leaf in _leaves(batch)):
        raise ValueError(f"{name}={batch!r:.60}: expected tensors, alone or in tuples, lists and dictionaries")


def _may_be_input(leaf: object) -> bool:
    if isinstance(leaf, str):  # a model may have a tokeniser of its own
        return bool(leaf)
    return not isinstance(leaf, Number | type) and type(leaf).__module__ not in ("numpy", "builtins")


def batch_size(batch: Any) -> int:
    """Length of the first dimension of the first tensor in a batch."""
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise ValueError(f"batch: {type(batch).__name__} without a tensor, expected tensors with the examples first")


def split(batch: Any, parts: int) -> list[Any]:
    """Split the tensors of a batch that are as long as it into micro-batches of equal size; what remains is left out.

    Example:
        >>> [x.tolist() for x, _ in split((torch.arange(5), "label"), 2)]
        [[0, 1], [2, 3]]
    """
    size = batch_size(batch)
    each = size // parts
    return [_part(batch, size, slice(j * each, (j + 1) * each)) for j in range(parts)]


def _part(value: Any, size: int, part: slice) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _part(item, size, part) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_part(item, size, part) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple, or not
    return value


def _leaves(value: Any) -> list[Any]:
    """What a batch consists of; unlike PyTorch's own function, this looks into any mapping."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, tuple | list) else [value]


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
