"""Hooks that observe the calls of a model's layers, and know each layer's weights."""

import weakref
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.graph_break import graph_break
from .._torch.hooks import take_from_stack, without_autocast
from .._torch.state import has_storage
from ..layers import LayerCall, LayerCalls, own_parameters, runs_pytorchs_forward
from ..layers.layer_specs import as_sequence
from ..tn import LayerSpec
from .places import COMPUTED, FROZEN, SHARDED, TWO_WAYS, Place, name_of, read_from
from .sharding import is_sharded
from .weight_matrices import Form, call_input, layer_call

NO_TENSOR = "its input or output is not a tensor"
COMPILED = "its forward pass is its own and compiled"


class LayerHooks:
    """Observes calls of layers while :meth:`counts` says so; a subclass says in :meth:`watch` what it wants of them.

    Args:
        layers: The layers by name.

    Attributes:
        held: The parameters whose curvature is wanted.
        places: The weights of these layers, by name; those of layers with a forward pass of their own once they run.
        called: Layers that ran while calls counted.
        trouble: Why a part of the last call of a layer could not be used, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module], held: Container[Tensor] = ()) -> None:
        self.removed = False
        self.held = held
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

    def counts(self, module: nn.Module) -> bool:
        """Whether a module's call counts now."""
        raise NotImplementedError

    def watch(
        self, place: Place, weight: Tensor, bias: Tensor | None, spec: LayerSpec, input: Tensor, output: Tensor
    ) -> None:
        """Take what is wanted of a call.

        Args:
            place: The weight's.
            weight, bias: The parameters; ``bias`` is ``None`` if the layer adds none of its own.
            spec: The layer.
            input: ``[N, C, *I]``, detached.
            output: What the layer returned, with its graph.
        """
        raise NotImplementedError

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
                call = layer_call(module, plain(input), plain(output))
            self.function_call(name, module, call, output)

    def function_call(self, name: str, module: nn.Module, call: LayerCall, output: Any) -> None:
        """Watch a call of one of PyTorch's functions, within a layer's own forward pass or the whole of PyTorch's."""
        weight, view = read_from(call.weight)
        weight_name = name_of(module, weight)
        if weight is None or weight_name is None or not weight.is_leaf:
            self.trouble[name] = COMPUTED
        elif self._usable(place := self._place(name, module, weight_name), weight, call.input, output):
            with torch.no_grad(), without_autocast(output):
                form, spec, seen = call_input(replace(call, input=plain(call.input)))
            other = (place.form, place.view) != (form, view) and place.gathering.watches(weight)
            if other and not runs_pytorchs_forward(module):
                place.left = TWO_WAYS
                return
            bias, _ = (None, None) if call.bias is None else read_from(call.bias)
            place.form, place.view, place.bias = form, view, name_of(module, bias)
            self.watch(place, weight, None if place.bias is None else bias, spec, seen, output)

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
        if place.parameter is not None and weight is not place.parameter and not is_sharded(place.parameter):
            return False  # another tensor in the parameter's place, as by torch.func.functional_call
        if is_sharded(input) or is_sharded(output):
            place.left = SHARDED
        place.passed_over = place.left not in ("", FROZEN, COMPUTED)
        if place.passed_over or weight.is_complex() or not (output.requires_grad and weight.requires_grad):
            return False
        return bool(input.numel() and output.numel() and has_storage(output))


def extends(place: Place, bias: Tensor | None) -> bool:
    """Whether a layer's bias is one more column of its weight."""
    return bias is not None and bias.requires_grad and place.adds_bias


def source_of(output: Tensor) -> Tensor:
    """The tensor whose node in the graph a layer's output has, whatever changes the output in place later.

    ``F.linear`` returns a view of its product, which gets another node then, unlike the product.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> [source_of(layer(torch.ones(shape))).shape for shape in ((4, 3), (4, 5, 3))]
        [torch.Size([4, 2]), torch.Size([20, 2])]
    """
    base: Any = output._base
    whole = base is not None and base.requires_grad and base.numel() == output.numel()
    return base if whole and base.is_contiguous() and output.is_contiguous() else output


def channels_second(form: Form | None, spec: LayerSpec, tensor: Tensor) -> Tensor:
    """A layer's output, or its gradient, as ``[N, D, *O]``, detached and in single precision at least."""
    tensor = precise(plain(tensor))
    linear = form is not None and form.kind == "linear"
    return as_sequence(tensor) if linear else tensor.reshape(spec.output_shape)


class _Hook:
    """A hook on a layer. Copies and pickles of the model have one in its place that does nothing."""

    def __reduce__(self) -> Any:
        return partial, (_ignore,)


class _Before(_Hook):
    """Observes the calls within a layer's own forward pass."""

    def __init__(self, hooks: LayerHooks, name: str) -> None:
        self.name = name
        self.contexts: list[LayerCalls | None] = []
        self._hooks = weakref.ref(hooks)

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        context, hooks = None, self.watching(module)
        if hooks is not None and not runs_pytorchs_forward(module):
            hooks.trouble.pop(self.name, None)
            context = LayerCalls(module, partial(self._answer, module), partial(self._told, module))
            context.__enter__()
        self.contexts.append(context)

    def watching(self, module: nn.Module) -> LayerHooks | None:
        """The hooks, if a call counts."""
        hooks = self._hooks()
        return hooks if hooks is not None and hooks.counts(module) else None

    def _answer(self, module: nn.Module, call: LayerCall) -> Tensor:
        output = call.run()
        self._told(module, call, output)
        return output

    def _told(self, module: nn.Module, call: LayerCall, output: Tensor) -> None:
        if (hooks := self.watching(module)) is not None:
            hooks.function_call(self.name, module, call, output)


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
        name, hooks = self._before.name, self._before.watching(module)
        if hooks is None or output is None:  # it raised
            return
        hooks.called.add(name)
        if runs_pytorchs_forward(module):
            hooks.module_call(name, module, input, output)
        elif compiled:
            hooks.trouble[name] = COMPILED


def _ignore(*_: Any) -> None:
    """Replaces a hook in a copy of the model."""


def plain(tensor: Tensor) -> Tensor:
    """Detach a tensor and drop its subclass: what is kept must not depend on a user's type."""
    return tensor.detach().as_subclass(Tensor)


def precise(tensor: Tensor) -> Tensor:
    """Convert a tensor to single precision at least, since sums over positions overflow 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
