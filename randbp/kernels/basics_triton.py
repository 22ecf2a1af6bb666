"""What Triton's kernels share: how they are launched and cut into programs, and exact arithmetic.

It has the same bits as PyTorch's on a processor: nothing is approximated or fused.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

PRECISION = {torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's name of what kernels calculate in."""


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel in so many programs, on the device of its first tensor; multiplications and additions stay apart.

    Args:
        kernel: Compiled when it first runs with arguments of new types.
        programs: How many; of none, nothing is done.
        arguments: Of the kernel, first a tensor.
        constants: Its ``tl.constexpr`` arguments, with dtypes of PyTorch, and ``num_warps``.
    """
    if programs:
        where, constants = arguments[0], {name: PRECISION.get(value, value) for name, value in constants.items()}
        device: AbstractContextManager[Any] = torch.cuda.device(where.device) if where.is_cuda else nullcontext()
        with device:
            kernel[(programs,)](*arguments, **constants, enable_fp_fusion=False)


TILE = 512
"""Entries that a program handles at once, of one block or of several [entries]."""


def tile(block: int) -> tuple[int, int]:
    """Blocks, and entries of each, that a program handles at once: powers of two.

    Example:
        >>> tile(256), tile(49), tile(50176)
        ((2, 256), (8, 64), (1, 512))
    """
    columns = min(TILE, triton.next_power_of_2(max(1, block)))
    return TILE // columns, columns


@triton.jit
def cut(count, entries, blocks, block, TOGETHER: tl.constexpr):
    """Number, row, place in the row (``int64``) and entries (``int32``) of a program's blocks, ``[TOGETHER, 1]``."""
    first = tl.program_id(0).to(tl.int64) * TOGETHER
    row = first // blocks
    place = (first - row * blocks).to(tl.int32) + tl.arange(0, TOGETHER)[:, None]
    further = place // blocks
    place = (place - further * blocks).to(tl.int64)
    number = first + tl.arange(0, TOGETHER)[:, None]
    size = tl.minimum(entries - place * block, block).to(tl.int32)
    return number, row + further, place, tl.where(number < count, size, 0)


@triton.jit
def place_of(count, BLOCK: tl.constexpr):
    """First entry, bytes and entries of a program's block of a mask."""
    at = tl.program_id(0).to(tl.int64) * BLOCK
    size = tl.minimum(count - at, BLOCK).to(tl.int32)
    return at, (size + 7) // 8, size


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
