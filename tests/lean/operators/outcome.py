"""What a call and two backward passes through it give, plainly and lean."""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from randbp.lean import make_lean
from randbp.randomize.layers import Clock

from .sample import Sample, tensors_in

BITS = 8


@dataclass(frozen=True)
class Outcome:
    """What a call and two backward passes through it gave."""

    error: str | None = None
    outputs: tuple[Tensor, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    grads: tuple[Tensor | None, ...] = ()
    random_state: Tensor | None = None
    twice: tuple[bool, ...] = ()
    second: "tuple[Tensor | None, ...] | str" = ()


class _Called(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without PyTorch's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _leaf_and_value(x: Tensor) -> tuple[Tensor | None, Tensor]:
    """A leaf, and a tensor of the same entries, strides and class that was computed from it."""
    data = x.detach()
    if not x.requires_grad:
        return None, data if x.layout is not torch.strided else data.clone() if _is_dense(x) else _strided(data)
    if x.layout is not torch.strided or _is_dense(x):
        leaf = data.clone().requires_grad_()
        return leaf, leaf * 1
    leaf = _memory(data).clone().requires_grad_()
    return leaf, (leaf * 1).as_strided(x.shape, x.stride())


def _memory(x: Tensor) -> Tensor:
    count = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((count if x.numel() else 0,), (1,), x.storage_offset())


def _strided(x: Tensor) -> Tensor:
    return _memory(x).clone().as_strided(x.shape, x.stride())


def _is_dense(x: Tensor) -> bool:
    order = sorted(range(x.dim()), key=lambda dim: -x.stride(dim))
    return x.permute(order).is_contiguous()


def run(module: nn.Module, sample: Sample, second: bool, weighted: bool = False) -> Outcome:
    """Run a module forward and backward, from one random state.

    Args:
        module: In training mode.
        sample: Its arguments. Tensors that require a gradient are computed from leaves first.
        second: Whether to differentiate the gradients, too.
        weighted: Whether to differentiate these with respect to the output gradients as well.
    """
    leaves: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    given: list[Tensor] = []

    def make(x: Tensor) -> Tensor:
        leaf, value = _leaf_and_value(x)
        if leaf is not None:
            leaves.append(leaf)
        given.append(value)
        return value

    own = sample.changed(make)
    torch.default_generator.manual_seed(0)
    random.seed(0)
    try:
        result = module(*own.args, **own.kwargs)
        state = torch.get_rng_state()
        outputs = tensors_in(sample.finish(result))
        seen = tuple(y.detach().clone() for y in tensors_in(result))
        known = Outcome(None, seen, tuple(x.detach() for x in given), (), state)
        differentiable = [y for y in outputs if y.requires_grad]
        if not differentiable or not leaves:
            return known
        torch.default_generator.manual_seed(1)
        weights = [torch.randn_like(y.detach()).requires_grad_(weighted) for y in differentiable]
        grads = torch.autograd.grad(differentiable, leaves, weights, allow_unused=True, create_graph=second)
    except Exception as error:
        return Outcome(type(error).__name__)
    known = replace(known, grads=tuple(None if g is None else g.detach().clone() for g in grads))
    if not second:
        return known
    twice = tuple(g is not None and g.requires_grad for g in grads)
    return replace(known, twice=twice, second=_second([*leaves, *(weights if weighted else [])], grads))


def _second(leaves: list[Tensor], grads: Iterable[Tensor | None]) -> tuple[Tensor | None, ...] | str:
    again = [g for g in grads if g is not None and g.requires_grad]
    if not again:
        return ()
    torch.default_generator.manual_seed(2)
    try:
        found = torch.autograd.grad(
            again, leaves, [torch.randn(g.shape, dtype=g.dtype) for g in again], allow_unused=True
        )
    except Exception as error:
        return type(error).__name__
    return tuple(found)


def lean_copy(module: nn.Module, level: Any) -> nn.Module:
    """A copy of a module that runs lean."""
    ours = copy.deepcopy(module)
    make_lean(ours, level, BITS, Clock(0).state)
    return ours


def differences(module: nn.Module, sample: Sample, level: Any) -> str | None:
    """What a module does otherwise when it runs lean, in one line; ``None`` if nothing that it must not."""
    found = _difference(module, sample, level)
    if found is None and level == "exact":
        found = _difference(module, sample, level, weighted=True)
    return found if found is None or _repeats_itself(module, sample) else None


def _repeats_itself(module: nn.Module, sample: Sample) -> bool:
    """Whether PyTorch gives the same each time: ``masked.median`` of an expanded tensor reads what nobody wrote."""
    with quiet():
        first, *others = [_after_other_work(number, module, sample) for number in range(30)]
    return all(all(map(same, other.outputs, first.outputs)) for other in others)


def _after_other_work(number: int, module: nn.Module, sample: Sample) -> Outcome:
    for size in range(1, 200):
        torch.full((size,), float(number))
    return run(copy.deepcopy(module), sample, False)


def _difference(module: nn.Module, sample: Sample, level: Any, weighted: bool = False) -> str | None:
    exact = level == "exact"
    with quiet():
        theirs = run(copy.deepcopy(module), sample, exact, weighted)
        ours = run(lean_copy(module, level), sample, exact, weighted)
    if theirs.error != ours.error:
        return f"raises {ours.error} where PyTorch raises {theirs.error}"
    for what in ("outputs", "inputs"):
        for number, (mine, other) in enumerate(zip(getattr(ours, what), getattr(theirs, what), strict=True)):
            if not same(mine, other):
                return f"{what}[{number}]: {described(mine)} instead of {described(other)}"
            if mine.layout is torch.strided and mine.stride() != other.stride():
                return f"{what}[{number}]: strides {mine.stride()} instead of {other.stride()}"
    if theirs.random_state is not None and not torch.equal(ours.random_state, theirs.random_state):
        return "draws other random numbers"
    for number, (mine, other) in enumerate(zip(ours.grads, theirs.grads, strict=True)):
        if exact and not same(mine, other):
            return f"grads[{number}]: {described(mine)} instead of {described(other)}"
        if not exact and not alike(mine, other):
            return f"rounded grads[{number}]: {described(mine)} instead of {described(other)}"
    if isinstance(theirs.second, str):  # PyTorch has none, so ours may be anything
        return None
    if isinstance(ours.second, str) or ours.twice != theirs.twice:
        return f"second derivatives: {ours.second} of {ours.twice} instead of {theirs.twice}"
    for number, (mine, other) in enumerate(zip(ours.second, theirs.second, strict=True)):
        if not same(mine, other, none_is_zero=True):
            return f"second derivatives[{number}]: {described(mine)} instead of {described(other)}"
    return None


def described(x: Tensor | None) -> str:
    """A tensor in a few words."""
    if x is None:
        return "None"
    entries = x.detach().to_dense().flatten()[:12].tolist() if x.layout is not torch.strided else x.flatten()[:12]
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} {[*map(str, getattr(entries, 'tolist', list)())]}"


def same(mine: Tensor | None, other: Tensor | None, none_is_zero: bool = False) -> bool:
    """Bit for bit, NaN and the sign of zero included, and of one class."""
    if mine is None or other is None:
        left = other if mine is None else mine
        return left is None or (none_is_zero and not bool(left.count_nonzero()))
    if (mine.dtype, mine.shape, mine.layout, type(mine)) != (other.dtype, other.shape, other.layout, type(other)):
        return False
    if mine.layout is not torch.strided:
        mine, other = mine.to_dense(), other.to_dense()
    mine, other = mine.detach(), other.detach()
    if mine.is_complex():
        return same(torch.view_as_real(mine.resolve_conj()), torch.view_as_real(other.resolve_conj()))
    if not mine.is_floating_point():
        return torch.equal(mine, other)
    nan = mine.isnan()
    return (
        torch.equal(nan, other.isnan())
        and torch.equal(
            mine.masked_fill(nan, 0).contiguous().view(torch.uint8),
            other.masked_fill(nan, 0).contiguous().view(torch.uint8),
        )
        if mine.dim()
        else same(mine.view(1), other.view(1))
    )


def alike(mine: Tensor | None, other: Tensor | None) -> bool:
    """Whether an estimate is of the same kind, and finite where the gradient is, but for what nearly overflows."""
    if mine is None or other is None:
        left = other if mine is None else mine
        return left is None or not bool(left.count_nonzero())
    if (mine.dtype, mine.shape, mine.layout) != (other.dtype, other.shape, other.layout):
        return False
    if mine.layout is not torch.strided:
        mine, other = mine.to_dense(), other.to_dense()
    differ = mine.isfinite() != other.isfinite()
    limit = torch.finfo(mine.dtype).max / 2
    return not bool(differ.logical_and(torch.minimum(mine.abs(), other.abs()).gt(limit).logical_not()).any())


def called(function: Callable[..., Any]) -> nn.Module:
    """A function as a module."""
    return _Called(function)
