"""Weight VJPs of depthwise convolutions by numba: see :mod:`.depthwise`.

A few planes of a channel are rebuilt in the processor's cache, each row followed by zeros as wide as the kernel
reaches, beside output gradients put where their first kernel entry reads the input. Each kernel entry is then one sum
of products of two stretches of memory.
"""

from functools import lru_cache

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .jit import contracting, function, parallel, parts_of, share

CACHED = 2**11
"""Entries of the planes that are rebuilt together, about."""

NARROW = 8
"""Entries of a row below which they are put in place one by one."""

TOGETHER = 8
"""Examples of which planes are rebuilt together, at most."""


def depthwise_weight_vjp(
    kept, numbers, middle, output_grad, kernel_size, input_size, stride, padding, dilation
) -> Tensor:
    """The same as the reference's, up to the order of the sums."""
    dtype = output_grad.dtype
    if dtype not in (torch.float32, torch.float64):
        some = kept.float(), numbers, middle.float(), output_grad.float()
        return depthwise_weight_vjp(*some, kernel_size, input_size, stride, padding, dilation).to(dtype)
    result = output_grad.new_empty(output_grad.shape[1], *kernel_size)
    geometry = np.array([kernel_size, input_size, stride, padding, dilation], np.int64)
    places = _places(*map(tuple, geometry.tolist()), tuple(output_grad.shape[2:]))
    _vjp(
        *(kept.to(dtype), numbers, middle.to(dtype), output_grad, geometry, *places, result),
        tasks=max(1, min(kept.shape[1], parts_of(output_grad.numel()))),
    )
    return result


@lru_cache(maxsize=256)
def _places(
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    outputs: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where entries go in a plane with margins, one by one: all inputs, and which outputs, where; else rows go whole.

    Output ``o`` goes to row and column ``s o - p + d (K - 1)``; those that lie elsewhere meet no input.
    """
    margins = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pitch, none = size[1] + margins[1], np.empty(0, np.uint32)
    inputs = (np.arange(size[0])[:, None] * pitch + np.arange(size[1])).ravel().astype(np.uint32)
    rows, columns = (s * np.arange(o) - p + m for s, o, p, m in zip(stride, outputs, padding, margins, strict=True))
    there = ((rows >= 0) & (rows < size[0] + margins[0]))[:, None] & ((columns >= 0) & (columns < pitch))
    places = (rows[:, None] * pitch + columns)[there].astype(np.uint32)
    sources = np.flatnonzero(there).astype(np.uint32)
    narrow = size[1] < NARROW
    one_by_one = narrow or stride[1] > 1
    return (inputs if narrow else none), (sources if one_by_one else none), (places if one_by_one else none)


@parallel
def _vjp(kept, numbers, middle, output_grad, geometry, targets, sources, places, result, tasks):
    batch, channels, _ = kept.shape
    many = output_grad.shape[1] // channels
    height, width = geometry[1, 0], geometry[1, 1]
    above, before = geometry[4, 0] * (geometry[0, 0] - 1), geometry[4, 1] * (geometry[0, 1] - 1)
    pitch, rows = width + before, height + above
    plane = pitch * rows
    together = max(1, min(batch, TOGETHER, CACHED // plane))
    entries = geometry[0, 0] * geometry[0, 1]
    for task in prange(tasks):
        some = share(task, tasks, channels)
        begin, end = some.start, some.stop
        x = np.zeros(together * plane, result.dtype)
        # Sums over the last plane may read beyond it, where the input is zero.
        v = np.zeros((together + 1) * plane, result.dtype)
        flat = np.empty(height * width, result.dtype)
        sums = np.zeros(((end - begin) * many, entries), result.dtype)
        for first in range(0, batch, together):
            last = min(batch, first + together)
            size = (last - first) * plane - above * pitch
            for channel in range(begin, end):  # of which planes lie side by side in memory
                for n in range(first, last):
                    which = numbers[n if len(numbers) > 1 else 0]
                    out = x[(n - first) * plane : (n - first + 1) * plane]
                    if len(targets):
                        _rebuild_at(kept[n, channel], which, middle[n, channel], targets, out)
                    else:
                        _rebuild(kept[n, channel], which, middle[n, channel], flat)
                        _spread(flat, width, pitch, out)
                for copy in range(channel * many, (channel + 1) * many):
                    for n in range(first, last):
                        out = v[(n - first) * plane : (n - first + 1) * plane]
                        if len(sources):
                            _place_at(output_grad[n, copy].ravel(), sources, places, out)
                        else:
                            _place(output_grad[n, copy], geometry, pitch, out)
                    _products(x[:size], v, geometry, pitch, sums[copy - begin * many])
        for copy in range(begin * many, end * many):
            for k in range(entries):
                result[copy, k // geometry[0, 1], k % geometry[0, 1]] = sums[copy - begin * many, k]


@function
def _rebuild(kept, numbers, middle, flat):
    for i in range(len(flat)):
        flat[i] = middle
    for r in range(len(numbers)):
        flat[uint64(numbers[r])] = middle + kept[r]


@function
def _spread(flat, width, pitch, out):
    wide, here, there = uint64(width), uint64(0), uint64(0)
    for _ in range(len(flat) // width):
        for j in range(wide):
            out[there + j] = flat[here + j]
        here += wide
        there += uint64(pitch)


@function
def _copy(values, out):
    for j in range(len(values)):
        out[j] = values[j]


@function
def _rebuild_at(kept, numbers, middle, targets, out):
    for i in range(len(targets)):
        out[targets[i]] = middle
    for r in range(len(numbers)):
        out[targets[numbers[r]]] = middle + kept[r]


@function
def _place_at(grad, sources, places, out):
    for i in range(len(sources)):
        out[places[i]] = grad[sources[i]]


@function
def _place(grad, geometry, pitch, out):
    top = geometry[4, 0] * (geometry[0, 0] - 1) - geometry[3, 0]
    left = geometry[4, 1] * (geometry[0, 1] - 1) - geometry[3, 1]
    low, high = max(0, -left), min(grad.shape[1], pitch - left)
    for o in range(grad.shape[0]):
        row = geometry[2, 0] * o + top
        if 0 <= row < len(out) // pitch and low < high:
            _copy(grad[o, low:high], out[row * pitch + left + low :])


@function
def _products(x, v, geometry, pitch, sums):
    height, width = geometry[0, 0], geometry[0, 1]
    step, size = geometry[4, 1], len(x)
    for k in range(height):
        start = geometry[4, 0] * (height - 1 - k) * pitch
        j = width - 1
        while j >= 2:  # three entries at a time, the last one first: it meets the outputs that were put first
            a, b, c = start, start + step, start + 2 * step
            some = _three_dots(x, v[a : a + size], v[b : b + size], v[c : c + size])
            for i in range(3):
                sums[k * width + j - i] += some[i]
            start += 3 * step
            j -= 3
        while j >= 0:
            sums[k * width + j] += _dot(x, v[start : start + size])
            start += step
            j -= 1


@contracting
def _dot(left, right):
    total = left.dtype.type(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@contracting
def _three_dots(left, first, second, third):
    zero = left.dtype.type(0)
    a, b, c = zero, zero, zero
    for i in range(len(left)):
        a += left[i] * first[i]
        b += left[i] * second[i]
        c += left[i] * third[i]
    return a, b, c
