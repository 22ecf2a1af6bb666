"""Backward of batch, group and instance normalisation by numba: see :mod:`.channel_norm`."""

from functools import lru_cache
from math import gcd

import numpy as np
from numba import prange, uint64
from torch import Tensor

from .channel_norm import terms
from .decode_numba import decode_number
from .instructions_numba import as_bytes, at, beyond, part_of
from .jit import function, numbers, parallel, share, summing
from .memory_numba import buffer_of, loaded, stored
from .noise import BLOCK, start
from .planes_numba import Form

_PART = 2**14
"""Entries whose sums are taken together, about: the same however many threads there are [entries]."""


def channel_norm_backward(
    codes, scales, seed, bits, grad, rstd, weight, groups, over_batch, corrected, needs_input
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, sums up to rounding."""
    examples, before, channels, after = grad.shape
    result = grad.new_empty(grad.shape if needs_input else 0)
    if not grad.numel():
        return result, rstd.new_zeros(channels), rstd.new_zeros(channels)
    form, grad = Form.of(grad.shape, 1 if over_batch else examples), grad.contiguous()
    constants, room = numbers([0.5, 2**-16, 12, 0], scales.dtype), (BLOCK, scales.dtype)
    held = codes, scales, uint64(start(seed)), bits, constants, grad.view(-1), grad.dtype
    if form.size == 1:
        cuts = _cuts(form.examples, form.rows, max(1, _PART // form.planes), form.planes)
        partial = scales.new_zeros(form.examples, len(cuts) // form.examples, 2, form.planes)
        _sums(*held, cuts, 1, form.planes, 2 * form.planes, partial, tasks=len(cuts), room=room)
        sums = form.gather(partial.sum(1).movedim(1, 0))
    else:
        least, planes = BLOCK // gcd(form.size, BLOCK), form.examples * form.rows * form.planes
        cuts = _cuts(1, planes, max(1, round(_PART / form.size / least)) * least, form.size)
        partial = scales.new_zeros(2, planes)
        _sums(*held, cuts, form.size, planes, 0, partial, tasks=len(cuts), room=room)
        sums = partial.view(2, form.examples, -1, channels).sum(2)
    together = (examples if over_batch else channels // groups) * before * after
    weight_grad, bias_grad, coefficients = terms(sums, rstd, weight, groups, over_batch, together)
    if needs_input:
        several = (form.spread(each).view(-1) for each in coefficients)
        _input_grad(
            *(*held, form.rows, form.planes, form.size, *several, corrected, result.view(-1)),
            entries=grad.numel(), room=room,
        )  # fmt: skip
    return result, weight_grad, bias_grad


@lru_cache(maxsize=256)
def _cuts(rows: int, units: int, each: int, size: int) -> np.ndarray:
    """First entry and end of so many units of ``size`` entries; no cut has units of two rows."""
    first = (np.arange(rows)[:, None] * units + np.arange(0, units, each)).ravel()
    return np.stack([first, np.minimum(first + each, (first // units + 1) * units)], 1) * size


@parallel
def _sums(codes, scales, start, bits, numbers, grad, kind, cuts, size, planes, apart, sums, room, words, tasks):
    """Sums of ``v`` and of ``v x̂`` over each plane, or, of planes of one entry, over columns, apart for each task."""
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        x, first, end = beyond(given, BLOCK), cuts[task, 0], cuts[task, 1]
        for number in range(first // BLOCK, (end + BLOCK - 1) // BLOCK):
            begin, stop = number * BLOCK, min(len(grad), (number + 1) * BLOCK)
            decode_number(codes, scales, start, bits, numbers, number, stop - begin, levels, x)
            v = loaded(at(grad, begin), stop - begin, kind, given)
            here, stop = max(begin, first), min(stop, end)
            while here < stop:
                plane = here // size % planes
                some, entries, plain = beyond(v, here - begin), beyond(x, here - begin), at(sums, task * apart + plane)
                if size == 1:
                    to = min(stop, here + planes - plane)
                    _add_columns(some, entries, to - here, plain, beyond(plain, planes))
                else:
                    to = min(stop, (here // size + 1) * size)
                    _add_sums(some, entries, to - here, numbers[3], plain, beyond(plain, planes))
                here = to


@function
def _add_columns(v, x, count, plain, products):
    for i in range(count):
        plain[i] += v[i]
        products[i] += v[i] * x[i]


@summing
def _add_sums(v, x, count, zero, plain, products):
    total, product = zero, zero
    for i in range(count):
        total += v[i]
        product += v[i] * x[i]
    plain[0] += total
    products[0] += product


@parallel
def _input_grad(
    codes, scales, start, bits, numbers, grad, kind, rows, planes, size, scale, slope, shift, excess, corrected, result,
    room, words, tasks,
):  # fmt: skip
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        made = beyond(given, BLOCK)
        for number in share(task, tasks, scales.shape[1]):
            begin, stop = number * BLOCK, min(len(grad), (number + 1) * BLOCK)
            out = at(result, begin)
            x = buffer_of(out, made)
            decode_number(codes, scales, start, bits, numbers, number, stop - begin, levels, x)
            v = loaded(at(grad, begin), stop - begin, kind, given)
            variance = scales[0, number, 1] * scales[0, number, 1] / numbers[2] if corrected else numbers[3]
            here = begin
            while here < stop:
                row, entry = here // (planes * size), here % (planes * size)
                example, plane = row // rows, entry // size
                channel = example * planes + plane
                some, entries = beyond(v, here - begin), beyond(x, here - begin)
                if size == 1:
                    to = min(stop, here + planes - plane)
                    _columns(
                        some, entries, to - here, at(scale, channel), at(slope, channel), at(shift, channel),
                        at(excess, channel), variance, corrected,
                    )  # fmt: skip
                else:
                    to = min(stop, here + size - entry % size)
                    factor = scale[channel]
                    if corrected:
                        factor = variance * excess[channel] + factor
                    _plane(some, entries, to - here, factor, slope[channel], shift[channel])
                here = to
            stored(x, stop - begin, kind, out)


@function
def _columns(v, x, count, scale, slope, shift, excess, variance, corrected):
    if corrected:
        for i in range(count):
            x[i] = (x[i] * slope[i] + shift[i]) + (variance * excess[i] + scale[i]) * v[i]
    else:
        for i in range(count):
            x[i] = (x[i] * slope[i] + shift[i]) + scale[i] * v[i]


@function
def _plane(v, x, count, scale, slope, shift):
    for i in range(count):
        x[i] = (x[i] * slope + shift) + scale * v[i]
