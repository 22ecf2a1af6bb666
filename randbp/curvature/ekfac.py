"""EKFAC: gradient descent with gradients divided by curvature in Kronecker-factored eigenbases."""

from typing import ClassVar

from .eigenvalue_corrected import EigenvalueCorrected
from .kfac import KFAC
from .kronecker_inverse import KroneckerInverse


class EKFAC(KFAC):
    """Momentum SGD whose gradients are preconditioned by K-FAC with corrected eigenvalues.

    The gradient ``G`` of a layer's weight and bias, a matrix per group, becomes ``U ((Uᵀ G V) / (S + λ)) Vᵀ`` with the
    eigenbases ``U`` and ``V`` of the factors ``Γ`` and ``A`` of :class:`~randbp.curvature.KFAC`, renewed in every
    ``inverse_every``-th step, and running averages ``S`` of squared per-example gradients in these bases, updated in
    every ``factor_every``-th step (:class:`~randbp.curvature.EigenvalueCorrected`)::

        optimizer = EKFAC(model, lr=0.05)

    Arguments, errors and all else are as for :class:`~randbp.curvature.KFAC`, but the damping ``λ`` is added to ``S``
    itself. Squares are made during the backward pass, for a few examples at a time; in steps that renew the bases, what
    they are made of is held until ``step``: rows with ``"reduce"``, inputs and output gradients of layers with
    ``"expand"``.

    Source: T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent, Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis, 2018.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> optimizer = EKFAC(model, lr=0.1)
        >>> nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 2).backward()
        >>> optimizer.step()
        >>> optimizer.state[model[2].weight]["eigenvalues"].shape
        torch.Size([1, 2, 145])
    """

    kind: ClassVar[type[KroneckerInverse]] = EigenvalueCorrected
