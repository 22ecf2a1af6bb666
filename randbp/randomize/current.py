"""Estimators that a randomised model has at present, and their exchange."""

from typing import Any, get_args

from torch import nn

from ..estimators import Estimator
from ..estimators.base import Vjp
from .layers import LayerState, is_randomized, layer_state, randomize_layer

VJPS: tuple[str, ...] = get_args(Vjp)
"""The names of a layer's estimators."""


def randomized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The randomised layers of a model by name."""
    return {name: module for name, module in model.named_modules() if is_randomized(module)}


def exchange(module: nn.Module, **estimators: Any) -> None:
    """Give a randomised layer another ``weight_vjp`` or ``input_vjp``; its sequence of samples goes on.

    Example:
        >>> from randbp import Spatial, randomize
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3))
        >>> handle = randomize(model, Spatial(keep=0.25))
        >>> exchange(model[0], weight_vjp=Spatial(keep=0.5))
        >>> handle.keep_rates
        {'0': 0.5}
    """
    state: LayerState = layer_state(module)
    if all(getattr(state, name) == estimator for name, estimator in estimators.items()):
        return
    for name, estimator in estimators.items():
        setattr(state, name, estimator)
    randomize_layer(module, state)


def put_back(given: list[tuple[nn.Module, dict[str, Estimator]]]) -> None:
    """Give layers that are still randomised the estimators that they had, and empty the list."""
    for layer, estimators in given:
        if is_randomized(layer):
            exchange(layer, **estimators)
    given.clear()
