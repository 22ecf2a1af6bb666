"""Conjugate gradients for several right-hand sides at once."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, max_iterations: int
) -> Tensor:
    """Solve ``A X = B`` with a symmetric, positive definite matrix that is known by its products.

    Columns of ``B`` are solved side by side, so that a pass over data serves them all. A column is done once
    ``‖b - A x‖ <= tolerance ‖b‖``.

    Args:
        product: Multiplies ``A`` with ``[P, K]``.
        right: ``B`` ``[P, K]``.
        tolerance: Relative norm of the residual.
        max_iterations: Number of products at most.

    Raises:
        ValueError: If the matrix is found not to be positive definite.

    Warns:
        UserWarning: If a column is not solved after ``max_iterations``.

    Source: M. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradients(lambda x: matrix @ x, torch.tensor([[3.0], [4.0]]), 1e-6, 10).round(decimals=3)
        tensor([[1.],
                [1.]])
    """
    solution, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), residual.square().sum(0)
    goal = tolerance**2 * size
    for _ in range(max_iterations):
        open_ = size > goal
        if not bool(open_.any()):
            return solution
        moved = product(direction[:, open_])
        curvature = (direction[:, open_] * moved).sum(0)
        if not bool((curvature > 0).all()):
            raise ValueError("damping: the operator is not positive definite with it: expected a larger damping")
        step = size[open_] / curvature
        solution[:, open_] += step * direction[:, open_]
        residual[:, open_] -= step * moved
        before, size = size, residual.square().sum(0)
        direction = residual + size / before * direction  # not a number in columns of zeros, which are done
    if bool((size > goal).any()):
        least = float((size / goal).sqrt().max()) * tolerance
        warnings.warn(
            f"conjugate gradients: relative residual {least:.1e} after max_iterations={max_iterations}, "
            f"above tolerance={tolerance}",
            stacklevel=4,
        )
    return solution
