"""Backward of layer and root-mean-square normalisation by numba: see :mod:`.row_norm`."""

from math import gcd

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .decode_numba import decode_block
from .jit import function, parallel, summing
from .memory_numba import array, kind, load, numpy_dtype, storable, store
from .noise import BLOCK, start

_PART, _CHUNK, _PARTS = 2**14, 2**12, 64
"""Entries whose sums over rows are taken together, at least; entries decoded together, about; the most such parts."""


def row_norm_backward(
    codes: Tensor,
    scales: Tensor,
    seed: int,
    bits: int,
    grad: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    centred: bool,
    corrected: bool,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the rounding of sums."""
    count, columns = grad.shape
    if not grad.numel():
        nothing = rstd.new_zeros(columns)
        return torch.empty_like(grad) if needs_input else grad.new_empty(0), nothing, nothing.clone()
    dtype = scales.dtype
    numbers: np.ndarray = np.array([0.5, 2**-16, 12, 0, 1, columns], numpy_dtype(dtype))
    factors = rstd.new_ones(columns) if weight is None else weight.contiguous()
    least = BLOCK // gcd(columns, BLOCK)  # rows that are whole blocks
    chunk = max(1, _CHUNK // columns // least * least or _CHUNK // columns)
    each = max(-(-_PART // columns), -(-count // _PARTS), min(8, count // 4))  # however many threads there are
    each = -(-each // chunk) * chunk
    parts = -(-count // each)
    sums = torch.zeros(parts, 2, columns, dtype=dtype)
    grad = grad.contiguous()
    result = grad.new_empty(count if needs_input else 0, columns, dtype=storable(grad.dtype))
    _row_norm_backward(
        array(codes[0]), array(scales[0]), uint64(start(seed)), bits, numbers, array(grad), kind(grad.dtype),
        array(rstd.contiguous()), array(factors), centred, corrected, each, chunk, array(sums), array(result),
        kind(result.dtype), np.empty((parts, (chunk + 1) * columns + 2 * BLOCK), numbers.dtype),
        np.empty((parts, 2, BLOCK), np.uint32), parts,
    )  # fmt: skip
    weight_grad, bias_grad = sums[:, 0].sum(0), sums[:, 1].sum(0)
    return result.to(grad.dtype) if needs_input else grad.new_empty(0), weight_grad, bias_grad


@parallel
def _row_norm_backward(
    codes,
    scales,
    start,
    bits,
    numbers,
    grad,
    kind,
    rstd,
    weight,
    centred,
    corrected,
    each,
    chunk,
    sums,
    result,
    result_kind,
    buffer,
    words,
    tasks,
):
    count, columns = grad.shape
    nbytes = BLOCK // 8 * bits
    for task in prange(tasks):
        v, decoded, pairs, levels = buffer[task, :columns], buffer[task, columns:], words[task, 0], words[task, 1]
        last = min(count, (task + 1) * each)
        for top in range(task * each, last, chunk):
            first, end = top * columns // BLOCK, (min(last, top + chunk) * columns + BLOCK - 1) // BLOCK
            for number in range(first, end):
                size = min(BLOCK, count * columns - number * BLOCK)
                at = (number - first) * BLOCK
                decode_block(
                    codes[number * nbytes : number * nbytes + (size + 7) // 8 * bits], scales[number], start, number,
                    bits, True, numbers, pairs, levels, decoded[at : at + size],
                )  # fmt: skip
            for row in range(top, min(last, top + chunk)):
                begin = row * columns
                place, length = uint64(begin - first * BLOCK), uint64(columns)
                load(grad[row], kind, v)
                _add(v, decoded, place, length, sums[task, 0], sums[task, 1])
                if len(result):
                    r = rstd[row]
                    plain, product = _sums(v, decoded, place, length, weight, numbers[3])
                    slope = -(product * (r / numbers[5]))
                    shift = -(plain / numbers[5] * r) if centred else numbers[3]
                    at = begin
                    while at < begin + columns:
                        block = at // BLOCK
                        to = min(begin + columns, (block + 1) * BLOCK) if corrected else begin + columns
                        factor = r
                        if corrected:
                            factor = scales[block, 1] * scales[block, 1] / numbers[2] * (r / numbers[5]) + r
                        here, some = uint64(at - begin), uint64(to - at)
                        _entries(v, decoded, place, here, some, weight, factor, slope, shift)
                        at = to
                    store(decoded[begin - first * BLOCK :][:columns], result_kind, result[row])


@function
def _add(v, x, place, count, products, plain):
    for i in range(count):
        products[i] += v[i] * x[place + i]
        plain[i] += v[i]


@summing
def _sums(v, x, place, count, weight, zero):
    plain, product = zero, zero
    for i in range(count):
        each = v[i] * weight[i]
        plain += each
        product += each * x[place + i]
    return plain, product


@function
def _entries(v, x, place, here, count, weight, factor, slope, shift):
    first = place + here
    for i in range(count):
        x[first + i] = (x[first + i] * slope + shift) + v[here + i] * weight[here + i] * factor
