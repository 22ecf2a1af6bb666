"""Hooks that gather the factors of a network's layers during forward and backward passes."""

import weakref
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.graph_break import graph_break
from .._torch.hooks import take_from_stack, without_autocast
from .._torch.state import has_storage
from ..layers import LayerCall, LayerCalls, own_parameters, runs_pytorchs_forward
from ..layers.layer_specs import as_sequence
from ..tn import LayerSpec
from .gathering import Seen
from .layer_factors import output_grad_rows
from .layer_sums import input_sums, output_grad_sums
from .method import Method
from .moments import Moment
from .places import COMPUTED, FROZEN, SHARDED, TWO_WAYS, Place, name_of, read_from
from .sharding import is_sharded
from .weight_matrices import Form, call_input, layer_call

NO_TENSOR = "its input or output is not a tensor"
COMPILED = "its forward pass is its own and compiled"


class Statistics:
    """Hooks that add up the Kronecker factors of layers, while ``active`` is true.

    What is needed of an input is made in the forward pass, so that no input is held for it; a call counts once the
    gradients of the layer's output and then of its weight have been computed, so calls without a backward pass, and
    those that checkpointing repeats, do not count.

    Args:
        layers: The layers by name.
        method: What is made of the statistics.
        largest: Rows of a factor that is still made.
        counts_terms: Whether positions with a gradient are counted.

    Attributes:
        held: The optimiser's parameters.
        places: The weights of these layers, by name; those of layers with a forward pass of their own once they run.
        called: Layers that ran in training since the last step that took factors.
        trouble: Why a part of the last call of a layer could not be used, by name.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], method: Method, largest: float, counts_terms: bool = False
    ) -> None:
        self.active, self.removed = True, False
        self.method = method
        self.largest, self.counts_terms = largest, counts_terms
        self.held: Container[Tensor] = ()
        self.places: dict[str, Place] = {}
        self.called: set[str] = set()
        self.trouble: dict[str, str] = {}
        self._handles: list[Any] = []
        for name, module in layers.items():
            if runs_pytorchs_forward(module):
                self._place(name, module, "weight").form = Form.of(module)
            before = _Before(self, name)
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(_After(before), with_kwargs=True, always_call=True, prepend=True),
            ]

    @property
    def seen(self) -> dict[str, Seen]:
        """The sums so far, by weight."""
        return {key: seen for key, place in self.places.items() if (seen := place.gathering.kept) is not None}

    def take(self) -> dict[str, Seen]:
        """Return the sums so far, and start again from zero."""
        taken = self.seen
        self.drop()
        return taken

    def drop(self) -> None:
        """Forget all statistics."""
        for place in self.places.values():
            place.gathering.drop()

    def remove(self) -> None:
        """Remove the hooks."""
        self.removed = True
        for handle in self._handles:
            handle.remove()
        for place in self.places.values():
            place.gathering.remove()

    def module_call(self, name: str, module: nn.Module, input: Any, output: Any) -> None:
        """Watch a call of one of PyTorch's layers."""
        self.trouble.pop(name, None)
        if (weight := dict(own_parameters(module)).get("weight")) is None or not weight.is_leaf:
            self.trouble[name] = COMPUTED
        elif not isinstance(input, Tensor) or not isinstance(output, Tensor):
            self.trouble[name] = NO_TENSOR
        elif self._usable(self._place(name, module, "weight"), weight, input, output):
            with torch.no_grad(), without_autocast(output):
                call = layer_call(module, _plain(input), _plain(output))
            self.function_call(name, module, call, output)

    def function_call(self, name: str, module: nn.Module, call: LayerCall, output: Any) -> None:
        """Watch a call of one of PyTorch's functions, within a layer's own forward pass or the whole of PyTorch's."""
        weight, view = read_from(call.weight)
        weight_name = name_of(module, weight)
        if weight is None or weight_name is None or not weight.is_leaf:
            self.trouble[name] = COMPUTED
        elif self._usable(place := self._place(name, module, weight_name), weight, call.input, output):
            with torch.no_grad(), without_autocast(output):
                form, spec, seen = call_input(replace(call, input=_plain(call.input)))
            other = (place.form, place.view) != (form, view) and place.gathering.watches(weight)
            if other and not runs_pytorchs_forward(module):
                place.left = TWO_WAYS
                return
            bias, _ = (None, None) if call.bias is None else read_from(call.bias)
            place.form, place.view, place.bias = form, view, name_of(module, bias)
            self._watch(place, weight, None if place.bias is None else bias, spec, seen, output)

    def _place(self, layer: str, module: nn.Module, weight: str) -> Place:
        """The entry of a weight, which is added if it is new."""
        key = layer if weight == "weight" else f"{layer}.{weight}"
        if key not in self.places:
            self.places[key] = place = Place(layer, module, weight)
            place.look(self.held)
            if place.parameter not in self.held:  # what stands for a shard in the forward pass, its bias, too
                place.parameter, place.adds_bias = None, True
        return self.places[key]

    def _usable(self, place: Place, weight: Tensor, input: Tensor, output: Tensor) -> bool:
        """Whether a call counts for the statistics."""
        if is_sharded(input) or is_sharded(output):
            place.left = SHARDED
        place.passed_over = place.left not in ("", FROZEN, COMPUTED)
        if place.passed_over or weight.is_complex() or not (output.requires_grad and weight.requires_grad):
            return False
        return bool(input.numel() and output.numel() and has_storage(output))

    def _watch(
        self, place: Place, weight: Tensor, bias: Tensor | None, spec: LayerSpec, input: Tensor, output: Tensor
    ) -> None:
        """Compute the input's statistics, and let the output's gradient add them together with its own."""
        extended = bias is not None and bias.requires_grad and place.adds_bias
        form, gathering, method = place.form, place.gathering, self.method
        if max(place.shape(weight, extended)[1:]) > self.largest:
            return

        def in_order(tensor: Tensor) -> Tensor:
            tensor = _precise(_plain(tensor))
            linear = form is not None and form.kind == "linear"
            return as_sequence(tensor) if linear else tensor.reshape(spec.output_shape)

        with torch.no_grad(), without_autocast(output):
            made = input_sums(spec, _precise(input), method, extended)
            outputs = [output_grad_rows(spec, in_order(output)) / prod(spec.output_size)] if method.outputs else []
        gathering.watch(weight)
        this = weakref.ref(self)

        def note(output_grad: Tensor) -> None:
            if (statistics := this()) is None:
                return
            with torch.no_grad(), without_autocast(output_grad):
                grad = in_order(output_grad)
                moments = Moment(method.rows), Moment(method.rows)
                seen = Seen(*moments, examples=spec.batch_size, outputs=outputs.copy())
                if statistics.counts_terms:
                    seen.terms = (grad != 0).any(1).sum()
                made.into(seen.input)
                output_grad_sums(spec, grad, method).into(seen.output_grad)
                gathering.note(seen, place.parameter)

        output.register_hook(note)


class _Hook:
    """A hook on a layer. Copies and pickles of the model have one in its place that does nothing."""

    def __reduce__(self) -> Any:
        return partial, (_ignore,)


class _Before(_Hook):
    """Observes the calls within a layer's own forward pass."""

    def __init__(self, statistics: Statistics, name: str) -> None:
        self.name = name
        self.contexts: list[LayerCalls | None] = []
        self._statistics = weakref.ref(statistics)

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        context, statistics = None, self.watching(module)
        if statistics is not None and not runs_pytorchs_forward(module):
            statistics.trouble.pop(self.name, None)
            context = LayerCalls(module, partial(self._answer, module), partial(self._told, module))
            context.__enter__()
        self.contexts.append(context)

    def watching(self, module: nn.Module) -> Statistics | None:
        """The statistics, if a call counts."""
        statistics = self._statistics()
        counts = statistics is not None and statistics.active and module.training and torch.is_grad_enabled()
        return statistics if counts else None

    def _answer(self, module: nn.Module, call: LayerCall) -> Tensor:
        output = call.run()
        self._told(module, call, output)
        return output

    def _told(self, module: nn.Module, call: LayerCall, output: Tensor) -> None:
        if (statistics := self.watching(module)) is not None:
            statistics.function_call(self.name, module, call, output)


class _After(_Hook):
    """Observes a layer's call as a whole."""

    def __init__(self, before: _Before) -> None:
        self._before = before

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        compiled = torch.compiler.is_compiling()
        if (
            not compiled or self._before.watching(module) is not None
        ):  # a graph that is made where nothing is gathered stays whole
            self._see(module, arguments[0] if arguments else named.get("input"), output, compiled)

    @graph_break("randbp: factors are gathered outside of graphs")
    def _see(self, module: nn.Module, input: Any, output: Any, compiled: bool) -> None:
        context = self._before.contexts.pop() if self._before.contexts and not compiled else None
        if context is not None:
            take_from_stack(context)
        name, statistics = self._before.name, self._before.watching(module)
        if statistics is None or output is None:  # it raised
            return
        statistics.called.add(name)
        if runs_pytorchs_forward(module):
            statistics.module_call(name, module, input, output)
        elif compiled:
            statistics.trouble[name] = COMPILED


def _ignore(*_: Any) -> None:
    """Replaces a hook in a copy of the model."""


def _plain(tensor: Tensor) -> Tensor:
    """Detach a tensor and drop its subclass: what is kept must not depend on a user's type."""
    return tensor.detach().as_subclass(Tensor)


def _precise(tensor: Tensor) -> Tensor:
    """Convert a tensor to single precision at least, since sums over positions overflow 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
