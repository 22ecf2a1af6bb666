"""The calls of PyTorch's layer functions that a module's own forward pass makes, seen as they happen."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from .functions import Convolution, LayerFunction, Linear, Product, TransposedConvolution
from .rule import own_parameters

NODES = 256
"""Most operations between parameters and a weight that is made from them."""


@dataclass(frozen=True)
class LayerCall:
    """A call of one of PyTorch's layer functions.

    Attributes:
        function: The function with its hyper-parameters.
        input: ``[N, C, *I]``, for a linear layer ``[N, *sequence, C]``; either may come without a batch.
        weight: ``[D, C / groups, *K]``, ``[C, D / groups, *K]`` or ``[D, C]``, as in PyTorch's modules.
        bias: ``[D]`` or ``None``.
        run: Computes what PyTorch returns.
    """

    function: LayerFunction
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    run: Callable[[], Tensor]


Answer = Callable[[LayerCall], Tensor]
Run = Callable[[], Tensor]
Parse = Callable[..., LayerCall | None]
"""Reads a call from what runs it and its arguments; ``None`` if it is not a layer's."""


def answered(call: LayerCall, output: Tensor) -> Tensor:
    """Return the output of a call that PyTorch's function did not answer, and hide the call from outer contexts."""
    if has_torch_function((output,)):  # there is an outer context
        seen: Tensor = handle_torch_function(answered, (output,), call, output)
        return seen
    return output


def parsed(func: Any, args: Any, kwargs: Any) -> LayerCall | None:
    """Read a call of any function of PyTorch; ``None`` if it is not a layer function's, or a wrong one.

    Example:
        >>> call = parsed(F.conv1d, (torch.ones(1, 2, 3), torch.ones(4, 2, 1)), {"stride": 2})
        >>> call.function, call.run().shape
        (Convolution(geometry=(2, 0, 1, 1)), torch.Size([1, 4, 2]))
    """
    parse = _PARSERS.get(func)
    if parse is None:
        return None
    with suppress(TypeError, AttributeError, ValueError):  # PyTorch's own function says what is wrong
        call = parse(lambda: func(*args, **kwargs), *args, **kwargs)
        return call if call is not None and isinstance(call.input, Tensor) else None
    return None


class LayerCalls(TorchFunctionMode):
    """A context that answers calls of layer functions whose weight is made from a module's own parameters.

    Such a weight is one of the parameters that the module itself has, or was computed from these alone: standardised,
    masked, padded, or parametrised. All other calls, and all calls without grad mode, are PyTorch's.

    Args:
        module: Whose parameters count.
        answer: Gets the call and returns its result.
        watch: Gets calls, and their results, that an inner context has :func:`answered`.

    Example:
        >>> class Standardised(nn.Linear):
        ...     def forward(self, input):
        ...         return F.linear(input, self.weight - self.weight.mean(), self.bias)
        >>> layer, seen = Standardised(3, 2), []
        >>> with LayerCalls(layer, lambda call: seen.append(call.function) or call.run()):
        ...     y = layer(torch.ones(1, 3))
        ...     _ = F.linear(y, torch.ones(1, 2))
        >>> seen
        [Linear(geometry=())]
    """

    def __init__(
        self, module: nn.Module, answer: Answer, watch: Callable[[LayerCall, Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self._watch = watch
        self._own = {id(parameter): parameter for _, parameter in own_parameters(module)}
        self._answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and (call := parsed(func, args, kwargs)) and self._made_from_own(call.weight):
            return self._answer(call)
        if func is answered and self._watch is not None and self._made_from_own(args[0].weight):
            self._watch(*args)
        return func(*args, **kwargs)

    def _made_from_own(self, weight: Tensor) -> bool:
        if id(weight) in self._own:
            return True
        node = weight.grad_fn if isinstance(weight, Tensor) else None
        if node is None:
            return False
        nodes, seen = [node], {node}
        for node in nodes:  # grows
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in self._own:
                return False
            new = {following for following, _ in node.next_functions if following is not None} - seen
            seen |= new
            nodes += new
            if len(nodes) > NODES:
                return False
        return any(hasattr(node, "variable") for node in nodes)


def _of_function(kind: type[LayerFunction]) -> Parse:
    """Read a call of ``F.conv*``, ``F.conv_transpose*``, whose arguments after the bias are hyper-parameters."""

    def parse(
        run: Run, input: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
    ) -> LayerCall | None:
        names = tuple(kind.usual)
        if len(more) > len(names) or not named.keys() <= set(names[len(more) :]):
            return None
        given = dict(zip(names, more, strict=False)) | named
        return LayerCall(kind.of(**{**kind.usual, **given}), input, weight, bias, run)

    return parse


def _either(
    run: Run,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> LayerCall | None:
    more = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        return _of_function(TransposedConvolution)(run, input, weight, bias, output_padding=output_padding, **more)
    return _of_function(Convolution)(run, input, weight, bias, **more)


def _linear(run: Run, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LayerCall | None:
    return _matrix(Linear(), run, input, weight, bias)


def _addmm(
    run: Run, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> LayerCall | None:
    if beta != 1 or alpha != 1 or input.dim() != 1 or len(input) != mat2.shape[-1]:
        return None
    return _product(run, mat1, mat2, input)


def _product(run: Run, input: Tensor, matrix: Tensor, bias: Tensor | None = None) -> LayerCall | None:
    return _matrix(Product(), run, input, matrix.t(), bias) if matrix.dim() == 2 else None


def _matrix(function: LayerFunction, run: Run, input: Tensor, weight: Tensor, bias: Tensor | None) -> LayerCall | None:
    if weight.dim() != 2 or not input.numel() or not weight.numel():  # one output, or nothing to estimate
        return None
    return LayerCall(function, input, weight, bias, run)


_PARSERS: dict[Any, Parse] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _of_function(Convolution)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _of_function(TransposedConvolution)),
    torch.convolution: _either,
    F.linear: _linear,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.mm, Tensor.mm), lambda run, input, mat2: _product(run, input, mat2)),
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__), lambda run, input, other: _product(run, input, other)
    ),
}
