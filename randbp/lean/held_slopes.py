"""Slopes in a few bits: what is held and multiplied by all rules that hold derivatives.

If the entry ``x_i`` of an argument enters ``y_j`` alone, its gradient is ``v_j ∂y_j/∂x_i`` with ``v`` the output
gradient, summed over what was broadcast: linear in the derivative, so any unbiased rounding of that will do.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..codecs import Blocks, Geometric, Grid, Stream
from .lean_call import Call, is_small
from .lean_function import Made, codes_in_parts, run_lean
from .memory_order import flatten, memory_order, pieces, unflatten

Codec = Grid | Blocks | Geometric
"""How slopes are held: on a fixed grid if their range is known, else in blocks."""

Fused = tuple[str, list[float]]
"""A function whose slopes are computed and rounded in one pass, and its parameters: see
:func:`randbp.kernels.to_grid`."""


def blocks(bits: int, poles: bool) -> Blocks | Geometric:
    """The codec for slopes of unknown range; with poles, in one more bit and with small relative errors."""
    return Geometric(min(8, bits + 1)) if poles else Blocks(bits)


Times = Callable[[Tensor, Tensor, Stream | None], Tensor]
"""Output gradients times slopes, of what is held of these and the noise."""

Source = Callable[[Codec, Stream], tuple[Tensor, Times]]
"""Computes the slopes of one argument: what is held of them, and how it is multiplied."""


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
    seed, like = call.context.seed(), [(x.dtype, x.shape) for x in tensors]

    def make() -> Made:
        noise = Stream(seed, tensors[0].device)
        wanted = [source if x.requires_grad else None for x, source in zip(tensors, sources, strict=True)]
        found = [(None, None) if source is None else source(codec, noise) for source in wanted]
        y = run()  # after the slopes, for it may overwrite an argument
        products = [times for _, times in found]

        def vjp(v: Tensor, wanted: tuple[bool, ...], noise: Stream | None, *held: Tensor) -> list[Tensor | None]:
            v = v if reduced is None else v.reshape(reduced)
            grads = [
                v if times is None else times(v, slopes, noise) for times, slopes in zip(products, held, strict=True)
            ]
            return [
                grad.sum_to_size(shape).to(dtype) if needed else None
                for grad, (dtype, shape), needed in zip(grads, like, wanted, strict=True)
            ]

        return tensors[0] if inplace else y, [codes for codes, _ in found], vjp

    kept = seed if codec.dithered else None
    return run_lean("HeldSlopes", make, *tensors, seed=kept, inplace=inplace)


def of_values(values: Callable[[], Tensor]) -> Source:
    """Slopes of any shape that broadcasts with the output; small ones are held as they are."""

    def encode(codec: Codec, noise: Stream) -> tuple[Tensor, Times]:
        slopes = values()
        order, shape = memory_order(slopes), slopes.shape
        if is_small(slopes):
            return slopes, lambda v, slopes, noise: v * slopes

        def times(v: Tensor, held: Tensor, noise: Stream | None) -> Tensor:
            return v * unflatten(codec.decode(held, shape.numel(), noise), shape, order).to(v.dtype)

        return codec.encode(flatten(slopes, order), noise), times

    return encode


def of_function(x: Tensor, function: Callable[[Tensor], Tensor], inplace: bool, fused: Fused | None = None) -> Source:
    """Slopes of an elementwise function of one tensor, computed by PyTorch, a piece that fits a cache at a time."""

    def slopes(part: Tensor) -> Tensor:
        (found,) = value_and_slopes((lambda leaf: function(leaf.clone())) if inplace else function, part)[1]
        assert found is not None
        return found

    def encode(codec: Codec, noise: Stream) -> tuple[Tensor, Times]:
        order, shape = memory_order(x), x.shape
        flat = flatten(x, order)
        if fused is not None and isinstance(codec, Grid):
            parts, codes = [slice(0, len(flat))], codec.encode_slopes(flat, *fused, noise)
        else:
            parts = pieces(len(flat), x.device, 256)
            codes = torch.cat([codec.encode(slopes(flat[part].detach()), noise) for part in parts])

        def times(v: Tensor, held: Tensor, noise: Stream | None) -> Tensor:
            flat = flatten(v, order)
            if len(parts) == 1:
                return unflatten(codec.times(flat, held, noise), shape, order)
            result = torch.empty_like(flat)
            for part, codes in codes_in_parts(codec, held, parts):
                result[part] = codec.times(flat[part], codes, noise)
            return unflatten(result, shape, order)

        return codes, times

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
