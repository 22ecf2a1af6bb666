"""Elementwise functions hold a few bits of their derivative, give PyTorch's values, and its gradients on average."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.codecs import Blocks, Grid, Stream
from randbp.diagnostics import memory_report
from tests.lean_catalogue import BY_NAME

from .same import lean, values_and_grads
from .test_rounded import is_unbiased

ANY, POSITIVE, WITHIN, ABOVE = (-3.0, 3.0), (0.05, 4.0), (-0.95, 0.95), (1.1, 4.0)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "asinh": (Tensor.asinh, ANY),
    "atan": (torch.arctan, ANY),
    "cos": (torch.cos, ANY),
    "erf": (torch.special.erf, ANY),
    "erfc": (torch.erfc, ANY),
    "expit": (torch.special.expit, ANY),
    "hardshrink": (F.hardshrink, ANY),
    "selu of torch": (torch.selu, ANY),
    "sigmoid_": (Tensor.sigmoid_, ANY),
    "sin": (lambda x: x.sin(), ANY),
    "sin_": (torch.sin_, ANY),
    "softshrink": (F.softshrink, ANY),
    "tanh_": (torch.tanh_, ANY),
    "cosh": (torch.cosh, ANY),
    "exp": (torch.exp, ANY),
    "exp_": (Tensor.exp_, ANY),
    "exp2": (torch.exp2, ANY),
    "expm1": (torch.expm1, ANY),
    "sinh": (torch.sinh, ANY),
    "square": (torch.square, ANY),
    "number to the power of": (lambda x: (2**x).contiguous(), ANY),
    "number to the power of, by name": (lambda x: torch.pow(2, x).contiguous(), ANY),
    "acos": (torch.acos, WITHIN),
    "acosh": (torch.acosh, ABOVE),
    "asin": (torch.asin, WITHIN),
    "atanh": (torch.atanh, WITHIN),
    "digamma": (torch.digamma, POSITIVE),
    "erfinv": (torch.erfinv, WITHIN),
    "lgamma": (torch.lgamma, POSITIVE),
    "log": (torch.log, POSITIVE),
    "log10": (torch.log10, POSITIVE),
    "log1p": (torch.log1p, POSITIVE),
    "log2": (torch.log2, POSITIVE),
    "log_": (torch.log_, POSITIVE),
    "logit": (lambda x: torch.logit(x, eps=0.2), (0.05, 0.95)),
    "reciprocal": (torch.reciprocal, POSITIVE),
    "number divided by": (lambda x: 2 / x, POSITIVE),
    "rsqrt": (torch.rsqrt, POSITIVE),
    "sqrt": (torch.sqrt, POSITIVE),
    "sqrt_": (Tensor.sqrt_, POSITIVE),
    "tan": (torch.tan, (-1.4, 1.4)),
    "entr": (torch.special.entr, POSITIVE),
    "erfcx": (torch.special.erfcx, (-1.0, 3.0)),
    "float power": (lambda x: torch.float_power(x, 3).to(x.dtype), ANY),
    "gammaln": (torch.special.gammaln, POSITIVE),
    "i0": (torch.i0, ANY),
    "i0e": (torch.special.i0e, ANY),
    "i1": (torch.special.i1, ANY),
    "i1e": (torch.special.i1e, ANY),
    "log_ndtr": (torch.special.log_ndtr, ANY),
    "multigammaln": (lambda x: torch.mvlgamma(x, 2).contiguous(), ABOVE),
    "ndtr": (torch.special.ndtr, ANY),
    "ndtri": (torch.special.ndtri, (0.05, 0.95)),
    "psi": (torch.special.psi, POSITIVE),
    "sinc": (torch.sinc, (-4.0, 4.0)),
    "second power": (lambda x: x**2, ANY),
    "root": (lambda x: x.pow(0.3), POSITIVE),
    "power by name": (lambda x: torch.pow(input=x, exponent=-1.5), POSITIVE),
    "power in place": (lambda x: x.pow_(3), ANY),
}
NEVER_HALF = ["erfcx", "i1", "i1e", "log_ndtr", "ndtri"]
"""PyTorch has these in single and double precision alone."""
KEPT = ["hardshrink", "softshrink"]
"""Two levels, or three, are all there is: nothing is lost."""


def sample(span: tuple[float, float], *shape: int) -> Tensor:
    low, high = span
    return (low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(2))).requires_grad_()


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in KEPT])
def test_gradients_are_unbiased(name: str) -> None:
    function, span = FUNCTIONS[name]
    is_unbiased(function, (sample(span, 65, 64),), bits=2, draws=100)


@pytest.mark.parametrize("name", KEPT)
def test_gradients_of_few_slopes_are_exact(name: str) -> None:
    x = sample(ANY, 65, 64)
    for mine, exact in zip(
        values_and_grads(lean(FUNCTIONS[name][0], True, 2), x), values_and_grads(FUNCTIONS[name][0], x), strict=True
    ):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.strip("_") not in BY_NAME])
def test_bytes_held_by_other_forms(name: str) -> None:
    function, span = FUNCTIONS[name]
    x = sample(span, 64, 512)

    def held(level: bool) -> float:
        return memory_report(lean(lambda x: function(x * 1), level, 4), x).held_bytes / x.nbytes

    assert held(False) >= 1
    assert 4 / 32 <= held(True) <= 4 / 32 + 8 / 1024 + 1 / 32 + 1e-3  # codes, scales, poles, and the seed


@pytest.mark.parametrize("format", ["channels_last", "transposed", "sliced", "bfloat16", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_formats(name: str, format: str) -> None:
    function, span = FUNCTIONS[name]
    x = sample(span, 4, 9, 12, 20).detach()
    if format == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif format == "transposed":
        x = x.transpose(1, 3)
    elif format == "sliced":
        x = x[:, ::2].repeat(1, 2, 1, 1)[:, :, :, 1:]
    elif format == "bfloat16":
        x = x.bfloat16() if name not in NEVER_HALF else x.double()
    else:
        x = x.double()
    x.requires_grad_()
    exact, ours = values_and_grads(function, x), values_and_grads(lean(function, True, 8), x)
    for mine, other, tolerance in zip(ours, exact, (1e-6, 0.03), strict=True):
        assert mine.dtype == other.dtype and mine.stride() == other.stride()
        assert (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("function", [torch.sqrt, torch.log, torch.reciprocal, lambda x: x**0.5, lambda x: 1 / x])
def test_a_pole_stays_where_it_is(function: Callable[[Tensor], Tensor]) -> None:
    # ReLU and clamps let no gradient through where the derivative is infinite, so PyTorch's is finite all over.
    x = sample(ANY, 65, 64)
    _, exact = values_and_grads(lambda x: function(torch.relu(x)), x)
    _, ours = values_and_grads(lean(lambda x: function(torch.relu(x)), True, 8), x)
    assert exact.isfinite().all() and ours.isfinite().all() and (ours - exact).norm() < 0.1 * exact.norm()
    _, exact = values_and_grads(lambda x: function(x.clamp(min=0)), x)
    _, ours = values_and_grads(lean(lambda x: function(x.clamp(min=0)), True, 8), x)
    assert torch.equal(ours.isfinite(), exact.isfinite())


def test_small_tensors_leaves_and_other_calls_are_pytorchs() -> None:
    small, large = sample(POSITIVE, 5), sample(POSITIVE, 64, 64)
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


def test_autocast_and_second_derivatives() -> None:
    x = sample(POSITIVE, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        given = x.bfloat16()
        y, exact = lean(torch.log, True, 8)(given), torch.log(given)
    assert y.dtype == exact.dtype and torch.equal(y, exact)
    (first,) = torch.autograd.grad(lean(torch.exp, True)(x * 1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


@pytest.mark.parametrize("count", [1, 7, 256, 300, 1000])
@pytest.mark.parametrize("kind", [Grid.over(-1, 3, 3), Blocks(3)], ids=str)
def test_what_holds_derivatives_tells_its_bytes(kind: Grid | Blocks, count: int) -> None:
    values = torch.linspace(-1, 3, count)

    def noise() -> Stream:
        return Stream(1, torch.device("cpu"))

    held = kind.encode(values, noise())
    assert held.dtype == torch.uint8 and held.nbytes == kind.nbytes(count)
    step = kind.step if isinstance(kind, Grid) else 4 / (2**kind.bits - 1)
    assert (kind.decode(held, count, noise()) - values).abs().max() <= step + 1e-5
