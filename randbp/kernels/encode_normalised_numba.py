"""Encoding of numbers on the way of their normalisation by numba: see :mod:`.encode_normalised`."""

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .channels_numba import Form
from .encode_numba import constants, encode_block
from .jit import function, parallel, room, tasks
from .levels import Rows, scale_dtype
from .memory_numba import array, kind, load, numpy_dtype
from .noise import BLOCK, start


def encode_normalised(values: Tensor, mean: Tensor, rstd: Tensor, seed: int, bits: int) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    rows, dtype = Rows(values.numel(), BLOCK, bits), scale_dtype(values.dtype)
    codes = torch.empty(1, rows.nbytes, dtype=torch.uint8)
    scales = torch.empty(1, rows.blocks, 2, dtype=dtype)
    if values.numel():
        parts = tasks(values.numel())
        form = Form.of(values.shape, len(mean))
        means, rstds = (array(form.spread(each).view(-1)) for each in (mean, rstd))
        _encode_normalised(
            array(values.reshape(-1)), kind(values.dtype), means, rstds, form.rows, form.planes,
            form.size, array(codes[0]), array(scales[0]), uint64(start(seed)), bits, *constants(dtype, bits, True),
            *room(parts, BLOCK, numpy_dtype(dtype)), parts,
        )  # fmt: skip
    return codes, scales


@parallel
def _encode_normalised(
    source, kind, mean, rstd, rows, planes, size, codes, scales, start, bits, numbers, integer, room, words, tasks
):
    blocks, nbytes = len(scales), BLOCK // 8 * bits
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, pairs, levels = room[task, 0], words[task, 0], words[task, 1].view(np.int32)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first, end = number * BLOCK, min(len(source), (number + 1) * BLOCK)
            load(source[first:end], kind, x)
            at = first
            while at < end:
                row, entry = at // (planes * size), at % (planes * size)
                example, plane = row // rows, entry // size
                if size == 1:
                    stop = min(end, at + planes - plane)
                    _columns(x, uint64(at - first), uint64(stop - at), mean, rstd, uint64(example * planes + plane))
                else:
                    stop = min(end, at + size - entry % size)
                    here = example * planes + plane
                    _plane(x, uint64(at - first), uint64(stop - at), mean[here], rstd[here])
                at = stop
            encode_block(
                x[: end - first], start, number, bits, numbers, integer, pairs, levels, scales[number],
                codes[number * nbytes : number * nbytes + (end - first + 7) // 8 * bits],
            )  # fmt: skip


@function
def _columns(x, first, count, mean, rstd, column):
    for i in range(count):
        x[first + i] = (x[first + i] - mean[column + i]) * rstd[column + i]


@function
def _plane(x, first, count, mean, rstd):
    for i in range(count):
        x[first + i] = (x[first + i] - mean) * rstd
