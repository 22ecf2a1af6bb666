"""ReLU and its bits by Triton: see :mod:`.relu`."""

import torch
from torch import Tensor

from .inside_triton import inside


def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own numbers, whose sign of zero depends on the device, and the reference's bits."""
    return torch.relu(values), inside(values, "not_under", 0.0, 0.0)
