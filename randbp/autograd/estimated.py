"""A layer with an exact forward pass and estimated VJPs."""

from typing import Any

import torch
from torch import Tensor

from .._torch.graph_break import graph_break
from .._torch.hooks import apart_from_modes, transformed, without_autocast
from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..draws.seeds import SeedStream
from ..estimators import Estimator
from ..layers.functions import LayerFunction
from .call import Call, Pair, Tensors, check_estimator, checked_call, gradients, is_estimated
from .compiled import compiled
from .fastest import fastest
from .transforms import explain, not_transformed


def estimated(
    function: LayerFunction,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    stream: SeedStream,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A layer whose backward pass is estimated; PyTorch's own where nothing is to be estimated.

    Tensors are as PyTorch's function takes them; the bias gradient is exact. The stream, or the generator if there is
    one, supplies the seed that determines the sample.

    Raises:
        ValueError: If shapes and hyper-parameters do not fit together, an estimator does not serve its VJP, or a tensor
            is complex.
        RuntimeError: While a CUDA graph is captured, or within a transform of ``torch.func``.
    """
    tensors, estimators = (x, weight, bias), (weight_vjp, input_vjp)
    if torch.compiler.is_compiling():
        y = _traced(function, tensors, estimators, stream, generator)
    else:
        with apart_from_modes(*tensors):
            y = _eager(function, tensors, estimators, stream, generator)
    return function.native(x, weight, bias) if y is None else y


def _eager(
    function: LayerFunction, tensors: Tensors, estimators: Pair, stream: SeedStream, generator: torch.Generator | None
) -> Tensor | None:
    """:func:`estimated` in eager mode; ``None`` where PyTorch's own layer is to run."""
    x, weight, bias = tensors
    arguments = function, x.shape, weight.shape, None if bias is None else bias.shape, *estimators
    call = checked_call(*arguments)
    if not is_estimated(x, weight, call.weight_vjp, call.input_vjp):
        return None
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        cast = _cast(*tensors)
        with without_autocast(x):
            return _eager(function, cast, estimators, stream, generator)
    if x.dim() < weight.dim() > 2:
        y = _eager(function, (x.unsqueeze(0), weight, bias), estimators, stream, generator)
        return None if y is None else y.squeeze(0)
    seed = stream.next(generator)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{function.title}: a captured CUDA graph would repeat one sample for ever; "
            'use torch.compile(model, mode="reduce-overhead"), which captures around the draws'
        )
    if transformed():
        raise not_transformed()
    formats = function.is_channels_last(x), function.is_channels_last(weight)
    if any(formats):
        call = checked_call(*arguments, *formats)
    chosen = fastest(_Estimated.apply, call, x, weight, bias) if call.is_chosen_by_layer else call
    if chosen is None:
        return None
    try:
        edge = graph_edge(x) if x.requires_grad else None
        made: Tensor = _Estimated.apply(x, weight, bias, edge, chosen, seed)
        return made
    except RuntimeError as error:
        explain(error, x, weight)
        raise


def _traced(
    function: LayerFunction, tensors: Tensors, estimators: Pair, stream: SeedStream, generator: torch.Generator | None
) -> Tensor | None:
    """:func:`estimated` while ``torch.compile`` traces it; the compiler runs PyTorch's own checks of shapes."""
    x, weight, bias = tensors
    check_estimator("weight_vjp", estimators[0])
    check_estimator("input_vjp", estimators[1])
    if not is_estimated(x, weight, *estimators):
        return None
    if x.dim() < weight.dim() > 2:
        y = _traced(function, (x.unsqueeze(0), weight, bias), estimators, stream, generator)
        return None if y is None else y.squeeze(0)
    if not estimators[0].fixed_size:
        return _apart(function, *tensors, *estimators, stream, generator)
    return compiled(function, _cast(x, weight, bias), estimators, stream.next(generator))


@graph_break("randbp: an estimator that holds a random number of entries is not compiled")
def _apart(*arguments: Any) -> Tensor:
    return estimated(*arguments)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensors:
    """Cast as autocast does, outside of the autograd function, so that casts are differentiated.

    (Tensors without data are on no device that autocasts.)
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(x), cast(weight), None if bias is None else cast(bias)


class _Estimated(torch.autograd.Function):
    """Holds for backward what the estimators need, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, edge: Tensor | None, call: Call, seed: int
    ) -> Tensor:
        y = call.output(x, weight, bias)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held = call.sketch(x, seed) if needs_weight else ()
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), weight if needs_input else None, edge, *held)
        ctx.call = call
        return y

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise not_transformed()

    @staticmethod
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        seed, weight, edge, *held = ctx.saved_tensors
        call: Call = ctx.call
        try:
            with torch.no_grad(), without_autocast(output_grad):
                grads = gradients(ctx.needs_input_grad, call, output_grad, int(seed), weight, tuple(held))
            if torch.is_grad_enabled():
                grads = refuse_second_derivatives(call.function.title, grads, (edge, weight, output_grad))
        except RuntimeError as error:
            explain(error, output_grad)
            raise
        return (*grads, None, None, None)
