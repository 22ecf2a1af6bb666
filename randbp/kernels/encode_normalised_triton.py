"""Encoding of numbers on the way of their normalisation, by Triton: see :mod:`.encode_normalised`."""

from torch import Tensor

from .encode_triton import encoded
from .noise import BLOCK


def encode_normalised(values: Tensor, mean: Tensor, rstd: Tensor, seed: int, bits: int) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    behind, example = values.shape[3], values[:1].numel()
    normalised = mean.contiguous(), rstd.contiguous(), example, behind
    return encoded(values.reshape(1, -1), seed, 0, bits, BLOCK, True, normalised)
