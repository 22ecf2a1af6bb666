"""SINGD: gradient descent along gradients times structured factors of inverse curvature, which nothing inverts."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from .averages import Reduction
from .curvature_sgd import CurvatureSGD
from .layer_factors import Approximation
from .structured_inverse_free import StructuredInverseFree


class SINGD(CurvatureSGD):
    """Momentum SGD whose gradients of layers are multiplied by structured factors of their inverse curvature.

    The gradient ``G`` of a layer's weight and bias, a matrix per group, becomes ``C Cᵀ G K Kᵀ``, where
    ``K Kᵀ ⊗ C Cᵀ`` is about the inverse of the layer's damped empirical Fisher matrix, as in
    :class:`~randbp.curvature.KFAC`. But ``K`` and ``C`` are updated by products of matrices alone, and have structures
    that products preserve. With diagonal ones, the default, a step costs little more than one of SGD, and no matrix of
    a layer's ``C / G·ΠK`` rows is ever made::

        optimizer = SINGD(model, lr=0.01)
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()

    ========================  =========================================================================================
    structure of ``R`` rows   entries
    ========================  =========================================================================================
    ``"dense"``               ``R²``
    ``"diagonal"``            ``R``
    ``"block"``               ``30 R``: blocks of 30 rows along the diagonal
    ``"triangular"``          ``R²``: lower-triangular
    ``"hierarchical"``        ``31 R``: a diagonal with 15 dense rows above and 15 below
    ========================  =========================================================================================

    With the factors ``A`` of the input and ``Γ`` of the output's gradient, the momenta ``m`` and the projection ``Π``
    onto a structure, which doubles an entry without counterpart on the other side of the diagonal, the update is ::

        H_K = Π(Kᵀ A K),  H_C = Π(Cᵀ Γ C)
        m_K ← α m_K + ½ Π(tr(H_C)/d · H_K + λ tr(CᵀC)/d · KᵀK - I),  m_C accordingly
        K ← K (I - β m_K),  C ← C (I - β m_C)

    in every ``factor_every``-th step, and in steps 0, 1, 2, 4, 8 and so on before that. Which layers and losses are
    served, and how, is the same as for :class:`~randbp.curvature.KFAC`. Factors are in single precision at least, also
    of parameters in 16 bits.

    Args:
        model: The network.
        lr: Learning rate.
        momentum: Momentum of the steps, in ``[0, 1)``.
        weight_decay: Factor of the parameter in the term that is added to the preconditioned gradient.
        damping: ``λ`` added to the curvature.
        structures: Names of the structures of ``K`` and ``C``, or one for both.
        factor_lr: ``β``, the learning rate of ``K`` and ``C``.
        factor_momentum: ``α``, their momentum, in ``[0, 1)``.
        normalize: Bound the change of ``K`` and ``C`` in an update: divide ``β`` by the largest entry of ``m`` where
            that is above one, and multiply the second summands of ``m`` by ``1 - α``.
        adaptive: Whether traces of one side weigh the other's update. Without them, and with dense structures, this is
            inverse-free K-FAC (IKFAC).
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        factor_every: Steps from one update of the factors to the next.
        kl_clip: Bound of ``lr² Σ ⟨direction, gradient⟩`` over preconditioned layers; longer steps are shortened.
            ``None`` for no bound, as published.
        reduction: The reduction of the loss: ``"mean"``, ``"sum"`` or ``"tokens"``, as for
            :class:`~randbp.curvature.KFAC`.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; ``None`` for no bound.
        params: Parameters or groups of them, as PyTorch's optimisers take them; ``None`` for all of the model's. A
            group may have its own ``lr``, ``momentum``, ``weight_decay`` and ``damping``.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.

    Source: W. Lin, F. Dangel, R. Eschenhagen, K. Neklyudov, A. Kristiadi, R. Turner, A. Makhzani, Structured
    inverse-free natural gradient descent: memory-efficient and numerically-stable KFAC, 2024.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> optimizer = SINGD(model, lr=0.01, structures=("hierarchical", "dense"))
        >>> nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 2).backward()
        >>> optimizer.step()
        >>> sorted(optimizer.layers)
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.03,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-2,
        structures: str | tuple[str, str] = "diagonal",
        factor_lr: float = 0.1,
        factor_momentum: float = 0.5,
        normalize: bool = True,
        adaptive: bool = True,
        approximation: Approximation = "reduce",
        factor_every: int = 10,
        kl_clip: float | None = None,
        reduction: Reduction = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int | None = None,
        params: Iterable[Any] | None = None,
    ) -> None:
        both = (structures, structures) if isinstance(structures, str) else structures
        super().__init__(
            model,
            StructuredInverseFree(approximation, both, factor_lr, factor_momentum, normalize, adaptive),
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
