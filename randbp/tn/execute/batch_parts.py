"""Native kernels on a few examples at a time, where tensors are large.

Native convolutions copy their inputs and outputs into a memory order of their own. The C library returns large blocks
of memory to the system as soon as they are free, so a large copy starts with pages that the system has yet to find and
clear, which takes longer than the arithmetic of a depthwise layer. The copies of a few examples stay in memory that the
C library keeps.
"""

from functools import cache

import torch
from torch import Tensor

from ..planning import machine


def examples_at_once(tensors: tuple[Tensor, ...], elements: int) -> int:
    """Number of examples per call of a native kernel: all of them, unless a tensor is large.

    Example:
        >>> x = torch.zeros(64, 2**18)
        >>> examples_at_once((x[:16],), 2**22), examples_at_once((x,), 2**24)
        (16, 8)
    """
    examples, size = tensors[0].shape[0], elements * tensors[0].itemsize  # len() takes a microsecond
    if size < machine.cpu.large or not all(map(_is_plain, tensors)):
        return examples
    return max(torch.get_num_threads(), examples * machine.cpu.part // size)


@cache
def keep_memory() -> None:
    """Let glibc keep freed blocks of up to `large` bytes: twice the largest block that it has mapped and seen freed.

    Plans call this before the first contraction of tensors that it would return to the system, not at import.
    """
    torch.empty(max(0, machine.cpu.large - 2**16), dtype=torch.uint8, device="cpu")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is contiguous on a CPU, and no mode records operations on it."""
    recorded = torch.compiler.is_compiling() or (tensor.requires_grad and torch.is_grad_enabled())
    if recorded or type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # within a transform of torch.func
        return False
    return True
