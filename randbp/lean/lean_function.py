"""The one autograd function of lean mode: it runs a function and holds what the gradients of its inputs are made of."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .._torch.second_derivatives import connected, graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Stream
from ..codecs.flat import Flat

Vjp = Callable[..., Iterable[Tensor | None]]
"""Makes the inputs' gradients of the output gradient, of which are wanted, of the noise, and of the held tensors."""

Made = tuple[Tensor, Sequence[Tensor | None], Vjp]
"""An output, the tensors that are held, and the VJP, which must not keep any other tensor alive."""


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        operation: str,
        make: Callable[[], Made],
        exact: bool,
        seed: int | None,
        edges: list[Tensor | None],
        inplace: bool,
        *inputs: Tensor,
    ) -> Tensor:
        y, held, ctx.vjp = make()
        if inplace:
            ctx.mark_dirty(inputs[0])
        # The seed travels with what is held: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(None if seed is None else torch.tensor(seed), *edges, *held)
        ctx.operation, ctx.exact, ctx.edges = f"lean {operation}", exact, len(edges)
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = output_grads
        seed, *saved = ctx.saved_tensors
        held, wanted = saved[ctx.edges :], ctx.needs_input_grad[6:]
        if ctx.exact:
            grad, *rest = ctx.vjp(v, wanted, None, *held)
            return *[None] * 6, connected(grad, saved[0] if ctx.edges else None), *rest
        with torch.no_grad():
            noise = None if seed is None else Stream(int(seed), v.device)
            grads = tuple(ctx.vjp(v, wanted, noise, *held))
        return *[None] * 6, *refuse_second_derivatives(ctx.operation, grads, (*saved, v))


@cache
def _named(operation: str) -> type[_Lean]:
    """The function under a name of its own, which reports show."""
    return type(f"_{operation}", (_Lean,), {})


def run_lean(
    operation: str,
    make: Callable[[], Made],
    *inputs: Tensor,
    exact: bool = False,
    seed: int | None = None,
    inplace: bool = False,
    linked: Iterable[Tensor] | None = None,
) -> Tensor:
    """Run a function of these inputs without grad, and let the VJP that it returns make their gradients.

    Args:
        operation: The name of the operation in reports and errors.
        make: Runs the function.
        inputs: The tensors that may want a gradient.
        exact: Whether the VJP is that of a function that is linear in pieces; else second derivatives are refused.
        seed: Of the noise that the VJP needs again.
        inplace: Whether the function overwrites its first input.
        linked: The inputs on which gradients depend although they are not held; ``None`` for all. An exact gradient
            depends on the first one with derivative 0, as PyTorch's does.
    """
    edges = [graph_edge(x) for x in (inputs if linked is None else linked)]
    y: Tensor = _named(operation).apply(operation, make, exact, seed, edges, inplace, *inputs)
    return y


def codes_in_parts(
    codec: Flat, codes: Tensor, parts: Iterable[slice], entries: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Each part, and the codes that it has among those of all, which were encoded one after the other.

    A part has so many entries per unit of its slice.
    """
    first = 0
    for part in parts:
        size = codec.nbytes((part.stop - part.start) * entries)
        yield part, codes[first : first + size]
        first += size
