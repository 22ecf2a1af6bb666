"""Measure a randomised model with other estimators and samples of its own, and leave no trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .layers import Clock, layer_state, randomize_layer


@contextmanager
def overridden(modules: Iterable[nn.Module], clock: Clock, **estimators: Any) -> Iterator[None]:
    """Let randomised modules draw by another clock, and estimate otherwise, for as long as the block runs.

    Their own state, with the place in their own sequence of samples, is back afterwards.

    Args:
        modules: Randomised modules.
        clock: Seed and step of the samples drawn meanwhile.
        **estimators: ``weight_vjp`` or ``input_vjp``, where these are to differ from the modules' own.

    Example:
        >>> from randbp import Exact, randomize
        >>> conv = nn.Conv2d(1, 1, 3)
        >>> handle = randomize(conv)
        >>> with overridden([conv], Clock(0), weight_vjp=Exact()):
        ...     handle.keep_rates
        {'': 1.0}
        >>> handle.keep_rates
        {'': 0.25}
    """
    before = [(module, layer_state(module)) for module in modules]
    try:
        for module, state in before:
            randomize_layer(module, replace(state, clock=clock, **estimators))
        yield
    finally:
        for module, state in before:
            randomize_layer(module, state)
