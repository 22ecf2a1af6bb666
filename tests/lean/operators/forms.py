"""Other kinds of the same arguments: large ones, other memory orders, classes and spellings."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .outcome import called, quiet, run
from .sample import Sample, tensors_in

LARGE = 2**12
"""From so many entries on tensors are worth rounding."""


def tiled(function: Callable[..., Any], sample: Sample) -> Sample | None:
    """A sample with tensors repeated until they are large, where the function still takes them."""
    largest = max((x.numel() for x in tensors_in([sample.args, sample.kwargs])), default=0)
    if not largest:
        return None
    times = -(-LARGE // largest)

    def first(x: Tensor) -> Tensor:
        return x.detach().repeat(times, *[1] * (x.dim() - 1)) if x.dim() and x.layout is torch.strided else x

    def last(x: Tensor) -> Tensor:
        return x.detach().repeat(*[1] * (x.dim() - 1), times) if x.dim() and x.layout is torch.strided else x

    def like(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: change(x).detach().requires_grad_(x.requires_grad)

    plans = [sample.changed(like(first)), sample.changed(like(last))]
    if isinstance(sample.args[0], Tensor):
        plans += [replace(sample, args=(like(change)(sample.args[0]), *sample.args[1:])) for change in (first, last)]
    for plan in plans:
        with quiet():
            plain = run(called(function), plan, False)
            if plain.error is None and all(y.numel() <= 16 * LARGE for y in plain.outputs):
                return plan
    return None


class Subclass(Tensor):
    """A tensor class of a user's own."""


SPECIAL = (float("inf"), float("nan"), -float("inf"), 0.0, -0.0)


def _kept(change: Callable[[Tensor], Tensor]) -> Callable[[Sample], Sample]:
    """A form that changes tensors of numbers, as leaves of their own."""

    def changed(x: Tensor) -> Tensor:
        if x.layout is not torch.strided:
            return x
        return change(x.detach()).detach().requires_grad_(x.requires_grad)

    return lambda sample: sample.changed(changed)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x


def _with_gaps(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.dim(), torch.preserve_format)) if x.dim() in formats else x


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x) if x.dim() > 1 and len(x) else x


def _special(x: Tensor) -> Tensor:
    if not x.is_floating_point() or x.numel() <= len(SPECIAL):
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=x.dtype)
    return x


def _only(which: int) -> Callable[[Sample], Sample]:
    def changed(sample: Sample) -> Sample:
        wanting = [x for x in tensors_in([sample.args, sample.kwargs]) if x.requires_grad]
        chosen = wanting[which] if wanting else None
        return sample.changed(lambda x: x.detach() if x is not chosen else x)

    return changed


def _respelt(sample: Sample) -> Sample:
    names = {"dim": "axis", "keepdim": "keepdims"}
    return replace(sample, kwargs={names.get(key, key): value for key, value in sample.kwargs.items()})


def _by_name(sample: Sample) -> Sample:
    return (
        replace(sample, args=(), kwargs={"input": sample.args[0], **sample.kwargs}) if len(sample.args) == 1 else sample
    )


FORMS: dict[str, Callable[[Sample], Sample]] = {
    "as given": lambda sample: sample,
    "transposed": _kept(_transposed),
    "with gaps": _kept(_with_gaps),
    "channels last": _kept(_channels_last),
    "expanded": _kept(_expanded),
    "not finite": _kept(_special),
    "of a subclass": _kept(lambda x: x.as_subclass(Subclass)),
    "gradient of the first": _only(0),
    "gradient of the last": _only(-1),
    "by other keywords": _respelt,
    "input by name": _by_name,
}
"""By name."""
