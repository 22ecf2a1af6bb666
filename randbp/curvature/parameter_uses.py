"""How a network's output depends on each of its parameters: one frozen object per use, seen in one forward pass."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import tn
from .._torch.hooks import without_autocast
from ..layers import LayerCall, parsed
from ..layers.functions import LayerFunction, spec_of
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec
from .batched_data import called
from .broadcast_parameters import broadcast_layout, in_order_of
from .places import View, read_from


@dataclass(frozen=True, eq=False)
class Output:
    """An operation's output in the graph of a forward pass.

    Attributes:
        edge: What stands for it in ``torch.autograd.grad``, whatever changed it in place later.
        shape: The output's.
    """

    edge: GradientEdge
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Use:
    """A use of a parameter by an operation.

    Attributes:
        parameter: The parameter.
        output: The operation's output.
    """

    parameter: nn.Parameter
    output: Output

    @property
    def examples(self) -> int:
        """Number of examples that the operation sees."""
        raise NotImplementedError

    def part(self, examples: slice) -> Self:
        """The same use by some of the examples."""
        raise NotImplementedError

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Pull cotangents of the output ``[V, N, …]`` back to the parameter, per example: ``[V, N, *parameter]``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class WeightUse(Use):
    """A weight of a convolution (1- to 3-d, grouped, transposed) or of a linear layer (also over tokens).

    Attributes:
        function: The layer function.
        spec: The layer.
        input: ``[N, C, *I]``.
        view: The order in which the layer reads the parameter; ``None`` for the parameter's own.
    """

    function: LayerFunction
    spec: LayerSpec
    input: Tensor
    view: View | None

    @property
    def examples(self) -> int:
        """Number of examples that the layer sees."""
        batch: int = self.spec.batch_size
        return batch

    def part(self, examples: slice) -> Self:
        """The same use by some of the examples."""
        input = self.input[examples]
        return replace(self, input=input, spec=replace_batch(self.spec, len(input)))

    def output_grads(self, cotangents: Tensor) -> Tensor:
        """Cotangents as networks of :mod:`randbp.tn` take them: ``[V, N, D, *O]``."""
        return self.function.channels_second(cotangents.flatten(0, 1)).reshape(len(cotangents), *self.spec.output_shape)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """The per-example weight VJP, contracted without unfolding anything."""
        net = tn.per_example_weight_vjp(self.spec).with_leg("v", len(cotangents), "output_grad")
        made = net.contract(input=self.input, output_grad=self.output_grads(cotangents))
        if (view := self.view) is None:
            return made.reshape(*made.shape[:2], *self.parameter.shape)
        each = [view.back(one.reshape(view.size), self.parameter) for one in made.flatten(0, 1)]
        return torch.stack(each).unflatten(0, made.shape[:2])


@dataclass(frozen=True, eq=False)
class AffineUse(Use):
    """A factor or a summand of each channel: affine parameters of norms, biases.

    Attributes:
        layout: ``(N, A, P, B)``: the output seen as examples, positions, the parameter's entries, positions.
        values: What a factor multiplies, in that layout; ``None`` for a summand.
    """

    layout: tuple[int, int, int, int]
    values: Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples that the operation sees."""
        return self.layout[0]

    def part(self, examples: slice) -> Self:
        """The same use by some of the examples."""
        count = len(range(self.examples)[examples])
        values = None if self.values is None else self.values[examples]
        return replace(self, layout=(count, *self.layout[1:]), values=values)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """``Σ_ab v`` or ``Σ_ab v x``."""
        laid = cotangents.reshape(len(cotangents), *self.layout)
        made = laid.sum((2, 4)) if self.values is None else torch.einsum("vnapb,napb->vnp", laid, self.values)
        return made.reshape(*made.shape[:2], *self.parameter.shape)


@dataclass(frozen=True, eq=False)
class EmbeddingUse(Use):
    """A table of which rows are looked up.

    Attributes:
        index: Numbers of the rows ``[N, T]``.
        unused: The number of a row that takes no gradient, or ``None``.
        rows: How many rows there are.
    """

    index: Tensor
    unused: int | None
    rows: int

    @property
    def examples(self) -> int:
        """Number of examples that the table serves."""
        return len(self.index)

    def part(self, examples: slice) -> Self:
        """The same use by some of the examples."""
        return replace(self, index=self.index[examples])

    def among(self, rows: Tensor) -> Self:
        """The same use of a table of some rows, sorted numbers among which are all that are looked up."""
        unused = None if self.unused is None else (rows == self.unused).nonzero().flatten().tolist()
        return replace(self, index=torch.searchsorted(rows, self.index), unused=(unused or [None])[0], rows=len(rows))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Sums of the cotangents of all lookups of a row."""
        rows = cotangents.reshape(len(cotangents), *self.index.shape, -1)
        if self.unused is not None:
            rows = rows * (self.index != self.unused).unsqueeze(2)
        made = rows.new_zeros(*rows.shape[:2], self.rows, rows.shape[3])
        index = self.index.view(1, *self.index.shape, 1).expand_as(rows)
        return made.scatter_add_(2, index, rows)


@dataclass(frozen=True)
class Recording:
    """What one forward pass has shown.

    Attributes:
        output: The model's, with its graph.
        uses: The uses of parameters that need a gradient, in the order of the pass.
    """

    output: Any
    uses: tuple[Use, ...]


def record(model: nn.Module, inputs: Any) -> Recording:
    """Run a model, and note how its output depends on those parameters that need a gradient.

    Noted are weights and biases of convolutions and linear layers, affine parameters of norms, tables, and factors and
    summands that are broadcast over examples. Other uses are not: those by other functions, of tables with ``max_norm``
    or ``scale_grad_by_freq``, of weights that are computed from parameters, and of layers with estimated VJPs in
    training mode.

    Raises:
        ValueError: If a batch norm takes its statistics from the batch, since then no gradient is one example's own.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6, 4, bias=False))
        >>> found = record(model, torch.ones(5, 2, 4))
        >>> [(type(use).__name__, tuple(use.parameter.shape)) for use in found.uses]
        [('WeightUse', (3, 2, 3)), ('AffineUse', (3,)), ('WeightUse', (4, 6))]
        >>> found.uses[1].vjp(torch.ones(7, 5, 3, 2)).shape
        torch.Size([7, 5, 3])
    """
    recorder = _Recorder(model)
    with torch.enable_grad(), recorder:
        output = called(model, inputs)
    return Recording(output, tuple(recorder.uses))


class _Recorder(TorchFunctionMode):
    """Sees all functions of PyTorch that a forward pass calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._wanted = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return output
        note: Callable[[Output], None] | None = None
        if (call := parsed(func, args, kwargs)) is not None:
            note = self._layer(call)
        elif func in _ELEMENTWISE and len(args) == 2 and not kwargs:
            note = self._broadcast(_ELEMENTWISE[func], args[0], args[1])
        elif (noted := _NOTED.get(func)) is not None:
            with suppress(TypeError):
                given = signature(func).bind(*args, **kwargs)
                given.apply_defaults()
                note = noted(self, func, given.arguments)
        if note is None or not output.requires_grad:
            return output
        if output._is_view():  # an operation in place would give it another node
            output = output.clone()
        with torch.no_grad(), without_autocast(output):
            note(Output(get_gradient_edge(output), tuple(output.shape)))
        return output

    def _found(self, tensor: Any) -> tuple[nn.Parameter | None, View | None]:
        """The parameter of which a tensor is a view of all entries, if it is one that is wanted."""
        parameter, view = read_from(tensor) if isinstance(tensor, Tensor) else (None, None)
        return (parameter, view) if id(parameter) in self._wanted else (None, None)  # type: ignore[return-value]

    def _layer(self, call: LayerCall) -> Callable[[Output], None] | None:
        weight, view = self._found(call.weight)
        bias, _ = self._found(call.bias)
        if weight is None and bias is None:
            return None

        def note(output: Output) -> None:
            spec = spec_of(call.function, tuple(call.input.shape), tuple(call.weight.shape))
            if weight is not None:
                seen = precise(call.function.channels_second(call.input.detach())).reshape(spec.input_shape)
                self.uses.append(WeightUse(weight, output, call.function, spec, seen, view))
            if bias is not None:
                channels, positions = spec.out_channels, prod(spec.output_size)
                last = call.function.kind == "linear"
                layout = (spec.batch_size, *((positions, channels, 1) if last else (1, channels, positions)))
                self.uses.append(AffineUse(bias, output, layout))

        return note

    def _broadcast(self, factor: bool, left: Any, right: Any) -> Callable[[Output], None] | None:
        parameter, view = self._found(left)
        own, other = (left, right) if parameter is not None else (right, left)
        if parameter is None:
            parameter, view = self._found(right)
        if parameter is None or not isinstance(other, Tensor) or not in_order_of(view, parameter):
            return None

        def note(output: Output) -> None:
            if (layout := broadcast_layout(tuple(output.shape), tuple(own.shape))) is not None:
                values = precise(other.detach()).expand(output.shape).reshape(layout) if factor else None
                self.uses.append(AffineUse(parameter, output, layout, values))

        return note

    def _norm(self, func: Any, given: Mapping[str, Any]) -> Callable[[Output], None] | None:
        if func is F.batch_norm and (given["training"] or given["running_mean"] is None):
            raise ValueError("model: a batch norm takes its statistics from the batch: call model.eval() before")
        weight, bias = self._found(given["weight"])[0], self._found(given.get("bias"))[0]
        if weight is None and bias is None:
            return None
        input = given["input"].detach()

        def note(output: Output) -> None:
            shape = output.shape
            if "normalized_shape" in given:
                own = len(given["normalized_shape"])
                layout = (shape[0], prod(shape[1:-own]), prod(shape[-own:]), 1)
            else:
                layout = (shape[0], 1, shape[1], prod(shape[2:]))
            if weight is not None:
                plain = dict(given) | {"input": precise(input)} | {n: None for n in ("weight", "bias") if n in given}
                if given.get("use_input_stats"):
                    plain |= {"running_mean": None, "running_var": None}  # they are updated already
                self.uses.append(AffineUse(weight, output, layout, func(**plain).reshape(layout)))
            if bias is not None:
                self.uses.append(AffineUse(bias, output, layout))

        return note

    def _embedding(self, func: Any, given: Mapping[str, Any]) -> Callable[[Output], None] | None:
        weight, view = self._found(given["weight"])
        if weight is None or view is not None or given["max_norm"] is not None or given["scale_grad_by_freq"]:
            return None
        index, unused = given["input"].long().reshape(len(given["input"]), -1), given["padding_idx"]
        if unused is not None:
            unused %= len(weight)
        return lambda output: self.uses.append(EmbeddingUse(weight, output, index, unused, len(weight)))


_ELEMENTWISE = dict.fromkeys((torch.mul, Tensor.mul), True) | dict.fromkeys((torch.add, Tensor.add), False)
"""Whether a parameter is a factor or a summand."""

_NOTED: dict[Any, Callable[[_Recorder, Any, Mapping[str, Any]], Callable[[Output], None] | None]] = {
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm), _Recorder._norm),
    F.embedding: _Recorder._embedding,
}
"""Functions other than those of layers whose parameters are noted."""


def precise(tensor: Tensor) -> Tensor:
    """Convert a tensor to single precision at least, since sums over positions overflow 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
