"""Estimators as plain data, for checkpoints and summaries."""

from dataclasses import fields
from typing import Any

from .base import Estimator


def plain_estimator(estimator: Estimator) -> dict[str, Any]:
    """Class name (as ``class``) and fields of an estimator; an estimator within is written the same way.

    Example:
        >>> from randbp import Batch, Rounding
        >>> plain_estimator(Rounding(bits=4, estimator=Batch(keep=0.5)))["estimator"]
        {'class': 'Batch', 'keep': 0.5, 'bernoulli': False}
    """
    values = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    nested = {name: plain_estimator(value) for name, value in values.items() if isinstance(value, Estimator)}
    return {"class": type(estimator).__name__, **values, **nested}
