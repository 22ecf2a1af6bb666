"""Prints what `advise` says beside what then really fits, for three networks: ``python -m tests.tune.fits [SECONDS]``.

SECONDS (2 by default) is the time of the longest step that `advise` may measure.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.models import ResNet18, SmallViT
from randbp.diagnostics.objective import make_objective
from randbp.text.units import parse_bytes
from randbp.tune.advisor import LONGEST
from randbp.tune.growth import Examples
from randbp.tune.model_advice import advice_on

from .test_advise import taken


def _block(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    layers = [
        (nn.Conv3d(inner, leaving, 3, step, 1), nn.InstanceNorm3d(leaving), nn.LeakyReLU(0.01, inplace=True))
        for inner, step in ((entering, stride), (leaving, 1))
    ]
    return nn.Sequential(*(layer for three in layers for layer in three))


class UNet(nn.Module):
    """A 3-d U-Net of three scales, in the manner of nnU-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(1, 8), _block(8, 16, 2), _block(16, 32, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(32, 16, 2, 2), nn.ConvTranspose3d(16, 8, 2, 2)])
        self.join = nn.ModuleList([_block(32, 16), _block(16, 8)])
        self.out = nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
        skipped.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skipped.pop()], 1))
        return self.out(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], str]] = {
    "U-Net, 3-d": (UNet, (1, 32, 32, 32), (32, 32, 32), "500MiB"),
    "ViT": (SmallViT, (1, 32, 32), (), "400MiB"),
    "ResNet-18": (ResNet18, (3, 96, 96), (), "700MiB"),
}


def main(longest: float) -> None:
    """Print a row for each network and setting."""
    print("| network | memory | setting | largest batch | measured up to | what its steps take, of the memory |")
    print("|---|---|---|---|---|---|")
    for name, (make, shape, targets, memory) in NETWORKS.items():
        torch.manual_seed(0)
        model, batch = make(), (torch.randn(2, *shape), torch.randint(3, (2, *targets)))
        bytes = parse_bytes("memory", memory)
        advice = advice_on(
            model, batch, make_objective(model, F.cross_entropy), bytes, draws=0, rounds=0, longest=longest
        )
        for row in advice.rows:
            whole: Any = Examples(2).of(batch, row.largest)
            share = taken(model, whole, row.setting, torch.optim.AdamW) / bytes
            print(
                f"| {name} | {memory} | {row.setting} | {row.largest} | {row.measured_at} | {share:.3f} |", flush=True
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else LONGEST)
