"""Weight initialisation."""

from typing import Literal

from torch import nn


def he_init(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw every weight from N(0, 2 / fan), which keeps the scale of ReLU activations; set biases to zero.

    Source: He et al., "Delving deep into rectifiers", ICCV 2015 (https://arxiv.org/abs/1502.01852).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
