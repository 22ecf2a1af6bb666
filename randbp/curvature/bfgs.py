"""BFGS: updates of an inverse from pairs of a step and the change of the gradient along it; damping of such pairs."""

import torch
from torch import Tensor

LEAST = 0.2
"""Share of ``yᵀHy`` that ``sᵀy`` has at least after Powell's damping."""


def bfgs_inverse(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The positive definite ``H⁺`` next to ``H`` that maps the change ``y`` of the gradient to the step ``s``.

    ``H⁺ = (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ`` with ``ρ = 1 / sᵀy``, so ``H⁺ y = s``. An inverse whose pair has no
    positive curvature ``sᵀy`` (up to rounding), or is not finite, or would make it so, stays as it is.

    Args:
        inverse: ``H`` ``[G, d, d]``, symmetric and positive definite, one for each group.
        step: ``s`` ``[G, d]``.
        change: ``y`` ``[G, d]``.

    Source: J. Nocedal and S. Wright, Numerical optimization, 2006, section 6.1.

    Example:
        >>> step, change = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]])
        >>> updated = bfgs_inverse(torch.eye(2)[None], step, change)
        >>> updated
        tensor([[[ 0.7500, -0.5000],
                 [-0.5000,  1.0000]]])
        >>> times(updated, change)
        tensor([[1., 0.]])
    """
    moved = times(inverse, change)
    curvature = dot(step, change)
    size = step.norm(dim=1, keepdim=True) * change.norm(dim=1, keepdim=True)
    rate = 1 / curvature
    corner = rate * (1 + rate * dot(change, moved))
    usable = (curvature > torch.finfo(step.dtype).eps * size) & (corner.abs() * dot(step, step)).isfinite()
    usable = usable & (rate.abs() * step.norm(dim=1, keepdim=True) * moved.norm(dim=1, keepdim=True)).isfinite()
    zero = torch.zeros_like(step)
    step, moved = torch.where(usable, step, zero), torch.where(usable, moved, zero)
    corner, rate = (torch.where(usable, each, zero[:, :1]) for each in (corner, rate))
    # H⁺ - H = corner s sᵀ - ρ (s (H y)ᵀ + H y sᵀ): a product of two columns and two rows.
    left = torch.stack([corner * step - rate * moved, -rate * step], 2)
    return torch.baddbmm(inverse, left, torch.stack([step, moved], 1))


def damped_pair(inverse: Tensor, step: Tensor, change: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """A pair of positive curvature next to the given one: double damping, by Powell's and by Levenberg and Marquardt's.

    Where ``sᵀy < μ yᵀHy`` with ``μ = 0.2``, the step becomes ``s' = θ s + (1 - θ) H y`` with the ``θ`` for which
    ``s'ᵀy = μ yᵀHy``, which bounds the growth of ``H⁻¹`` in an update. Then the change becomes ``y' = y + λ s'``, which
    bounds ``H`` by ``1 / λ``.

    Args:
        inverse: ``H`` ``[G, d, d]``, symmetric and positive definite.
        step: ``s`` ``[G, d]``.
        change: ``y`` ``[G, d]``.
        damping: ``λ``.

    Source: Y. Ren, A. Bahamou, D. Goldfarb, Kronecker-factored quasi-Newton methods for deep learning, 2021; M. Powell,
    Algorithms for nonlinear constraints that use Lagrangian functions, 1978.

    Example:
        >>> step, change = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> damped_pair(torch.eye(2)[None], step, change, damping=0.5)
        (tensor([[0.2000, 0.0000]]), tensor([[1.1000, 0.0000]]))
    """
    moved = times(inverse, change)
    product, bound = dot(step, change), dot(change, moved)
    share = torch.where(product < LEAST * bound, (1 - LEAST) * bound / (bound - product), torch.ones_like(product))
    step = share * step + (1 - share) * moved
    return step, change + damping * step


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Products of matrices ``[G, d, e]`` and vectors ``[G, e]``."""
    return (matrices @ vectors.unsqueeze(2)).squeeze(2)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Scalar products ``[G, 1]`` of vectors ``[G, d]``."""
    return (first * second).sum(1, keepdim=True)
