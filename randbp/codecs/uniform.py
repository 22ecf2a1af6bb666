"""A codec for rows of entries: equally spaced levels in each block, by stochastic rounding or subtractive dither."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import decode, encode, narrow
from ..kernels.levels import Rows, scale_dtype

FEW = 2
"""Bits up to which scales may be held in bfloat16: their error is small relative to the distance of levels [bits]."""


@dataclass(frozen=True)
class Uniform:
    """Rounding of rows of entries to ``bits`` bits each, with two scales per block.

    Each block has an offset ``a`` (its least entry) and a step ``h = range / (2^bits - 1)``. An entry ``x`` becomes
    the integer ``k = ⌊(x - a)/h + u⌋`` with ``u`` uniform in ``(0, 1)``.

    *Plain* rounding decodes it as ``a + h k``. Its mean is ``x`` and its variance ``h² f (1 - f)`` with ``f`` the
    fractional part of ``(x - a)/h``; entries on a level are exact.

    *Dithered* rounding decodes it as ``x̃ = a + h (k + 1/2 - u)``: the noise is made again and subtracted. The
    error ``x̃ - x`` is then uniform in ``±h/2`` and independent of ``x``. So ``x̃`` is unbiased, its variance is
    ``h²/12`` (half of the plain one's, on average), and since that is known, the mean of a product of two uses of
    ``x̃`` can be corrected, too.

    Entries that are not finite are decoded as NaN, and do not change others (with one bit, their block is NaN).

    Source: L. Schuchman, Dither signals and their effect on quantization noise, IEEE Transactions on Communication
    Technology 12 (1964).

    Args:
        bits: Bits per entry, 1 to 8.
        entries: Entries per row.
        block: Entries that share two scales, within a row; the last of a row may be shorter.
        dithered: Whether decoding subtracts the noise.

    Example:
        >>> layout, x = Uniform(bits=4, entries=512, dithered=True), torch.rand(3, 512)
        >>> codes, scales = layout.encode(x, seed=7)
        >>> codes.nbytes, scales.shape, bool((layout.decode(codes, scales, 7) - x).abs().max() <= scales[..., 1].max())
        (768, torch.Size([3, 2, 2]), True)
        >>> last_row = layout.decode(codes[2:], scales[2:], 7, first_row=2)
        >>> bool((last_row == layout.decode(codes, scales, 7)[2:]).all())
        True
    """

    bits: int
    entries: int
    block: int = 256
    dithered: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks per row."""
        return Rows(self.entries, self.block, self.bits).blocks

    def nbytes(self, rows: int, dtype: torch.dtype = torch.float32, short: bool = False) -> int:
        """Return the bytes of codes and scales of rows of a dtype, or of :meth:`short_scales` if they are ``short``."""
        layout, scales = Rows(self.entries, self.block, self.bits), scale_dtype(dtype)
        each = 2 if short and self._may_be_short(scales) else scales.itemsize
        return rows * (layout.nbytes + 2 * layout.blocks * each)

    def encode(self, rows: Tensor, seed: int, first_block: int = 0) -> tuple[Tensor, Tensor]:
        """Encode rows ``[R, entries]`` as codes ``[R, bytes]`` and scales ``[R, blocks, 2]``.

        Args:
            rows: Entries of any floating dtype.
            seed: Of the noise.
            first_block: The number of the first block in the noise.
        """
        codes, scales = encode(rows, seed, first_block, self.bits, self.block, self.dithered)
        return codes, scales

    def short_scales(self, scales: Tensor, seed: int) -> Tensor:
        """Round scales to bfloat16 stochastically, if there are at most :data:`FEW` bits; else return them unchanged.

        A decoded entry ``a + h k`` is linear in them, so it stays unbiased. All entries of a block move together, by
        at most ``2^-8`` of ``|a| + h k``. Dithered rounding, whose variance must be known, keeps its scales.

        Args:
            scales: ``[R, blocks, 2]``.
            seed: Of a noise of its own.
        """
        if not self._may_be_short(scales.dtype):
            return scales
        short: Tensor = narrow(scales, seed, 0, torch.bfloat16)
        return short

    def _may_be_short(self, scales: torch.dtype) -> bool:
        return self.bits <= FEW and not self.dithered and scales == torch.float32

    def decode(
        self,
        codes: Tensor,
        scales: Tensor,
        seed: int = 0,
        first_block: int = 0,
        first_row: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Decode entries ``[R, entries]`` of all rows, or of some neighbouring ones.

        Args:
            codes: Of these rows.
            scales: Of these rows, short or not.
            seed: Of the noise; plain rounding needs none.
            first_block: As it was encoded with.
            first_row: The number of the first of these rows.
            dtype: Of the result; by default that of the scales before they were made short.
        """
        scales = scales.to(scale_dtype(scales.dtype))
        first, precise = first_block + first_row * self.blocks, scales.dtype if dtype is None else dtype
        return decode(codes, scales, seed, first, self.bits, self.block, self.entries, self.dithered, precise)

    def variance(self, rows: Tensor) -> Tensor:
        """Return the variance over the noise of each decoded entry, ``[R, entries]``.

        Dithered rounding has ``h²/12``, plain rounding ``h² f (1 - f)`` with ``f`` the fractional part of
        ``(x - a)/h``. The variance of entries that are decoded as NaN is NaN.

        Example:
            >>> Uniform(bits=1, entries=3).variance(torch.tensor([[0.0, 1.0, 4.0]]))
            tensor([[0., 3., 0.]])
        """
        _, scales = self.encode(rows, 0)
        x = rows.to(scales.dtype)
        least, step = (each.repeat_interleave(self.block, 1)[:, : self.entries] for each in scales.unbind(2))
        size = step.abs()
        share = ((x - least) / size).frac().masked_fill_(size == 0, 0)
        each = size.square() / 12 if self.dithered else size.square() * share * (1 - share)
        wrong = (x.abs() <= torch.finfo(x.dtype).max / 2).logical_not_()
        return each.masked_fill_(wrong.logical_or_(step.isnan()), torch.nan)

    def variances(self, scales: Tensor) -> Tensor:
        """Return ``h²/12`` of each entry, ``[R, entries]``: the variance of dithered rounding."""
        each = scales[..., 1].square().div(12)
        return each.repeat_interleave(self.block, 1)[:, : self.entries]
