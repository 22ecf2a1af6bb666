"""Scaled dot-product attention: queries, keys, values and probabilities in a few bits.

PyTorch's kernels hold queries ``Q``, keys ``K``, values ``V`` and the output, and make the probabilities
``P = softmax(s Q Kᵀ + M)`` again in the backward pass. ``P`` is no linear function of ``Q`` and ``K``, so rounding them
for that would bias the gradient. Rounded independently, ``Q̃, K̃, Ṽ, P̃`` serve:

    V̄ = P̃ᵀ Ȳ,   D = Ȳ Ṽᵀ,   S̄ = P̃ ∘ (D - rowsum(P̃ ∘ D)) + var(P̃) ∘ D,   Q̄ = s S̄ K̃,   K̄ = s S̄ᵀ Q̃

(see :mod:`.softmax` for the variance). A mask ``M`` that is learnt gets ``S̄ / s``, summed over what it was broadcast
to. Heads that share keys and values (``enable_gqa``) are one head with the queries of all. ``P`` has an entry for each
query and key, so this holds less only where keys are few for the size of a head: with four bits, up to about a thousand
keys of 64 channels.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..codecs import Blocks, Stream
from .bilinear import cast_by_autocast
from .lean_call import Call, is_activation, is_unadorned
from .lean_function import Made, codes_in_parts, run_lean
from .memory_order import flatten, memory_order, unflatten

_WORTHWHILE = 0.75
"""Holding probabilities is worth its time up to this share of PyTorch's bytes."""

_TOGETHER = 2**20
"""Number of probabilities computed at a time [entries]; at least those of one example."""


def _hold_rounded(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    run: Callable[[], Tensor],
    probabilities: Callable[[slice], Tensor],
    scale: float,
) -> Tensor:
    """Run attention, holding rounded inputs and probabilities; ``mask`` if it is learnt."""
    seed, codec, parts = call.context.seed(), Blocks(call.context.bits), _parts(q, k)
    places = [(x.shape, memory_order(x), x.dtype) for x in (q, k, v)]
    learnt = None if mask is None else (mask.shape, mask.dtype)
    entries = prod(q.shape[1:-1]) * k.shape[-2]

    def vjp(v: Tensor, wanted: Any, noise: Stream, codes: Tensor, *held: Tensor) -> list[Tensor]:
        wide = torch.promote_types(v.dtype, torch.float32)
        q, k, values = (
            unflatten(codec.decode(each, shape.numel(), noise), shape, order).to(wide)
            for each, (shape, order, _) in zip(held, places, strict=True)
        )
        grads = [torch.empty(shape, dtype=dtype, device=q.device) for shape, _, dtype in places]
        mask_grad = None if learnt is None else torch.zeros(learnt[0], dtype=wide, device=q.device)
        for part, part_codes in codes_in_parts(codec, codes, parts, entries):
            y_bar, queries, keys = _alike(v[part].to(wide), k), _alike(q[part], k), k[part]
            shape = (*y_bar.shape[:-1], keys.shape[-2])
            flat, scales = codec.decode_with_scales(part_codes, prod(shape), noise)
            p, d = flat.view(shape).to(wide), y_bar @ values[part].mT
            excess = codec.variances(scales, prod(shape)).view(shape).to(wide) * d
            s_bar = (d - torch.linalg.vecdot(p, d).unsqueeze(-1)).mul_(p).add_(excess)
            if mask_grad is not None:
                _add(s_bar.view(*q[part].shape[:-1], -1), mask_grad, part)
            s_bar.mul_(scale)
            for grad, product in zip(grads, (s_bar @ keys, s_bar.mT @ queries, p.mT @ y_bar), strict=True):
                grad[part] = product.view(grad[part].shape)
        return grads if mask_grad is None or learnt is None else [*grads, mask_grad.to(learnt[1])]

    def make() -> Made:
        y, noise = run(), Stream(seed, q.device)
        held = [codec.encode(flatten(x, order), noise) for x, (_, order, _) in zip((q, k, v), places, strict=True)]
        codes = torch.cat([codec.encode(probabilities(part).flatten(), noise) for part in parts])
        return y, (codes, *held), vjp

    return run_lean("Attention", make, *(x for x in (q, k, v, mask) if x is not None), seed=seed)


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of a few examples each."""
    examples = len(q)
    together = max(1, _TOGETHER // max(1, q.shape[1:-1].numel() * k.shape[-2]))
    return [slice(start, min(start + together, examples)) for start in range(0, examples, together)]


def _alike(queries: Tensor, keys: Tensor) -> Tensor:
    """Reshape queries ``[…, H, L, E]`` to the heads of keys ``[…, K, S, E]``; heads that share keys are joined."""
    if queries.dim() < 4 or queries.shape[-3] == keys.shape[-3]:
        return queries
    return queries.unflatten(-3, (keys.shape[-3], -1)).flatten(-3, -2)


def _add(grad: Tensor, total: Tensor, part: slice) -> None:
    """Add the scores' gradient of some examples to the gradient of a mask that was broadcast to all."""
    whole = total.view(*[1] * (grad.dim() - total.dim()), *total.shape)
    place = whole[part] if len(whole) > 1 else whole
    place += grad.sum_to_size(place.shape)


def attention(
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
    """Hold rounded inputs and probabilities, if they take clearly fewer bytes than PyTorch's kernel holds."""
    given = (query, key, value)
    if not all(map(is_activation, given)) or not _fit(query, key, value, enable_gqa):
        return NotImplemented
    if attn_mask is not None and (is_causal or not _is_mask(attn_mask, (*query.shape[:-1], key.shape[-2]))):
        return NotImplemented
    q, k, v, mask = map(cast_by_autocast, (*given, attn_mask))
    factor = scale if scale is not None else 1 / sqrt(q.shape[-1])
    if dropout_p > 0:
        return _step_by_step(call, q, k, v, mask, dropout_p, is_causal, factor)
    learnt = mask if mask is not None and mask.requires_grad else None
    if not _is_worthwhile(q, k, v, learnt, call.context.bits):
        return NotImplemented

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)

    def probabilities(part: slice) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            scores = (_alike(q[part], k).to(wide) * factor) @ k[part].to(wide).mT
            scores = scores.view(*q[part].shape[:-1], -1)
            allowed = _mask(mask, is_causal, scores)
            if allowed is None:
                return scores.softmax(-1)
            allowed = allowed.expand(*q.shape[:-1], k.shape[-2])[part] if mask is not None else allowed
            scores = scores.masked_fill_(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores.add_(allowed)
            # Where nothing may be attended to, PyTorch's output is zero.
            return scores.softmax(-1).masked_fill_(scores.amax(-1, keepdim=True) == -torch.inf, 0)

    return _hold_rounded(call, q, k, v, learnt, run, probabilities, factor)


def _fit(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> bool:
    """Whether queries, keys and values agree in their numbers of examples and of heads, or have heads in groups."""
    if q.dim() < 3 or k.shape[:-2] != v.shape[:-2] or k.shape[-2] != v.shape[-2] or q.shape[-1] != k.shape[-1]:
        return False
    if q.shape[:-2] == k.shape[:-2]:
        return True
    examples = q.dim() == k.dim() > 3 and q.shape[:-3] == k.shape[:-3]
    return grouped and examples and 0 < k.shape[-3] <= q.shape[-3] and q.shape[-3] % k.shape[-3] == 0


def _is_mask(mask: Tensor, scores: tuple[int, ...]) -> bool:
    fits = mask.dim() <= len(scores) and all(m in (1, s) for m, s in zip(mask.shape[::-1], scores[::-1], strict=False))
    return is_unadorned(mask) and mask.layout is torch.strided and fits


def _is_worthwhile(q: Tensor, k: Tensor, v: Tensor, learnt: Tensor | None, bits: int) -> bool:
    """Whether rounded inputs and probabilities take clearly fewer bytes than PyTorch's kernel holds.

    That is the inputs and the output; on a processor, where a mask is learnt, the probabilities in place of the output.
    """
    inputs, probabilities = q.numel() + k.numel() + v.numel(), q.shape[:-1].numel() * k.shape[-2]
    output = q.shape[:-1].numel() * v.shape[-1]
    ours = Blocks(bits).nbytes(1 << 16) / (1 << 16) * (inputs + probabilities)
    others = probabilities if learnt is not None and q.device.type == "cpu" else output
    return ours <= _WORTHWHILE * q.dtype.itemsize * (inputs + others)


def _mask(mask: Tensor | None, causal: bool, scores: Tensor) -> Tensor | None:
    if not causal:
        return mask
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()


def _step_by_step(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float, causal: bool, scale: float
) -> Any:
    """Attention as separate operations: with dropout, PyTorch's CPU kernel holds all probabilities more than once.

    These are the very steps that it takes, in single precision where it does so, for the same bits; each of them lean.
    """
    if q.device.type != "cpu":
        return NotImplemented
    dtype, root = q.dtype, sqrt(abs(scale))
    with torch.autocast("cpu", enabled=False), call.context.inside():
        if dtype in (torch.float16, torch.bfloat16) and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
            q, k, v = q.float(), k.float(), v.float()
        if q.dim() > 3 and q.shape[-3] != k.shape[-3]:
            k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
        scores = (q * (-root if scale < 0 else root)) @ (k.transpose(-2, -1) * root)
        mask = _mask(mask, causal, scores)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        scores = scores if mask is None else scores + mask
        dead = None if mask is None else scores.detach().amax(-1, keepdim=True) == -torch.inf
        if dead is None or not dead.any():
            probabilities = F.softmax(scores, -1)
        else:  # where nothing may be attended to, PyTorch's output is zero
            probabilities = F.softmax(scores.masked_fill(dead, 0), -1).masked_fill(dead, 0)
        return (F.dropout(probabilities, rate) @ v).to(dtype)
