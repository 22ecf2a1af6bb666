"""The method of EKFAC: gradients divided by second moments of per-example gradients in the factors' eigenbases."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .averages import weight_of_next
from .gathering import Seen
from .kronecker import KroneckerEigen, KroneckerProduct
from .kronecker_inverse import FACTORS, KroneckerInverse

BASIS = ("output_grad_basis", "input_basis", "eigenvalues")


@dataclass(frozen=True)
class EigenvalueCorrected(KroneckerInverse):
    """``U ((Uᵀ G V) / (S + λ)) Vᵀ`` in eigenbases ``U`` and ``V`` of the Kronecker factors: the method of EKFAC.

    ``S`` is a running average of the second moments of per-example gradients ``G_n`` in these bases, squared entry by
    entry: the diagonal that is nearest to the Fisher matrix there. For a mean loss it is ``1/N Σ_n (Uᵀ G_n V)²`` with
    each example's own gradient ``G_n``, where K-FAC has the product of eigenvalues ``γ_i α_j``. With ``"reduce"`` the
    gradient of a layer that shares weights is taken to be ``v_n ū_nᵀ``, with the rows behind its factors; with
    ``"expand"`` it is exact. When bases are renewed, ``S`` becomes the diagonal, in the new ones, of what it was in the
    old ones.

    Args:
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        decay: Decay of the running averages of factors and second moments, in ``[0, 1)``.

    Raises:
        ValueError: If the approximation is neither, or the decay out of range.

    Source: T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent, Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis, 2018.

    Example:
        >>> method, seen, state = EigenvalueCorrected(), Seen(examples=1), {}
        >>> seen.input.add_rows(torch.tensor([[[3.0]]]))
        >>> seen.output_grad.add_rows(torch.tensor([[[2.0]]]))
        >>> method.update(state, seen, (1.0, 1.0))
        >>> method.refresh(state, damping=3.0)
        >>> method.correct(state, torch.tensor([[[6.0]]]))
        >>> method.direction(state, torch.tensor([[[36.0]]]))
        tensor([[[4.]]])
    """

    keys: ClassVar[tuple[str, ...]] = (*FACTORS, *BASIS)
    numbers: ClassVar[tuple[str, ...]] = ("updates", "corrections", "damping")
    pairs: ClassVar[bool] = True

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Renew the bases, if there are factors whose eigenvectors can be computed."""
        if FACTORS[0] not in state:
            return
        try:
            new = KroneckerProduct(state[FACTORS[0]], state[FACTORS[1]]).eigh()
        except torch.linalg.LinAlgError:
            return
        values, known = new.values, _known(state)
        if known is not None and known.shape == new.shape:
            outer = new.output_grad_vectors.mT @ known.output_grad_vectors
            inner = known.input_vectors.mT @ new.input_vectors
            values = outer.square() @ known.values @ inner.square()
        else:
            state["corrections"] = 0
        made = new.output_grad_vectors, new.input_vectors, values
        state |= {**dict(zip(BASIS, made, strict=True)), "damping": float(damping)}

    def observe(self, state: dict[str, Any], seen: Seen) -> None:
        """Square per-example gradients in the bases that are known, and hold their pairs no longer."""
        known = _known(state)
        if known is not None and known.shape == seen.shape:
            for pair in seen.pairs:
                seen.add_squares(pair.squares(known.output_grad_vectors, known.input_vectors))
            seen.pairs = []

    def correct(self, state: dict[str, Any], squares: Tensor) -> None:
        """Update the running average of second moments."""
        known = _known(state)
        if known is not None and known.shape == squares.shape:
            weight = weight_of_next(state, self.decay, "corrections")
            finite = squares.isfinite().all()
            state[BASIS[2]] = torch.where(finite, known.values.lerp(squares.to(known.values), weight), known.values)

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor | None:
        """``U ((Uᵀ G V) / (S + λ)) Vᵀ``."""
        known = _known(state)
        return None if known is None or known.shape != grad.shape else known.inverse(state["damping"]).times(grad)


def _known(state: dict[str, Any]) -> KroneckerEigen | None:
    """What is known of the curvature."""
    if BASIS[0] not in state:
        return None
    left, right, values = (state[key] for key in BASIS)
    return KroneckerEigen(values, left, right)
