"""Trace and distribution of eigenvalues of a linear operator, estimated from its products with random vectors."""

import torch
from torch import Tensor

from ..draws.seeds import checked_seed
from .arguments import positive
from .linear_operator import LinearOperator


def estimate_trace(operator: LinearOperator, products: int = 30, seed: int = 0) -> Tensor:
    """Estimate the trace without bias, exactly on the eigenvectors that matter most (Hutch++).

    With ``k = products / 3``, random signs ``S`` and ``G`` ``[P, k]`` and an orthonormal basis ``Q`` of ``A S`` it is
    ``tr(Qᵀ A Q) + tr(Gᵀ B G) / k`` with ``B = (I - Q Qᵀ) A (I - Q Qᵀ)``. Of a positive semidefinite matrix the relative
    error is about ``1 / products``, and zero if ``A`` has a rank up to ``k``.

    Args:
        operator: ``A``.
        products: Number of products with vectors, at least 3.
        seed: Of the random vectors.

    Raises:
        ValueError: If ``products`` is no integer from 3, or the seed none.

    Source: R. Meyer, C. Musco, C. Musco, D. Woodruff, Hutch++: optimal stochastic trace estimation, 2021.

    Example:
        >>> from randbp.curvature import GGN
        >>> model, batch = torch.nn.Linear(8, 1, bias=False), (torch.ones(1, 8), torch.zeros(1, 1))
        >>> estimate_trace(GGN(model, batch, torch.nn.MSELoss()), products=3).round()
        tensor(16.)
    """
    if (count := positive("products", products) // 3) < 1:
        raise ValueError(f"products={products!r}: expected an integer from 3")
    signs = _signs(operator, 2 * min(count, operator.shape[0]), seed)
    sketched, probes = signs.chunk(2, 1)
    basis, _ = torch.linalg.qr((operator @ sketched).to(signs.dtype))
    probes = probes - basis @ (basis.mT @ probes)
    rest = (probes * (operator @ probes).to(signs.dtype)).sum() / probes.shape[1]
    return (basis * (operator @ basis).to(signs.dtype)).sum() + rest


def spectral_density(operator: LinearOperator, steps: int = 30, draws: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Approximate the distribution of the eigenvalues by values ``[draws, m]`` and their weights (stochastic Lanczos).

    ``P Σ_j weights_j f(values_j)`` estimates ``tr f(A) = Σ_i f(λ_i)``, without bias if ``f`` is a polynomial of a
    degree up to ``2 m - 1``. With a narrow bump around ``x`` for ``f`` that is the number of eigenvalues near ``x``,
    with the logarithm it is the log-determinant. The outermost values approach the outermost eigenvalues.

    Args:
        operator: ``A`` ``[P, P]``.
        steps: ``m``: products for each draw, and vectors ``[P]`` that are held; no more than ``P`` are taken.
        draws: Number of random vectors that Lanczos' algorithm starts from, whose results are independent.
        seed: Of these.

    Returns:
        Values ``[draws, m]``, ascending, and weights ``[draws, m]``, whose sum over ``m`` is 1.

    Raises:
        ValueError: If ``steps`` or ``draws`` is no positive integer, or the seed none.

    Source: S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017.

    Example:
        >>> from randbp.curvature import Hessian
        >>> model, batch = torch.nn.Linear(2, 1), (torch.eye(2), torch.zeros(2, 1))
        >>> values, weights = spectral_density(Hessian(model, batch, torch.nn.MSELoss()), steps=3)
        >>> values.abs().round(decimals=3)
        tensor([[0., 1., 3.]])
    """
    steps, draws = min(positive("steps", steps), operator.shape[0]), positive("draws", draws)
    vectors = _signs(operator, draws, seed) / operator.shape[0] ** 0.5
    known = [vectors]
    diagonal, beside = [], []
    for _ in range(steps):
        moved = (operator @ known[-1]).to(vectors.dtype)
        diagonal.append((moved * known[-1]).sum(0))
        for _ in range(2):  # rounding leaves something of the known directions
            for direction in known:
                moved = moved - (moved * direction).sum(0) * direction
        length = moved.norm(dim=0)
        beside.append(length)
        known.append(moved / length.clamp_min(torch.finfo(length.dtype).tiny))
    middle, off = torch.stack(diagonal, 1), torch.stack(beside, 1)[:, :-1]
    tridiagonal = torch.diag_embed(middle) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, rotations = torch.linalg.eigh(tridiagonal)
    return values, rotations[:, 0].square()


def _signs(operator: LinearOperator, count: int, seed: int) -> Tensor:
    """Random signs ``[P, count]``."""
    generator = torch.Generator(operator.device).manual_seed(checked_seed(seed))
    bits = torch.randint(2, (operator.shape[0], count), generator=generator, device=operator.device)
    return (2 * bits - 1).to(torch.promote_types(operator.dtype, torch.float32))
