"""Rules that hold slopes, in forms that the catalogue does not call: broadcasts, reductions, other names, poles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import FORMS, assert_same, lean, values_and_grads
from .test_rounded import is_unbiased


def sample(*shape: int, seed: int = 0, least: float | None = None) -> Tensor:
    """Normal numbers, or numbers between the least one and one more."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) if least is None else least + torch.rand(*shape, generator=generator)
    return x.requires_grad_()


X, Y, Z = sample(72, 64), sample(72, 64, seed=1), sample(72, 64, seed=2)
P, Q = sample(72, 64, seed=3, least=0.2), sample(72, 64, seed=4, least=0.3)
ROW, COLUMN, NUMBER = sample(64, seed=5, least=0.2), sample(72, 1, seed=6, least=0.3), sample(1, least=0.5)
CLASSES = torch.randint(0, 64, (72,), generator=torch.Generator().manual_seed(7))
SIGNS = torch.where(CLASSES % 2 == 0, 1.0, -1.0)
T = sample(72, 64, seed=8, least=-0.5).detach()
SHARES = torch.softmax(T, 1)
WORDS, LENGTHS = torch.arange(1, 41).view(4, 10) % 35 + 1, torch.tensor([30, 28, 30, 25])


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], float]] = {
    # and bits held at four bits per entry, relative to the first argument's entries
    "power by a row": (torch.pow, (P, ROW), 10),
    "power by a number": (lambda x: x.pow(torch.tensor(2.5)), (P,), 5),
    "of a number": (lambda x: torch.tensor(2.0) ** x, (X,), 5),
    "float_power by a number": (lambda x: torch.float_power(x, 3).float(), (X,), 4),
    "arctan2": (lambda x, y: x.arctan2(other=y), (X, Y), 10),
    "hypot": (torch.hypot, (X, COLUMN), 10),
    "logsumexp": (lambda x: x.logsumexp(0), (X,), 5),
    "logsumexp of all": (lambda x: torch.logsumexp(x, (0, 1)), (X,), 5),
    "logsumexp, kept": (lambda x: torch.logsumexp(x.view(8, 9, 64), dim=(0, -1), keepdim=True), (X,), 5),
    "prod of all": (lambda x: torch.prod(1 + x / 50), (X,), 5),
    "cubic norm": (lambda x: torch.linalg.vector_norm(x, 3, dim=0), (X,), 4),
    "cubic norm of all": (lambda x: x.norm(p=3), (X,), 4),
    "cosine with a row": (lambda x, y: torch.cosine_similarity(x, y, dim=1), (X, ROW), 8),
    "cosine of all pairs": (lambda x, y: F.cosine_similarity(x[:, None], y[None, :20], dim=2), (X, Y), 160),
    "cosine of channels": (lambda x, y: torch.nn.CosineSimilarity()(x[None], y[None]), (X, Y), 8),
    "mse, both": (lambda x, y: F.mse_loss(x, y, reduction="sum"), (X, Y), 8),
    "mse, each": (lambda x: F.mse_loss(x, target=T, reduction="none"), (X,), 4),
    "smooth l1": (lambda x: torch.nn.SmoothL1Loss(beta=0.7)(x, T), (X,), 4),
    "huber": (lambda x: F.huber_loss(x, T, reduction="none", delta=0.5), (X,), 4),
    "bce with logits": (lambda x: F.binary_cross_entropy_with_logits(x, SHARES, pos_weight=Q[0].detach()), (X,), 4),
    "poisson": (lambda x: F.poisson_nll_loss(x, Q.detach(), full=True), (X,), 4),
    "gaussian of a column": (lambda x, y: F.gaussian_nll_loss(x, T, y.expand(72, 64)), (X, COLUMN), 8),
    "hinge embedding": (lambda x: F.hinge_embedding_loss(x, T.sign(), reduction="none"), (X,), 4),
    "multi-margin": (lambda x: F.multi_margin_loss(x, CLASSES, p=2), (X,), 4),
    "multi-margin, each": (lambda x: F.multi_margin_loss(x, CLASSES, reduction="none"), (X,), 4),
    "multilabel": (lambda x: F.multilabel_soft_margin_loss(x, SHARES), (X,), 4),
    "multilabel, each": (lambda x: F.multilabel_soft_margin_loss(x, SHARES, reduction="none"), (X,), 4),
    "cosine embedding": (lambda x, y: F.cosine_embedding_loss(x, y, SIGNS, margin=-0.2), (X, Y), 8),
    "cosine embedding, each": (lambda x, y: F.cosine_embedding_loss(x, y, SIGNS, reduction="none"), (X, Y), 8),
    "triplets, each": (lambda x, y, z: F.triplet_margin_loss(x, y, z, reduction="none"), (X, Y, Z), 12),
    "divergence of a target": (lambda x, y: F.kl_div(x.detach(), y, reduction="sum", log_target=True), (X, Y), 4),
    "cross-entropy of shares": (lambda x: F.cross_entropy(x, SHARES), (X,), 4),
    "smoothed cross-entropy": (lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1, reduction="none"), (X,), 4),
    "cross-entropy of images": (
        lambda x: F.cross_entropy(x.view(2, 64, 4, 9), SHARES.view(2, 64, 4, 9), reduction="none"),
        (X,),
        4,
    ),
    "number to the power of": (lambda x: (2**x).contiguous(), (X,), 4),
    "power of a number by name": (lambda x: torch.pow(input=x, exponent=-1.5), (P,), 5),
    "root": (lambda x: x.pow(0.3), (P,), 5),
    "second power": (lambda x: x**2, (X,), 4),
    "logit of clamped": (lambda x: torch.logit(x - 0.2, eps=0.2), (P,), 5),
    "by keyword": (lambda x, y: torch.div(x, other=y), (X, P), 10),
    "by a row": (lambda x, y: x / y, (X, ROW), 5),
    "by a column": (lambda x, y: x / y, (X, COLUMN), 5),
    "by a number": (lambda x, y: x.div(y), (X, NUMBER), 5),
    "of a row": (lambda x, y: x / y, (ROW, P), 10),
    "by a column that is repeated": (lambda x, y: x / y.expand_as(x), (X, COLUMN), 5),
    "of a constant row": (lambda x, y: x.detach() / y, (ROW, P), 5),
    "/= a column": (lambda x, y: x.__itruediv__(y), (X, COLUMN), 5),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, z, y, value=-0.7), (X, P, Z), 10),
    "addcdiv of a row": (lambda x, y, z: x.addcdiv(z, y), (ROW, P, Z), 10),
    "glu of rows": (lambda x: nn.GLU(0)(x), (sample(144, 64),), 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_unbiased(name: str) -> None:
    function, inputs, _ = FUNCTIONS[name]
    is_unbiased(function, inputs, bits=2, draws=100)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bytes_held_and_values(name: str) -> None:
    function, inputs, bits = FUNCTIONS[name]

    def held(level: Any) -> int:
        return memory_report(lean(lambda *x: function(*(y * 1 for y in x)), level, 4), *inputs).held_bytes

    count = X.numel() if inputs[0] is ROW else inputs[0].numel()
    count = 144 * 64 if "glu" in name else count
    small = 2 * sum(x.nbytes for x in inputs if x.numel() < 4096)
    assert bits * count / 8 <= held(True) <= bits * count / 8 * (1 + 2 * 8 / 256) + 48 + small
    assert held("exact") == held(False) and held(True) < 0.7 * held(False)
    (value, *_), (exact, *_) = values_and_grads(lean(function, True), *inputs), values_and_grads(function, *inputs)
    assert torch.equal(value, exact)


@pytest.mark.parametrize("format", FORMS)
@pytest.mark.parametrize(
    "name",
    ["power by a row", "hypot", "logsumexp", "cubic norm", "cosine with a row", "huber", "triplets, each", "addcdiv"],
)
def test_formats(name: str, format: str) -> None:
    function, inputs, _ = FUNCTIONS[name]

    def cast(*x: Tensor) -> Tensor:
        return function(*x) if name != "huber" else F.huber_loss(x[0], T.to(x[0]), reduction="none")

    given = [FORMS[format](x.detach()).requires_grad_() for x in inputs]
    exact, ours = values_and_grads(cast, *given), values_and_grads(lean(cast, True, 8), *given)
    for number, (mine, other) in enumerate(zip(ours, exact, strict=True)):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= (0 if number == 0 else 0.04) * other.norm()


def test_a_row_that_is_masked_altogether_leaves_others_alone() -> None:
    hidden = torch.zeros(72, 64, dtype=torch.bool)
    hidden[5], hidden[:, ::3] = True, True

    def pooled(x: Tensor) -> Tensor:
        return x.masked_fill(hidden, -torch.inf).logsumexp(1)

    (_, exact), (_, ours) = values_and_grads(pooled, X), values_and_grads(lean(pooled, True, 8), X)
    assert torch.equal(ours.isfinite(), exact.isfinite())
    others = exact.isfinite()
    assert (ours - exact)[others].norm() < 0.05 * exact[others].norm()


def test_other_calls_are_pytorchs() -> None:
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[:2].exp() ** x[:2],
        lambda x: x[:0].logsumexp(1).sum() + x.sum(),
        lambda x: x[0, 0].logsumexp(0) + x[0, 0].prod(),
        lambda x: F.kl_div(x, SHARES, reduction="sum"),
        lambda x: torch.linalg.vector_norm(x, torch.inf, 1),
        lambda x: (x * x).pow_(2 * Q.detach()),
        lambda x: F.ctc_loss(x.view(32, 4, 36), WORDS, torch.full((4,), 32), torch.full((4,), 10), reduction="none"),
    ]
    for call in calls[:-2]:
        assert_same(values_and_grads(lean(call, True), X), values_and_grads(call, X))
    for call in calls[-2:]:
        assert type(lean(call, "exact")(X * 1).grad_fn) is type(lean(call, True)(X * 1).grad_fn)
    with torch.no_grad():
        out = torch.empty(72)
        lean(lambda x: torch.logsumexp(x * 1, 1, out=out), True)(X)
        assert torch.equal(out, X.logsumexp(1))
    for wrong in (lambda x: x ** x[:3], lambda x: x.logsumexp(3), lambda x: F.cosine_similarity(x, x[:3])):
        with pytest.raises((RuntimeError, IndexError)) as ours:
            lean(wrong, True)(X * 1)
        with pytest.raises((RuntimeError, IndexError)) as theirs:
            wrong(X * 1)
        assert str(ours.value) == str(theirs.value)


def test_a_safe_quotient() -> None:
    x, y = sample(64, 128), sample(64, 128, seed=3).detach().relu().requires_grad_()

    def safe(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, x / y, 0)

    (_, *exact), (_, *ours) = values_and_grads(safe, x, y), values_and_grads(lean(safe, True, 8), x, y)
    for mine, other in zip(ours, exact, strict=True):
        assert torch.equal(mine.isfinite(), other.isfinite())


def test_small_tensors_constants_and_other_calls_are_pytorchs() -> None:
    x, large = sample(64, 128), sample(64, 128, seed=1, least=0.5)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[:2] / x[2:4],
        lambda x: x / 3,
        lambda x: x / large,  # a leaf lives anyway
        lambda x: x / large.detach(),
        lambda x: x / torch.ones(128, dtype=torch.int64),
        lambda x: torch.div(x, x.detach() * 2, rounding_mode="floor"),
    ]
    for call in calls:
        assert type(lean(call, True)(x * 1).grad_fn) is type(call(x * 1).grad_fn)
    for level in ("exact", False):
        assert type(lean(lambda x: x / (x + 1), level)(x * 1).grad_fn).__name__ == "DivBackward0"
    with torch.no_grad():
        out = torch.empty_like(x)
        assert torch.equal(lean(lambda x: torch.div(x, large, out=out), True)(x), out)
    with pytest.raises(RuntimeError, match="Halving dimension must be even"):
        lean(lambda x: F.glu(x[:, 1:]), True)(x)


@pytest.mark.parametrize("function", [torch.sqrt, torch.log, torch.reciprocal, lambda x: x**0.5, lambda x: 1 / x])
def test_a_pole_stays_where_it_is(function: Callable[[Tensor], Tensor]) -> None:
    # ReLU and clamps let no gradient through where the derivative is infinite, so PyTorch's is finite all over.
    x = sample(65, 64)
    _, exact = values_and_grads(lambda x: function(torch.relu(x)), x)
    _, ours = values_and_grads(lean(lambda x: function(torch.relu(x)), True, 8), x)
    assert exact.isfinite().all() and ours.isfinite().all() and (ours - exact).norm() < 0.1 * exact.norm()
    _, exact = values_and_grads(lambda x: function(x.clamp(min=0)), x)
    _, ours = values_and_grads(lean(lambda x: function(x.clamp(min=0)), True, 8), x)
    assert torch.equal(ours.isfinite(), exact.isfinite())


def test_small_tensors_leaves_of_one_and_other_calls_are_pytorchs() -> None:
    small, large = sample(5, least=0.3), sample(64, 64, least=0.3)
    for x in (small * 1, large, large.detach(), (large * 1).to(torch.complex64)):
        assert type(lean(torch.exp, True)(x).grad_fn) is type(torch.exp(x).grad_fn)
    x = large * 1
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: x ** (1 + 1j),
        lambda x: x.sign(),
    ]
    for call in calls:
        assert type(lean(call, True)(x).grad_fn) is type(call(x).grad_fn)
    assert type(lean(torch.exp, "exact")(x).grad_fn) is type(torch.exp(x).grad_fn)
    with torch.no_grad():
        out = torch.empty_like(x)
        lean(lambda x: torch.exp(x, out=out), True)(x)
        assert torch.equal(out, x.exp())
        assert lean(torch.exp, True)(x).grad_fn is None


@pytest.mark.parametrize(
    "function",
    [
        F.gelu,
        lambda x: F.gelu(x.mT),
        lambda x: F.instance_norm(x.view(8, 9, 8, 8)),
        lambda x: x.logsumexp(1),
        lambda x: F.cosine_similarity(x, x + 1),
        lambda x: F.mse_loss(x, 2 * x, reduction="none"),
        lambda x: x.abs() ** x,
        lambda x: torch.maximum(x, x.flip(0)),
    ],
)
def test_results_may_be_changed_in_place(function: Callable[[Tensor], Tensor]) -> None:
    (value, grad), (twice, twofold) = (
        values_and_grads(lean(lambda x, f=f: f(function(x)), True), X) for f in (lambda y: y * 2, lambda y: y.mul_(2))
    )
    assert torch.equal(value, twice) and torch.equal(grad, twofold)


def test_a_loss_that_broadcasts_and_reduces_nothing_has_the_gradient_of_each_example() -> None:
    def loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(anchor, positive, negative, reduction="none")

    positive = sample(1, 64, seed=1)
    for ours, theirs in zip(
        values_and_grads(lean(loss, True, bits=8), X, positive, Z), values_and_grads(loss, X, positive, Z), strict=True
    ):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_an_argument_that_does_not_enter_the_derivative_has_none() -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return F.hinge_embedding_loss(x, target)

    target = SIGNS.view(-1, 1).expand(72, 64).clone().requires_grad_()
    ours, theirs = values_and_grads(lean(loss, True), X, target), values_and_grads(loss, X, target)
    assert torch.equal(ours[0], theirs[0]) and len(ours) == len(theirs)


@pytest.mark.parametrize("function", [torch.float_power, torch.ldexp])
def test_values_of_broadcast_arguments_are_pytorchs_bit_for_bit(function: Callable[..., Tensor]) -> None:
    assert_same(values_and_grads(lean(function, True), P, COLUMN)[:1], values_and_grads(function, P, COLUMN)[:1])
    assert_same(values_and_grads(lean(function, True), P, ROW)[:1], values_and_grads(function, P, ROW)[:1])
