"""Random numbers by counter for Triton's kernels: see :mod:`.noise`."""

import triton
import triton.language as tl


@triton.jit
def keys(start, block):
    """The two keys of blocks, ``uint32``; ``start`` is :func:`.noise.start` of the seed as a signed integer."""
    z = start.to(tl.int64).to(tl.uint64, bitcast=True) + (block + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def words(i, low, high):
    """Words ``i`` of blocks with these keys."""
    x = i.to(tl.uint32) * 0x9E3779B9 + low
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) + high
    x = x * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def halves(i, half, low, high):
    """Numbers from 0 to ``2^16 - 1``, ``uint32``, of entries ``i`` of blocks; ``half`` of their entries, rounded up."""
    upper = i >= half
    pair = words(tl.where(upper, i - half, i), low, high)
    return tl.where(upper, pair >> 16, pair & 0xFFFF)


@triton.jit
def uniforms(i, half, low, high, PRECISE: tl.constexpr):
    """Numbers in ``(0, 1)`` of entries ``i`` of blocks."""
    return (halves(i, half, low, high).to(tl.int32).to(PRECISE) + 0.5) * 0.0000152587890625  # 2^-16
