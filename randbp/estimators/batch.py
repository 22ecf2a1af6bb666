"""Whole examples of the batch, drawn without replacement; the mean example may be kept exactly."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from .controls import Control, MeanExample
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import Bernoulli, Sampler, Uniform
from .sampling_units import EXAMPLES


@dataclass(frozen=True)
class Batch(Sampled):
    """Keep ``⌊p·N⌋`` examples, drawn without replacement, with weight ``N/|S|``; serves the weight VJP.

    ``V_W ≈ N/|S| Σ_{n∈S} X_n Π V_Y,n`` has the variance of a smaller mini-batch in this layer. The batch is not
    summed in the input VJP, where dropping an example would cut it off from every layer below: that is refused.

    With ``center=True`` the mean example ``m`` counts among those kept, only deviations from it are sampled, and

    ``V_W ≈ (m - r) Π Σ_n V_Y,n + N/|S| Σ_{n∈S} (X_n - m) Π V_Y,n``

    with ``r`` the mean of the kept deviations. These add up to zero over the batch, so ``r`` centres the other factor,
    too, and the variance is ``(1/p - 1) N/(N-1)`` times that of ``(X_n - m) Π (V_Y,n - mean)`` over examples. It costs
    a pass over the input and one over the output gradient. Where fewer than two deviations would be kept nothing is
    centred.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        bernoulli: If true, each example is kept on its own with probability ``p`` and weight ``1/p``; memory is then
            random, and a draw may keep nothing.
        center: Whether to keep the mean example exactly; not with ``bernoulli``.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``, or ``center`` and ``bernoulli`` are both true.

    Example:
        >>> Batch(keep=0.5).check_serves("input_vjp")
        Traceback (most recent call last):
        ValueError: input_vjp=Batch(keep=0.5, bernoulli=False, center=False): Batch serves only weight_vjp
    """

    unit, draws_examples = EXAMPLES, True
    bernoulli: bool = False
    center: bool = False
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.center and self.bernoulli:
            raise ValueError("Batch: center=True, expected False with bernoulli=True")

    @property
    def sampler(self) -> Sampler:
        """A fixed number of examples, or each on its own."""
        return Bernoulli() if self.bernoulli else Uniform()

    def control(self, shape: tuple[int, ...], budget: float) -> Control | None:
        """The mean example, if it leaves two others."""
        return MeanExample() if self.center and 2 < int(budget / prod(shape[1:]) + 1e-9) < shape[0] else None

    def _variance(self, plan: Plan) -> str:
        if self.bernoulli:
            return "(1/p - 1) Σ_n ‖g_n‖²"
        of = " with g_n the gradient of X_n - mean and V_n - mean" if plan.control else ""
        return f"(1/p - 1) N/(N-1) Σ_n ‖g_n - ḡ‖²{of}"
