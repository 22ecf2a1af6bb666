"""SGD with momentum along preconditioned gradients."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .curvature_optimizer import CurvatureOptimizer, evaluated
from .method import Method
from .pieces import pieces, scaled


class CurvatureSGD(CurvatureOptimizer):
    """SGD with momentum whose gradients are preconditioned by a method, where that knows the parameter's curvature.

    Args:
        model: The network.
        method: What is kept of curvature, and how gradients are divided by it.
        lr, momentum, weight_decay, damping: Numbers of the parameter groups.
        options: As for :class:`CurvatureOptimizer`.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.
    """

    ranges: ClassVar[dict[str, dict[str, Any]]] = {
        "lr": {"low": 0},
        "momentum": {"low": 0, "below": 1},
        "weight_decay": {"low": 0},
        **CurvatureOptimizer.ranges,
    }

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        lr: float,
        *,
        momentum: float,
        weight_decay: float,
        damping: float,
        **options: Any,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping}
        super().__init__(model, method, numbers, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the preconditioned gradient.

        Args:
            closure: Computes the loss and its gradients again, if given.

        Returns:
            What the closure returns, if given.

        Warns:
            UserWarning: Once of each layer and reason, if layers are left to plain steps for another reason than that
                they are frozen, not called, or were not held from the start.
        """
        loss = evaluated(closure)
        groups, directions, length = self._directions()
        for parameter, group in groups.items():
            if parameter.grad is None:
                continue
            direction = directions.get(parameter)
            given = parameter.grad if direction is None else direction
            buffer = [self._moved(parameter)] if group["momentum"] else []
            for update, part, *moved in pieces(given, parameter, *buffer):
                if direction is not None:
                    update = scaled(update, length).to(part.dtype)
                if group["weight_decay"]:
                    update = update.add(part, alpha=group["weight_decay"])
                for each in moved:
                    update = each.mul_(group["momentum"]).add_(update)
                part.add_(update, alpha=-group["lr"])
        self._finish(closure)
        return loss

    def _moved(self, parameter: Tensor) -> Tensor:
        """The momentum of a parameter, moved to the parameter's device and precision."""
        state = self.state[parameter]
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.shape != parameter.shape:
            buffer = state["momentum_buffer"] = torch.zeros_like(parameter)
        elif buffer.dtype != parameter.dtype or buffer.device != parameter.device:
            buffer = state["momentum_buffer"] = buffer.to(parameter.device, parameter.dtype)
        moved: Tensor = buffer
        return moved
