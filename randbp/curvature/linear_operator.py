"""Symmetric linear operators on the parameters of a model, which are multiplied with and never written down."""

from abc import ABC, abstractmethod
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from .arguments import check_number, positive
from .conjugate_gradients import conjugate_gradients
from .parameter_space import ParameterSpace

V = TypeVar("V")


class LinearOperator(ABC):
    """A symmetric matrix ``[P, P]`` over a model's parameters, known by its products.

    ``operator @ v`` takes a vector ``[P]`` or a matrix ``[P, K]`` in the order of ``model.parameters()``, or one tensor
    per parameter, in a list or by name, each of the parameter's shape, perhaps with one more axis ``K`` at the end.
    The product has the format of ``v``.

    One of your own needs a method :meth:`product`.

    Args:
        space: The parameters.

    Attributes:
        shape: ``(P, P)``.
        dtype: Data type of products, that of the parameters.
        device: Device of products, that of the first parameter.

    Example:
        >>> class Twice(LinearOperator):
        ...     def product(self, matrix):
        ...         return 2 * matrix
        >>> operator = Twice(ParameterSpace(torch.nn.Linear(2, 1)))
        >>> operator @ torch.ones(3), operator @ [torch.ones(1, 2), torch.zeros(1)]
        (tensor([2., 2., 2.]), [tensor([[2., 2.]]), tensor([0.])])
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space
        self.shape = (space.size, space.size)
        self.dtype, self.device = space.dtype, space.device

    @abstractmethod
    def product(self, matrix: Tensor) -> Tensor:
        """Multiply with a matrix ``[P, K]``."""

    def __matmul__(self, vectors: V) -> V:
        """Multiply with vectors.

        Raises:
            ValueError: If their shapes are not those of the parameters.
        """
        given = self.space.read(vectors)
        product = self.product(given if given.dim() == 2 else given.unsqueeze(1))
        result: V = self.space.like(product if given.dim() == 2 else product.squeeze(1), vectors)
        return result

    @property
    def T(self) -> Self:
        """The transpose, which is the operator itself."""
        return self

    def to_dense(self) -> Tensor:
        """The matrix ``[P, P]``, by ``P`` products: for tests and small models."""
        return self.product(torch.eye(self.space.size, dtype=self.dtype, device=self.device))

    def to_scipy(self, dtype: Any = None) -> Any:
        """The same as a ``scipy.sparse.linalg.LinearOperator``, for SciPy's ``cg``, ``minres``, ``eigsh`` or ``svds``.

        Products are computed in PyTorch, on the parameters' device. SciPy's operators are added, scaled and chained
        as usual, and are equal to their transposes here.

        Args:
            dtype: NumPy's data type of the products; ``None`` for the parameters', in single precision at least.

        Raises:
            ImportError: If SciPy is not installed (``pip install 'randbp[curvature]'``).
        """
        return to_scipy(self, dtype)


class DampedInverse(LinearOperator):
    """``(A + λ I)⁻¹`` by conjugate gradients; see :meth:`~randbp.curvature.GGN.inverse`."""

    def __init__(self, operator: LinearOperator, damping: float, tolerance: float, max_iterations: int) -> None:
        super().__init__(operator.space)
        check_number("damping", damping, 0)
        check_number("tolerance", tolerance, 0, 1, exclude_low=True)
        self.operator, self.damping, self.tolerance = operator, damping, tolerance
        self.max_iterations = positive("max_iterations", max_iterations)

    def product(self, matrix: Tensor) -> Tensor:
        """Solve for a matrix ``[P, K]``."""
        return conjugate_gradients(
            lambda vectors: self.operator.product(vectors) + self.damping * vectors,
            matrix,
            self.tolerance,
            self.max_iterations,
        )


def to_scipy(operator: LinearOperator, dtype: Any = None) -> Any:
    """See :meth:`LinearOperator.to_scipy`."""
    try:
        import numpy
        from scipy.sparse import linalg
    except ImportError as error:
        raise ImportError("randbp: to_scipy() needs SciPy: pip install 'randbp[curvature]'") from error
    if dtype is None:
        dtype = numpy.float64 if operator.dtype == torch.float64 else numpy.float32

    def product(array: Any) -> Any:
        vectors = torch.from_numpy(numpy.ascontiguousarray(array)).to(operator.device, operator.dtype)
        result = operator @ vectors.reshape(operator.shape[1], *array.shape[1:])
        return result.to(torch.promote_types(result.dtype, torch.float32)).cpu().numpy().astype(dtype, copy=False)

    return linalg.LinearOperator(
        operator.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=numpy.dtype(dtype)
    )
