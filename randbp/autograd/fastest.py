"""Decide which estimators serve a layer where time decides, and whether PyTorch's own layer is as fast."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._torch.second_derivatives import graph_edge
from ..estimators import Estimator, IfFaster
from ..estimators.base import Vjp
from ..estimators.if_faster import at_hand
from ..estimators.race import GAIN, race
from ..estimators.sizes import BySize
from .call import FORMATS, Call, Pair

Run = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Call, int], Tensor]
"""Runs a layer with estimators: a function of input, weight, bias, the input's edge of the graph, call and seed."""

_CHOICES: BySize[Pair | None] = BySize()

CLEAR = (0.85, 0.97)
"""Below the first ratio of a layer's time to that of PyTorch's own, as foretold by its VJPs alone, the estimators serve
without a measurement; above the second one, PyTorch's layer does."""

_NAMES: tuple[tuple[int, Vjp], ...] = ((1, "weight_vjp"), (0, "input_vjp"))
"""Which tensor each VJP belongs to, as a place in ``x, weight``."""


def fastest(run: Run, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Call | None:
    """Let both estimators of a layer choose for themselves; ``None`` means that PyTorch's own layer should run.

    It should if the choice is exact for both VJPs, and if the chosen pair does not make the layer's forward and
    backward pass faster by a twentieth: PyTorch computes both VJPs and the bias's in one call, which no race of a
    single VJP can know. The layer is timed if the times of its VJPs leave that open. The answer is remembered,
    and serves somewhat smaller batches, too.
    """
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    layout = [(tensor.requires_grad, tensor.dtype) for tensor in tensors]
    given = call.weight_vjp, call.input_vjp
    key = (call.function, call.input_last, call.weight_last, x.device, *layout, *given)
    pair = _CHOICES.get(key, call.spec, lambda: _chosen(run, call, tensors))
    if pair is None or (pair[0] is given[0] and pair[1] is given[1]):
        return pair and call
    return call.using(*pair)


def _chosen(run: Run, call: Call, tensors: list[Tensor]) -> Pair | None:
    x, weight = tensors[:2]
    given: dict[Vjp, Estimator] = {"weight_vjp": call.weight_vjp, "input_vjp": call.input_vjp}
    needed = [name for place, name in _NAMES if tensors[place].requires_grad]
    with at_hand(call.function.channels_second(x), call.function.kernel(weight)):
        chosen = {name: given[name].for_layer(name, call.spec, x.dtype, x.device) for name in needed}
    found = given | chosen
    pair = found["weight_vjp"], found["input_vjp"]
    if all(chosen[name] is given[name] for name in needed):
        return pair
    if all(chosen[name].exact for name in needed):
        return None
    free = [each.exact or (each is not given[n] and given[n].fallback is None) for n, each in chosen.items()]
    if x.is_meta or not all(free):  # the exact VJP may not take the place of what was chosen
        return pair
    foretold = _foretold({name: given[name] for name in needed}, call, x)
    if foretold is not None and not CLEAR[0] <= foretold <= CLEAR[1]:
        return pair if foretold < CLEAR[0] else None
    return pair if _is_faster(run, call.using(*pair), tensors) else None


def _foretold(given: dict[Vjp, Estimator], call: Call, x: Tensor) -> float | None:
    """The ratio of a layer's time to that of PyTorch's own, from races of its VJPs; ``None`` if there was no such race.

    The forward pass multiplies as much as each VJP.
    """
    races = []
    for name, estimator in given.items():
        if not isinstance(estimator, IfFaster) or estimator.exact:
            return None
        races.append(estimator.race(name, call.spec, x.dtype, x.device))
    exact = sum(each.exact for each in races)
    forward, chosen = exact / len(races), sum(getattr(each, each.first) for each in races)
    return (chosen + forward) / (exact + forward)


def _is_faster(run: Run, call: Call, tensors: list[Tensor]) -> bool:
    """Whether a layer's forward and backward pass gains a twentieth by these estimators."""
    made = []
    for tensor, last in zip(tensors, (call.input_last, call.weight_last, False), strict=False):
        zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        made.append(zeros.contiguous(memory_format=FORMATS[last]).requires_grad_(tensor.requires_grad))
    wanted = [copy for copy in made if copy.requires_grad]
    x, weight, bias = made[0], made[1], made[2] if len(made) > 2 else None
    grad = torch.ones(call.spec.output_shape, dtype=x.dtype, device=x.device)

    def timed(forward: Callable[[], Tensor]) -> Any:
        def step() -> None:
            with torch.enable_grad():
                y = forward()
                torch.autograd.grad(y, wanted, grad.view(y.shape))

        return step

    native, estimated = (
        lambda: call.function.native(x, weight, bias),
        lambda: run(x, weight, bias, graph_edge(x), call, 0),
    )
    _, (_, ratio) = race([timed(native), timed(estimated)], x.device)
    return ratio <= GAIN
