"""The method of K-FAC: gradients multiplied by damped inverses of both factors."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .arguments import check_number
from .averages import weight_of_next
from .gathering import Seen
from .inverse import damped_inverses
from .method import Method

FACTORS = ("input_factor", "output_grad_factor")
INVERSES = ("input_inverse", "output_grad_inverse")


@dataclass(frozen=True)
class KroneckerInverse(Method):
    """``Γ⁻¹ G A⁻¹`` with damped inverses of running averages of both Kronecker factors: the method of K-FAC.

    Args:
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        decay: Decay of the running averages of factors, in ``[0, 1)``.

    Raises:
        ValueError: If the approximation is neither, or the decay out of range.

    Source: J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015.

    Example:
        >>> import torch
        >>> method, seen, state = KroneckerInverse(), Seen(examples=1), {}
        >>> seen.input.add_rows(torch.tensor([[[3.0]]]))
        >>> seen.output_grad.add_rows(torch.tensor([[[2.0]]]))
        >>> method.update(state, seen, (1.0, 1.0))
        >>> method.refresh(state, damping=0.0)
        >>> method.direction(state, torch.tensor([[[36.0]]]))
        tensor([[[1.0000]]])
    """

    decay: float = 0.95

    keys: ClassVar[tuple[str, ...]] = (*FACTORS, *INVERSES)
    costly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("decay", self.decay, 0, 1)

    def update(self, state: dict[str, Any], seen: Seen, scales: tuple[float, float]) -> None:
        """Update the running averages of both factors."""
        update_factors(state, seen, scales, self.decay)

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Invert the averages, if there are any and the inverses are finite."""
        if FACTORS[0] in state:
            inverses = damped_inverses(state[FACTORS[0]], state[FACTORS[1]], damping)
            if all(bool(inverse.isfinite().all()) for inverse in inverses):
                state |= zip(INVERSES, inverses, strict=True)

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor | None:
        """``Γ⁻¹ G A⁻¹``."""
        right, left = (state.get(key) for key in INVERSES)
        if left is None or right is None or not fits(grad, left, right):
            return None  # the bias was frozen, or the weight has another shape, since they were inverted
        direction: Tensor = left @ grad @ right
        return direction


def update_factors(state: dict[str, Any], seen: Seen, scales: tuple[float, float], decay: float) -> None:
    """Update the running averages of both factors with what a step's backward passes have seen."""
    weight = weight_of_next(state, decay)
    for key, moment, scale in zip(FACTORS, seen.moments, scales, strict=True):
        known = state.get(key)
        if known is not None and known.shape != moment.shape:  # the bias was frozen, or the weight has another shape
            known = None
        state[key] = moment.averaged(known, weight, scale)


def fits(grad: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether square matrices from the left and from the right can be multiplied with a gradient ``[G, d, a]``.

    Example:
        >>> import torch
        >>> fits(torch.ones(2, 3, 4), torch.ones(2, 3, 3), torch.ones(2, 5, 5))
        False
    """
    groups, outer, inner = grad.shape
    return (left.shape, right.shape) == ((groups, outer, outer), (groups, inner, inner))
