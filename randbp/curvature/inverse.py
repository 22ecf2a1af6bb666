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
    means = [factor.diagonal(dim1=1, dim2=2).mean(1) for factor in (input_factor, grad_factor)]
    shifts = shared_damping(means[0], means[1], damping)
    return shifted_inverse(input_factor, shifts[0]), shifted_inverse(grad_factor, shifts[1])


def shared_damping(input_mean: Tensor, grad_mean: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``π√λ`` and ``√λ/π`` ``[G]`` from the means of both factors' eigenvalues."""
    pi = (least_shift(input_mean) / least_shift(grad_mean)).sqrt()
    root = damping**0.5
    return root * pi, root / pi


def least_shift(shift: Tensor) -> Tensor:
    """Raise numbers to the smallest one whose inverse is finite."""
    return shift.clamp_min(torch.finfo(shift.dtype).tiny)


def shifted_inverse(factor: Tensor, shift: Tensor) -> Tensor:
    """``(factor + shift I)⁻¹`` with one shift per group, by Cholesky where rounding permits, else by eigenvalues."""
    shift = least_shift(shift)
    shifted = factor.clone(memory_format=torch.contiguous_format)
    shifted.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if not bool(failed.any()):
        return torch.cholesky_inverse(lower)
    values, vectors = eigh(factor)
    return (vectors / (values.clamp_min(0) + shift.unsqueeze(1)).unsqueeze(1)) @ vectors.mT
