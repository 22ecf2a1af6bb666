"""A small vision transformer, whose arithmetic is in linear layers."""

import torch
from torch import Tensor, nn

from experiments.models.init import he_init


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a LayerNorm and added to what it was given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        q, k, v = (each.view(shape).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, 2))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    """Patches of 4x4 pixels, learned positions, blocks of pre-norm attention, and the mean of all tokens.

    Source: the layout of Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021
    (https://arxiv.org/abs/2010.11929).

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        width: channels of a token.
        depth: number of blocks.
        size: pixels of an image's side.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, width: int = 128, depth: int = 4, size: int = 32
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, (size // 4) ** 2, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, max(1, width // 32)) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)
        he_init(self)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))
