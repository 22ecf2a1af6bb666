r"""Random numbers by counter: any part of a noise can be made anywhere, in any order, with the same bits.

Entries are numbered and cut into blocks. A block's two 32-bit keys are the halves of

    ``z = mix(mix(seed + γ) + γ (block + 1))``,   ``γ = 0x9E3779B97F4A7C15``,

where ``mix`` is the finaliser of SplitMix64. Word ``i`` of the block is made of ``x = 0x9E3779B9 i + low key`` by

    ``x ^= x >> 16; x *= 0x21F0AAAD; x ^= x >> 15; x += high key; x *= 0x735A2D97; x ^= x >> 15``

(modulo ``2^32``): a 32-bit finaliser with a key between its two multiplications. The low half of word ``i`` belongs to
entry ``i`` of the block, the high half to entry ``i + ⌈block / 2⌉``; a half ``j`` is read as ``(2 j + 1) / 2^17``.
Sixteen bits are as fine as the rounding of single precision to a few bits can show.

Source: G. L. Steele, D. Lea and C. H. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014 (SplitMix64);
C. Wellons, Prospecting for hash functions, 2018, as improved by TheIronBorn (the multipliers and shifts). Counters in
the place of states: J. K. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

import torch
from torch import Tensor

BLOCK = 256
"""Entries of a block, where nothing else sets its size [entries]."""

GAMMA, SPLITS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""What sets neighbouring blocks apart, and the multipliers of ``mix``."""

FIRST, SECOND, STEP = 0x21F0AAAD, 0x735A2D97, 0x9E3779B9
"""Multipliers of a word, and what sets neighbouring words apart."""

_MASK = (1 << 64) - 1


def signed(value: int, bits: int = 64) -> int:
    """The same bits read as a signed integer.

    Example:
        >>> signed(2**64 - 1), signed(2**31, 32)
        (-1, -2147483648)
    """
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def start(seed: int) -> int:
    """``mix(seed + γ)``, which all blocks of a noise share; from 0 to ``2^64 - 1``."""
    z = (seed + GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * SPLITS[0]) & _MASK
    z = ((z ^ (z >> 27)) * SPLITS[1]) & _MASK
    return z ^ (z >> 31)


def keys(seed: int, blocks: Tensor) -> Tensor:
    """The low and the high key of some blocks, ``int32 [..., 2]``."""
    z = (blocks + 1).mul_(signed(GAMMA)).add_(signed(start(seed)))
    room = torch.empty_like(z)
    z.bitwise_xor_(_shifted(z, 30, 64, room)).mul_(signed(SPLITS[0]))
    z.bitwise_xor_(_shifted(z, 27, 64, room)).mul_(signed(SPLITS[1]))
    z.bitwise_xor_(_shifted(z, 31, 64, room))
    return z.unsqueeze(-1).view(torch.int32)  # little-endian: the low half lies first


def words(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` words of blocks with these keys, ``int32 [..., count]``.

    Example:
        >>> some = keys(7, torch.arange(4))
        >>> bool((words(some[2], 5) == words(some, 8)[2, :5]).all())
        True
    """
    low, high = keys.split(1, -1)
    x = torch.arange(count, dtype=torch.int32, device=keys.device).mul_(signed(STEP, 32)) + low
    room = torch.empty_like(x)
    x.bitwise_xor_(_shifted(x, 16, 32, room)).mul_(FIRST)
    x.bitwise_xor_(_shifted(x, 15, 32, room)).add_(high).mul_(SECOND)
    return x.bitwise_xor_(_shifted(x, 15, 32, room))


def uniform(seed: int, blocks: Tensor, entries: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers ``(2 j + 1) / 2^17`` in ``(0, 1)``, ``j`` uniform in ``0 … 2^16 - 1``, of some blocks.

    Args:
        seed: Equal seeds give equal numbers, on all devices.
        blocks: Their numbers, ``int64`` of any shape.
        entries: Of each block, the last dimension of the result.
        dtype: Of the result: single or double precision.

    Example:
        >>> values = uniform(3, torch.arange(4), 256)
        >>> values.shape, float(values.min()) > 0, float(values.max()) < 1, abs(float(values.mean()) - 0.5) < 0.05
        (torch.Size([4, 256]), True, True, True)
    """
    return halves(keys(seed, blocks), entries, dtype).add_(0.5).mul_(2**-16)


def halves(keys: Tensor, entries: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers ``j`` of which :func:`uniform` makes ``(2 j + 1) / 2^17``, of blocks with these keys.

    Example:
        >>> blocks = torch.arange(4)
        >>> bool(((halves(keys(3, blocks), 7) + 0.5) / 2**16 == uniform(3, blocks, 7)).all())
        True
    """
    half = -(-entries // 2)
    pairs = words(keys, half)
    result = torch.empty(*pairs.shape[:-1], entries, dtype=dtype, device=keys.device)
    low, high = result.split_with_sizes((half, entries - half), -1)
    room = torch.bitwise_and(pairs, 0xFFFF)
    low.copy_(room)
    high.copy_(_shifted(pairs, 16, 32, room)[..., : entries - half])
    return result


def _shifted(x: Tensor, count: int, bits: int, room: Tensor) -> Tensor:
    """``x >> count`` with zeros from the left, in the place of another tensor."""
    return torch.bitwise_right_shift(x, count, out=room).bitwise_and_((1 << (bits - count)) - 1)
