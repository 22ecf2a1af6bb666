"""Comparing a function with its lean self."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from randbp.lean import make_lean
from randbp.randomize.layers import Clock

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "float64": Tensor.double,
    "bfloat16": Tensor.bfloat16,
}


class Listens(TorchFunctionMode):
    """A mode that keeps the functions that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Call(nn.Module):
    """A module whose forward pass is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def lean(function: Callable[..., Any], level: Any = "exact", bits: int = 4, seed: int = 0) -> Callable[..., Any]:
    """A function that runs lean."""
    model = Call(function)
    make_lean(model, level, bits, Clock(seed).state)
    return model


def values_and_grads(function: Callable[..., Any], *inputs: Tensor, seed: int = 0) -> list[Tensor]:
    """Outputs, and the gradients of an uneven sum of them with respect to the inputs that want one."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for each absent accelerator
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad) for x in inputs]
    # One operation in between, so that functions may work in place.
    given = [leaf * 1 if leaf.requires_grad else leaf for leaf in leaves]
    result = function(*given)
    outputs = [y for y in (result if isinstance(result, tuple) else (result,)) if isinstance(y, Tensor)]
    torch.default_generator.manual_seed(seed + 1)
    total = sum((y * torch.randn_like(y)).sum() for y in outputs if y.requires_grad)
    total.backward()
    return [y.detach() for y in outputs] + [leaf.grad for leaf in leaves if leaf.grad is not None]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Bit for bit, NaN and the sign of zero included, and in the same memory format."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert torch.equal(torch.nan_to_num(mine, 7e7), torch.nan_to_num(other, 7e7))
        if mine.is_floating_point():
            assert torch.equal(torch.signbit(mine), torch.signbit(other))
