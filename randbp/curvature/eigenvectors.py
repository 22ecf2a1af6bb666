"""Eigendecompositions of factors."""

import torch
from torch import Tensor


def eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[G, R]``, ascending, and eigenvectors as columns ``[G, R, R]`` of symmetric matrices ``[G, R, R]``.

    Large factors of few examples have so many eigenvalues near zero that in single precision the algorithm may fail to
    converge; such factors are decomposed in double precision.

    Raises:
        torch.linalg.LinAlgError: If that fails, too.

    Example:
        >>> eigh(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))[0]
        tensor([[1., 2.]])
    """
    try:
        values, vectors = torch.linalg.eigh(factor)
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(factor.double())
    return values.to(factor.dtype), vectors.to(factor.dtype)
