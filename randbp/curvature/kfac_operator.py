"""K-FAC's approximation of a model's curvature as a linear operator, and its inverses."""

from collections.abc import Callable, Mapping
from math import log

import torch
from torch import Tensor, nn

from .arguments import check_number, described
from .factor_passes import ModelFactors
from .kronecker import KroneckerEigen, KroneckerProduct
from .linear_operator import LinearOperator
from .parameter_space import ParameterSpace

Block = KroneckerProduct | KroneckerEigen


class KFACOperator(LinearOperator):
    """The factors of a model's layers as one block-diagonal matrix over all parameters that require gradients.

    A block is that of a layer's weight and bias, ``Γ ⊗ A`` for each group. Parameters without factors, such as those of
    norms (:attr:`left`), have zero rows and columns.

    Args:
        model: The network.
        factors: What :func:`~randbp.curvature.factors` returned for it.

    Attributes:
        blocks: The layers' matrices, by layer name.
        left: Names of parameters without factors.

    Raises:
        ValueError: If the factors are not those of the model's present parameters.

    Example:
        >>> from randbp.curvature import factors
        >>> model, batch = nn.Conv1d(2, 4, 3, groups=2), (torch.randn(5, 2, 8), torch.randn(5, 4, 6))
        >>> kfac = KFACOperator(model, factors(model, batch, nn.MSELoss(), kind="type-2"))
        >>> kfac.shape, (kfac.inverse(damping=1e-2) @ torch.ones(16)).shape
        ((16, 16), torch.Size([16]))
        >>> inverse = kfac.eigh().inverse(damping=1e-2)  # the exact one
        >>> torch.allclose(inverse @ (kfac @ torch.ones(16) + 1e-2), torch.ones(16), atol=1e-3)
        True
    """

    def __init__(self, model: nn.Module, factors: ModelFactors) -> None:
        super().__init__(ParameterSpace(model))
        if not isinstance(factors, ModelFactors):
            raise ValueError(f"factors={described(factors)}: expected what randbp.curvature.factors returns")
        self.blocks: Mapping[str, Block] = factors.products
        self._names = {key: [name for name in names if name is not None] for key, names in factors.parameters.items()}
        for key, names in self._names.items():
            sizes = [self.space.parameters[name].numel() for name in names if name in self.space.parameters]
            if len(sizes) != len(names) or sum(sizes) != self.blocks[key].size:
                raise ValueError(f"factors: those of {key!r} are not of the model's present parameters {names}")
        self._rest = 0.0

    @property
    def left(self) -> list[str]:
        """Names of parameters without factors."""
        known = {name for names in self._names.values() for name in names}
        return [name for name in self.space.parameters if name not in known]

    def product(self, matrix: Tensor) -> Tensor:
        """Multiply with a matrix ``[P, K]``, layer by layer."""
        pieces = dict(zip(self.space.parameters, self.space.pieces(matrix * self._rest), strict=True))
        given = dict(zip(self.space.parameters, self.space.pieces(matrix), strict=True))
        for key, names in self._names.items():
            rows = [given[name].reshape(-1, matrix.shape[1]) for name in names]
            product = self.blocks[key] @ torch.cat(rows)
            for name, part in zip(names, product.split([len(each) for each in rows]), strict=True):
                pieces[name] = part.reshape(given[name].shape)
        return self.space.flat(list(pieces.values()))

    def eigh(self) -> "KFACOperator":
        """The same matrix by eigenvalues and eigenvectors of the factors, whose :meth:`inverse` is exact."""
        return self._of(lambda block: block.eigh() if isinstance(block, KroneckerProduct) else block, self._rest)

    def inverse(self, damping: float) -> "KFACOperator":
        """About ``(B + λ I)⁻¹``, with damping ``λ > 0`` shared between the factors, or exactly that after :meth:`eigh`.

        Parameters without factors are divided by ``λ``.

        Raises:
            ValueError: If the damping is not positive.
        """
        check_number("damping", damping, 0, exclude_low=True)
        return self._of(lambda block: block.inverse(damping), 1 / (self._rest + damping))

    def trace(self) -> Tensor:
        """The sum of eigenvalues."""
        return torch.stack([block.trace() for block in self.blocks.values()]).sum() + self._rest * self._others

    def logdet(self, damping: float) -> Tensor:
        """``log det(B + λ I)``."""
        check_number("damping", damping, 0, exclude_low=True)
        return torch.stack([block.logdet(damping) for block in self.blocks.values()]).sum() + self._others * log(
            self._rest + damping
        )

    @property
    def _others(self) -> int:
        """The number of entries of parameters without factors."""
        return sum(self.space.parameters[name].numel() for name in self.left)

    def _of(self, change: Callable[[Block], Block], rest: float) -> "KFACOperator":
        made = object.__new__(KFACOperator)
        made.__dict__.update(self.__dict__)
        made.blocks, made._rest = {key: change(block) for key, block in self.blocks.items()}, rest
        return made
