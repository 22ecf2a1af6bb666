"""How a stochastically rounded tensor lies in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import pack, packed_size, to_bytes, unpack
from .chunks import chunks
from .draw import Draw
from .noise import Noise
from .spoilt import spoilt_entries, uniform_levels


@dataclass(frozen=True)
class RoundedLayout:
    """Codes of ``bits`` bits and two scales per block, for a tensor whose leading dimension counts examples.

    Args:
        bits: Bits per code.
        entries: Entries per example.
        block: Consecutive entries of an example that share two scales; the last block may be shorter.
        dtype: Of the tensor.

    Example:
        >>> layout, x = RoundedLayout(bits=8, entries=100, block=32, dtype=torch.float32), torch.rand(3, 100)
        >>> codes, scales = layout.encode(x, Draw(0))
        >>> codes.shape, scales.shape, bool((layout.decode(codes, scales) - x).abs().max() < 1 / 255)
        (torch.Size([3, 128]), torch.Size([3, 4, 2]), True)
    """

    bits: int
    entries: int
    block: int
    dtype: torch.dtype

    @property
    def blocks(self) -> int:
        """Blocks per example."""
        return -(-self.entries // self.block)

    @property
    def scale_dtype(self) -> torch.dtype:
        """Scales are exact numbers of the tensor's own precision, or more."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def bytes_per_example(self) -> int:
        """Bytes of codes and scales."""
        return packed_size(self.blocks * self.block, self.bits) + 2 * self.blocks * self.scale_dtype.itemsize

    def encode(self, tensor: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Codes ``[N, bytes]`` and scales ``[N, blocks, 2]`` of ``[N, …]``, a few examples at a time."""
        count, noise = len(tensor), Noise(draw, tensor.device)
        size = packed_size(self.blocks * self.block, self.bits)
        codes = torch.empty(count, size, dtype=torch.uint8, device=tensor.device)
        scales = torch.empty(count, self.blocks, 2, dtype=self.scale_dtype, device=tensor.device)
        for part in chunks(count):
            flat = tensor[part].reshape(part.stop - part.start, -1).to(self.scale_dtype).contiguous()
            if (missing := self.blocks * self.block - self.entries) > 0:  # repeated entries leave the range alone
                flat = torch.cat([flat, flat[:, -1:].expand(-1, missing)], 1)
            values = flat.unflatten(1, (self.blocks, self.block))
            least, step, wrong = uniform_levels(values, self.bits)
            levels = (values - least).mul_(torch.where(step == 0, 0, step.abs().reciprocal_()))
            levels.view(-1).add_(noise.next(levels.numel())).add_(0.5)
            if wrong is None:
                levels.clamp_(0, 2**self.bits - 1)
            else:
                levels.nan_to_num_(0).clamp_(min=0).clamp_(max=2**self.bits - 1 - step.signbit().to(levels.dtype))
                levels.masked_fill_(wrong, 2**self.bits - 1)
            integers = to_bytes(levels).flatten(1)
            if missing := -integers.shape[1] % 8:
                integers = torch.cat([integers, integers.new_zeros(len(integers), missing)], 1)
            codes[part] = pack(integers, self.bits)
            scales[part] = torch.cat([least, step], 2)
        return codes, scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Entries ``[N, entries]`` in the precision of the scales."""
        integers = unpack(codes, self.bits)[:, : self.blocks * self.block]
        integers, step = integers.unflatten(1, (self.blocks, self.block)), scales[..., 1:]
        values = torch.addcmul(scales[..., :1], integers.to(self.scale_dtype), step.abs())
        if (wrong := spoilt_entries(integers, step, self.bits)) is not None:
            values.masked_fill_(wrong, torch.nan)
        return values.flatten(1)[:, : self.entries]
