"""Which estimators serve a layer where they are chosen by time, and whether PyTorch's own layer is as fast."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..estimators import Estimator, IfFaster
from ..estimators.if_faster import at_hand
from ..estimators.race import GAIN, race
from ..estimators.sizes import BySize
from ..tn import LayerSpec
from .operations import Operation
from .vjps import memory_format_of

Pair = tuple[Estimator, Estimator]

_CHOICES: BySize[Pair | None] = BySize()

CLEAR = (0.85, 0.97)
"""A layer's time over that of PyTorch's own, as its VJPs' alone foretell it: no need to measure below and above."""


def fastest(
    call: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    spec: LayerSpec,
    weight_vjp: Estimator,
    input_vjp: Estimator,
) -> Pair | None:
    """The estimators of both VJPs of a layer after each has chosen for itself; ``None`` for PyTorch's own layer.

    That is the answer if all that is left is exact, and where the chosen pair does not make the layer's forward and
    backward pass faster by a twentieth: PyTorch makes both VJPs and the bias's in one call, which no race of a single
    VJP can know. The whole layer is timed if the VJPs' own times leave that open. What is found out is remembered, and
    serves somewhat smaller batches, too.

    Args:
        call: The layer with estimators, of ``x, weight, bias, operation, spec, weight_vjp, input_vjp, seed``.
        x: Input.
        weight: As PyTorch's function takes it.
        bias: ``[D]`` or ``None``.
        operation: Which layer.
        spec: The same for estimators.
        weight_vjp: Estimator of the weight's gradient.
        input_vjp: Estimator of the input's gradient.
    """
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    given = weight_vjp, input_vjp
    layout = [(tensor.requires_grad, tensor.dtype, memory_format_of(tensor, operation)) for tensor in tensors]
    key = (operation, x.device, *layout, *given)
    if (key, spec) in _CHOICES.known:
        return _CHOICES.known[key, spec]
    return _CHOICES.get(key, spec, lambda: _chosen(call, tensors, operation, spec, given))


def _chosen(
    call: Callable[..., Tensor], tensors: list[Tensor], operation: Operation, spec: LayerSpec, given: Pair
) -> Pair | None:
    x, weight = tensors[:2]
    chosen = list(given)
    with at_hand(operation.channels_second(x), operation.kernel(weight)):
        if weight.requires_grad:
            chosen[0] = given[0].for_layer("weight_vjp", spec, x.dtype, x.device)
        if x.requires_grad:
            chosen[1] = given[1].for_layer("input_vjp", spec, x.dtype, x.device)
    pair = chosen[0], chosen[1]
    needed = [number for number, tensor in enumerate((weight, x)) if tensor.requires_grad]
    if all(chosen[number] is given[number] for number in needed):
        return pair
    if all(chosen[number].exact for number in needed):
        return None
    if x.is_meta or not all(_may_be_exact(given[number], chosen[number]) for number in needed):
        return pair
    foretold = _foretold([given[number] for number in needed], needed, spec, x)
    if foretold is not None and not CLEAR[0] <= foretold <= CLEAR[1]:
        return pair if foretold < CLEAR[0] else None
    return pair if _is_faster(call, tensors, operation, spec, pair) else None


def _may_be_exact(given: Estimator, chosen: Estimator) -> bool:
    """Whether the exact VJP may take the place of what was chosen."""
    return chosen.exact or (chosen is not given and given.fallback is None)


def _foretold(given: list[Estimator], needed: list[int], spec: LayerSpec, x: Tensor) -> float | None:
    """A layer's time over that of PyTorch's own, from races of its VJPs; its forward pass multiplies as much as each.

    ``None`` if there was no such race.
    """
    races = []
    for number, estimator in zip(needed, given, strict=True):
        if not isinstance(estimator, IfFaster) or estimator.exact:
            return None
        races.append(estimator.race(("weight_vjp", "input_vjp")[number], spec, x.dtype, x.device))
    exact = sum(each.exact for each in races)
    forward, chosen = exact / len(races), sum(getattr(each, each.first) for each in races)
    return (chosen + forward) / (exact + forward)


def _is_faster(
    call: Callable[..., Tensor], tensors: list[Tensor], operation: Operation, spec: LayerSpec, pair: Pair
) -> bool:
    """Whether a layer's forward and backward pass gains a twentieth by these estimators."""
    made = []
    for tensor in tensors:
        zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        made.append(zeros.contiguous(memory_format=memory_format_of(tensor, operation)))
    for copy, tensor in zip(made, tensors, strict=True):
        copy.requires_grad_(tensor.requires_grad)
    wanted = [copy for copy in made if copy.requires_grad]
    x, weight, bias = made[0], made[1], made[2] if len(made) > 2 else None
    grad = torch.ones(spec.output_shape, dtype=x.dtype, device=x.device)

    def run(forward: Callable[..., Tensor], *arguments: Any) -> None:
        with torch.enable_grad():
            y = forward(x, weight, bias, *arguments)
            torch.autograd.grad(y, wanted, grad.view(y.shape))

    _, (_, ratio) = race([lambda: run(operation.native), lambda: run(call, operation, spec, *pair, 0)], x.device)
    return ratio <= GAIN
