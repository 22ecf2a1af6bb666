"""The update of SINGD's two structured factors, in logarithmic space: products of matrices, and no inverse."""

from dataclasses import dataclass

from torch import Tensor

from .structured_matrices import Dense

Pair = tuple[Tensor, Tensor]
"""Packed matrices of the input's side, ``[G, …]`` with ``a`` rows, and of the output's, with ``d`` rows."""


@dataclass(frozen=True)
class InverseFree:
    """One update of factors ``K`` and ``C`` with ``K Kᵀ ⊗ C Cᵀ ≈ (A ⊗ Γ + λ I)⁻¹``, and of their momenta.

    With ``H_K = Π(Kᵀ A K)``, ``H_C = Π(Cᵀ Γ C)``, the momenta ``m`` and the projection ``Π`` of each structure::

        m_K ← α m_K + ½ Π(tr(H_C)/d · H_K + λ tr(CᵀC)/d · KᵀK - I)
        m_C ← α m_C + ½ Π(tr(H_K)/a · H_C + λ tr(KᵀK)/a · CᵀC - I)
        K ← K (I - β m_K),  C ← C (I - β m_C)

    The last line is ``K expm(-β m_K)``, truncated after its first term. With ``adaptive=False`` all traces are replaced
    by those of the identity, which makes this inverse-free K-FAC (IKFAC). A normalised update has ``1 - α`` times the
    second summands, so that momenta are averages, and divides ``β`` by the largest entry of ``m`` where that is above
    one, so that no update of a factor is large, whatever the scale of loss and activations.

    Attributes:
        damping: ``λ``.
        rate: ``β``.
        momentum: ``α``.
        normalized: Whether the update is normalised.
        adaptive: Whether one side's traces weigh the other's update.

    Source: W. Lin et al., Structured inverse-free natural gradient descent: memory-efficient and numerically-stable
    KFAC, 2024, figure 4.

    Example:
        >>> import torch
        >>> from randbp.curvature.structured_matrices import Diagonal
        >>> ones, zeros = torch.ones(1, 2), torch.zeros(1, 2)
        >>> update = InverseFree(damping=0.0, rate=0.1, momentum=0.5, normalized=False)
        >>> roots, momenta = update((Diagonal(2), Diagonal(2)), (ones, ones), (zeros, zeros), (2 * ones, ones))
        >>> roots
        (tensor([[0.9500, 0.9500]]), tensor([[0.9500, 0.9500]]))
    """

    damping: float
    rate: float
    momentum: float
    normalized: bool = True
    adaptive: bool = True

    def __call__(
        self, structures: tuple[Dense, Dense], roots: Pair, momenta: Pair, curvature: Pair
    ) -> tuple[Pair, Pair]:
        """New factors and momenta.

        Args:
            structures: Those of ``K`` and ``C``.
            roots: ``K`` and ``C``.
            momenta: ``m_K`` and ``m_C``.
            curvature: ``H_K`` and ``H_C``.
        """
        squares = [structure.square(root) for structure, root in zip(structures, roots, strict=True)]
        weight = 0.5 * (1 - self.momentum if self.normalized else 1)
        new_roots, new_momenta = [], []
        for side, (structure, root) in enumerate(zip(structures, roots, strict=True)):
            scale, damping = root.new_ones(len(root)), self.damping * root.new_ones(len(root))
            if self.adaptive:
                other = structures[1 - side]
                scale = other.mean_diagonal(curvature[1 - side])
                damping = self.damping * other.mean_diagonal(squares[1 - side])
            pull = structure.identity(len(root), root).neg_()
            pull += _by_group(scale, pull) * curvature[side] + _by_group(damping, pull) * squares[side]
            momentum = momenta[side] * self.momentum + weight * pull
            rate = momentum.new_full((len(root),), self.rate)
            if self.normalized:
                rate = rate / momentum.abs().flatten(1).amax(1).clamp_min(1)
            new_momenta.append(momentum)
            new_roots.append(root - _by_group(rate, root) * structure.product(root, momentum))
        return (new_roots[0], new_roots[1]), (new_momenta[0], new_momenta[1])


def _by_group(factors: Tensor, like: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (like.dim() - 1))
