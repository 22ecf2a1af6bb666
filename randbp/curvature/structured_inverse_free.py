"""SINGD's method: two structured factors of a layer's inverse curvature, updated without inverting anything."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .arguments import check_number
from .gathering import Seen
from .inverse_free import InverseFree
from .method import Method
from .structured_matrices import Dense, Diagonal
from .structures import STRUCTURES

_ROOTS = "input_root", "output_grad_root"
_MOMENTA = "input_root_momentum", "output_grad_root_momentum"
_NEWS = "input_news", "output_grad_news"  # from an update to the refreshing that follows it


@dataclass(frozen=True)
class StructuredInverseFree(Method):
    """Keep ``K`` and ``C`` of each weight with ``K Kᵀ ⊗ C Cᵀ ≈ (A ⊗ Γ + λ I)⁻¹``: a gradient becomes ``C Cᵀ G K Kᵀ``.

    See :class:`~randbp.curvature.inverse_free.InverseFree` for the update, and
    :class:`~randbp.curvature.SINGD` for the optimiser.

    Args:
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        structures: Structures of ``K`` and ``C`` by name.
        rate, momentum, normalized, adaptive: As for the update.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> StructuredInverseFree(structures=("diagonal", "block")).diagonals
        (True, False)
    """

    structures: tuple[str, str] = ("diagonal", "diagonal")
    rate: float = 0.1
    momentum: float = 0.5
    normalized: bool = True
    adaptive: bool = True

    keys: ClassVar[tuple[str, ...]] = (*_ROOTS, *_MOMENTA, *_NEWS)
    numbers: ClassVar[tuple[str, ...]] = ("updates", "inner", "outer")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.structures
        if not isinstance(names, tuple) or len(names) != 2 or not set(map(repr, names)) <= set(map(repr, STRUCTURES)):
            raise ValueError(f"structures={names!r}: expected one or two of {', '.join(map(repr, STRUCTURES))}")
        check_number("factor_lr", self.rate, 0)
        check_number("factor_momentum", self.momentum, 0, 1)

    @property
    def diagonals(self) -> tuple[bool, bool]:
        """Whether the diagonals of ``A`` and ``Γ`` are all that is needed of them."""
        first, second = (STRUCTURES[name] is Diagonal for name in self.structures)
        return first, second

    def update(self, state: dict[str, Any], seen: Seen, scales: tuple[float, float]) -> None:
        """Project the curvature that was seen, transformed by the present factors, onto the structures."""
        moments = seen.moments
        sums = [moment.rows() if moment.has_rows else moment.matrix() for moment in moments]
        groups, matrices = len(sums[0]), self._matrices(sums[0].shape[-1], sums[1].shape[-1])
        if not _fits(state, matrices, groups):
            for root, momentum, matrix in zip(_ROOTS, _MOMENTA, matrices, strict=True):
                state[root], state[momentum] = matrix.identity(groups, sums[0]), matrix.zeros(groups, sums[0])
        for key, root, matrix, moment, total, scale in zip(_NEWS, _ROOTS, matrices, moments, sums, scales, strict=True):
            if total.dim() == 2:
                state[key] = state[root].square() * total * scale
            else:
                transformed = matrix.gram if moment.has_rows else matrix.congruence
                state[key] = transformed(state[root], total) * scale
        state |= {"inner": sums[0].shape[-1], "outer": sums[1].shape[-1], "updates": state.get("updates", 0) + 1}

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Update factors and momenta by what was seen since the last time, if they stay finite."""
        news = [state.pop(key) for key in _NEWS if key in state]
        if len(news) < len(_NEWS):
            return
        matrices = self._matrices(state["inner"], state["outer"])
        update = InverseFree(damping, self.rate, self.momentum, self.normalized, self.adaptive)
        roots, momenta = ((state[first], state[second]) for first, second in (_ROOTS, _MOMENTA))
        roots, momenta = update(matrices, roots, momenta, (news[0], news[1]))
        new = dict(zip((*_ROOTS, *_MOMENTA), (*roots, *momenta), strict=True))
        if bool(torch.stack([each.isfinite().all() for each in new.values()]).all()):
            state |= new

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor | None:
        """``C Cᵀ G K Kᵀ``."""
        groups, outer, inner = grad.shape
        matrices = self._matrices(inner, outer)
        if not _fits(state, matrices, groups):
            return None
        right, left = (state[key] for key in _ROOTS)
        return matrices[1].precondition(left, matrices[0].precondition(right, grad).mT).mT

    def entrywise(self, state: dict[str, Any], groups: int, outer: int, inner: int) -> tuple[Tensor, Tensor] | None:
        """The squares of two diagonal factors."""
        if not all(self.diagonals) or not _fits(state, self._matrices(inner, outer), groups):
            return None
        right, left = (state[key] for key in _ROOTS)
        return left.square(), right.square()

    def _matrices(self, inner: int, outer: int) -> tuple[Dense, Dense]:
        return STRUCTURES[self.structures[0]](inner), STRUCTURES[self.structures[1]](outer)


def _fits(state: dict[str, Any], matrices: tuple[Dense, Dense], groups: int) -> bool:
    """Whether the factors are known, of a weight of this shape."""
    known = [state.get(key) for key in _ROOTS]
    wanted = [(groups, *matrix.packed_shape) for matrix in matrices]
    return all(root is not None and root.shape == shape for root, shape in zip(known, wanted, strict=True))
