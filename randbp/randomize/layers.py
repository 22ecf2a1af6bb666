"""Modules with estimated VJPs: the same objects, with another class as long as something is estimated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from .._torch.class_swap import Reclassed, is_reclassed, own_class, reclass, restore
from .._torch.graph_break import graph_break
from ..autograd import estimated, is_estimated
from ..draws.seeds import Integers, SeedStream
from ..estimators import Estimator
from ..layers import LayerCall, LayerCalls, answered, class_runs_pytorchs_forward, kind_of
from ..layers.functions import LayerFunction


class Clock:
    """Seed, step, micro-batch and rank that the layers of one :func:`randbp.randomize` call share."""

    def __init__(self, seed: int) -> None:
        self.state = Integers((seed, 0, 0, 0, 0))  # … and how often it was set

    def set(self, step: int, micro_batch: int, rank: int) -> None:
        """Set the training step."""
        for number, value in enumerate((step, micro_batch, rank, self.state.values[-1] + 1), 1):
            self.state.values[number] = value


@dataclass
class Seen:
    """Record of a layer's calls in training mode, as far as Python sees them."""

    called: bool = False  # whether there was a call
    served: bool = False  # whether in some call something was estimated, or needed no estimate


@dataclass
class LayerState:
    """The state of a randomised layer in addition to its parameters."""

    name: str  # the layer's name, on which its samples depend
    weight_vjp: Estimator
    input_vjp: Estimator
    clock: Clock  # the model's
    own: type[nn.Module]  # the module's original class
    function: type[LayerFunction] | None  # of a module whose class has PyTorch's forward pass; None for other modules
    left_exact: dict[str, str] = field(default_factory=dict)  # why layers chosen together with this one stay exact
    seen: Seen = field(default_factory=Seen)  # the calls so far
    stream: SeedStream = field(init=False)  # seeds: of seed, layer, step, micro-batch, rank and call within these

    def __post_init__(self) -> None:
        self.stream = SeedStream(self.clock.state, crc32(self.name.encode()))

    @classmethod
    def of(
        cls, module: nn.Module, name: str, weight_vjp: Estimator, input_vjp: Estimator, clock: Clock, **more: Any
    ) -> "LayerState":
        """Make the state of a module that is not randomised yet."""
        own = own_class(module)
        function = kind_of(module) if class_runs_pytorchs_forward(own) else None
        return cls(name, weight_vjp, input_vjp, clock, own, function, **more)

    @property
    def estimates(self) -> bool:
        """Whether one of the estimators is not exact."""
        return not (self.weight_vjp.exact and self.input_vjp.exact)


class RandomizedLayer(Reclassed):
    """Mixed in before a layer's class while it is randomised; its state is in the module's ``__dict__``.

    Where the module runs PyTorch's own forward pass, this is another one that estimates. Otherwise its own runs, with
    the functions that it calls estimated: that of a subclass, or one that was put into the module itself, before or
    after it was randomised. A method read from the module stays of use when the module is itself again.
    """

    prefix = "Randomized"
    _randbp: LayerState | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the module with its hooks."""
        if "forward" in self.__dict__ and (state := _at_work(self)) is not None:
            return _with_calls_estimated(self, state, super().__call__, arguments, named)  # type: ignore[misc]
        return super().__call__(*arguments, **named)  # type: ignore[misc]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the layer, with estimated VJPs in training mode."""
        if not isinstance(self, RandomizedLayer):
            return type(self).forward(self, *arguments, **named)
        forward: Callable[..., Any] = super().forward  # type: ignore[misc]
        state = _at_work(self)
        if state is None:
            return forward(*arguments, **named)
        if state.function is None or "_conv_forward" in self.__dict__ or "_output_padding" in self.__dict__:
            return _with_calls_estimated(self, state, forward, arguments, named)
        if not torch.compiler.is_compiling():
            if not class_runs_pytorchs_forward(state.own):  # any more
                return _with_calls_estimated(self, state, forward, arguments, named)
            state.seen.called = state.seen.served = True
        return _estimated(self, state, forward, *arguments, **named)

    def extra_repr(self) -> str:
        """PyTorch's description followed by the estimators."""
        described: str = super().extra_repr()  # type: ignore[misc]
        state = self._randbp
        if state is None:
            return described
        return f"{described}, weight_vjp={state.weight_vjp}, input_vjp={state.input_vjp}"


def _at_work(module: Any) -> LayerState | None:
    """The state of a module of a :class:`RandomizedLayer` class if something of its next call may be estimated."""
    state: LayerState | None = module._randbp
    if state is None or not module.training or not torch.is_grad_enabled() or not state.estimates:
        return None
    return state


def _estimated(module: Any, state: LayerState, forward: Any, input: Tensor, *arguments: Any, **named: Any) -> Any:
    """Run a module that has PyTorch's forward pass."""
    function, prepared = state.function, None
    if function is not None and input.numel():
        weight = module.weight  # read once: a parametrisation such as spectral norm goes a step on at each reading
        prepared = function.of_module(module, weight, input, *arguments, **named)
    if prepared is None:
        return forward(input, *arguments, **named)
    made, padded = prepared
    return estimated(made, padded, weight, module.bias, state.weight_vjp, state.input_vjp, state.stream)


@graph_break("randbp: calls of functions within a forward pass that is not PyTorch's are estimated one by one")
def _with_calls_estimated(
    module: Any, state: LayerState, run: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Run any other module, and estimate the functions that it calls with a weight of its own."""
    state.seen.called = True
    with LayerCalls(module, partial(_answer, state)):
        return run(*arguments, **named)


def _answer(state: LayerState, call: LayerCall) -> Tensor:
    state.seen.served = True
    if call.weight.is_complex() or not is_estimated(call.input, call.weight, state.weight_vjp, state.input_vjp):
        return call.run()
    output = estimated(
        call.function, call.input, call.weight, call.bias, state.weight_vjp, state.input_vjp, state.stream
    )
    return answered(call, output)


def is_randomized(module: nn.Module) -> bool:
    """Whether a module is randomised at present."""
    return "_randbp" in vars(module)


def layer_state(module: nn.Module) -> LayerState:
    """The state of a randomised module."""
    state: LayerState = vars(module)["_randbp"]
    return state


def randomize_layer(module: nn.Module, state: LayerState) -> None:
    """Attach a state to a module, in place; its class changes only if something is estimated."""
    vars(module)["_randbp"] = state
    if state.estimates and not isinstance(module, RandomizedLayer):
        reclass(module, RandomizedLayer)
    elif not state.estimates and is_reclassed(module, RandomizedLayer):
        restore(module)


def derandomize_layer(module: nn.Module) -> bool:
    """Undo :func:`randomize_layer`; nothing is estimated afterwards.

    Returns:
        Whether the class is the module's own again: something else may have changed it since.
    """
    state: LayerState | None = vars(module).pop("_randbp", None)
    if is_reclassed(module, RandomizedLayer):
        restore(module)
    return not isinstance(module, RandomizedLayer) or (state is not None and type(module) is state.own)


def forward_without_hooks(module: Any, *arguments: Any, **named: Any) -> Any:
    """Call a module, estimated if it is randomised, without its hooks."""
    if isinstance(module, RandomizedLayer) and "forward" in vars(module) and (state := _at_work(module)) is not None:
        return _with_calls_estimated(module, state, module.forward, arguments, named)
    return module.forward(*arguments, **named)
