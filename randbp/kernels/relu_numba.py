"""ReLU and its bits in one pass, by numba: see :mod:`.relu`."""

from functools import cache

import numpy as np
import torch
from numba import prange, uint8
from torch import Tensor

from .inside_numba import inside
from .jit import function, parallel, tasks
from .mask_bits import BLOCK, mask_bytes
from .memory_numba import array


def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's numbers and the reference's bits."""
    if not len(values) or not _is_pytorchs(values.dtype):
        return torch.relu(values), inside(values, "not_under", 0.0, 0.0)
    return _fused(values)


def _fused(values: Tensor) -> tuple[Tensor, Tensor]:
    source = values.contiguous()
    result, bits = torch.empty_like(source), torch.empty(mask_bytes(len(source)), dtype=torch.uint8)
    given = array(source)
    _relu(given, array(result), array(bits), np.zeros(1, given.dtype), tasks(len(source)))
    return result, bits


@cache
def _is_pytorchs(dtype: torch.dtype) -> bool:
    """Whether PyTorch's own kernel gives the same bits here, also of -0 and NaN, which processors treat differently."""
    if dtype not in (torch.float32, torch.float64):
        return False
    integers, width = (torch.int32, 31) if dtype == torch.float32 else (torch.int64, 63)
    ends = [torch.inf, 0.0, torch.finfo(dtype).tiny / 4, 1.0, torch.nan]
    values = torch.tensor(ends + [-end for end in ends], dtype=dtype).view(integers)
    values = torch.cat([values, values[4::5] - 1, values[4::5] + (1 << (width - 20))]).view(dtype)
    for count in (3, 1024, 4099):  # scalar loops, vectors, both
        x = values.repeat(-(-count // len(values)))[:count]
        if not torch.equal(torch.relu(x).view(integers), _fused(x)[0].view(integers)):
            return False
    return True


@parallel
def _relu(source, result, bits, zeros, tasks):
    entries = len(source)
    blocks = (entries + BLOCK - 1) // BLOCK
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first = number * BLOCK
            size = min(BLOCK, entries - first)
            length = (size + 7) // 8
            out = bits[first // 8 : first // 8 + length]
            out[:] = 0
            for k in range(8):
                start, stop = k * length, min(size, (k + 1) * length)
                if start < stop:
                    _part(source[first + start : first + stop], zeros, k, result[first + start : first + stop], out)


@function
def _part(x, zeros, k, y, out):
    zero = zeros[0]
    for j in range(len(x)):
        value = x[j]
        y[j] = zero if value < zero else value
        out[j] |= uint8(uint8(not (value <= zero)) << k)
