"""Backward of batch, group and instance normalisation by numba: see :mod:`.channel_norm`."""

from math import gcd

from numba import prange, uint64
from torch import Tensor

from .channel_norm import terms
from .decode_numba import decode_block
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
        each = min(form.rows, max(1, _PART // form.planes))
        partial = scales.new_zeros(form.examples, -(-form.rows // each), 2, form.planes)
        _column_sums(*held, form.rows, each, partial, tasks=partial.shape[0] * partial.shape[1], room=room)
        sums = form.gather(partial.sum(1).movedim(1, 0))
    else:
        least = BLOCK // gcd(form.size, BLOCK)
        each = max(1, round(_PART / form.size / least)) * least
        partial = scales.new_zeros(2, form.examples * form.rows * form.planes)
        _plane_sums(*held, form.size, each, partial, tasks=-(-partial.shape[1] // each), room=room)
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


@parallel
def _column_sums(codes, scales, start, bits, numbers, grad, kind, rows, each, sums, room, words, tasks):
    parts, columns = sums.shape[1], sums.shape[3]
    nbytes = BLOCK // 8 * bits
    for task in prange(tasks):
        example, part = task // parts, task % parts
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        x = beyond(given, BLOCK)
        first = (example * rows + part * each) * columns
        end = (example * rows + min(rows, (part + 1) * each)) * columns
        for number in range(first // BLOCK, (end + BLOCK - 1) // BLOCK):
            begin, stop = number * BLOCK, min(len(grad), (number + 1) * BLOCK)
            decode_block(
                at(codes, number * nbytes), stop - begin, at(scales, 2 * number), start, number, bits, True,
                at(numbers, 0), levels, x,
            )  # fmt: skip
            v = loaded(at(grad, begin), stop - begin, kind, given)
            here, stop = max(begin, first), min(stop, end)
            while here < stop:
                column = here % columns
                to = min(stop, here + columns - column)
                place = (example * parts + part) * 2 * columns + column
                _add_columns(
                    beyond(v, here - begin), beyond(x, here - begin), to - here, at(sums, place),
                    at(sums, place + columns),
                )  # fmt: skip
                here = to


@function
def _add_columns(v, x, count, plain, products):
    for i in range(count):
        plain[i] += v[i]
        products[i] += v[i] * x[i]


@parallel
def _plane_sums(codes, scales, start, bits, numbers, grad, kind, size, each, sums, room, words, tasks):
    planes, nbytes = sums.shape[1], BLOCK // 8 * bits
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        x = beyond(given, BLOCK)
        first, end = task * each * size, min(planes, (task + 1) * each) * size
        for number in range(first // BLOCK, (end + BLOCK - 1) // BLOCK):
            begin, stop = number * BLOCK, min(len(grad), (number + 1) * BLOCK)
            decode_block(
                at(codes, number * nbytes), stop - begin, at(scales, 2 * number), start, number, bits, True,
                at(numbers, 0), levels, x,
            )  # fmt: skip
            v = loaded(at(grad, begin), stop - begin, kind, given)
            here, stop = max(begin, first), min(stop, end)
            while here < stop:
                plane = here // size
                to = min(stop, (plane + 1) * size)
                plain, product = _sums(beyond(v, here - begin), beyond(x, here - begin), to - here, numbers[3])
                sums[0, plane] += plain
                sums[1, plane] += product
                here = to


@summing
def _sums(v, x, count, zero):
    plain, product = zero, zero
    for i in range(count):
        plain += v[i]
        product += v[i] * x[i]
    return plain, product


@parallel
def _input_grad(
    codes, scales, start, bits, numbers, grad, kind, rows, planes, size, scale, slope, shift, excess, corrected, result,
    room, words, tasks,
):  # fmt: skip
    nbytes = BLOCK // 8 * bits
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        made = beyond(given, BLOCK)
        for number in share(task, tasks, scales.shape[1]):
            begin, stop = number * BLOCK, min(len(grad), (number + 1) * BLOCK)
            out = at(result, begin)
            x = buffer_of(out, made)
            decode_block(
                at(codes, number * nbytes), stop - begin, at(scales, 2 * number), start, number, bits, True,
                at(numbers, 0), levels, x,
            )  # fmt: skip
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
