"""The randomness of an estimate: seeds that can be replayed, never PyTorch's global generators."""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers into one 63-bit seed; nearby inputs give unrelated seeds, and their order matters.

    The finaliser is that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class Draw:
    """One random draw of an estimator. Repeated calls return the same numbers.

    That is what lets the backward pass repeat the forward pass's sample from an integer instead of storing indices.

    Args:
        seed: Any integer; equal seeds give equal samples on one kind of device.

    Example:
        >>> draw = Draw(seed=3)
        >>> bool((draw.permutation(10) == draw.permutation(10)).all())
        True
    """

    seed: int

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator on ``device`` at the start of this draw's stream."""
        # Tensors without data, by which torch.compile learns shapes, take a generator of the host.
        generator = torch.Generator("cpu" if torch.device(device).type == "meta" else device)
        # PyTorch's CPU generator only reads the low 32 bits of its seed, so the high ones are folded in.
        generator.manual_seed((self.seed ^ (self.seed >> 32)) & 0xFFFFFFFF)
        return generator

    def permutation(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """A uniformly random permutation of ``0 … size - 1``."""
        return torch.randperm(size, generator=self.generator(device), device=device)

    def child(self, *key: int) -> "Draw":
        """Derive an independent draw, for one of several parts of an estimator."""
        return Draw(mix(self.seed, *key))


def windows(draw: Draw, size: int, count: int, batch: int, device: torch.device) -> Tensor:
    """Places to keep of each of several sums, ``[B, count]``, ascending: stretches of one permutation, in turn.

    Together the sums cover the places as evenly as whole stretches can. Where more than half of the places are kept,
    those left out are such stretches.

    Example:
        >>> windows(Draw(0), 6, 3, 2, torch.device("cpu")).flatten().sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    left_out = size - count
    if not left_out:
        return torch.arange(size, device=device).expand(batch, size)
    length = min(count, left_out)
    different = min(batch, size // length)
    stretches = draw.permutation(size, device)[: different * length].view(different, length).sort(1).values
    if count > left_out:  # the s-th place kept is s plus the number left out before it
        before = stretches - torch.arange(length, device=device)
        numbers = torch.arange(count, device=device).expand(different, count).contiguous()
        stretches = numbers + torch.searchsorted(before, numbers, right=True)
    if different < batch:
        stretches = stretches.index_select(0, torch.arange(batch, device=device) % different)
    return stretches


def seed_from(generator: torch.Generator) -> int:
    """Take one seed from a generator, advancing it, without waiting for the generator's device."""
    if generator.device.type == "cuda":
        offset = generator.get_offset()
        generator.set_offset(offset + 4)
        return mix(generator.initial_seed(), offset)
    high, low = torch.randint(0, 1 << 31, (2,), generator=generator, device=generator.device).tolist()
    return (high << 31) | low
