"""Slopes in a few bits: the one autograd function behind all rules that hold derivatives.

If the entry ``x_i`` of an argument enters ``y_j`` alone, its gradient is ``v_j ∂y_j/∂x_i`` with ``v`` the output
gradient, summed over what was broadcast: linear in the derivative, so any unbiased rounding of that will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Blocks, Geometric, Grid, Stream
from .lean_call import Call, is_small
from .memory_order import flatten, memory_order, pieces, unflatten

Codec = Grid | Blocks | Geometric
"""How slopes are held: on a fixed grid if their range is known, else in blocks."""

Fused = tuple[str, list[float]]
"""A function whose slopes are computed and rounded in one pass, and its parameters: see
:func:`randbp.kernels.to_grid`."""


def blocks(bits: int, poles: bool) -> Blocks | Geometric:
    """The codec for slopes of unknown range; with poles, in one more bit and with small relative errors."""
    return Geometric(min(8, bits + 1)) if poles else Blocks(bits)


@dataclass(frozen=True)
class _Place:
    """The shape and the memory order of an argument's slopes."""

    shape: torch.Size
    order: tuple[int, ...]
    parts: tuple[slice, ...] = ()  # in which they were encoded, if each entry of the output has a slope of its own
    whole: bool = False  # whether they are held as they are

    def times(self, v: Tensor, codec: Codec, held: Tensor, noise: Stream) -> Tensor:
        """Output gradients times slopes."""
        if self.whole:
            return v * held
        if not self.parts:
            slopes = unflatten(codec.decode(held, self.shape.numel(), noise), self.shape, self.order)
            return v * slopes.to(v.dtype)
        flat, first = flatten(v, self.order), 0
        if len(self.parts) == 1:
            return unflatten(codec.times(flat, held, noise), self.shape, self.order)
        result = torch.empty_like(flat)
        for part in self.parts:
            size = codec.nbytes(part.stop - part.start)
            result[part] = codec.times(flat[part], held[first : first + size], noise)
            first += size
        return unflatten(result, self.shape, self.order)


Source = Callable[[Codec, Stream], tuple[_Place, Tensor]]
"""Computes and encodes the slopes of one argument."""


class _HeldSlopes(torch.autograd.Function):
    """Runs a function and holds the slopes of its arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[], Tensor],
        sources: Sequence[Source | None],
        codec: Codec,
        seed: int,
        edges: list[Tensor | None],
        inplace: bool,
        reduced: torch.Size | None,
        *tensors: Tensor,
    ) -> Tensor:
        noise, held = Stream(seed, tensors[0].device), []
        ctx.places = []
        for source, wanted in zip(sources, ctx.needs_input_grad[7:], strict=True):
            place, codes = source(codec, noise) if source is not None and wanted else (None, None)
            ctx.places.append(place)
            held += [] if codes is None else [codes]
        y = run()  # after the slopes, for it may overwrite an argument
        if inplace:
            ctx.mark_dirty(tensors[0])
        # The seed travels with the codes: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed) if codec.dithered else None, *edges, *held)
        ctx.codec, ctx.reduced = codec, reduced
        ctx.dtypes, ctx.shapes = [x.dtype for x in tensors], [x.shape for x in tensors]
        return tensors[0] if inplace else y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, *saved = ctx.saved_tensors
        edges, held = saved[: len(ctx.places)], iter(saved[len(ctx.places) :])
        grads: list[Tensor | None] = []
        with torch.no_grad():
            noise = Stream(0 if seed is None else int(seed), output_grad.device)
            v = output_grad if ctx.reduced is None else output_grad.reshape(ctx.reduced)
            for place, wanted, dtype, shape in zip(
                ctx.places, ctx.needs_input_grad[7:], ctx.dtypes, ctx.shapes, strict=True
            ):
                grad = v if wanted else None
                if place is not None:
                    grad = place.times(v, ctx.codec, next(held), noise)
                grads.append(None if grad is None else grad.sum_to_size(shape).to(dtype))
        return *[None] * 7, *refuse_second_derivatives("lean function", tuple(grads), (*edges, output_grad))


def hold_slopes(
    call: Call,
    run: Callable[[], Tensor],
    tensors: Sequence[Tensor],
    sources: Sequence[Source | None],
    codec: Codec,
    inplace: bool = False,
    reduced: torch.Size | None = None,
) -> Tensor:
    """Compute a function's value, holding the slopes of each argument that has a source; others are 1.

    The function may overwrite its first argument (``inplace``). ``reduced`` is the output's shape with ones in the
    dimensions that it lacks and slopes have.
    """
    edges = [graph_edge(x) for x in tensors]
    y: Tensor = _HeldSlopes.apply(run, sources, codec, call.context.seed(), edges, inplace, reduced, *tensors)
    return y


def of_values(values: Callable[[], Tensor]) -> Source:
    """Slopes of any shape that broadcasts with the output; small ones are held as they are."""

    def encode(codec: Codec, noise: Stream) -> tuple[_Place, Tensor]:
        slopes = values()
        order, whole = memory_order(slopes), is_small(slopes)
        held = slopes if whole else codec.encode(flatten(slopes, order), noise)
        return _Place(slopes.shape, order, whole=whole), held

    return encode


def of_function(x: Tensor, function: Callable[[Tensor], Tensor], inplace: bool, fused: Fused | None = None) -> Source:
    """Slopes of an elementwise function of one tensor, computed by PyTorch, a piece that fits a cache at a time."""

    def slopes(part: Tensor) -> Tensor:
        (found,) = value_and_slopes((lambda leaf: function(leaf.clone())) if inplace else function, part)[1]
        assert found is not None
        return found

    def encode(codec: Codec, noise: Stream) -> tuple[_Place, Tensor]:
        order = memory_order(x)
        flat = flatten(x, order)
        if fused is not None and isinstance(codec, Grid):
            return _Place(x.shape, order, (slice(0, len(flat)),)), codec.encode_slopes(flat, *fused, noise)
        parts = tuple(pieces(len(flat), x.device, 256))
        codes = torch.cat([codec.encode(slopes(flat[part].detach()), noise) for part in parts])
        return _Place(x.shape, order, parts), codes

    return encode


def value_and_slopes(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """A function's value, and the derivatives of its sum with respect to detached arguments."""
    # Hooks of whoever called this (a checkpoint, say) are for what is held, and nothing of this small graph is.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
    with torch.enable_grad(), plain:
        leaves = [tensor.requires_grad_() for tensor in tensors]
        y = function(*leaves)
        if not (isinstance(y, Tensor) and y.requires_grad):
            return y, (None,) * len(leaves)
        # The memory order of slopes is that of ones, where there is one.
        ones = torch.ones_like(y) if y.dim() > 1 else y.new_ones(()).expand_as(y)
        return y.detach(), torch.autograd.grad(y, leaves, ones, allow_unused=True)
