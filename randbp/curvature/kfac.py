"""K-FAC: gradient descent with gradients divided by Kronecker-factored curvature."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from .averages import Reduction
from .curvature_sgd import CurvatureSGD
from .kronecker_inverse import KroneckerInverse
from .layer_factors import Approximation
from .low_rank_inverse import LowRankInverse


class KFAC(CurvatureSGD):
    """Momentum SGD whose gradients of convolutions, transposed convolutions and linear layers are preconditioned.

    The gradient ``G`` of a layer's weight and bias, a matrix per group, becomes ``Γ⁻¹ G A⁻¹`` with the factors of
    :func:`~randbp.curvature.input_factor` and :func:`~randbp.curvature.output_grad_factor`: about the inverse of the
    layer's empirical Fisher matrix times the gradient. Every other parameter takes a step of SGD with momentum::

        optimizer = KFAC(model, lr=0.05)
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # factors are gathered here
            optimizer.step()

    Factors are gathered in every ``factor_every``-th step, in one pass over each layer's input and output gradient,
    neither of which is held any longer than by the layer itself. Running averages of factors are inverted in every
    ``inverse_every``-th step. A new network changes fast, so both are also done in steps 0, 1, 2, 4, 8 and so on before
    that. Factors that are not finite are skipped. If a step has several backward passes, factors include the examples
    of all of them. Under ``torch.distributed`` they are averaged over the processes, as gradients are.

    Factors belong to gradients. The statistics of a backward pass count if its gradient is still in the weight's
    ``grad`` when the step is taken. They are dropped when anybody sets the gradient to ``None`` or zero, and passes
    that do not add to ``grad`` (``torch.autograd.grad``) do not count. If a ``GradScaler`` takes the step, its scale is
    divided out. If a layer is called several times in a forward pass, each call counts as further examples.

    Factors follow layers. A layer that runs PyTorch's own forward pass is observed as a whole. A layer with another
    forward pass (of a subclass, or assigned to the module) is observed through its calls of ``F.conv*``,
    ``F.conv_transpose*``, ``F.linear`` or ``torch.addmm`` whose weight is one of its parameters, perhaps transposed or
    in another data type. Plain steps are taken by weights that are computed in other ways (masked, standardised,
    parametrised), by those that are frozen, complex, shared or not among the optimiser's parameters, by layers in
    ``eval()`` mode, and where a factor would have more than ``largest`` rows; :attr:`left_plain` and one warning name
    them. All this is checked in every step, so layers may be pruned, frozen, thawed, moved or given other parameters at
    any time. The model is not changed except for hooks, which :meth:`remove` removes.

    With ``torch.compile``, factors are gathered outside of graphs. The graph of a model that was compiled and run
    before does not gather them until ``torch.compiler.reset()`` is called; a warning says so. Parameters that are
    sharded by ``fully_shard`` are supported; each process then holds all factors.

    Args:
        model: The network.
        lr: Learning rate.
        momentum: Momentum of the steps, in ``[0, 1)``.
        weight_decay: Factor of the parameter in the term that is added to the preconditioned gradient.
        damping: ``λ`` added to the curvature, see :func:`~randbp.curvature.damped_inverses`. Large values approach SGD
            with the learning rate ``lr / λ``.
        decay: Decay of the running averages of factors, in ``[0, 1)``.
        approximation: Approximation of weight sharing: ``"reduce"`` (cheap) or ``"expand"``.
        rank: Most rows of each factor, of which the largest eigenvectors are kept, so that nothing is inverted and a
            step costs little more than SGD's (:class:`~randbp.curvature.LowRankInverse`); ``None`` for whole factors.
        factor_every: Steps from one update of the factors to the next.
        inverse_every: Steps from one update of the inverses to the next.
        kl_clip: Bound of ``lr² Σ ⟨direction, gradient⟩`` over preconditioned layers, an estimate of the change of the
            network's output distribution; longer steps are shortened. ``None`` for no bound.
        reduction: The reduction of the loss: ``"mean"`` over examples, ``"sum"``, or ``"tokens"`` for a mean over
            all tokens (positions, pixels) of the batch that the loss does not ignore. With ``g_n`` an example's part in
            the gradient, the curvature is ``M Σ_n g_n g_nᵀ`` where the loss is a mean of ``M`` terms, and
            ``1/N Σ_n g_n g_nᵀ`` for a sum: so ``"mean"`` makes that of a loss over tokens too small by their number per
            example. Tokens are counted where the loss enters the layers: positions of the output with a gradient that
            is not zero, in the layer that the backward pass reaches first.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; layers with larger factors take plain steps.
        params: Parameters or groups of them, as PyTorch's optimisers take them; ``None`` for all of the model's. A
            group may have its own ``lr``, ``momentum``, ``weight_decay`` and ``damping``.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.

    Source: J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015;
    J. Ba, R. Grosse, J. Martens, Distributed second-order optimization using Kronecker-factored approximations, 2017
    (the bound on steps).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> optimizer = KFAC(model, lr=0.1)
        >>> nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 2).backward()
        >>> optimizer.step()
        >>> sorted(optimizer.layers)
        ['0', '2']
    """

    kind: ClassVar[type[KroneckerInverse]] = KroneckerInverse

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-2,
        decay: float = 0.95,
        approximation: Approximation = "reduce",
        rank: int | None = None,
        factor_every: int = 10,
        inverse_every: int = 100,
        kl_clip: float | None = 1e-3,
        reduction: Reduction = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int = 8192,
        params: Iterable[Any] | None = None,
    ) -> None:
        if rank is not None and self.kind is not KroneckerInverse:
            raise ValueError(f"rank={rank!r}: expected None, as {type(self).__name__} needs whole factors")
        super().__init__(
            model,
            self.kind(approximation, decay) if rank is None else LowRankInverse(approximation, decay, rank),
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            damping=damping,
            factor_every=factor_every,
            inverse_every=inverse_every,
            kl_clip=kl_clip,
            reduction=reduction,
            layers=layers,
            largest=largest,
            params=params,
        )
