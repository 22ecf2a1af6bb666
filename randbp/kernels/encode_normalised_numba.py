"""Encoding of numbers on the way of their normalisation by numba: see :mod:`.encode_normalised`."""

import torch
from numba import prange, uint64
from torch import Tensor

from .channels_numba import Form
from .encode_numba import constants, encode_block
from .jit import function, parallel, room, tasks
from .levels import Rows, scale_dtype
from .memory_numba import array, kind, loaded, numpy_dtype
from .noise import BLOCK, start
from .pointers_numba import as_bytes, at, beyond, part_of


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
            array(values.reshape(-1).contiguous()), kind(values.dtype), means, rstds, form.rows,
            form.planes, form.size, array(codes[0]), array(scales[0]), uint64(start(seed)), bits,
            *constants(dtype, bits, True), *room(parts, BLOCK, numpy_dtype(dtype)), parts,
        )  # fmt: skip
    return codes, scales


@parallel
def _encode_normalised(
    source, kind, mean, rstd, rows, planes, size, codes, scales, start, bits, numbers, integers, room, words, tasks
):
    blocks, nbytes = len(scales), BLOCK // 8 * bits
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        x = beyond(given, BLOCK)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first, end = number * BLOCK, min(len(source), (number + 1) * BLOCK)
            values = loaded(at(source, first), end - first, kind, given)
            here = first
            while here < end:
                row, entry = here // (planes * size), here % (planes * size)
                example, plane = row // rows, entry // size
                channel = example * planes + plane
                some, out = beyond(values, here - first), beyond(x, here - first)
                if size == 1:
                    stop = min(end, here + planes - plane)
                    _columns(some, stop - here, at(mean, channel), at(rstd, channel), out)
                else:
                    stop = min(end, here + size - entry % size)
                    _plane(some, stop - here, mean[channel], rstd[channel], out)
                here = stop
            encode_block(
                x, end - first, start, number, bits, at(numbers, 0), at(integers, 0), levels, at(scales, 2 * number),
                at(codes, number * nbytes),
            )  # fmt: skip


@function
def _columns(x, count, mean, rstd, out):
    for i in range(count):
        out[i] = (x[i] - mean[i]) * rstd[i]


@function
def _plane(x, count, mean, rstd, out):
    for i in range(count):
        out[i] = (x[i] - mean) * rstd
