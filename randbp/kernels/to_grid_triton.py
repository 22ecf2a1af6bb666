"""Stochastic rounding of numbers of a known range, or of slopes, by Triton: see :mod:`.to_grid`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import launch, widen
from .derivatives_triton import derivative
from .encode_triton import cut, tile
from .grid_bits import encoded, stretched
from .inside_triton import pack_mask
from .noise import BLOCK, signed, start
from .noise_triton import keys, uniforms
from .packing import packed_size


def to_grid(values: Tensor, seed: int, first: int, bits: int, inverse: float, zero: float) -> Tensor:
    """The same bits as the reference's."""
    return rounded_slopes(values, "", (1.0, 0.0, 0.0), seed, first, bits, inverse, zero)


def rounded_slopes(
    values: Tensor, function: str, parameters: Sequence[float], seed: int, first: int, bits: int, inverse: float,
    zero: float,
) -> Tensor:  # fmt: skip
    """Codes and marks of the derivatives of a function; without a name, of the values themselves."""
    held, blocks = encoded(len(values), values.device, bits), triton.cdiv(len(values), BLOCK)
    spoilt, (together, columns) = torch.empty(blocks, dtype=torch.bool, device=values.device), tile(BLOCK)
    factor, second, third = parameters
    launch(
        _to_grid, triton.cdiv(blocks, together), values, values.contiguous(), held, spoilt.view(torch.uint8),
        signed(start(seed)), first, len(values), blocks, FUNCTION=function, FACTOR=factor, SECOND=second, THIRD=third,
        INVERSE=inverse, ZERO=zero, STRETCH=stretched(bits)[0], BITS=bits, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    pack_mask(spoilt, held[packed_size(len(values), bits) :])
    return held


@triton.jit(do_not_specialize=("start", "first", "count"))
def _to_grid(
    source, held, spoilt, start: tl.int64, first: tl.int64, entries, count: tl.int64, FUNCTION: tl.constexpr,
    FACTOR: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, INVERSE: tl.constexpr, ZERO: tl.constexpr,
    STRETCH: tl.constexpr, BITS: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(count, entries, count, COLUMNS, TOGETHER)
    at = source + number * COLUMNS
    i = tl.arange(0, COLUMNS)[None, :]
    x = _value(at, i, i < size, FUNCTION, FACTOR, SECOND, THIRD)
    wrong = tl.max(((i < size) & ((tl.abs(x) < float("inf")) == 0)).to(tl.int32), 1, keep_dims=True)
    tl.store(spoilt + number, wrong.to(tl.uint8), mask=size > 0)
    low, high = keys(start, first + number)
    for power in tl.static_range(3, -1, -1):
        if (BITS >> power) & 1:
            _plane(
                at, held + number * (COLUMNS // 8 * BITS), size, wrong, low, high, power, FUNCTION, FACTOR, SECOND,
                THIRD, INVERSE, ZERO, STRETCH, BITS, COLUMNS,
            )  # fmt: skip


@triton.jit
def _plane(
    at, out, size, wrong, low, high, POWER: tl.constexpr, FUNCTION: tl.constexpr, FACTOR: tl.constexpr,
    SECOND: tl.constexpr, THIRD: tl.constexpr, INVERSE: tl.constexpr, ZERO: tl.constexpr, STRETCH: tl.constexpr,
    BITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The plane of blocks that packs ``2^POWER`` bits of each code: see :func:`.packing.pack`."""
    wider: tl.constexpr = (BITS >> (POWER + 1)) << (POWER + 1)
    j = tl.arange(0, COLUMNS // 8 << POWER)[None, :]
    length, half = (size + 7) // 8, (size + 1) // 2
    here = j < (length << POWER)
    plane = (here & False).to(tl.int32)
    for slab in range(0, 8 >> POWER):
        i = slab * (length << POWER) + j
        inside = here & (i < size)
        x = _value(at, i, inside, FUNCTION, FACTOR, SECOND, THIRD)
        code = _level(x, uniforms(i, half, low, high, tl.float32), wrong, INVERSE, ZERO, STRETCH, BITS)
        part = (code >> wider) & ((1 << (1 << POWER)) - 1)
        plane |= tl.where(inside, part << (slab << POWER), 0)
    tl.store(out + wider * length + j, plane.to(tl.uint8), mask=here)


@triton.jit
def _value(
    at, i, inside, FUNCTION: tl.constexpr, FACTOR: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr
):  # fmt: skip
    x = widen(tl.load(at + i, mask=inside, other=0), tl.float32)
    return x if FUNCTION == "" else derivative(x, FUNCTION, FACTOR, SECOND, THIRD)


@triton.jit
def _level(
    x, noise, wrong, INVERSE: tl.constexpr, ZERO: tl.constexpr, STRETCH: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    top: tl.constexpr = (1 << BITS) - 1
    below: tl.constexpr = top - 1
    fine = tl.abs(x) < float("inf")
    place = tl.where(fine, x, 0.0) * INVERSE + ZERO
    place = tl.where(wrong > 0, place * STRETCH, place) + noise
    place = tl.where(place > 0, place, 0.0)
    place = tl.minimum(place, tl.where(wrong > 0, below, top).to(tl.float32))
    return tl.where(fine, place.to(tl.int32), top)
