"""Costs and variance of an estimator in one layer, as numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """Result of :meth:`randbp.Estimator.describe`.

    Args:
        held_bytes: Bytes that a weight VJP holds of the input from forward to backward, indices and scales included;
            the expectation if the size is random. ``None`` if the estimator does not serve the weight VJP.
        weight_multiply_adds: Multiply-adds of the weight VJP with all that the estimator adds to it (projections,
            the control variate's own VJP), but without gathers and sums. ``None`` if not served or not stated.
        input_multiply_adds: Multiply-adds of the input VJP.
        relative_variance: ``E‖ĝ - g‖² / ‖g‖²`` of the weight VJP where it is the same whatever the data, else ``None``.
        variance: Formula of the variance, or of a bound.
        unbiased: Whether the average over draws is the exact VJP.
    """

    held_bytes: int | None
    weight_multiply_adds: int | None
    input_multiply_adds: int | None
    relative_variance: float | None
    variance: str
    unbiased: bool = True
