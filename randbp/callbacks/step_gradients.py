"""Gradients of a training step, computed without lasting effects."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from .._torch.restored import preserved
from ..estimators import Exact
from ..randomize.layers import Clock
from ..randomize.override import lean_overridden, overridden

Gradients = list[Tensor]
"""The gradients of all trainable parameters."""


@contextmanager
def step_gradients(
    trainer: Trainer, module: LightningModule, layers: Mapping[str, nn.Module], clock: Clock, inputs: Any
) -> Iterator[Callable[[Any, int], Gradients]]:
    """Give a function of batch and batch index: the gradients of that training step's loss.

    Within the block randomised layers and lean mode draw by ``clock``; each pass starts from the same random states
    and buffers. What is logged is dropped. Afterwards parameters' ``.grad``, buffers, random states of PyTorch, NumPy
    and Python, and the attributes of modules (such as the states of metrics) are what they were.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    step = module.training_step
    takes_index = len(inspect.signature(step).parameters) > 1
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    other_states = random.getstate(), np.random.get_state()
    with ExitStack() as around:
        rewind = around.enter_context(preserved(module, inputs=inputs))
        around.enter_context(overridden(layers.values(), clock))
        around.enter_context(lean_overridden(module, clock))
        restore = around.enter_context(muted(module))

        def gradients(batch: Any, index: int) -> Gradients:
            rewind()
            restore(("log", "log_dict"))
            random.setstate(other_states[0])
            np.random.set_state(other_states[1])
            with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                output = step(batch, index) if takes_index else step(batch)
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if not isinstance(loss, Tensor):  # the step is skipped
                return [torch.full_like(parameter, torch.nan) for parameter in parameters]
            loss = loss if scaler is None else scaler.scale(loss)
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            return [gradient.detach() for gradient in found]

        try:
            yield gradients
        finally:
            random.setstate(other_states[0])
            np.random.set_state(other_states[1])


@contextmanager
def muted(module: LightningModule) -> Iterator[Callable[..., None]]:
    """Drop what is logged within the block; attributes of modules (such as metrics' states) are restored at its end.

    Yields:
        A function that restores them, but for those of given names.
    """
    restore = _attributes(module)
    logging = [each for each in module.modules() if isinstance(each, LightningModule)]
    for each in logging:
        each.log = each.log_dict = _nothing  # type: ignore[method-assign]
    try:
        yield restore
    finally:
        for each in logging:
            del each.log, each.log_dict
        restore()


@contextmanager
def exact_passes(module: LightningModule, layers: Mapping[str, nn.Module], clock: Clock) -> Iterator[None]:
    """Let all layers be exact and lean mode rest within the block."""
    with (
        overridden(layers.values(), clock, weight_vjp=Exact(), input_vjp=Exact()),
        lean_overridden(module, clock, paused=True),
    ):
        yield


def dots(left: Gradients, right: Gradients) -> Tensor:
    """Inner products, parameter by parameter, in double precision where there is any, ``[P]``."""
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)])


def _nothing(*arguments: Any, **named: Any) -> None:
    """Takes the place of ``log``."""


def _attributes(module: nn.Module) -> Callable[..., None]:
    """A function that puts the attributes of all modules back, but for buffers, which are restored elsewhere."""
    taken: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]] = []
    for each in module.modules():
        own = {name: value for name, value in vars(each).items() if name not in ("_parameters", "_buffers", "_modules")}
        contents = [(value, value.copy()) for value in own.values() if type(value) in (list, dict, set)]
        contents += [
            (value, value.detach().clone()) for value in own.values() if type(value) is Tensor and value.is_leaf
        ]
        taken.append((each, own, contents))

    def restore(but: tuple[str, ...] = ()) -> None:
        for each, own, contents in taken:
            now = vars(each)
            for name in now.keys() - own.keys() - {"_parameters", "_buffers", "_modules", *but}:
                del now[name]
            now.update({name: value for name, value in own.items() if name not in but and name != "_randbp"})
            for value, content in contents:
                if isinstance(value, Tensor):
                    with torch.no_grad():
                        value.copy_(content)
                elif isinstance(value, list):
                    value[:] = content
                else:
                    value.clear()
                    value.update(content)

    return restore
