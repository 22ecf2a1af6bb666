"""A context in which a model may run without lasting effects."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def preserved(model: nn.Module, train: bool = True, inputs: Any = ()) -> Iterator[Callable[[], None]]:
    """Restore a model's modes, buffers and gradients, and PyTorch's random states, at the end of the block.

    Args:
        model: The model, whose parameters are the caller's concern.
        train: Whether to put it into training mode for the block. If it is in that mode already, its parts keep their
            modes, such as a BatchNorm that is frozen.
        inputs: Tensors, in tuples, lists and dictionaries, on whose devices random states count, too.

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
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)),
    ]
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
