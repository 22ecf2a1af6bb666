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
from typing import Any

import torch
from torch import Tensor

from ..codecs import Blocks, Mask, Stream
from .composites import lean_inside
from .lean_call import Call, is_activation
from .lean_function import Made, codes_in_parts, run_lean
from .memory_order import pieces

Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Makes the input gradient of rows ``y``, their variance, output gradients, and a number per row or nothing."""


def _times_own_product(y: Tensor, v: Tensor, variance: Tensor) -> Tensor:
    """An unbiased estimate of ``y_i Σ_j y_j v_j``."""
    return torch.addcmul(y * torch.linalg.vecdot(y, v).unsqueeze(1), variance, v, value=-1)


def _softmax_grad(y: Tensor, variance: Tensor, v: Tensor, _: Tensor) -> Tensor:
    return y * v - _times_own_product(y, v, variance)


def _log_softmax_grad(y: Tensor, variance: Tensor, v: Tensor, _: Tensor) -> Tensor:
    return v - y * v.sum(1, keepdim=True)


def _unit_grad(y: Tensor, variance: Tensor, v: Tensor, length: Tensor) -> Tensor:
    # A vector that is shorter than eps is divided by that, whatever its length.
    tangential = (v - _times_own_product(y, v, variance)) / length
    return torch.where(length < 0, v / -length, tangential)


def _hold_rows(
    call: Call,
    x: Tensor,
    dim: Any,
    gradient: Gradient,
    rounded: Callable[[Tensor], Tensor] = Tensor.detach,
    number: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """Hold a rounded function of the output's rows, a number each of the input's, and which of them are NaN.

    (One NaN makes all of its row so.)
    """
    if not is_activation(x) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        return NotImplemented
    seed, codec, dtype = call.context.seed(), Blocks(call.context.bits), x.dtype

    def vjp(v: Tensor, wanted: Any, noise: Stream, codes: Tensor, mask: Tensor, numbers: Tensor | None) -> list[Tensor]:
        moved = v.movedim(dim, -1)
        rows = moved.reshape(-1, moved.shape[-1])
        wrong = Mask().decode(mask, len(rows)).unsqueeze(1)
        result = torch.empty(rows.shape, dtype=dtype, device=rows.device)
        for part, held in codes_in_parts(codec, codes, _parts(rows), rows.shape[1]):
            v = rows[part].to(torch.promote_types(rows.dtype, torch.float32))
            flat, scales = codec.decode_with_scales(held, v.numel(), noise)
            variance = codec.variances(scales, v.numel()).view(v.shape).to(v.dtype)
            each = v if numbers is None else numbers[part].to(v.dtype)
            grad = gradient(flat.view(v.shape).to(v.dtype), variance, v, each)
            result[part] = grad.masked_fill_(wrong[part], torch.nan)
        return [result.view(moved.shape).movedim(-1, dim)]

    def make() -> Made:
        y = call.run()
        moved = y.movedim(dim, -1)
        rows, noise = moved.reshape(-1, moved.shape[-1]), Stream(seed, y.device)
        wrong = rows[:, 0].isnan()
        parts = ((rounded(rows[part]), wrong[part].unsqueeze(1)) for part in _parts(rows))
        codes = torch.cat([codec.encode(values.masked_fill(nan, 0).flatten(), noise) for values, nan in parts])
        numbers = None if number is None else number(x).movedim(dim, -1).reshape(-1, 1)
        return y, (codes, Mask().encode(wrong), numbers), vjp

    return run_lean("RowWise", make, x, seed=seed)


def _parts(rows: Tensor) -> list[slice]:
    """Slices of some rows each."""
    columns = rows.shape[1]
    return [slice(p.start // columns, p.stop // columns) for p in pieces(rows.numel(), rows.device, columns)]


def softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """``softmax``, of ``F`` or with the dtype in third place."""
    return _hold_rows(call, input, dim, _softmax_grad)


def log_softmax(call: Call, input: Tensor, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """``log_softmax``, of ``F`` or with the dtype in third place."""
    return _hold_rows(call, input, dim, _log_softmax_grad, rounded=Tensor.exp)


def normalize(call: Call, input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Any:
    """``F.normalize``."""
    if p != 2:
        return lean_inside(call, *call.args, **call.kwargs)

    def length_of(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return length.masked_fill(length < eps, -eps)

    return _hold_rows(call, input, dim, _unit_grad, number=length_of)
