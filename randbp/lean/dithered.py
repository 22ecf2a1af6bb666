"""Subtractive dither: rounding whose error is the same whatever was rounded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..estimators.bits import pack, packed_size, to_bytes, unpack
from ..estimators.draw import Draw
from ..estimators.noise import Noise
from ..estimators.spoilt import spoilt_entries, uniform_levels
from .layout import pieces


@dataclass(frozen=True)
class Dithered:
    """How rows of entries are held in ``bits`` bits each, and two scales per block.

    Each block has an offset ``a`` (its least entry) and a step ``h = range / (2^bits - 1)``. An entry is held as the
    integer ``k = ⌊(x - a)/h + u⌋``, ``u`` uniform in ``[0, 1)``, and read as ``x̃ = a + h (k + 1/2 - u)``: the noise is
    drawn again from its seed and subtracted. The error ``x̃ - x`` is then uniform in ``±h/2`` and independent of
    ``x``. So ``x̃`` is unbiased, its variance is ``h²/12`` (half of plain stochastic rounding's, on average), and since
    that variance is known, the mean of a product of two uses of ``x̃`` can be corrected, too. Entries that are not
    finite come back as NaN and leave the others of their block alone (:mod:`..estimators.spoilt`).

    Source: L. Schuchman, Dither signals and their effect on quantization noise, IEEE Transactions on Communication
    Technology 12 (1964).

    Args:
        bits: Bits per entry, 1 to 8.
        entries: Entries per row.
        block: Entries that share two scales, within a row; the last of a row may be shorter.

    Example:
        >>> layout, x = Dithered(bits=4, entries=512), torch.rand(3, 512)
        >>> codes, scales = layout.encode(x, seed=7)
        >>> codes.nbytes, scales.shape, bool((layout.decode(codes, scales, 7) - x).abs().max() <= scales[..., 1].max())
        (768, torch.Size([3, 2, 2]), True)
    """

    bits: int
    entries: int
    block: int = 256

    @property
    def blocks(self) -> int:
        """Blocks per row."""
        return -(-self.entries // self.block)

    @property
    def _padded(self) -> int:
        return self.blocks * self.block

    def nbytes(self, rows: int) -> int:
        """Bytes of codes and scales."""
        return rows * (packed_size(self._padded, self.bits) + 8 * self.blocks)

    def encode(
        self, rows: Tensor, seed: int | Noise, prepare: Callable[[Tensor, slice], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Packed codes (flat) and scales ``[rows, blocks, 2]`` of ``[rows, entries]``.

        Args:
            rows: What to hold.
            seed: Of the noise, or a stream of it to go on with.
            prepare: Maps some of the rows, in single precision, and which these are, to what to hold of them.
        """
        count, noise = len(rows), _noise(seed, rows.device)
        scales = torch.empty(count, self.blocks, 2, dtype=torch.float32, device=rows.device)
        size = packed_size(self._padded, self.bits)
        codes = torch.empty(count * size, dtype=torch.uint8, device=rows.device)
        for part in self._parts(rows):
            values = rows[part].float() if prepare is None else prepare(rows[part].float(), part)
            if missing := self._padded - self.entries:  # repeated entries leave the range alone
                values = torch.cat([values, values[:, -1:].expand(-1, missing)], 1)
            values = values.unflatten(1, (self.blocks, self.block))
            # The tiny lift keeps level + noise below the first code that would not fit, whatever is rounded.
            least, step, wrong = uniform_levels(values, self.bits, lift=1 + 2**-15)
            levels = (values - least).mul_(torch.where(step == 0, 0, step.abs().reciprocal_()))
            levels.view(-1).add_(noise.next(levels.numel())).add_(0.5)
            if wrong is not None:
                levels.nan_to_num_(0, 0, 0).masked_fill_(wrong, 2**self.bits - 1)
            integers = to_bytes(levels).view(len(values), -1)
            if extra := -self._padded % 8:
                integers = torch.cat([integers, integers.new_zeros(len(integers), extra)], 1)
            codes[part.start * size : part.stop * size] = pack(integers.view(1, -1), self.bits).view(-1)
            scales[part] = torch.cat([least, step], 2)
        return codes, scales

    def decode(self, codes: Tensor, scales: Tensor, seed: int | Noise, out: Tensor | None = None) -> Tensor:
        """Entries ``[rows, entries]`` in single precision, or in ``out``."""
        count, noise = len(scales), _noise(seed, codes.device)
        result = torch.empty(count, self.entries, device=codes.device) if out is None else out
        size = packed_size(self._padded, self.bits)
        for part in self._parts(result):
            integers = unpack(codes[part.start * size : part.stop * size].view(1, -1), self.bits)
            integers = integers.view(part.stop - part.start, -1)[:, : self._padded]
            codes_of_blocks = integers.unflatten(1, (self.blocks, self.block))
            levels = codes_of_blocks - noise.next(integers.numel()).view(-1, self.blocks, self.block)
            least, step = scales[part].split(1, 2)
            values = levels.mul_(step.abs()).add_(least)
            if (wrong := spoilt_entries(codes_of_blocks, step, self.bits)) is not None:
                values.masked_fill_(wrong, torch.nan)
            result[part] = values.flatten(1)[:, : self.entries]
        return result

    def variances(self, scales: Tensor) -> Tensor:
        """Variance ``h²/12`` of each entry, ``[rows, entries]``."""
        each = scales[..., 1].square().div(12)
        return each.repeat_interleave(self.block, 1)[:, : self.entries]

    def _parts(self, rows: Tensor) -> list[slice]:
        entries = max(1, self._padded)
        spans = pieces(len(rows) * entries, rows.device, entries)
        return [slice(span.start // entries, span.stop // entries) for span in spans]


def _noise(seed: int | Noise, device: torch.device) -> Noise:
    return seed if isinstance(seed, Noise) else Noise(Draw(seed), device)
