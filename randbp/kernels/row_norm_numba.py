"""Backward of layer and root-mean-square normalisation by numba: see :mod:`.row_norm`."""

from math import gcd

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .decode_numba import decode_number
from .instructions_numba import at, beyond, part_of
from .jit import function, numbers, parallel, summing
from .memory_numba import buffer_of, loaded, stored
from .noise import BLOCK, start

_PART, _CHUNK, _PARTS = 2**14, 2**12, 64
"""Entries whose sums over rows are taken together, at least; entries decoded together, about; the most such parts."""


def row_norm_backward(
    codes, scales, seed, bits, grad, rstd, weight, centred, corrected, needs_input
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the rounding of sums."""
    count, columns = grad.shape
    result = grad.new_empty(grad.shape if needs_input else 0)
    if not grad.numel():
        return result, rstd.new_zeros(columns), rstd.new_zeros(columns)
    least = BLOCK // gcd(columns, BLOCK)  # rows that are whole blocks
    chunk = max(1, _CHUNK // columns // least * least or _CHUNK // columns)
    each = max(-(-_PART // columns), -(-count // _PARTS), min(8, count // 4))  # however many threads there are
    each = -(-each // chunk) * chunk
    parts = -(-count // each)
    sums = scales.new_zeros(parts, 2, columns)
    constants = numbers([0.5, 2**-16, 12, 0, 1, columns], scales.dtype)
    _row_norm_backward(
        *(codes, scales, uint64(start(seed)), bits, constants, grad, grad.dtype, rstd),
        *(rstd.new_ones(columns) if weight is None else weight, centred, corrected, needs_input, each, chunk),
        *(sums, result.view(-1), np.empty((parts, (chunk + 2) * columns + 2 * BLOCK), constants.dtype)),
        torch.empty(parts, BLOCK, dtype=torch.uint8), tasks=parts,
    )  # fmt: skip
    return result, sums[:, 0].sum(0), sums[:, 1].sum(0)


@parallel
def _row_norm_backward(
    codes, scales, start, bits, numbers, grad, kind, rstd, weight, centred, corrected, needs_input, each, chunk, sums,
    result, room, words, tasks,
):  # fmt: skip
    count, columns = grad.shape
    for task in prange(tasks):
        buffer, levels = part_of(room, task), part_of(words, task)
        decoded = beyond(buffer, 2 * columns)
        products, plain = at(sums, 2 * task * columns), at(sums, (2 * task + 1) * columns)
        last = min(count, (task + 1) * each)
        for top in range(task * each, last, chunk):
            first, end = top * columns // BLOCK, (min(last, top + chunk) * columns + BLOCK - 1) // BLOCK
            for number in range(first, end):
                size = min(BLOCK, count * columns - number * BLOCK)
                some = beyond(decoded, (number - first) * BLOCK)
                decode_number(codes, scales, start, bits, numbers, number, size, levels, some)
            for row in range(top, min(last, top + chunk)):
                begin = row * columns
                x, v = beyond(decoded, begin - first * BLOCK), loaded(at(grad, begin), columns, kind, buffer)
                _add(v, x, columns, products, plain)
                if needs_input:
                    r = rstd[row]
                    total, product = _sums(v, x, columns, at(weight, 0), numbers[3])
                    slope = -(product * (r / numbers[5]))
                    shift = -(total / numbers[5] * r) if centred else numbers[3]
                    target = at(result, begin)
                    out = buffer_of(target, beyond(buffer, columns))
                    here = 0
                    while here < columns:
                        block = (begin + here) // BLOCK
                        to = min(columns, (block + 1) * BLOCK - begin) if corrected else columns
                        factor = r
                        if corrected:
                            factor = scales[0, block, 1] * scales[0, block, 1] / numbers[2] * (r / numbers[5]) + r
                        _entries(
                            beyond(v, here), beyond(x, here), to - here, at(weight, here), factor, slope, shift,
                            beyond(out, here),
                        )  # fmt: skip
                        here = to
                    stored(out, columns, kind, target)


@function
def _add(v, x, count, products, plain):
    for i in range(count):
        products[i] += v[i] * x[i]
        plain[i] += v[i]


@summing
def _sums(v, x, count, weight, zero):
    plain, product = zero, zero
    for i in range(count):
        each = v[i] * weight[i]
        plain += each
        product += each * x[i]
    return plain, product


@function
def _entries(v, x, count, weight, factor, slope, shift, out):
    for i in range(count):
        out[i] = (x[i] * slope + shift) + v[i] * weight[i] * factor
