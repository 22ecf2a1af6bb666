"""The scale of a loss under a ``GradScaler``."""

import inspect

from torch.amp import GradScaler


def loss_scale() -> float:
    """The scale of the ``GradScaler`` whose ``step`` is calling the optimiser's; 1 if there is none.

    The scaler divides gradients by it before that, ahead of any clipping, without informing the optimiser. What was
    seen on the way back still has it.

    Example:
        >>> import torch
        >>> class Print(torch.optim.SGD):
        ...     def step(self):
        ...         print(loss_scale())
        >>> parameter = torch.nn.Parameter(torch.ones(1))
        >>> optimizer, scaler = Print([parameter]), GradScaler("cpu", init_scale=8.0)
        >>> scaler.scale(parameter.sum()).backward()
        >>> scaler.step(optimizer)
        8.0
        >>> optimizer.step()
        1.0
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            scaler: GradScaler = frame.f_locals["self"]
            return float(scaler.get_scale())
        frame = frame.f_back
    return 1.0
