"""Factors against BackPACK's KFLR and KFRA: its input factors are those of "expand", its others those of "reduce".

Run by ``make peers``. BackPACK computes some of these in single precision only.
"""

import copy

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import KFLR, KFRA
from torch import nn

from randbp.curvature import factors

NETS = {
    "linear": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "2-d": (
        nn.Sequential(
            *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, (2, 1), stride=2, bias=False)),
            *(nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)),
        ),
        (2, 5, 6),
    ),
    "average": (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3)),
        (2, 5, 6),
    ),
    "1-d": (nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)), (2, 7)),
    "3-d": (nn.Sequential(nn.Conv3d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), (2, 3, 3, 2)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(60, 3)), (2, 3, 4)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["type-2", "recursive"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind_of_loss", [nn.CrossEntropyLoss, nn.MSELoss])
def test_factors(net, kind, reduction, kind_of_loss):
    model, shape = copy.deepcopy(NETS[net])
    loss, x = kind_of_loss(reduction=reduction), torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 3 if kind_of_loss is nn.CrossEntropyLoss else torch.linspace(-1, 1, 18).view(6, 3)
    extension = KFLR() if kind == "type-2" else KFRA()
    reduce, expand = (factors(model, (x, y), loss, kind, approximation) for approximation in ("reduce", "expand"))
    with backpack(extension):
        extend(loss)(extend(model)(x), y).backward()
    for name in reduce:
        grad_factor, input_factor = getattr(model.get_submodule(name).weight, extension.savefield)
        rows = len(input_factor)  # the bias is apart
        torch.testing.assert_close(reduce[name].output_grad_factor[0], grad_factor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(expand[name].input_factor[0, :rows, :rows], input_factor, rtol=1e-4, atol=1e-5)
