"""The standard augmentation of small images, on whole batches."""

import torch
from torch import Tensor
from torch.nn import functional


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Pad each image ``[N, C, H, W]`` by ``pixels`` zeros and cut a random window of its own size out of it."""
    n, c, h, w = images.shape
    padded = functional.pad(images, (pixels,) * 4)
    top = torch.randint(2 * pixels + 1, (n, 1), generator=generator)
    left = torch.randint(2 * pixels + 1, (n, 1), generator=generator)
    rows = (top + torch.arange(h))[:, None, :, None]
    columns = (left + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(c)[:, None, None], rows, columns]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image ``[N, C, H, W]`` left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)
