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


def configure(estimator: Estimator) -> dict[str, Any]:
    """An estimator as a configuration file names it: ``class_path`` and ``init_args``.

    Example:
        >>> from randbp import Batch, Rounding
        >>> configure(Batch(keep=0.5))
        {'class_path': 'randbp.Batch', 'init_args': {'keep': 0.5, 'bernoulli': False}}
    """
    kind = type(estimator)
    own = kind.__module__.startswith(f"{__package__}.")
    values = {field.name: getattr(estimator, field.name) for field in fields(estimator) if field.init}
    return {
        "class_path": f"randbp.{kind.__name__}" if own else f"{kind.__module__}.{kind.__qualname__}",
        "init_args": {k: configure(v) if isinstance(v, Estimator) else v for k, v in values.items()},
    }
