"""What an estimator is: an unbiased, cheaper stand-in for one VJP of a convolution."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar, Literal

from torch import Tensor

from ..tn import ConvSpec
from .draw import Draw

Vjp = Literal["weight_vjp", "input_vjp"]


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimator of the weight VJP, the input VJP, or both.

    The weight VJP is estimated in two halves. :meth:`sketch` runs in the forward pass and returns all that is held
    for backward; :meth:`weight_vjp` runs in the backward pass on what was held. Both get the same :class:`Draw`, so
    random indices are drawn again instead of being stored. The input VJP needs nothing of the input, so
    :meth:`input_vjp` works on the output gradient alone.

    Unbiased means: averaged over draws, the estimate is the exact VJP.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``, the kept share of the sampled leg; 1 is exact.
    """

    keep: float
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp", "input_vjp"})

    def __post_init__(self) -> None:
        check_keep(type(self).__name__, self.keep)

    @property
    def exact(self) -> bool:
        """Whether this estimator is PyTorch's own VJP."""
        return self.keep == 1

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """What the weight VJP holds of the layer input ``[N, C, *I]``: tensors that own their memory."""
        raise NotImplementedError(f"{type(self).__name__} does not serve weight_vjp")

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Estimate the weight VJP ``[D, C / groups, *K]`` from the sketch and the output gradient ``[N, D, *O]``."""
        raise NotImplementedError(f"{type(self).__name__} does not serve weight_vjp")

    @abstractmethod
    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Estimate the input VJP ``[N, C, *I]`` from the output gradient ``[N, D, *O]`` and the weight."""

    def check_serves(self, vjp: Vjp) -> None:
        """Raise ``ValueError`` if this estimator cannot stand in for ``"weight_vjp"`` or ``"input_vjp"``."""
        if vjp not in self.serves and not self.exact:
            allowed = ", ".join(sorted(self.serves))
            raise ValueError(f"{vjp}={self!r}: {type(self).__name__} serves only {allowed}")

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"


def check_keep(owner: str, keep: object) -> None:
    """Raise unless ``keep`` is a number in ``(0, 1]``.

    Raises:
        ValueError: If ``keep`` is not a number or outside ``(0, 1]``.

    Example:
        >>> check_keep("Spatial", 1.5)
        Traceback (most recent call last):
        ValueError: Spatial: keep=1.5, expected a number in (0, 1]
    """
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < float(keep) <= 1:
        raise ValueError(f"{owner}: keep={keep!r}, expected a number in (0, 1]")


def kept(size: int, keep: float) -> int:
    """How many of ``size`` entries a keep rate leaves: ``⌊p·size⌋``, at least one; fixed by shape, never by the draw.

    Example:
        >>> kept(10, 0.25), kept(3, 0.1)
        (2, 1)
    """
    # The tiny lift keeps 0.1 * 30 = 3 at 3 although the product rounds to just below it.
    return max(1, min(size, int(size * keep + 1e-9)))
