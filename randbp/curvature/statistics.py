"""Gathering the factors of a network's layers while its loss runs forward and backward."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..modes import in_memory, without_autocast
from .factors import Approximation, input_factor, input_rows, output_grad_factor, output_grad_rows
from .layers import channels_second, layer_input, trained_bias
from .moments import Moment


@dataclass
class Seen:
    """Of one layer ``Σ_n u_n u_nᵀ`` and ``Σ_n v_n v_nᵀ`` over the examples whose gradients came by, and how many."""

    input: Moment = field(default_factory=Moment)
    output_grad: Moment = field(default_factory=Moment)
    examples: int = 0


class Statistics:
    """Hooks that add up the Kronecker factors of layers, while ``active`` is true.

    What is needed of an input is made in the forward pass, so that no input is held for it; it counts once the gradient
    of the layer's output has come by, so passes without a backward pass, and those that checkpointing repeats, do not.

    Args:
        modules: The layers, by name.
        approximation: Of weight sharing: ``"reduce"`` or ``"expand"``.
    """

    def __init__(self, modules: Mapping[str, nn.Module], approximation: Approximation) -> None:
        self.active = True
        self.approximation: Approximation = approximation
        self.seen: dict[str, Seen] = {}
        self._handles = [
            module.register_forward_hook(_Watch(self, name), with_kwargs=True) for name, module in modules.items()
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def take(self) -> dict[str, Seen]:
        """What was added up, which starts again from nothing."""
        taken, self.seen = self.seen, {}
        return taken


class _Watch:
    """A forward hook. Copies and pickles of the model have one in its place that does nothing."""

    def __init__(self, statistics: Statistics, name: str) -> None:
        self._statistics, self._name = weakref.ref(statistics), name

    def __reduce__(self) -> Any:
        return _nothing, ()

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        watch = self._statistics()
        input = arguments[0] if arguments else named.get("input")
        if watch is None or not watch.active or not module.training or input is None:
            return
        if not (torch.is_grad_enabled() and output.requires_grad and input.numel() and output.numel()):
            return
        if not in_memory(output):
            return
        reduced, bias = watch.approximation == "reduce", trained_bias(module) is not None
        with torch.no_grad(), without_autocast(output):
            spec, input = layer_input(module, input.detach(), output)
            input = _precise(input)
            if reduced:
                made = input_rows(spec, input, bias)
            else:
                made = input_factor(spec, input, "expand", bias).mul_(spec.batch_size)

        def note(output_grad: Tensor) -> None:
            if (watch := self._statistics()) is None:
                return
            with torch.no_grad(), without_autocast(output_grad):
                grad = _precise(channels_second(module, output_grad))
                seen = watch.seen.setdefault(self._name, Seen())
                seen.examples += spec.batch_size
                if reduced:
                    seen.input.add_rows(made)
                    seen.output_grad.add_rows(output_grad_rows(spec, grad))
                else:
                    seen.input.add_matrix(made)
                    seen.output_grad.add_matrix(output_grad_factor(spec, grad, "expand").mul_(spec.batch_size))

        output.register_hook(note)


def _nothing() -> Callable[..., None]:
    return _ignore


def _ignore(*_: Any) -> None:
    """What is left of a hook in a copy of the model."""


def _precise(tensor: Tensor) -> Tensor:
    """In single precision at least: sums over positions outgrow 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
