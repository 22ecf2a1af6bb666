"""Estimators as plain data, for checkpoints and summaries."""

from dataclasses import fields
from typing import Any

from .base import Estimator


def plain_estimator(estimator: Estimator) -> dict[str, Any]:
    """Class name (as ``class``) and fields of an estimator; a wrapped estimator is written in the same way.

    Example:
        >>> from randbp import Batch, Rounding
        >>> plain_estimator(Rounding(bits=4, estimator=Batch(keep=0.5)))["estimator"]
        {'class': 'Batch', 'keep': 0.5, 'bernoulli': False, 'center': False}
    """
    values = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    nested = {name: plain_estimator(value) for name, value in values.items() if isinstance(value, Estimator)}
    return {"class": type(estimator).__name__, **values, **nested}


def configure(estimator: Estimator) -> dict[str, Any]:
    """An estimator in the form of a configuration file: ``class_path``, and non-default fields as ``init_args``.

    Example:
        >>> from randbp import Batch, Rounding
        >>> configure(Rounding(bits=4, estimator=Batch(keep=0.5)))["init_args"]
        {'bits': 4, 'estimator': {'class_path': 'randbp.Batch', 'init_args': {'keep': 0.5}}}
    """
    kind = type(estimator)
    own = kind.__module__.startswith(f"{__package__}.")
    given = [(f.name, getattr(estimator, f.name)) for f in fields(estimator) if f.init]
    defaults = {f.name: f.default for f in fields(estimator)}
    values = {k: configure(v) if isinstance(v, Estimator) else v for k, v in given if v != defaults[k]}
    path = f"randbp.{kind.__name__}" if own else f"{kind.__module__}.{kind.__qualname__}"
    return {"class_path": path, **({"init_args": values} if values else {})}
