"""Attention holds a few bits of queries, keys, values and probabilities; its gradients are PyTorch's on average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randbp.codecs import Blocks
from randbp.diagnostics import memory_report
from randbp.lean import make_lean
from randbp.randomize.layers import Clock

from .same import lean, values_and_grads
from .test_rounded import is_unbiased

attention = F.scaled_dot_product_attention


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def heads(queries: int = 9, keys: int = 10, size: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    return sample(5, 2, queries, size), sample(5, 2, keys, size, seed=1), sample(5, 2, keys, size, seed=2)


ALLOWED = torch.rand(5, 1, 9, 10, generator=torch.Generator().manual_seed(3)) > 0.3
ALLOWED[1, 0, 4] = False


def doubled(q: Tensor) -> Tensor:
    """Queries of four heads."""
    return torch.cat([q, q.flip(1)], 1)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": attention,
    "of one head": lambda q, k, v: attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)),
    "with a scale": lambda q, k, v: attention(q, k, v, scale=0.3),
    "causal": lambda q, k, v: attention(q, k, v, is_causal=True),
    "with a mask": lambda q, k, v: attention(q, k, v, ALLOWED),
    "with a mask of all": lambda q, k, v: attention(q, k, v, attn_mask=ALLOWED[0, 0]),
    "with additions": lambda q, k, v: attention(q, k, v, sample(9, 10, seed=6).detach()),
    "of transposed": lambda q, k, v: attention(*(x.mT.contiguous().mT for x in (q, k, v))),
    "with narrow values": lambda q, k, v: attention(q, k, v[..., :44]),
    "by keywords": lambda q, k, v: attention(key=k, query=q, value=v),
    "with a negative scale": lambda q, k, v: attention(q, k, v, scale=-0.2),
    "of groups": lambda q, k, v: attention(doubled(q), k, v, enable_gqa=True),
    "of groups, causal": lambda q, k, v: attention(doubled(q), k, v, is_causal=True, enable_gqa=True),
    "of groups, with a mask": lambda q, k, v: attention(doubled(q), k, v, ALLOWED, enable_gqa=True),
    "of groups of one": lambda q, k, v: attention(q, k, v, enable_gqa=True),
    "of one group, in five dimensions": lambda q, k, v: attention(
        q.unsqueeze(2).repeat(1, 1, 3, 1, 1), k.unsqueeze(2), v.unsqueeze(2), enable_gqa=True
    ),
    "of groups, with dropout": lambda q, k, v: attention(doubled(q), k, v, ALLOWED, 0.3, enable_gqa=True),
    "with dropout": lambda q, k, v: attention(q, k, v, dropout_p=0.3),
    "with dropout and a mask": lambda q, k, v: attention(q, k, v, ALLOWED, 0.3),
    "with dropout and additions": lambda q, k, v: attention(q, k, v, sample(9, 10, seed=6).detach().to(q.dtype), 0.3),
    "with dropout and a scale": lambda q, k, v: attention(q, k, v, dropout_p=0.3, scale=-0.3),
    "causal with dropout": lambda q, k, v: attention(q, k, v, dropout_p=0.3, is_causal=True),
}


MASKS: dict[str, tuple[int, ...]] = {
    "one for all": (9, 10),
    "one of each head": (2, 9, 10),
    "one of each head, in a batch of one": (1, 2, 9, 10),
    "one of each example": (5, 1, 9, 10),
    "whole": (5, 2, 9, 10),
    "one of each key": (10,),
    "one of each query and example": (5, 1, 9, 1),
    "a number": (1, 1, 1, 1),
}


def learnt(shape: tuple[int, ...]) -> Tensor:
    """A mask that wants a gradient; to the last key nobody may attend, as with padding."""
    mask = sample(*shape, seed=6).detach()
    if mask.shape[-1] == 10:
        mask[..., -1] = -torch.inf
    return mask.requires_grad_()


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "scale" not in name and "dimensions" not in name])
def test_gradients_are_unbiased(name: str) -> None:
    is_unbiased(FUNCTIONS[name], heads(), bits=2, draws=200)


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3}, {"enable_gqa": True}], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_learnt_masks_get_unbiased_gradients(name: str, options: dict[str, Any]) -> None:
    grouped = "enable_gqa" in options

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(doubled(q) if grouped else q, k, v, mask, **options)

    given = (*heads(size=64), learnt(tuple(4 if size == 2 and grouped else size for size in MASKS[name])))
    exact = values_and_grads(function, *given)
    ours = values_and_grads(lean(function, True, 8), *given)
    for number, (mine, other) in enumerate(zip(ours, exact, strict=True)):
        assert torch.equal(mine, other) if number == 0 else (mine - other).norm() <= 0.03 * other.norm() + 0.5
    assert ours[4].shape == given[3].shape and not torch.equal(ours[4], exact[4])
    if name == "whole":
        is_unbiased(function, given, bits=2, draws=150)


def test_gradients_of_groups_and_learnt_masks_in_double_precision() -> None:
    """Beside attention written out."""

    def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = torch.einsum("nkgqe,nkse->nkgqs", doubled(q).unflatten(1, (2, 2)), k) * 0.2 + mask.unflatten(0, (2, 2))
        return torch.einsum("nkgqs,nkse->nkgqe", scores.softmax(-1), v).flatten(1, 2)

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(doubled(q), k, v, mask, scale=0.2, enable_gqa=True)

    given = [x.detach().double().requires_grad_() for x in (*heads(size=64), sample(4, 9, 10))]
    exact = values_and_grads(written_out, *given)
    draws = [values_and_grads(lean(function, True, 8, seed), *given) for seed in range(20)]
    torch.testing.assert_close(draws[0][0], exact[0])
    for number, other in enumerate(exact[1:], 1):
        assert (torch.stack([draw[number] for draw in draws]).mean(0) - other).norm() <= 5e-3 * other.norm()


def test_attention_is_unbiased_only_by_its_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    is_unbiased(FUNCTIONS["plain"], heads(), bits=1, draws=500)
    monkeypatch.setattr(Blocks, "variances", lambda self, scales, count: torch.zeros(count))
    with pytest.raises(AssertionError, match=r"gradient [12]: z"):
        is_unbiased(FUNCTIONS["plain"], heads(), bits=1, draws=500)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_at_eight_bits(name: str, dtype: torch.dtype) -> None:
    given = [x.detach().to(dtype).requires_grad_() for x in heads(size=64)]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if name == "with additions":
            return attention(q, k, v, sample(9, 10, seed=6).detach().to(dtype))
        return FUNCTIONS[name](q, k, v)

    exact, ours = values_and_grads(function, *given), values_and_grads(lean(function, True, 8), *given)
    for number, (mine, other) in enumerate(zip(ours, exact, strict=True)):
        assert mine.dtype == other.dtype and mine.shape == other.shape and bool(mine.isfinite().all())
        assert torch.equal(mine, other) if number == 0 else (mine - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "additions" not in name])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return FUNCTIONS[name](q, k, v)

    given = heads(size=64)
    exact, ours = values_and_grads(function, *given), values_and_grads(lean(function, True, 8), *given)
    assert torch.equal(ours[0], exact[0]) and ours[0].dtype == dtype
    for mine, other in zip(ours, exact, strict=True):
        assert (mine - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("examples", [1, 7])
def test_many_probabilities_are_made_in_parts(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from randbp.lean import attention as module

    whole = values_and_grads(lean(FUNCTIONS["with a mask"], True, 8), *heads())
    monkeypatch.setattr(module, "_TOGETHER", examples * 2 * 9 * 10)
    parts = values_and_grads(lean(FUNCTIONS["with a mask"], True, 8), *heads())
    for mine, other in zip(parts, whole, strict=True):
        assert (mine - other).norm() <= 0.03 * other.norm()


def test_bytes_held() -> None:
    q, k, v = sample(4, 4, 100, 64), sample(4, 4, 100, 64, seed=1), sample(4, 4, 100, 64, seed=2)
    entries = 3 * q.numel() + 16 * 100 * 100

    def held(level: Any, **options: Any) -> int:
        function = lean(lambda q, k, v: attention(q * 1, k * 1, v * 1, **options), level, 4)
        return memory_report(function, q, k, v).held_bytes

    assert held(False) == held("exact") >= 4 * q.nbytes
    assert 0 <= held(True) - entries * (4 / 8 + 8 / 256) <= 64
    # With dropout: probabilities before and after it, and which were dropped.
    entries += 160_000
    assert 0 <= held(True, dropout_p=0.2) - entries * (4 / 8 + 8 / 256) - 160_000 / 8 - 1600 / 8 <= 256


def test_bytes_held_with_groups_and_learnt_masks() -> None:
    q, k, v = sample(4, 8, 100, 64), sample(4, 2, 100, 64, seed=1), sample(4, 2, 100, 64, seed=2)
    bias = sample(8, 100, 100)

    def held(level: Any, k: Tensor, v: Tensor, **options: Any) -> int:
        function = lean(lambda q, k, v: attention(q * 1, k * 1, v * 1, **options), level, 4)
        return memory_report(function, q, k, v).held_bytes

    entries = q.numel() + k.numel() + v.numel() + 32 * 100 * 100
    assert 0 <= held(True, k, v, enable_gqa=True) - entries * (4 / 8 + 8 / 256) <= 64
    entries = 3 * q.numel() + 32 * 100 * 100
    assert 0 <= held(True, q, q, attn_mask=bias) - entries * (4 / 8 + 8 / 256) <= 64
    assert held("exact", q, q, attn_mask=bias) > 7 * held(True, q, q, attn_mask=bias)


def test_long_sequences_and_other_calls_are_pytorchs() -> None:
    q = sample(1, 2, 2000, 16)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: attention(x, x, x),  # its probabilities are more than its inputs
        lambda x: attention(x[:, :, :100], x[:, :, :100], x[:, :, :100]),
        lambda x: attention(x[:, :1, :500], x[:, :1, :500], x[:, :1, :500]),
        lambda x: attention(x[0, :, :300], x[0, :1, :300], x[0, :1, :300], enable_gqa=True),  # heads come first
        lambda x: attention(x[:, :, :300], x[:, :1, :300], x[:, :1, :300].expand(1, 2, 300, 16), enable_gqa=True),
    ]
    for call in calls:
        assert type(lean(call, True)(q * 1).grad_fn) is type(call(q * 1).grad_fn)
    given = [sample(4, 4, 20, 64, seed=seed) for seed in range(3)]
    wrong: dict[str, Any] = {
        "both": lambda q, k, v: attention(q, k, v, sample(20, 20), is_causal=True),
        "too large": lambda q, k, v: attention(q, k, v, sample(5, 4, 20, 20)),
        "groups": lambda q, k, v: attention(q, k[:, :3], v[:, :3], enable_gqa=True),
        "no groups": lambda q, k, v: attention(q, k[:, :2], v[:, :2]),
    }
    for function in wrong.values():
        with pytest.raises(RuntimeError) as theirs:
            values_and_grads(function, *given)
        with pytest.raises(RuntimeError) as ours:
            values_and_grads(lean(function, True), *given)
        assert str(ours.value) == str(theirs.value)


class Layer(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.needs = options.pop("needs", True)
        torch.default_generator.manual_seed(0)
        self.attention = nn.MultiheadAttention(48, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        output, _ = self.attention(x, x, x, need_weights=self.needs)
        return output


LAYERS: dict[str, dict[str, Any]] = {
    "weights": {"needs": True},
    "weights, dropout": {"needs": True, "dropout": 0.2},
    "no weights": {"needs": False},
    "no weights, dropout": {"needs": False, "dropout": 0.2},
    "more keys": {"needs": True, "add_zero_attn": True, "add_bias_kv": True},
}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.default_generator.manual_seed(0)
    y = model(x)
    return [
        y.detach(),
        *torch.autograd.grad((y * torch.sin(torch.arange(y.numel()).view_as(y))).sum(), list(model.parameters())),
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_lean_inside(name: str) -> None:
    x = sample(6, 20, 48)
    plain, rounded, exact = (Layer(**LAYERS[name]) for _ in range(3))
    make_lean(rounded, True, 4, Clock(0).state)
    make_lean(exact, "exact", 4, Clock(0).state)
    before, after = memory_report(plain, x), memory_report(rounded, x)
    assert after.held_bytes < 0.25 * before.held_bytes
    assert not any("multi_head" in row.operation for row in after.rows)
    expected = gradients(plain, x)
    for mine, other in zip(gradients(exact, x), expected, strict=True):
        assert torch.equal(mine, other)
    draws = [gradients(rounded, x) for _ in range(150)]
    for number, other in enumerate(expected):
        stack = torch.stack([draw[number] for draw in draws]).double()
        if number == 0:
            torch.testing.assert_close(stack[0].float(), other)
            continue
        error, deviation = (stack.mean(0) - other).abs(), stack.std(0) / len(draws) ** 0.5
        # Largest of a few thousand z-scores: error probability below 1e-3.
        assert (error <= 5.5 * deviation + 2e-5 * other.abs().max()).all()


def test_a_transformer_layer() -> None:
    torch.default_generator.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    x = sample(8, 50, 64)
    before = memory_report(model, x)
    make_lean(model, True, 4, Clock(0).state)
    assert memory_report(model, x).held_bytes < 0.22 * before.held_bytes
