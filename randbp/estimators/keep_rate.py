"""Change of an estimator's keep rate."""

from dataclasses import fields, replace

from .base import Estimator


def has_keep_rate(estimator: Estimator) -> bool:
    """Whether an estimator, or the one that it wraps, has a keep rate that can be chosen.

    Example:
        >>> from randbp import Exact, Rounding, Spatial
        >>> has_keep_rate(Rounding(4, Spatial(0.5))), has_keep_rate(Rounding(4)), has_keep_rate(Exact())
        (True, False, False)
    """
    if any(field.name == "keep" and field.init for field in fields(estimator)):
        return True
    within = getattr(estimator, "estimator", None)
    return isinstance(within, Estimator) and has_keep_rate(within)


def with_keep_rate(estimator: Estimator, keep: float) -> Estimator:
    """Give the same estimator with another keep rate, of the one that it wraps if it has none of its own.

    Raises:
        ValueError: If there is no keep rate to be chosen, or ``keep`` is not in ``(0, 1]``.

    Example:
        >>> from randbp import Rounding, Spatial
        >>> with_keep_rate(Rounding(4, Spatial(0.5)), 0.25).estimator.keep
        0.25
    """
    if not has_keep_rate(estimator):
        raise ValueError(f"estimator={estimator!r}: has no keep rate, expected one such as Spatial(keep=0.25)")
    if any(field.name == "keep" and field.init for field in fields(estimator)):
        return replace(estimator, keep=keep)
    return replace(estimator, estimator=with_keep_rate(estimator.estimator, keep))  # type: ignore[attr-defined,call-arg]
