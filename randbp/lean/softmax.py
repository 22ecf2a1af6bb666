r"""Softmax and its logarithm: the output in a few bits.

With ``y = softmax(x)`` and ``v`` the output gradient, softmax has the input gradient ``x̄_i = y_i (v_i - Σ_j y_j v_j)``
and log-softmax ``x̄_i = v_i - y_i Σ_j v_j``. The latter is linear in ``y``, so an unbiased ``ỹ`` in its place will do.
The former is not: in ``ỹ_i Σ_j ỹ_j v_j`` the noise of entry ``i`` meets itself, which adds ``var(ỹ_i) v_i`` to its
mean. Subtractive dither has a known variance (:mod:`.dithered`), so that is taken off again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.once import edge_of, not_differentiable
from ..autograd.transforms import refuses_vectorised
from ..estimators.draw import Draw
from ..estimators.noise import Noise
from .layout import pieces
from .masks import pack_mask, unpack_mask
from .rules import Call, is_activation, lean_version_of
from .slopes import Blocks


class _Softmax(torch.autograd.Function):
    """Holds rounded probabilities, and which rows are NaN (one NaN makes all of its row so)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, edge: Tensor, run: Callable[[], Tensor], dim: int, log: bool, bits: int, seed: int
    ) -> Tensor:
        y = run()
        moved = y.movedim(dim, -1)
        rows, kind, noise, codes = moved.reshape(-1, moved.shape[-1]), Blocks(bits), Noise(Draw(seed), y.device), []
        wrong = rows[:, 0].isnan()
        for part in _parts(rows):
            values = rows[part].exp() if log else rows[part]
            codes.append(kind.encode(values.masked_fill(wrong[part].unsqueeze(1), 0).flatten(), noise))
        ctx.save_for_backward(torch.cat(codes), pack_mask(wrong), torch.tensor(seed), edge)
        ctx.kind, ctx.dim, ctx.log, ctx.dtype = kind, dim, log, x.dtype
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        codes, mask, seed, edge = ctx.saved_tensors
        with torch.no_grad():
            moved = output_grad.movedim(ctx.dim, -1)
            rows, noise, first = moved.reshape(-1, moved.shape[-1]), Noise(Draw(int(seed)), codes.device), 0
            wrong = unpack_mask(mask, len(rows)).unsqueeze(1)
            result = torch.empty(rows.shape, dtype=ctx.dtype, device=rows.device)
            for part in _parts(rows):
                v = rows[part].to(torch.promote_types(rows.dtype, torch.float32))
                size = ctx.kind.nbytes(v.numel())
                flat, scales = ctx.kind.decode_with_scales(codes[first : first + size], v.numel(), noise)
                y, first = flat.view(v.shape).to(v.dtype), first + size
                if ctx.log:
                    grad = v - y * v.sum(1, keepdim=True)
                else:
                    variance = ctx.kind.variances(scales, v.numel()).view(v.shape)
                    grad = torch.addcmul(y * (v - torch.linalg.vecdot(y, v).unsqueeze(1)), variance.to(v.dtype), v)
                result[part] = grad.masked_fill_(wrong[part], torch.nan)
            input_grad = result.view(moved.shape).movedim(-1, ctx.dim)
        return (*not_differentiable("lean softmax", (input_grad,), (edge, output_grad)), *[None] * 6)


def _parts(rows: Tensor) -> list[slice]:
    """Some rows at a time."""
    columns = rows.shape[1]
    return [slice(p.start // columns, p.stop // columns) for p in pieces(rows.numel(), rows.device, columns)]


def _apply(call: Call, x: Tensor, dim: Any, log: bool) -> Any:
    if not is_activation(x) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        return NotImplemented
    session = call.session
    return _Softmax.apply(x, edge_of(x), call.run, dim, log, session.bits, session.seed())


@lean_version_of([torch.softmax, Tensor.softmax, torch.special.softmax], exact=False)
def _softmax(call: Call, input: Tensor, dim: Any, dtype: Any = None, *, out: Any = None) -> Any:
    return NotImplemented if out is not None else _apply(call, input, dim, log=False)


@lean_version_of([F.softmax], exact=False)
def _functional_softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _apply(call, input, dim, log=False)


@lean_version_of([torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax], exact=False)
def _log_softmax(call: Call, input: Tensor, dim: Any, dtype: Any = None, *, out: Any = None) -> Any:
    return NotImplemented if out is not None else _apply(call, input, dim, log=True)


@lean_version_of([F.log_softmax], exact=False)
def _functional_log_softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _apply(call, input, dim, log=True)
