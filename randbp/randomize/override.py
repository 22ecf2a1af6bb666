"""Temporary estimators and samples for measurements of a randomised model."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .._torch.hooks import watchers
from ..lean.mode import Part
from .layers import Clock, layer_state, randomize_layer


@contextmanager
def overridden(modules: Iterable[nn.Module], clock: Clock, **estimators: Any) -> Iterator[None]:
    """Let randomised modules use another clock, and maybe another ``weight_vjp`` or ``input_vjp``, within the block.

    Their own state, with the place in their own sequence of samples, is back afterwards.
    """
    before = [(module, layer_state(module)) for module in modules]
    try:
        for module, state in before:
            randomize_layer(module, replace(state, clock=clock, **estimators))
        yield
    finally:
        for module, state in before:
            randomize_layer(module, state)


@contextmanager
def lean_overridden(model: nn.Module, clock: Clock, paused: bool = False) -> Iterator[None]:
    """Let a model's lean mode use another clock, or be off, within the block."""
    parts = (around for module in model.modules() for around in watchers(module) if isinstance(around, Part))
    with ExitStack() as stack:
        for session in {part.context: None for part in parts}:
            stack.enter_context(session.measured(clock.state, paused))
        yield
