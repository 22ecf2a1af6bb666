"""Arithmetic for Triton's kernels with the same bits as PyTorch's on a processor: nothing approximate or fused."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISION = {torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's name of what kernels calculate in."""


def launch(kernel: Any, programs: int, where: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel in so many programs on the device of a tensor; multiplications and additions stay apart.

    Args:
        kernel: Compiled when it first runs with arguments of new types.
        programs: How many; of none, nothing is done.
        where: A tensor of the device.
        arguments: Of the kernel.
        constants: Its ``tl.constexpr`` arguments, and ``num_warps``.
    """
    if programs:
        device: AbstractContextManager[Any] = torch.cuda.device(where.device) if where.is_cuda else nullcontext()
        with device:
            kernel[(programs,)](*arguments, **constants, enable_fp_fusion=False)


@triton.jit
def widen(x, PRECISE: tl.constexpr):
    """Numbers of any dtype in single or double precision."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(PRECISE)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Numbers of single or double precision in a dtype: the nearest, of two the even one; double by way of single."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, half)
        x = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float16:
        x = x.to(tl.float32).to(tl.float16)
    else:
        x = x.to(dtype)
    return x


@triton.jit
def divided(x, y):
    """The quotient, correctly rounded: Triton's own division of single precision is not."""
    return x / y if x.dtype == tl.float64 else tl.math.div_rn(x, y)


@triton.jit
def root(x):
    """The square root, correctly rounded."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.math.sqrt_rn(x)
