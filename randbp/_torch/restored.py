"""A context in which a model may run without lasting effects."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .storages import tensors_in


@contextmanager
def preserved(model: nn.Module, train: bool = True, inputs: Any = ()) -> Iterator[Callable[[], None]]:
    """Restore a model's modes, buffers and gradients, and PyTorch's random states, at the end of the block.

    With ``train`` a model in evaluation mode is put into training mode; in one that is there already the parts keep
    their modes, such as a BatchNorm that is frozen. The devices of tensors among the ``inputs`` count, too.

    Yields:
        A function that puts buffers and random states back to where the block began, so that each pass drops the same
        units and starts from the same statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(inputs)]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        cpu = torch.get_rng_state()
        cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

        def rewind() -> None:
            torch.set_rng_state(cpu)
            for device, state in cuda:
                torch.cuda.set_rng_state(state, device)
            with torch.no_grad():
                for module, name, buffer, content in buffers:
                    setattr(module, name, buffer.copy_(content))

        try:
            if train and not model.training:
                model.train()
            yield rewind
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, grad in grads:
                parameter.grad = grad
            rewind()
