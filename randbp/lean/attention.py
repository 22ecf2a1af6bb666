"""Scaled dot-product attention: queries, keys, values and probabilities in a few bits.

PyTorch's kernels hold queries ``Q``, keys ``K``, values ``V`` and the output, and make the probabilities
``P = softmax(s Q Kᵀ + M)`` again in the backward pass. ``P`` is no linear function of ``Q`` and ``K``, so rounding them
for that would bias the gradient. Rounded independently, ``Q̃, K̃, Ṽ, P̃`` serve:

    V̄ = P̃ᵀ Ȳ,   D = Ȳ Ṽᵀ,   S̄ = P̃ ∘ (D - rowsum(P̃ ∘ D)) + var(P̃) ∘ D,   Q̄ = s S̄ K̃,   K̄ = s S̄ᵀ Q̃

(see :mod:`.rowwise` for the variance). ``P`` has an entry for each query and key, so this holds less only where keys
are few for the size of a head: with four bits, up to about a thousand keys of 64 channels.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.once import edge_of, not_differentiable
from ..autograd.transforms import refuses_vectorised
from ..estimators.draw import Draw
from ..estimators.noise import Noise
from .layout import flatten, memory_order, unflatten
from .products import cast_by_autocast
from .rules import Call, is_activation, lean_version_of
from .slopes import Blocks

_WORTHWHILE = 0.75
"""Share of PyTorch's bytes up to which holding probabilities is worth its time."""

_TOGETHER = 2**20
"""Probabilities made at a time, unless those of one example are more."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edges: list[Tensor | None],
        run: Callable[[], Tensor],
        probabilities: Callable[[slice], Tensor],
        scale: float,
        bits: int,
        seed: int,
    ) -> Tensor:
        y = run()
        kind, noise = Blocks(bits), Noise(Draw(seed), q.device)
        ctx.places = [(x.shape, memory_order(x), x.dtype) for x in (q, k, v)]
        held = [kind.encode(flatten(x, order), noise) for x, (_, order, _) in zip((q, k, v), ctx.places, strict=True)]
        ctx.parts = _parts(q, k)
        codes = torch.cat([kind.encode(probabilities(part).flatten(), noise) for part in ctx.parts])
        # The seed travels with the codes: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), codes, *held, *edges)
        ctx.kind, ctx.scale = kind, scale
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, codes, *held = ctx.saved_tensors
        edges, kind, first = held[3:], ctx.kind, 0
        with torch.no_grad():
            wide = torch.promote_types(output_grad.dtype, torch.float32)
            noise = Noise(Draw(int(seed)), output_grad.device)
            q, k, v = (
                unflatten(kind.decode(entries, shape.numel(), noise), shape, order).to(wide)
                for entries, (shape, order, _) in zip(held[:3], ctx.places, strict=True)
            )
            grads = [torch.empty(shape, dtype=dtype, device=q.device) for shape, _, dtype in ctx.places]
            for part in ctx.parts:
                y_bar, keys, values = output_grad[part].to(wide), k[part], v[part]
                shape = (*y_bar.shape[:-1], keys.shape[-2])
                size, count = kind.nbytes(prod(shape)), prod(shape)
                flat, scales = kind.decode_with_scales(codes[first : first + size], count, noise)
                first += size
                p = flat.view(shape).to(wide)
                d = y_bar @ values.mT
                excess = kind.variances(scales, count).view(shape).to(wide) * d
                s_bar = (d - torch.linalg.vecdot(p, d).unsqueeze(-1)).mul_(p).add_(excess).mul_(ctx.scale)
                for grad, product in zip(grads, (s_bar @ keys, s_bar.mT @ q[part], p.mT @ y_bar), strict=True):
                    grad[part] = product
        return (*not_differentiable("lean attention", tuple(grads), (*edges, output_grad)), *[None] * 6)


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    """Some examples at a time."""
    examples = len(q)
    together = max(1, _TOGETHER // max(1, q.shape[1:-1].numel() * k.shape[-2]))
    return [slice(start, min(start + together, examples)) for start in range(0, examples, together)]


@lean_version_of([F.scaled_dot_product_attention], exact=False)
def _attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    given = (query, key, value)
    alike = query.dim() > 2 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    unusual = enable_gqa or (attn_mask is not None and (attn_mask.requires_grad or is_causal))
    if not all(map(is_activation, given)) or not alike or unusual:
        return NotImplemented
    q, k, v = map(cast_by_autocast, given)
    factor = scale if scale is not None else q.shape[-1] ** -0.5
    if dropout_p > 0:
        return _step_by_step(call, q, k, v, attn_mask, dropout_p, is_causal, factor)
    if not _is_worthwhile(q, k, v, call.session.bits):
        return NotImplemented

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, scale=scale)

    def probabilities(part: slice) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            scores = (q[part].to(wide) * factor) @ k[part].to(wide).mT
            mask = _mask(attn_mask, is_causal, scores)
            if mask is None:
                return scores.softmax(-1)
            mask = mask.expand(*q.shape[:-1], k.shape[-2])[part] if mask.dim() else mask
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
            # Where nothing may be attended to, PyTorch's output is zero.
            return scores.softmax(-1).masked_fill_(scores.amax(-1, keepdim=True) == -torch.inf, 0)

    edges = [edge_of(x) for x in (q, k, v)]
    return _Attention.apply(q, k, v, edges, run, probabilities, factor, call.session.bits, call.session.seed())


def _is_worthwhile(q: Tensor, k: Tensor, v: Tensor, bits: int) -> bool:
    """Whether rounded inputs and probabilities are clearly less than the inputs and the output."""
    inputs, probabilities = q.numel() + k.numel() + v.numel(), q.shape[:-1].numel() * k.shape[-2]
    output = q.shape[:-1].numel() * v.shape[-1]
    ours = Blocks(bits).nbytes(1 << 16) / (1 << 16) * (inputs + probabilities)
    return ours <= _WORTHWHILE * q.dtype.itemsize * (inputs + output)


def _mask(mask: Tensor | None, causal: bool, scores: Tensor) -> Tensor | None:
    if not causal:
        return mask
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()


def _step_by_step(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float, causal: bool, scale: float
) -> Any:
    """With dropout PyTorch's processor kernel holds all probabilities, and more than once."""
    if q.device.type != "cpu" or scale <= 0:
        return NotImplemented
    root = scale**0.5
    with call.session.inside():
        scores = (q * root) @ (k * root).transpose(-2, -1)
        mask = _mask(mask, causal, scores)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return F.dropout(F.softmax(scores, -1), rate) @ v
