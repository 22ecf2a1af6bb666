"""Damped inverses of Kronecker factors."""

import torch
from torch import Tensor

from .eigenvectors import eigh


def damped_inverses(input_factor: Tensor, grad_factor: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``(A + π√λ I)⁻¹`` and ``(Γ + √λ/π I)⁻¹``, whose Kronecker product is about ``(Γ ⊗ A + λ I)⁻¹``.

    ``π² = (tr A / dim A) / (tr Γ / dim Γ)`` shares the damping ``λ`` between the factors by their size (J. Martens and
    R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015, section 6.3).

    Args:
        input_factor: ``A`` ``[G, a, a]``, symmetric.
        grad_factor: ``Γ`` ``[G, d, d]``, symmetric.
        damping: ``λ``, positive.

    Example:
        >>> left, right = damped_inverses(4 * torch.eye(2)[None], torch.eye(3)[None], damping=1.0)
        >>> left.diagonal(dim1=1, dim2=2), right.diagonal(dim1=1, dim2=2)
        (tensor([[0.1667, 0.1667]]), tensor([[0.6667, 0.6667, 0.6667]]))
    """
    sizes = [factor.diagonal(dim1=1, dim2=2).mean(1) for factor in (input_factor, grad_factor)]
    least = torch.finfo(sizes[0].dtype).tiny
    pi = (sizes[0].clamp_min(least) / sizes[1].clamp_min(least)).sqrt()
    root = damping**0.5
    return shifted_inverse(input_factor, root * pi), shifted_inverse(grad_factor, root / pi)


def shifted_inverse(factor: Tensor, shift: Tensor) -> Tensor:
    """``(factor + shift I)⁻¹`` with one shift per group, by Cholesky where rounding permits, else by eigenvalues."""
    shift = shift.clamp_min(torch.finfo(factor.dtype).tiny)
    shifted = factor + shift.view(-1, 1, 1) * torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if not bool(failed.any()):
        return torch.cholesky_inverse(lower)
    values, vectors = eigh(factor)
    return (vectors / (values.clamp_min(0) + shift.unsqueeze(1)).unsqueeze(1)) @ vectors.mT
