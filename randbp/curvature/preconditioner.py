"""Preconditioning apart from the step, in front of any optimiser."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from .arguments import described
from .averages import Reduction
from .curvature_optimizer import CurvatureOptimizer, evaluated
from .method import Method
from .pieces import pieces, scaled

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

NAME = "preconditioner"


class Preconditioner(CurvatureOptimizer):
    """Division of gradients by curvature, which leaves the step to any optimiser of PyTorch's kind.

    It replaces the gradients of convolutions, transposed convolutions and linear layers, in place, by what
    :class:`~randbp.curvature.KFAC` would move along; all other gradients stay as they are. What is said there about
    gathering, layers and processes holds here. Either call :meth:`step` between the backward pass and the other
    optimiser's step, or let :meth:`before` do so in each step of that optimiser::

        optimizer = Preconditioner(model, KroneckerInverse()).before(torch.optim.Adam(model.parameters()))

    Then a ``GradScaler``, gradient clipping, closures, Lightning and checkpoints work as they do with the optimiser
    alone, whose ``state_dict`` has this object's state with it.

    Args:
        model: The network.
        method: What is kept of curvature, and how gradients are divided by it, such as
            :class:`~randbp.curvature.KroneckerInverse`.
        damping: ``λ`` added to the curvature.
        factor_every: Steps from one update of the method's averages to the next.
        inverse_every: Steps from one update of the inverses to the next, of methods that invert or decompose anything.
        kl_clip: Bound of ``Σ ⟨direction, gradient⟩`` over preconditioned layers; longer directions are shortened.
            ``None`` for no bound.
        reduction: The reduction of the loss: ``"mean"`` over examples, ``"sum"``, or ``"tokens"``.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; gradients of layers with larger factors stay as they are. ``None``
            for no bound.
        params: Parameters or groups of them; ``None`` for all of the model's. A group may have its own ``damping``.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.

    Example:
        >>> from randbp.curvature import KroneckerInverse
        >>> model = nn.Linear(3, 2)
        >>> preconditioner = Preconditioner(model, KroneckerInverse(), damping=0.1)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> model(torch.randn(8, 3)).square().mean().backward()
        >>> preconditioner.step()  # rewrites .grad
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        damping: float = 1e-2,
        factor_every: int = 10,
        inverse_every: int = 100,
        kl_clip: float | None = None,
        reduction: Reduction = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int | None = 8192,
        params: Iterable[Any] | None = None,
    ) -> None:
        if isinstance(method, Method) and method.second_pass:
            raise ValueError(
                f"method={method!r}: it compares two passes, which only KBFGS makes; expected another method"
            )
        super().__init__(
            model,
            method,
            {"damping": damping},
            factor_every=factor_every,
            inverse_every=inverse_every,
            kl_clip=kl_clip,
            reduction=reduction,
            layers=layers,
            largest=largest,
            params=params,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Replace the gradients of preconditioned parameters.

        The scale of a ``GradScaler`` is known only in steps that :meth:`before` has made part of an optimiser's.

        Args:
            closure: Computes the loss and its gradients again, if given.

        Returns:
            What the closure returns, if given.

        Warns:
            UserWarning: Once of each layer and reason, if gradients stay as they are for another reason than that a
                layer is frozen, not called, or was not held from the start.
        """
        loss = evaluated(closure)
        _, directions, length = self._directions()
        for parameter, direction in directions.items():
            if parameter.grad is not None:
                for piece, part in pieces(direction, parameter.grad):
                    part.copy_(scaled(piece, length))
        self._finish(None)
        return loss

    def before(self, optimizer: AnyOptimizer) -> AnyOptimizer:
        """Let each step of an optimiser begin with one of this object's, after its closure if it is given one.

        The optimiser's ``state_dict`` has this object's state from now on, and ``load_state_dict`` takes it from there.

        Args:
            optimizer: Any optimiser of the model's parameters.

        Returns:
            The same optimiser.

        Raises:
            ValueError: If it is none.

        Example:
            >>> from randbp.curvature import KroneckerInverse
            >>> model = nn.Linear(3, 2)
            >>> optimizer = Preconditioner(model, KroneckerInverse()).before(torch.optim.Adam(model.parameters()))
            >>> model(torch.randn(8, 3)).square().mean().backward()
            >>> optimizer.step()
            >>> optimizer.state_dict()["preconditioner"]["param_groups"][0]["steps"]
            1
        """
        if not isinstance(optimizer, Optimizer) or optimizer is self:
            raise ValueError(f"optimizer={described(optimizer)}: expected another optimiser")

        def first(_: Optimizer, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            given = dict(zip(("optimizer", "closure"), arguments, strict=False)) | named
            closure = given.get("closure")
            if closure is None:
                self.step()
                return None
            return (arguments[0],), {"closure": lambda: self.step(closure)}

        def save(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            return {**state_dict, NAME: self.state_dict()}

        def load(_: Optimizer, state_dict: dict[str, Any]) -> None:
            if NAME in state_dict:
                self.load_state_dict(state_dict[NAME])

        optimizer.register_step_pre_hook(first)
        optimizer.register_state_dict_post_hook(save)
        optimizer.register_load_state_dict_pre_hook(load)
        return optimizer
