"""Code shared by the functions of all layers: when to estimate, and with which seed."""

from typing import Any

import torch
from torch import Tensor

from .._torch.graph_break import graph_break
from .._torch.hooks import hooks_in_force
from ..autograd import Linear, Operation, draw_seed, estimated
from ..draws.draw import seed_from
from ..draws.recomputation import Recomputation
from ..draws.seeds import default_stream
from ..estimators import Estimator
from ..estimators.base import Vjp
from ..layers.integers import as_integer, as_integers

IntOrTuple = int | tuple[int, ...]


def call(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    generator: torch.Generator | None,
) -> Tensor:
    """Run a layer with estimators, or PyTorch's own where nothing is estimated."""
    check_estimator("weight_vjp", weight_vjp)
    check_estimator("input_vjp", input_vjp)
    if not torch.compiler.is_compiling():  # the compiler runs PyTorch's own checks
        spec = operation.spec(x.shape, weight.shape)
        if bias is not None and bias.shape != (spec.out_channels,):
            raise ValueError(f"bias: shape {tuple(bias.shape)}, expected ({spec.out_channels},)")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={generator!r}: expected a torch.Generator or None")
    if not is_estimated(x, weight, weight_vjp, input_vjp):
        return operation.native(x, weight, bias)
    return estimated_call(operation, x, weight, bias, weight_vjp, input_vjp, _seed(generator))


_recomputation = Recomputation()
"""The recorded seeds of all calls, whatever their generators."""


def _seed(generator: torch.Generator | None) -> int | Tensor:
    if not torch.compiler.is_compiling():
        new = default_stream.next if generator is None else lambda: seed_from(generator)
        return _recomputation.seed(new, hooks_in_force())
    if generator is not None:
        return _seed_from(generator)
    return draw_seed(default_stream.clock.tensor, default_stream.place.tensor)


@graph_break("randbp: a generator has no graph")
def _seed_from(generator: torch.Generator) -> Tensor:
    return torch.tensor(seed_from(generator))


def estimated_call(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int | Tensor,
) -> Tensor:
    """Run an estimated layer on checked arguments, with or without a batch dimension."""
    if x.is_complex() or weight.is_complex():
        raise ValueError(f"x: dtype {x.dtype}, expected a real floating dtype where a VJP is estimated")
    if isinstance(operation, Linear) or x.dim() == weight.dim():
        return estimated(x, weight, bias, operation, weight_vjp, input_vjp, seed)
    return estimated(x.unsqueeze(0), weight, bias, operation, weight_vjp, input_vjp, seed).squeeze(0)


def may_be_estimated(x: Tensor, weight_vjp: Estimator, input_vjp: Estimator) -> bool:
    """Whether :func:`is_estimated` can be true for some weight; if not, the layer is PyTorch's."""
    return torch.is_grad_enabled() and not (weight_vjp.exact and input_vjp.exact) and x.numel() > 0


def is_estimated(x: Tensor, weight: Tensor, weight_vjp: Estimator, input_vjp: Estimator) -> bool:
    """Whether the backward pass would compute or hold anything else than PyTorch's."""
    if not may_be_estimated(x, weight_vjp, input_vjp):
        return False
    # With a frozen weight nothing of the input need be held, which PyTorch's own layer would.
    estimates_weight = not weight_vjp.exact and (weight.requires_grad or x.requires_grad)
    return estimates_weight or (not input_vjp.exact and x.requires_grad)


def check_estimator(name: Vjp, estimator: object) -> None:
    """Raise ``ValueError`` unless ``estimator`` is an estimator that serves the VJP called ``name``."""
    if not isinstance(estimator, Estimator):
        raise ValueError(f"{name}={estimator!r}: expected an estimator such as Spatial(keep=0.25) or Exact()")
    estimator.check_serves(name)


MOST = 2**63
"""PyTorch takes integers below this size only."""


def as_tuple(name: str, value: Any) -> Any:
    """Return an integer or name unchanged, and a sequence of integers as a tuple.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST):
        return value
    number = as_integer(value)
    found = as_integers(value) if number is None else number
    if found is None or any(abs(one) >= MOST for one in ([found] if isinstance(found, int) else found)):
        raise ValueError(f"{name}={value!r}: expected an integer or one per dimension")
    return found


def checked_groups(groups: object) -> int:
    """Return a number of groups as an ``int``.

    Raises:
        ValueError: If it is not a positive integer.
    """
    number = groups if type(groups) is int else as_integer(groups)
    if number is None or not 1 <= number < MOST:
        raise ValueError(f"groups={groups!r}: expected a positive integer")
    return number


def check_tensors(x: object, weight: object, bias: object) -> None:
    """Raise ``ValueError`` unless these are tensors; the bias may be ``None``."""
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise ValueError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
