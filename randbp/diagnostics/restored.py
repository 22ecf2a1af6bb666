"""A context in which a model may run in training mode without lasting effects."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a model into training mode for the block, and restore modes, buffers and random states afterwards.

    A model that is in training mode already keeps the modes of its parts, such as a BatchNorm that is frozen. Buffers
    are what BatchNorm counts in. Random states are those of PyTorch's generators on the CPU and on the model's devices.
    Parameters and their gradients are the caller's concern.

    Yields:
        A function that puts buffers and random states back to where the block began, so that each pass drops the same
        units and starts from the same statistics.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).eval()
        >>> with preserved(model) as rewind:
        ...     first = model(torch.ones(4, 3))
        ...     rewind()
        ...     bool((model(torch.ones(4, 3)) == first).all())
        True
        >>> int(model[1].num_batches_tracked), model.training
        (0, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    tensors = [*model.parameters(), *model.buffers()]
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
            if not model.training:
                model.train()
            yield rewind
        finally:
            for module, mode in modes:
                module.training = mode
            rewind()
