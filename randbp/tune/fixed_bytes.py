"""What a training holds whatever its batch: parameters, buffers, gradients and the optimiser's state."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._torch.out_of_memory import is_out_of_memory
from .._torch.storages import storages, tensors_in

OptimizerLike = Optimizer | Callable[[Any], Optimizer]


def fixed_bytes(model: nn.Module, optimizer: OptimizerLike) -> dict[str, int]:
    """Bytes of parameters, buffers, gradients and the state of an optimiser after its first step, on copies."""
    parameters: list[Tensor] = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    made = optimizer if isinstance(optimizer, Optimizer) else _made(optimizer, trained)
    if not made.state:
        made = _stepped(made)
    kinds = {
        "parameters": parameters,
        "buffers": list(model.buffers()),
        "gradients": trained,
        "optimiser state": tensors_in([dict(state) for state in made.state.values()]),
    }
    return {kind: sum(storage.nbytes() for storage in storages(found).values()) for kind, found in kinds.items()}


def _stepped(optimizer: Optimizer) -> Optimizer:
    """A copy that has made a step with gradients of zero."""
    try:
        copy = deepcopy(optimizer)
        for parameter in (parameter for group in copy.param_groups for parameter in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        copy.step()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        name = type(optimizer).__name__
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"optimizer: a copy of {name} cannot step ({why}), expected one that can or has") from error
    return copy


def _made(optimizer: Any, parameters: list[Tensor]) -> Optimizer:
    made: Any = None
    if callable(optimizer):
        with suppress(TypeError, ValueError):
            made = optimizer(parameters)
    if not isinstance(made, Optimizer):
        raise ValueError(
            f"optimizer={optimizer!r:.60}: expected a torch.optim.Optimizer, or what makes one of a list of parameters"
        )
    return made
