r"""Functions of rows whose gradient needs only their output: softmax, its logarithm and unit vectors.

With ``v`` the output gradient, ``y`` the output and sums over a row, the input gradients are

- softmax: ``x̄_i = y_i (v_i - Σ_j y_j v_j)``,
- log-softmax, with ``p = exp(y)``: ``x̄_i = v_i - p_i Σ_j v_j``,
- ``y = x / ‖x‖``: ``x̄_i = (v_i - y_i Σ_j y_j v_j) / ‖x‖``.

The second is linear in ``p``, so an unbiased ``p̃`` in its place will do. The others are not: in ``ỹ_i Σ_j ỹ_j v_j`` the
noise of entry ``i`` meets itself, which adds ``var(ỹ_i) v_i`` to its mean. Subtractive dither has a known variance
(:mod:`.dithered`), so that is taken off again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Blocks, Mask, Stream
from .composites import lean_inside
from .lean_call import Call, is_activation
from .memory_order import pieces


def _times_own_product(y: Tensor, v: Tensor, variance: Tensor) -> Tensor:
    """An unbiased estimate of ``y_i Σ_j y_j v_j``."""
    return torch.addcmul(y * torch.linalg.vecdot(y, v).unsqueeze(1), variance, v, value=-1)


def _softmax_grad(y: Tensor, variance: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return y * v - _times_own_product(y, v, variance)


def _log_softmax_grad(y: Tensor, variance: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return v - y * v.sum(1, keepdim=True)


def _unit_grad(y: Tensor, variance: Tensor, v: Tensor, length: Tensor | None) -> Tensor:
    assert length is not None
    # A vector that is shorter than eps is divided by that, whatever its length.
    tangential = (v - _times_own_product(y, v, variance)) / length
    return torch.where(length < 0, v / -length, tangential)


@dataclass(frozen=True)
class _Kind:
    """One of the functions: its gradient takes rows ``y``, their variance, output gradients and a number per row."""

    gradient: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    held: Callable[[Tensor], Tensor] = Tensor.detach  # makes the rounded tensor from the output
    number: Callable[[Tensor, int], Tensor] | None = None  # of the input and the dimension


class _RowWise(torch.autograd.Function):
    """Holds rounded rows, and which of them are NaN (one NaN makes all of its row so)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        edge: Tensor,
        run: Callable[[], Tensor],
        dim: int,
        kind: _Kind,
        bits: int,
        seed: int,
    ) -> Tensor:
        y = run()
        moved = y.movedim(dim, -1)
        rows, layout, noise, codes = moved.reshape(-1, moved.shape[-1]), Blocks(bits), Stream(seed, y.device), []
        wrong = rows[:, 0].isnan()
        for part in _parts(rows):
            values = kind.held(rows[part])
            codes.append(layout.encode(values.masked_fill(wrong[part].unsqueeze(1), 0).flatten(), noise))
        each = None if kind.number is None else kind.number(x, dim).movedim(dim, -1).reshape(-1, 1)
        ctx.save_for_backward(torch.cat(codes), Mask().encode(wrong), torch.tensor(seed), edge, each)
        ctx.layout, ctx.dim, ctx.gradient, ctx.dtype = layout, dim, kind.gradient, x.dtype
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        codes, mask, seed, edge, each = ctx.saved_tensors
        with torch.no_grad():
            moved = output_grad.movedim(ctx.dim, -1)
            rows, noise, first = moved.reshape(-1, moved.shape[-1]), Stream(int(seed), codes.device), 0
            wrong = Mask().decode(mask, len(rows)).unsqueeze(1)
            result = torch.empty(rows.shape, dtype=ctx.dtype, device=rows.device)
            for part in _parts(rows):
                v = rows[part].to(torch.promote_types(rows.dtype, torch.float32))
                size = ctx.layout.nbytes(v.numel())
                flat, scales = ctx.layout.decode_with_scales(codes[first : first + size], v.numel(), noise)
                y, first = flat.view(v.shape).to(v.dtype), first + size
                variance = ctx.layout.variances(scales, v.numel()).view(v.shape).to(v.dtype)
                grad = ctx.gradient(y, variance, v, None if each is None else each[part].to(v.dtype))
                result[part] = grad.masked_fill_(wrong[part], torch.nan)
            input_grad = result.view(moved.shape).movedim(-1, ctx.dim)
        return (
            *refuse_second_derivatives("lean softmax or normalisation", (input_grad,), (edge, output_grad)),
            *[None] * 6,
        )


def _parts(rows: Tensor) -> list[slice]:
    """Slices of some rows each."""
    columns = rows.shape[1]
    return [slice(p.start // columns, p.stop // columns) for p in pieces(rows.numel(), rows.device, columns)]


def _apply(kind: _Kind, call: Call, x: Tensor, dim: Any) -> Any:
    if not is_activation(x) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        return NotImplemented
    context = call.context
    return _RowWise.apply(x, graph_edge(x), call.run, dim, kind, context.bits, context.seed())


def softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """``softmax``, of ``F`` or with the dtype in third place."""
    return _apply(_Kind(_softmax_grad), call, input, dim)


def log_softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """``log_softmax``, of ``F`` or with the dtype in third place."""
    return _apply(_Kind(_log_softmax_grad, held=Tensor.exp), call, input, dim)


def normalize(call: Call, input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Any:
    """``F.normalize``."""
    if p != 2:
        return lean_inside(call, *call.args, **call.kwargs)

    def length_of(x: Tensor, dim: int) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return length.masked_fill(length < eps, -eps)

    return _apply(_Kind(_unit_grad, number=length_of), call, input, dim)
