"""A module with estimated VJPs: the same object, with another class for as long as it is randomised."""

from dataclasses import dataclass, field
from typing import Any, cast
from zlib import crc32

import torch
from torch import Tensor, nn

from ..autograd import draw_seed
from ..autograd.hooks import hooks_in_force
from ..autograd.recomputation import Recomputation
from ..estimators import Estimator
from ..estimators.seeds import Integers, next_seed
from ..functional import estimated_call, is_estimated, may_be_estimated
from ..reclass import Reclassed, reclass, restore
from .modules import Prepare


class Clock:
    """Seed, step, micro-batch and rank that the layers of one :func:`randbp.randomize` call share."""

    def __init__(self, seed: int) -> None:
        self.state = Integers((seed, 0, 0, 0, 0))  # … and how often it was set

    def set(self, step: int, micro_batch: int, rank: int) -> None:
        """Go to a training step."""
        for number, value in enumerate((step, micro_batch, rank, self.state.values[-1] + 1), 1):
            self.state.values[number] = value


@dataclass
class LayerState:
    """What a randomised layer knows beside its parameters."""

    name: str
    prepare: Prepare
    weight_vjp: Estimator
    input_vjp: Estimator
    clock: Clock
    place: Integers = field(init=False)
    recomputation: Recomputation = field(init=False, default_factory=Recomputation)

    def __post_init__(self) -> None:
        self.place = Integers((crc32(self.name.encode()), 0, 0))

    def next_seed(self) -> int | Tensor:
        """Seed of the next forward pass: hashed from seed, layer, step, micro-batch, rank and call within these."""
        if torch.compiler.is_compiling():
            return draw_seed(self.clock.state.tensor, self.place.tensor)
        return self.recomputation.seed(lambda: next_seed(self.clock.state.values, self.place.values), hooks_in_force())


class RandomizedLayer(Reclassed):
    """Mixed in before a layer's class while it is randomised; the state lies in the module's ``__dict__``."""

    prefix = "Randomized"
    _randbp: LayerState

    def forward(self, input: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """The layer, with estimated VJPs in training mode."""
        state, module, prepared = self._randbp, cast(Any, self), None
        if module.training and may_be_estimated(input, state.weight_vjp, state.input_vjp):
            weight = module.weight  # read once: a parametrisation such as spectral norm goes a step on at each reading
            prepared = state.prepare(module, weight, input, *arguments, **named)
        if prepared is None:
            output: Tensor = super().forward(input, *arguments, **named)  # type: ignore[misc]
            return output
        operation, padded = prepared
        if not is_estimated(input, weight, state.weight_vjp, state.input_vjp):  # the weight is frozen
            return operation.native(padded, weight, module.bias)
        return estimated_call(
            operation, padded, weight, module.bias, state.weight_vjp, state.input_vjp, state.next_seed()
        )

    def extra_repr(self) -> str:
        """PyTorch's description followed by the estimators."""
        described: str = super().extra_repr()  # type: ignore[misc]
        return f"{described}, weight_vjp={self._randbp.weight_vjp}, input_vjp={self._randbp.input_vjp}"


def is_randomized(module: nn.Module) -> bool:
    """Whether a module is randomised at present."""
    return isinstance(module, RandomizedLayer)


def layer_state(module: nn.Module) -> LayerState:
    """The state of a randomised module."""
    state: LayerState = module.__dict__["_randbp"]
    return state


def randomize_layer(module: nn.Module, state: LayerState) -> None:
    """Give a module estimated VJPs, in place."""
    module.__dict__["_randbp"] = state
    reclass(module, RandomizedLayer)


def derandomize_layer(module: nn.Module) -> None:
    """Undo :func:`randomize_layer`; a module that is not randomised is left alone."""
    if not is_randomized(module):
        return
    restore(module)
    del module.__dict__["_randbp"]
