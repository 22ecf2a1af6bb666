"""Blocks of entries rounded stochastically to levels and packed, for Triton's kernels, whatever the levels are."""

import triton
import triton.language as tl

from .noise_triton import uniforms


@triton.jit
def store_levels(
    out, value: tl.constexpr, source, level: tl.constexpr, levels, size, block, low, high, BITS: tl.constexpr,
    PRECISE: tl.constexpr, WHAT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store packed levels of the entries of some blocks, plane by plane: see :func:`.packing.pack`.

    ``value(i, inside, source, PRECISE, WHAT)`` are entries ``i`` of the blocks, and ``level(x, noise, levels, BITS)``
    their levels.
    """
    for power in tl.static_range(3, -1, -1):
        if (BITS >> power) & 1:
            for begin in range(0, (block + 7) // 8 << power, (COLUMNS + 7) // 8 << power):
                _plane(out, begin, value, source, level, levels, size, low, high, power, BITS, PRECISE, WHAT, COLUMNS)


@triton.jit
def _plane(
    out, begin, value: tl.constexpr, source, level: tl.constexpr, levels, size, low, high, POWER: tl.constexpr,
    BITS: tl.constexpr, PRECISE: tl.constexpr, WHAT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some bytes of the plane that packs ``2^POWER`` bits of each code."""
    wider: tl.constexpr = (BITS >> (POWER + 1)) << (POWER + 1)
    j = begin + tl.arange(0, (COLUMNS + 7) // 8 << POWER)[None, :]
    length, half = (size + 7) // 8, (size + 1) // 2
    here = j < (length << POWER)
    plane = (here & False).to(tl.int32)
    for slab in range(0, 8 >> POWER):
        i = slab * (length << POWER) + j
        inside = here & (i < size)
        x = value(i, inside, source, PRECISE, WHAT)
        code = level(x, uniforms(i, half, low, high, PRECISE), levels, BITS)
        part = (code >> wider) & ((1 << (1 << POWER)) - 1)
        plane |= tl.where(inside, part << (slab << POWER), 0)
    tl.store(out + wider * length + j, plane.to(tl.uint8), mask=here)
