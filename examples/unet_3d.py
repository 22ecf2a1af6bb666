"""
A 3-d U-Net that fits
=====================

A patch of twice the side has eight times the voxels. Here a small U-Net with a skip connection segments balls in noise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp.diagnostics import memory_report


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.01))


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down, self.deep = block(1, width), block(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.out = nn.Sequential(block(2 * width, width), nn.Conv3d(width, 1, 1))

    def forward(self, volume: Tensor) -> Tensor:
        fine = self.down(volume)
        coarse = self.up(self.deep(F.max_pool3d(fine, 2)))
        return self.out(torch.cat([fine, coarse], 1))


def balls(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"))
    centres = torch.randint(side // 4, 3 * side // 4, (count, 3, 1, 1, 1), generator=generator)
    inside = ((grid - centres).square().sum(1, keepdim=True) < (side / 4) ** 2).float()
    return inside + torch.randn(inside.shape, generator=generator), inside


# %%
# Bytes that are held for backward, for a growing patch:

for side in (16, 24, 32):
    model, volume = UNet(), torch.randn(1, 1, side, side, side)
    plain = memory_report(model, volume).held_bytes
    with randbp.randomize(model, preset="memory"):
        lean = memory_report(model, volume).held_bytes
    print(f"{side}³ voxels: {plain / 2**20:6.2f} MiB, with the preset {lean / 2**20:5.2f} MiB ({lean / plain:.2f})")

# %%
generator, model = torch.Generator().manual_seed(0), UNet()
handle, optimizer = randbp.randomize(model, preset="memory"), torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(6):
    volumes, inside = balls(2, 16, generator)
    with handle.lean():
        loss = F.binary_cross_entropy_with_logits(model(volumes), inside)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss:.3f}")
