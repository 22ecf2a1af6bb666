"""Run the wide stretch of a chain on one part of the batch at a time, so that its tensors are never all alive.

The bytes held for backward stay the same, but a step's peak also includes tensors that are only in use: a layer's input
and output in the forward pass, their gradients in the backward pass. If layers treat examples one by one, the widest
tensors need not exist for the whole batch at once. Autograd, too, goes through the parts one after the other, and adds
up their weight gradients. (Unlike micro-batches of a whole step, this does not change batch normalisation, the loss or
anything else outside the stretch.)
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, takewhile
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from .._torch.class_swap import Reclassed, reclass, restore
from .._torch.hooks import transforms_at_work
from .shapes import chain_shapes

WORTHWHILE = 2**24
"""The batch is split only if input and output of a chain's widest layer are larger than this [bytes]."""


def wide_stretch(sizes: Sequence[int], parts: int) -> tuple[int, int]:
    """The layers of a chain to run in parts: from the first to the last wide one, if that lowers the peak.

    A layer is wide if its input and output are larger than one part of the widest layer's. The input of the stretch and
    its output exist for the whole batch, the output twice while its parts are joined. Sizes are entries per example of
    the chain's input and of each layer's output; the result is the first layer and the one after the last.

    Example:
        >>> wide_stretch([3, 96, 96, 96, 24, 24, 6], parts=4)  # the last layers are narrow
        (0, 4)
        >>> wide_stretch([96, 96, 96], parts=4)  # what enters and leaves is as wide
        (0, 0)
    """
    pairs = [before + after for before, after in pairwise(sizes)]
    widest = max(pairs, default=0)
    wide = [number for number, pair in enumerate(pairs) if pair * parts > widest]
    if not wide or parts < 2:
        return 0, 0
    start, stop = wide[0], wide[-1] + 1
    lower = sizes[start] + 2 * sizes[stop] + widest / parts < widest
    return (start, stop) if lower else (0, 0)


@dataclass(frozen=True)
class _Chain:
    """The largest number of parts, and whether each layer may run in parts if it treats examples one by one."""

    parts: int
    free: tuple[bool, ...]

    def sizes_from(self, first: int, layers: Sequence[nn.Module], input: Tensor) -> list[int]:
        """Entries per example of the input and each layer's output, starting at a layer, as far as they may be split.

        They are computed anew each time, for layers may have other settings by now.
        """
        free = takewhile(lambda pair: pair[1], zip(layers, self.free[first:], strict=True))
        return [prod(shape) for shape in chain_shapes([layer for layer, _ in free], input.shape[1:])]


class PartwiseChain(Reclassed):
    """Mixed in before ``nn.Sequential``; its state is in the container's ``__dict__``."""

    prefix = "Partwise"

    def forward(self, input: Tensor) -> Tensor:
        """Run the layers in turn; in training mode, the widest of them on a part of the batch at a time."""
        container, chain = cast(nn.Sequential, self), self.__dict__.get(_STATE)  # slices of a container have no state
        if chain is None or not _may_be_split(container, chain, input):
            output: Tensor = super().forward(input)  # type: ignore[misc]
            return output
        layers = list(container)
        while layers:
            sizes = chain.sizes_from(len(container) - len(layers), layers, input)
            count = max(1, len(sizes) - 1)  # a layer that needs the whole batch runs alone
            start, stop = _stretch(layers, sizes, input, chain.parts)
            stretch = partial(_run_in_parts, layers[start:stop], chain.parts)
            steps: list[Callable[[Tensor], Tensor]] = [
                *layers[:start],
                *[stretch] * (start < stop),
                *layers[stop:count],
            ]
            for run in steps:
                input = run(input)  # nothing but this name holds a tensor on its way
            layers = layers[count:]
        return input


_STATE = "_randbp_chain"
_IN_PARTS = ContextVar("in parts", default=False)
"""Whether a chain around the present one runs in parts."""


def _may_be_split(container: nn.Sequential, chain: _Chain, input: object) -> bool:
    return (
        not torch.compiler.is_compiling()
        and container.training
        and torch.is_grad_enabled()
        and isinstance(input, Tensor)
        and input.dim() > 1
        and len(input) > 1
        and len(chain.free) == len(container)
        and not _IN_PARTS.get()
        and not transforms_at_work()
    )


def _stretch(layers: Sequence[nn.Module], sizes: Sequence[int], input: Tensor, parts: int) -> tuple[int, int]:
    """:func:`wide_stretch` if the tensors are large enough."""
    widest = max((before + after for before, after in pairwise(sizes)), default=0)
    if widest * len(input) * input.element_size() < WORTHWHILE:
        return 0, 0
    start, stop = wide_stretch(sizes, min(parts, len(input)))
    while start < stop and _overwrites(layers[start]):
        start += 1  # a part of a tensor cannot be overwritten
    return start, stop


def _overwrites(layer: nn.Module) -> bool:
    """Whether a layer works in place on its input."""
    if isinstance(layer, nn.Sequential):
        return any(map(_overwrites, islice(layer, 1)))
    return bool(getattr(layer, "inplace", False))


def _run(layers: Sequence[nn.Module], value: Tensor) -> Tensor:
    for layer in layers:
        value = layer(value)
    return value


def _run_in_parts(layers: Sequence[nn.Module], parts: int, input: Tensor) -> Tensor:
    outer = _IN_PARTS.set(True)
    try:
        return torch.cat([_run(layers, part) for part in input.split(-(-len(input) // parts))])
    finally:
        _IN_PARTS.reset(outer)


def split_chains(model: nn.Module, parts: int, free: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """Let plain ``nn.Sequential`` containers whose layers are free run wide stretches in parts; return those."""
    chains: list[nn.Module] = []
    for module in model.modules():
        if parts > 1 and type(module) is nn.Sequential and free(module):
            module.__dict__[_STATE] = _Chain(parts, tuple(all(map(free, layer.modules())) for layer in module))
            reclass(module, PartwiseChain)
            chains.append(module)
    return chains


def join_chain(container: nn.Module) -> None:
    """Let a container run the whole batch again."""
    if _STATE in container.__dict__:
        restore(container)
        del container.__dict__[_STATE]
