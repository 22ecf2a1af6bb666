"""Max-pooling by numba: see :mod:`.max_pool`."""

from functools import lru_cache

import numpy as np
from numba import prange
from torch import Tensor

from .instructions_numba import at
from .jit import function, parallel, share
from .max_pool import max_pool as fused
from .max_pool import max_pool_grad as fused_grad
from .max_pool import maxima, places, position_bits, three_of_each
from .packing_numba import pack_bytes, unpack_bytes


def max_pool(x, kernel, stride, padding, dilation, output_size) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's; entries of 16 bits are the reference's task."""
    if x.element_size() < 4:
        return fused.reference(x, kernel, stride, padding, dilation, output_size)
    y, codes = maxima(x, kernel, output_size)
    planes, geometry = _three_dimensional(x), np.array(three_of_each(kernel, stride, padding, dilation), np.int64)
    _max_pool(planes, _three_dimensional(y), codes, position_bits(kernel), geometry, entries=x.numel() and y.numel())
    return y, codes


def max_pool_grad(grad, codes, kernel, stride, padding, dilation, input_size) -> Tensor:
    """The same bits as the reference's."""
    if grad.element_size() < 4:
        return fused_grad.reference(grad, codes, kernel, stride, padding, dilation, input_size)
    result = grad.new_empty(len(grad), *input_size)
    if not grad.numel():
        return result.zero_()
    starts, steps = _places(*map(tuple, (input_size, grad.shape[1:], kernel, stride, padding, dilation)))
    given = codes, position_bits(kernel), starts, steps, result.view(len(grad), -1)
    _max_pool_grad(grad.flatten(1), *given, entries=result.numel())
    return result


def _three_dimensional(planes: Tensor) -> Tensor:
    """Planes as such of three dimensions, for kernels that know no others."""
    return planes if planes.dim() == 4 else planes.unsqueeze(1)


_places = lru_cache(maxsize=8)(places)


@parallel
def _max_pool(x, y, codes, bits, geometry, tasks):
    for task in prange(tasks):
        _pool_planes(x, y, codes, bits, geometry, share(task, tasks, len(x)))


@function
def _pool_planes(x, y, codes, bits, geometry, some):
    _, depth, height, _ = x.shape
    kernel, stride, padding, dilation = geometry
    _, deep, high, wide = y.shape
    # Entries of a row that are a stride apart lie side by side, so that neighbouring windows are compared at once.
    length = wide + (dilation[2] * (kernel[2] - 1)) // stride[2]
    rows = np.empty((depth, height, stride[2], length), x.dtype)
    positions = np.zeros((deep * high * wide + 7) // 8 * 8, np.int32)
    levels = np.empty(len(positions), np.uint8)
    for plane in some:
        for z in range(depth):
            for v in range(height):
                for r in range(stride[2]):
                    _every(x[plane, z, v], stride[2], r - padding[2], rows[z, v, r])
        for d in range(deep):
            for h in range(high):
                row = (d * high + h) * wide
                where, best = positions[row : row + wide], y[plane, d, h]
                first = True
                for i in range(kernel[0]):
                    z = d * stride[0] - padding[0] + i * dilation[0]
                    if z < 0 or z >= depth:
                        continue
                    for j in range(kernel[1]):
                        v = h * stride[1] - padding[1] + j * dilation[1]
                        if v < 0 or v >= height:
                            continue
                        start = (i * kernel[1] + j) * kernel[2]
                        if first:
                            first = False
                            _first(where, best, start, stride[2], padding[2], dilation[2])
                        for k in range(kernel[2]):
                            shift = k * dilation[2] // stride[2]
                            entries = rows[z, v, k * dilation[2] % stride[2], shift : shift + wide]
                            _larger(entries, np.int32(start + k), best, where)
        for i in range(len(positions)):
            levels[i] = positions[i]
        pack_bytes(at(levels, 0), len(levels) // 8, bits, at(codes, plane * codes.shape[1]))


@function
def _every(row, stride, shift, out):
    """Entries ``row[stride·m + shift]``, minus infinity outside of the row."""
    low = min(len(out), max(0, (stride - 1 - shift) // stride))
    high = max(low, min(len(out), (len(row) - 1 - shift) // stride + 1))
    for m in range(low):
        out[m] = -np.inf
    for m in range(low, high):
        out[m] = row[stride * m + shift]
    for m in range(high, len(out)):
        out[m] = -np.inf


@function
def _first(where, best, start, stride, padding, dilation):
    """Before any entry was seen: minus infinity, at the first position within the plane."""
    for w in range(len(where)):
        where[w] = start
        best[w] = -np.inf
    for w in range(min(len(where), (padding + stride - 1) // stride)):
        where[w] = start + (padding - w * stride + dilation - 1) // dilation


@function
def _larger(entries, position, best, where):
    """Where an entry is larger than the best so far, or NaN, it takes its place."""
    for w in range(len(best)):
        entry = entries[w]
        better = (entry > best[w]) | (entry != entry)
        best[w] = entry if better else best[w]
        where[w] = position if better else where[w]


@parallel
def _max_pool_grad(grad, codes, bits, starts, steps, result, tasks):
    for task in prange(tasks):
        positions = np.empty((grad.shape[1] + 7) // 8 * 8, np.uint8)
        for plane in share(task, tasks, len(grad)):
            unpack_bytes(at(codes, plane * codes.shape[1]), len(positions) // 8, bits, at(positions, 0))
            flat = result[plane]
            for i in range(len(flat)):
                flat[i] = 0
            _scatter(grad[plane], positions, starts, steps, flat)


@function
def _scatter(grad, positions, starts, steps, flat):
    for i in range(len(grad)):
        flat[starts[i] + steps[positions[i]]] += grad[i]
