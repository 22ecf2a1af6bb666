"""K-BFGS: gradient descent with gradients divided by Kronecker-factored curvature that quasi-Newton updates follow."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from .averages import Reduction
from .curvature_sgd import CurvatureSGD
from .kronecker_bfgs import KroneckerBFGS
from .layer_factors import Approximation


class KBFGS(CurvatureSGD):
    """Momentum SGD whose gradients are divided by curvature that BFGS learns from what steps do to the loss.

    The gradient ``G`` of a layer's weight and bias, a matrix per group, becomes ``H_Γ G H_A``. Both begin as inverses
    of the factors of :class:`~randbp.curvature.KFAC` and then follow BFGS, in ``O(a² + d²)`` operations for ``[d, a]``:
    ``H_A`` follows the input factor, and ``H_Γ`` the change of the loss's gradient with respect to the output, from the
    same batch before and after a step (see :class:`~randbp.curvature.KroneckerBFGS`). Unlike K-FAC's factor, a mean of
    squares, that is curvature of the loss itself. It takes a second forward and backward pass, so ``step`` needs a
    closure, as that of ``torch.optim.LBFGS``::

        optimizer = KBFGS(model, lr=0.05)
        for images, labels in loader:

            def closure():
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()
                return loss

            optimizer.step(closure)

    The closure is called a second time after the parameters have moved, in steps in which factors are gathered, with
    the same random numbers of PyTorch (dropout) as the first time; the gradients are those of the second call
    afterwards. Batch normalisation counts both passes. Lightning passes such a closure. ``GradScaler`` passes none, so
    use ``bfloat16`` in the place of ``float16``. Gradients of other backward passes may be there before (as of earlier
    micro-batches); the two calls are compared.

    All that is said of layers, processes and gathering at :class:`~randbp.curvature.KFAC` holds here.

    Args:
        model: The network.
        lr: Learning rate.
        momentum: Momentum of the steps, in ``[0, 1)``.
        weight_decay: Factor of the parameter in the term that is added to the preconditioned gradient.
        damping: ``λ``. Its root is added to both factors' curvature.
        decay: Decay of the running averages of factors and of the pairs of BFGS, in ``[0, 1)``.
        approximation: Approximation of weight sharing: ``"reduce"`` (cheap) or ``"expand"``.
        factor_every: Steps from one update of the factors, and second pass, to the next; also in steps 0, 1, 2, 4, …
            before that.
        kl_clip: Bound of ``lr² Σ ⟨direction, gradient⟩`` over preconditioned layers; longer steps are shortened.
            ``None`` for no bound.
        reduction: The reduction of the loss: ``"mean"``, ``"sum"``, or ``"tokens"`` for a mean over all tokens.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; layers with larger factors take plain steps.
        params: Parameters or groups of them, as PyTorch's optimisers take them; ``None`` for all of the model's. A
            group may have its own ``lr``, ``momentum``, ``weight_decay`` and ``damping``.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.

    Source: D. Goldfarb, Y. Ren, A. Bahamou, Practical quasi-Newton methods for training deep neural networks, 2020; Y.
    Ren, A. Bahamou, D. Goldfarb, Kronecker-factored quasi-Newton methods for deep learning, 2021.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> optimizer, images = KBFGS(model, lr=0.1), torch.randn(8, 1, 8, 8)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 2)
        ...     loss.backward()
        ...     return loss
        >>> losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-2,
        decay: float = 0.9,
        approximation: Approximation = "reduce",
        factor_every: int = 1,
        kl_clip: float | None = 1e-3,
        reduction: Reduction = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int = 8192,
        params: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            model,
            KroneckerBFGS(approximation, decay),
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            damping=damping,
            factor_every=factor_every,
            inverse_every=factor_every,
            kl_clip=kl_clip,
            reduction=reduction,
            layers=layers,
            largest=largest,
            params=params,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the preconditioned gradient, and look at the batch again where that is due.

        Args:
            closure: Sets the gradients to zero, and computes the loss and its gradients.

        Returns:
            What the closure returned before the step.

        Raises:
            TypeError: If there is no closure.

        Warns:
            UserWarning: As :class:`~randbp.curvature.KFAC` does.
        """
        if not callable(closure):
            raise TypeError(
                f"closure={closure!r:.60}: KBFGS.step expected a function that computes loss and gradients, which it "
                "calls before and after the step (GradScaler passes none)"
            )
        tensors = [parameter for group in self.param_groups for parameter in group["params"]]
        return super().step(_Repeatable(closure, tensors))


class _Repeatable:
    """A function that has the same random numbers in all its calls."""

    def __init__(self, function: Callable[[], Any], tensors: list[Tensor]) -> None:
        self._function, self._tensors = function, tensors
        self._random: Any = None

    def __call__(self) -> Any:
        if self._random is None:
            self._random = torch.get_rng_state(), get_device_states(*self._tensors)
        else:
            torch.set_rng_state(self._random[0])
            set_device_states(*self._random[1])
        return self._function()
