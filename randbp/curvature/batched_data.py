"""Batches and models that are the same in each pass over the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from .._torch.storages import tensors_in
from .arguments import described


class BatchedData:
    """A batch or batches ``(inputs, targets)``, the same in each pass.

    Args:
        data: One batch, or an iterable of batches such as a ``DataLoader``; an iterator is read into a list.

    Raises:
        ValueError: If it is neither, or in a later pass if batches are not those of the first.

    Example:
        >>> batches = BatchedData([(torch.ones(3, 2), torch.ones(3)), (torch.ones(1, 2), torch.ones(1))])
        >>> [len(targets) for inputs, targets in batches.on(torch.device("cpu"))]
        [3, 1]
    """

    def __init__(self, data: Any) -> None:
        single = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor)
        if not single and (not isinstance(data, Iterable) or isinstance(data, Tensor)):
            raise ValueError(f"data={described(data)}: expected a batch (inputs, targets) or an iterable of batches")
        self._batches: Iterable[Any] = [data] if single else list(data) if isinstance(data, Iterator) else data
        self._known: Tensor | None = None

    def on(self, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
        """Inputs and targets of all batches, on a device."""
        sums = []
        for batch in self._batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
                raise ValueError(
                    f"data: a batch is {described(batch)}, expected (inputs, targets) with a tensor of targets"
                )
            sums.append(_sum(batch))
            yield mapped(batch[0], lambda tensor: tensor.to(device)), batch[1].to(device)
        if not sums:
            raise ValueError("data: expected at least one batch")
        seen = torch.stack(sums)
        if self._known is None:
            self._known = seen
        known = self._known
        if seen.shape != known.shape or not torch.allclose(seen, known, rtol=1e-9, atol=0, equal_nan=True):
            raise ValueError(
                "data: batches differ from those of the first pass: expected the same in the same order "
                "(shuffle=False, no random augmentation)"
            )


@torch.no_grad()
def _sum(batch: Any) -> Tensor:
    """The sum of all entries, by which a batch is known again."""
    return torch.stack([each.sum(dtype=torch.float64).cpu() for each in tensors_in(batch)]).sum()


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change all tensors in a tree of mappings, tuples and lists.

    Example:
        >>> mapped({"x": (torch.ones(2), 3)}, lambda tensor: tensor[:1])
        {'x': (tensor([1.]), 3)}
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(each, change) for key, each in tree.items()}
    return type(tree)(mapped(each, change) for each in tree) if type(tree) in (tuple, list) else tree


def called(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model with its input, a tuple of its arguments, or a mapping of its named arguments.

    Example:
        >>> called(max, (2, 3)), called(dict, {"a": 1})
        (3, {'a': 1})
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def check_repeatable(model: nn.Module) -> None:
    """Raise ``ValueError`` if a module in training mode is random or normalises by statistics of the batch.

    Example:
        >>> check_repeatable(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
        Traceback (most recent call last):
        ValueError: model: '1' (Dropout) draws random numbers in training mode: expected model.eval()
    """
    for name, module in model.named_modules():
        if module.training and (why := _why_not(module)):
            raise ValueError(f"model: {name!r} ({type(module).__name__}) {why} in training mode: expected model.eval()")


def _why_not(module: nn.Module) -> str:
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        by_batch = isinstance(module, _BatchNorm) or module.track_running_stats
        return "uses statistics of the batch" if by_batch else ""
    drops = isinstance(module, (_DropoutNd, nn.RNNBase, nn.MultiheadAttention)) and _rate(module) > 0
    return "draws random numbers" if drops or isinstance(module, nn.RReLU) else ""


def _rate(module: Any) -> float:
    return float(module.p if isinstance(module, _DropoutNd) else module.dropout)


@contextmanager
def without_random_numbers(device: torch.device) -> Iterator[None]:
    """A context that raises ``ValueError`` in the end if the code within drew from PyTorch's global generators.

    Example:
        >>> with without_random_numbers(torch.device("cpu")):
        ...     x = nn.functional.dropout(torch.ones(3))
        Traceback (most recent call last):
        ValueError: model: its forward pass draws random numbers: expected model.eval(), or none of them
    """
    before = _random_state(device)
    yield
    if not torch.equal(before, _random_state(device)):
        raise ValueError("model: its forward pass draws random numbers: expected model.eval(), or none of them")


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
