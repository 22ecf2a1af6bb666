"""The optimisers that are compared, each with four learning rates."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from randbp.curvature import EKFAC, KFAC, SINGD

DECAY = 5e-4
Make = Callable[[nn.Module], torch.optim.Optimizer]


class MatrixMuon(torch.optim.Muon):
    """Muon for weights of any shape, as matrices of one row per output channel, and AdamW for all that are vectors.

    Muon's steps are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        given = list(params)
        self._weights = [each for each in given if each.ndim > 1]
        # Matrices that share the weights' memory.
        self._matrices = [nn.Parameter(each.detach().flatten(1)) for each in self._weights]
        vectors = [each for each in given if each.ndim <= 1]
        self._others = torch.optim.AdamW(vectors, lr, weight_decay=weight_decay) if vectors else None
        super().__init__(self._matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self._weights:
            weight.grad = None
        if self._others is not None:
            self._others.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step()
        if self._others is not None:
            self._others.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            self._others.step()


def _sgd(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=DECAY)


def _adamw(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)


def _muon(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return MatrixMuon(model.parameters(), rate, weight_decay=0.01)


def _curvature(kind: Any, approximation: str, rate: float, model: nn.Module) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = kind(model, lr=rate, weight_decay=DECAY, approximation=approximation)
    return made


OPTIMIZERS: dict[str, tuple[Callable[[float, nn.Module], torch.optim.Optimizer], tuple[float, ...]]] = {
    "SGD": (_sgd, (0.02, 0.05, 0.1, 0.2)),
    "AdamW": (_adamw, (3e-4, 1e-3, 3e-3, 1e-2)),
    "Muon": (_muon, (1e-3, 3e-3, 1e-2, 3e-2)),
    "SINGD, reduce": (partial(_curvature, SINGD, "reduce"), (3e-4, 0.001, 0.003, 0.01)),
    "SINGD, expand": (partial(_curvature, SINGD, "expand"), (3e-4, 0.001, 0.003, 0.01)),
    "KFAC, reduce": (partial(_curvature, KFAC, "reduce"), (0.02, 0.05, 0.1, 0.2)),
    "KFAC, expand": (partial(_curvature, KFAC, "expand"), (0.02, 0.05, 0.1, 0.2)),
    "KFAC, reduce, rank 64": (partial(_curvature, partial(KFAC, rank=64), "reduce"), (0.02, 0.05, 0.1, 0.2)),
    "EKFAC, reduce": (partial(_curvature, EKFAC, "reduce"), (0.02, 0.05, 0.1, 0.2)),
}
"""By name: what makes an optimiser from a learning rate and a model, and the learning rates that are tried."""

SETTINGS: dict[str, Make] = {
    f"{name}, {rate:g}": partial(make, rate) for name, (make, rates) in OPTIMIZERS.items() for rate in rates
}


def name_of(setting: str) -> str:
    """The optimiser of a setting.

    Example:
        >>> name_of("KFAC, reduce, 0.05")
        'KFAC, reduce'
    """
    return setting.rpartition(", ")[0]
