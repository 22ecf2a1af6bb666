"""Spatial positions drawn without replacement, with block means kept exactly."""

from dataclasses import dataclass

from .base import at_least
from .controls import Control, half_in_cells
from .sample_plan import Plan
from .sampled import Sampled


@dataclass(frozen=True)
class LowResolution(Sampled):
    """Keep the low-resolution part of the input exactly, and sample positions of the remainder.

    With ``L`` the input whose entries are replaced by the mean of their ``block × block`` cell,

    ``V_W ≈ Σ L Π V_Y + I/|S| Σ_n Σ_{i∈S_n} (X - L)[n c i] Π V_Y``

    :class:`Spatial` is the case of one cell; as there, the mean of a cell's kept deviations is taken from ``L``, which
    centres the other factor in each cell as well. The means take bytes that samples could have, which pays for smooth
    inputs (images, early layers) and large keep rates: the variance is :class:`Spatial`'s with deviations from cells in
    place of those from one mean, and fewer samples. It saves memory, not time: the VJPs are exact ones of the restored
    tensor.

    The kept entries, means included, are at most ``p`` of the input; cells are doubled until the means take at most
    half of that. Where fewer than two positions are left, nothing is kept exactly.

    Source: a regression estimator of survey sampling (W. G. Cochran, Sampling Techniques, 1977, chapter 7).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        block: Positions per cell and dimension, at least 2.

    Raises:
        ValueError: If ``keep`` or ``block`` is out of range.

    Example:
        >>> LowResolution(keep=0.25)
        LowResolution(keep=0.25, block=4)
    """

    allowed = {"block": at_least(2)}  # noqa: RUF012 -- never changed
    block: int = 4

    def control(self, shape: tuple[int, ...], budget: float) -> Control | None:
        """Means of cells, for at most half of the budget."""
        return half_in_cells(shape, budget, self.block)

    def _variance(self, plan: Plan) -> str:
        return "(I/|S| - 1) I/(I-1) Σ_n Σ_i ‖(X-L)_i ⊗ (V - L_V)_i - mean‖², V_i the output gradients position i meets"
