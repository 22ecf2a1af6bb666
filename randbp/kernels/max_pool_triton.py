"""Max-pooling by Triton: see :mod:`.max_pool`."""

from itertools import chain
from math import prod

import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, rounded, widen
from .max_pool import maxima, position_bits, three_of_each

COLUMNS = 256
"""Bytes of positions, or entries of an input gradient, of a program."""


def max_pool(x, kernel, stride, padding, dilation, output_size) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    (y, codes), bits = maxima(x, kernel, output_size), position_bits(kernel)
    nbytes = codes.shape[1]
    chunks = triton.cdiv(nbytes, COLUMNS)
    launch(
        _max_pool, len(x) * chunks, x.contiguous(), y, codes, chunks, nbytes // bits, prod(output_size),
        *chain(*three_of_each(kernel, stride, padding, dilation, x.shape[1:], output_size)), BITS=bits, COLUMNS=COLUMNS,
    )  # fmt: skip
    return y, codes


def max_pool_grad(grad, codes, kernel, stride, padding, dilation, input_size) -> Tensor:
    """The same bits as the reference's."""
    bits, count = position_bits(kernel), prod(input_size)
    result = grad.new_empty(len(grad), *input_size)
    chunks = triton.cdiv(count, COLUMNS)
    launch(
        _max_pool_grad, len(grad) * chunks, grad.contiguous(), codes.contiguous(), result, chunks,
        codes.shape[1] // bits, count, prod(grad.shape[1:]),
        *chain(*three_of_each(kernel, stride, padding, dilation, input_size, grad.shape[1:])), BITS=bits,
        COLUMNS=COLUMNS,
    )  # fmt: skip
    return result


@triton.jit
def _max_pool(
    x, y, codes, chunks, length, count, k1, k2, k3, s1, s2, s3, p1, p2, p3, d1, d2, d3, i1, i2, i3, o1, o2, o3,
    BITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    plane = (tl.program_id(0) // chunks).to(tl.int64)
    j = tl.program_id(0) % chunks * COLUMNS + tl.arange(0, COLUMNS)
    here = j < length * BITS
    packed = tl.zeros((COLUMNS,), tl.int32)
    for slab in range(0, 8 // BITS):
        n = slab * (length * BITS) + j
        inside = here & (n < count)
        best, position = tl.full((COLUMNS,), float("-inf"), _precision(x)), tl.full((COLUMNS,), -1, tl.int32)
        for a in range(0, k1):
            z = n // (o2 * o3) * s1 - p1 + a * d1
            for b in range(0, k2):
                v = n // o3 % o2 * s2 - p2 + b * d2
                for c in range(0, k3):
                    w = n % o3 * s3 - p3 + c * d3
                    valid = inside & (z >= 0) & (z < i1) & (v >= 0) & (v < i2) & (w >= 0) & (w < i3)
                    at = x + plane * i1 * i2 * i3 + ((z * i2 + v) * i3 + w)
                    entry = widen(tl.load(at, mask=valid, other=0), _precision(x))
                    better = valid & ((entry > best) | (entry != entry) | (position < 0))
                    best = tl.where(better, entry, best)
                    position = tl.where(better, (a * k2 + b) * k3 + c, position)
        tl.store(y + plane * count + n, rounded(best, y.dtype.element_ty), mask=inside)
        packed |= tl.where(inside, position << (slab * BITS), 0)
    tl.store(codes + plane * length * BITS + j, packed.to(tl.uint8), mask=here)


@triton.jit
def _max_pool_grad(
    grad, codes, result, chunks, length, count, outputs, k1, k2, k3, s1, s2, s3, p1, p2, p3, d1, d2, d3, i1, i2, i3, o1,
    o2, o3, BITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    plane = (tl.program_id(0) // chunks).to(tl.int64)
    n = tl.program_id(0) % chunks * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), _precision(grad))
    for back in range(0, k1 * k2 * k3):  # the last entry of a window first: so outputs come in their order
        position = k1 * k2 * k3 - 1 - back
        z, z_fits = _window(n // (i2 * i3), position // (k2 * k3), s1, p1, d1, o1)
        v, v_fits = _window(n // i3 % i2, position // k3 % k2, s2, p2, d2, o2)
        w, w_fits = _window(n % i3, position % k3, s3, p3, d3, o3)
        output = (z * o2 + v) * o3 + w
        fits = (n < count) & z_fits & v_fits & w_fits
        slab = output // (length * BITS)
        at = codes + plane * length * BITS + output % (length * BITS)
        code = (tl.load(at, mask=fits, other=0).to(tl.int32) >> (slab * BITS)) & ((1 << BITS) - 1)
        fits &= code == position
        part = widen(tl.load(grad + plane * outputs + output, mask=fits, other=0), _precision(grad))
        total = tl.where(fits, widen(rounded(total + part, grad.dtype.element_ty), _precision(grad)), total)
    tl.store(result + plane * count + n, rounded(total, grad.dtype.element_ty), mask=n < count)


@triton.jit
def _window(i, entry, stride, padding, dilation, count):
    """The window of which some entry is ``i``, along one dimension, and whether there is one."""
    start = i + padding - entry * dilation
    window = tl.maximum(start, 0) // stride
    return window, (start >= 0) & (window * stride == start) & (window < count)


@triton.constexpr_function
def _precision(pointer):
    """In which precision entries are compared and added."""
    return tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
