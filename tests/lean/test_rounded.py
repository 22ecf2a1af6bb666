"""What lean mode rounds gives PyTorch's values, and its gradients on average."""

from collections.abc import Callable
from inspect import getclosurevars
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.codecs import Grid
from randbp.diagnostics import memory_report

from .same import lean, values_and_grads

SMOOTH = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu inplace": lambda x: F.silu(x, inplace=True),
    "hardswish": F.hardswish,
    "hardswish inplace": lambda x: F.hardswish(x, inplace=True),
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, 3.0, 2.0),
    "elu": F.elu,
    "elu alpha": lambda x: F.elu(x, 1.7),
    "logsigmoid": F.logsigmoid,
    "selu": F.selu,
    "selu inplace": lambda x: F.selu(x, inplace=True),
    "celu": lambda x: F.celu(x, 0.5),
    "celu inplace": lambda x: F.celu(x, inplace=True),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter(*shape: int, seed: int = 1) -> Tensor:
    return (1 + torch.randn(*shape, generator=generator(seed))).requires_grad_()


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels = x.shape[1]
    return F.batch_norm(x, torch.zeros(channels), torch.ones(channels), weight, bias, training=True)


WEIGHT = parameter(32, 32)
IMAGE = torch.randn(5, 4, 6, 7, generator=generator()) * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(4, 1, 1) + 3
ROWS = torch.randn(20, 48, generator=generator()).requires_grad_()
NORMS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "batch": (batch_norm, (IMAGE.requires_grad_(), parameter(4), parameter(4))),
    "batch of rows": (batch_norm, (ROWS, parameter(48), parameter(48))),
    "batch, no parameters": (lambda x: F.batch_norm(x, None, None, training=True), (IMAGE,)),
    "batch, frozen weight": (lambda x, w, b: batch_norm(x, w.detach(), b), (IMAGE, parameter(4), parameter(4))),
    "group": (lambda x, w, b: F.group_norm(x, 2, w, b), (IMAGE, parameter(4), parameter(4))),
    "one group": (lambda x: F.group_norm(x, 1), (IMAGE,)),
    "instance": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), (IMAGE, parameter(4), parameter(4))),
    "layer": (lambda x, w, b: F.layer_norm(x, (6, 7), w, b), (IMAGE, parameter(6, 7), parameter(6, 7))),
    "layer, no parameters": (lambda x: F.layer_norm(x, (4, 6, 7)), (IMAGE,)),
    "layer, input frozen": (
        lambda x, w, b: F.layer_norm(x.detach(), (6, 7), w, b),
        (IMAGE, parameter(6, 7), parameter(6, 7)),
    ),
    "rms": (lambda x, w: F.rms_norm(x, (6, 7), w), (IMAGE, parameter(6, 7))),
}
OTHER = torch.randn(80, 64, generator=generator(3)).requires_grad_()
THIRDS = torch.randn(72, 64, generator=generator(4)).requires_grad_()
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "mul": (lambda x, y: x * y, (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "mul with a row": (lambda x, y: y * x, (OTHER, parameter(64))),
    "matmul": (lambda x, y: x @ y.T, (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "einsum": (lambda x, y: torch.einsum("ij,kj->ik", x, y), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "einsum of heads": (
        lambda x, y: torch.einsum("ihd,jhd->hij", x.view(20, 4, 64), y.view(20, 4, 64)),
        (OTHER, OTHER.flip(0).detach().requires_grad_()),
    ),
    "einsum of three": (
        lambda x, y: torch.einsum("ij,kj,lj->ikl", x, y, x[:70] * y),
        (OTHER[:, :60].detach().requires_grad_(), OTHER[:70].flip(0)[:, :60].detach().requires_grad_()),
    ),
    "einsum of one tensor thrice": (lambda x: torch.einsum("ij,ij,ij->i", x, x, x), (OTHER,)),
    "bilinear": (lambda x, w: F.bilinear(x, x, w), (OTHER, parameter(3, 64, 64))),
    "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=-0.5), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "lerp": (lambda x, y: torch.lerp(x, y, x * y), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "mul in place": (lambda x, y: x.mul_(y), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "tensordot": (lambda x, y: torch.tensordot(x, y, ([0], [0])), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "kron": (lambda x, y: torch.kron(x, y[:2, :3].contiguous()), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "vecdot": (torch.linalg.vecdot, (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "cross": (
        lambda x, y: torch.linalg.cross(x.view(4, 3, -1)[:, :3], y.view(4, 3, -1), dim=1),
        (THIRDS, THIRDS.flip(0).detach().requires_grad_()),
    ),
    "dot": (lambda x, y: torch.dot(x.flatten(), y.flatten()), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "inner": (torch.inner, (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "outer": (lambda x, y: torch.outer(x.flatten(), y[0, :9]), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "mv": (lambda x, y: torch.mv(x, y), (OTHER, parameter(64))),
    "addmv": (lambda x, y: torch.addmv(x[:, 0], x, y, alpha=0.5), (OTHER, parameter(64))),
    "addbmm": (lambda x: torch.addbmm(x[:20, :20], x.view(4, 20, 64), x.view(4, 64, 20)), (OTHER,)),
    "matmul of copies": (
        lambda x, y: x.view(16, 5, 2, 32).transpose(1, 2) @ y.view(16, 5, 2, 32).permute(0, 2, 3, 1),
        (OTHER, OTHER.flip(0).detach().requires_grad_()),
    ),
    "linear": (F.linear, (OTHER, parameter(7, 64), parameter(7))),
    # One tensor's rounding must not meet itself on the way back.
    "product in a product": (lambda x, y: x * (x * y), (OTHER, OTHER.flip(0).detach().requires_grad_())),
    "layer behind a product": (lambda x, w: x * F.linear(x, w), (OTHER, parameter(64, 64))),
    "two layers": (lambda x, w, v: F.linear(x, w) * F.linear(x, v), (OTHER, parameter(64, 64), parameter(64, 64))),
    "conv": (F.conv2d, (torch.randn(8, 3, 14, 14).requires_grad_(), parameter(5, 3, 3, 3))),
}


def is_unbiased(function: Callable[..., Any], inputs: tuple[Tensor, ...], bits: int, draws: int = 600) -> None:
    exact = values_and_grads(function, *inputs)
    ours = lean(function, True, bits)
    runs = [values_and_grads(ours, *inputs) for _ in range(draws)]
    torch.testing.assert_close(runs[0][0], exact[0])  # the forward pass is exact
    assert all(torch.equal(run[0], runs[0][0]) for run in runs)
    varies = False
    for number, expected in enumerate(exact[1:], 1):
        errors = torch.stack([run[number] for run in runs]).double() - expected
        jump, floor = errors.abs().max(), 2e-6 * expected.abs().max()  # what single precision hides
        deviation = errors.mean(0).abs()
        # An entry next to a grid level is rarely rounded away from it: its variance then is its deviation times a jump.
        variance = torch.maximum(errors.var(0), deviation * jump)
        z = deviation / ((variance / draws).sqrt() + floor)
        assert z.max() < 5.5, f"gradient {number}: z = {z.max()}"  # Bonferroni: error probability below 1e-3 in all
        for direction in (torch.ones_like(errors[0]), expected.double()):  # biases that agree add up
            along = errors.flatten(1) @ direction.double().flatten()
            z = along.mean().abs() / (along.std() / draws**0.5 + floor * direction.norm())
            assert z < 4.5, f"gradient {number}: z = {z} in sum"
        varies |= bool(jump > 1e-4 * expected.abs().max())
    assert varies


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_are_unbiased(name: str) -> None:
    x = torch.linspace(-6, 6, 241).requires_grad_()
    is_unbiased(SMOOTH[name], (x,), bits=2)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_of_a_single_number(name: str) -> None:
    x = torch.tensor(0.7, requires_grad=True)
    value, grad = values_and_grads(SMOOTH[name], x)
    mine, estimate = values_and_grads(lean(SMOOTH[name], True, 8), x)
    assert torch.equal(mine, value) and estimate.shape == () and abs(float((estimate - grad) / grad)) < 0.05


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_stay_within_their_grid(name: str) -> None:
    # Were the range too narrow, clamping to it would bias the gradient where the derivative is extreme.
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(SMOOTH[name](x * 1).sum(), x)
    for bits in (1, 2, 4, 8):
        run = lean(SMOOTH[name], True, bits)
        (times,) = getclosurevars(run(x * 1).grad_fn.vjp).nonlocals["products"]
        grid: Grid = getclosurevars(times).nonlocals["codec"]
        assert grid.first - 1e-12 <= slope.min() and slope.max() <= grid.first + grid.step * (2**bits - 1) + 1e-12


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("name", NORMS)
def test_normalisations_are_unbiased(name: str, bits: int) -> None:
    function, inputs = NORMS[name]
    is_unbiased(function, inputs, bits)


def test_a_normalisation_of_few_entries_is_unbiased_only_by_its_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    from randbp.lean import norms

    function, inputs = NORMS["layer"]
    monkeypatch.setattr(norms._Channels, "is_corrected", lambda *_: False)
    with pytest.raises(AssertionError, match="gradient 1: z"):
        is_unbiased(function, inputs, bits=1, draws=2000)
    monkeypatch.undo()
    is_unbiased(function, inputs, bits=1, draws=2000)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_unbiased(name: str) -> None:
    function, inputs = PRODUCTS[name]
    is_unbiased(function, inputs, bits=2, draws=300)


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_of_half_precision_with_other_parameters(name: str) -> None:
    function, (x, *parameters) = NORMS[name]
    narrow = "instance" in name or "rms" in name  # PyTorch takes no others
    given = [each.detach().to(torch.bfloat16 if narrow or each is x else each.dtype) for each in (x, *parameters)]
    given = [each.requires_grad_() for each in given]
    exact, ours = values_and_grads(function, *given), values_and_grads(lean(function, True, 8), *given)
    for mine, other in zip(ours, exact, strict=True):
        assert mine.dtype == other.dtype and (mine - other).norm() <= 0.06 * other.norm()


def test_running_statistics_are_updated_as_ever() -> None:
    for momentum in (0.1, 0.3):
        one, two = torch.nn.BatchNorm2d(4, momentum=momentum), torch.nn.BatchNorm2d(4, momentum=momentum)
        lean_one = lean(one.forward, True)
        for _ in range(3):
            lean_one(IMAGE)
            two(IMAGE)
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name])


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_held(bits: int) -> None:
    x, weight = torch.randn(4, 8, 32, 32).requires_grad_(), torch.ones(8, requires_grad=True)
    packed, scales = x.numel() * bits // 8, x.numel() // 256 * 8

    def held(function: Callable[[Tensor], Tensor]) -> int:
        return memory_report(lean(lambda x: function(x + 1), True, bits), x).held_bytes

    assert held(F.gelu) == packed + x.numel() // 256 // 8  # and a bit per block
    assert 0 <= held(lambda x: F.batch_norm(x, None, None, weight, training=True)) - packed - scales <= 2 * 8 * 4 + 8
    assert 0 <= held(lambda x: F.layer_norm(x, (8, 32, 32))) - packed - scales <= 2 * 4 * 4 + 8
    square = torch.randn(32, 32, requires_grad=True)
    layers = held(lambda x: (F.linear(x, square) + F.linear(x.flatten(0, 1), square).view(x.shape)).sum())
    assert 0 <= layers - packed - scales <= 8  # x is rounded once
    assert 0 <= held(lambda x: (x @ x.mT).sum()) - packed - scales <= 8  # by one product, too
    assert 0 <= held(lambda x: torch.einsum("bcij,bckj->bcik", x, x).sum()) - packed - scales <= 8
    of_three = held(lambda x: torch.einsum("bcij,bcij,bcij->b", x, x, x).sum())
    assert 0 <= of_three - 4 * (packed + scales) <= 4 * 8  # two products, and no rounding twice


@pytest.mark.parametrize(
    ("function", "factors"),
    [
        (lambda x: x.view(8, 32, 4, 32).transpose(1, 2) @ (2 * x).view(8, 32, 4, 32).permute(0, 2, 3, 1), 2),
        (lambda x: F.linear(x.view(8, 32, 4, 32).transpose(1, 2), WEIGHT), 1),
        (lambda x: x.view(8, 32, 4, 32).transpose(1, 2) @ WEIGHT, 1),
        (lambda x: torch.einsum("bihd,bjhd->bhij", x.view(8, 32, 4, 32), (2 * x).view(8, 32, 4, 32)), 2),
        (lambda x: torch.addcmul(x, 2 * x, 3 * x), 2),
        (lambda x: torch.lerp(x, 2 * x, 3 * x), 3),
        (lambda x: x.mul_(2 * x), 2),
        (lambda x: torch.tensordot(x, 2 * x, ([0, 1], [0, 1])), 2),
        (lambda x: torch.linalg.vecdot(x, 2 * x), 2),
        (lambda x: torch.linalg.cross(x.view(-1, 4, 64)[:, :3], 2 * x.view(-1, 4, 64)[:, 1:], dim=1), 1.5),
        (lambda x: torch.inner(x, 2 * x), 2),
        (lambda x: torch.dot(x.flatten(), 2 * x.flatten()), 2),
        (lambda x: torch.outer(x.flatten(), WEIGHT.flatten()[:3]), 1),
        (lambda x: torch.mv(x.view(-1, 128), WEIGHT.flatten()[:128]), 1),
    ],
    ids=[
        *("heads", "linear", "matmul", "einsum", "addcmul", "lerp", "mul_", "tensordot"),
        *("vecdot", "cross", "inner", "dot", "outer", "mv"),
    ],
)
def test_copies_of_factors_are_rounded_too(function: Callable[[Tensor], Tensor], factors: int) -> None:
    x = torch.randn(8, 32, 128, generator=generator()).requires_grad_()

    def held(level: Any) -> int:
        return memory_report(lean(lambda x: function(x * 1), level, 4), x).held_bytes

    assert held(False) >= factors * x.nbytes and held("exact") == held(False)
    assert 0 <= held(True) - factors * x.numel() * (4 / 8 + 8 / 256) <= 8 * factors


def test_small_tensors_parameters_and_inputs_are_not_rounded() -> None:
    weight = torch.randn(100, 100, generator=generator()).requires_grad_()
    large, small = torch.randn(64, 100).requires_grad_(), torch.randn(8, 100).requires_grad_()

    def weight_grad(x: Tensor, level: Any) -> Tensor:
        run = lean(lambda x: F.linear(x, weight), level, 1)
        return torch.autograd.grad(run(x).square().sum(), weight)[0]

    for x in (large, large.detach(), small * 1.0):  # leaves live anyway, and of small ones little would be saved
        assert torch.equal(weight_grad(x, True), weight_grad(x, False))
    assert not torch.equal(weight_grad(large * 1.0, True), weight_grad(large * 1.0, False))
    x = large * 1.0
    (input_grad,) = torch.autograd.grad(lean(lambda x: F.linear(x, weight), True, 1)(x).sum(), x)
    torch.testing.assert_close(input_grad, weight.detach().sum(0).expand_as(x))  # with the weight itself


def test_sparse_factors_are_left_alone() -> None:
    x = torch.randn(90, 64, generator=generator()).requires_grad_()
    graph = (torch.rand(80, 90, generator=generator()) > 0.9).float().to_sparse()
    for function in (lambda x: torch.mm(graph, x), lambda x: graph @ x):
        for mine, other in zip(
            values_and_grads(lean(function, True, 1), x), values_and_grads(function, x), strict=True
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("level", ["exact", True])
@pytest.mark.parametrize("shape", [(0, 64, 6, 6), (2, 64, 0, 6), (0, 64), (0,), ()])
@pytest.mark.parametrize(
    "module",
    [
        torch.nn.BatchNorm2d(64),
        torch.nn.BatchNorm1d(64),
        torch.nn.GroupNorm(8, 64),
        torch.nn.InstanceNorm2d(64, affine=True),
        torch.nn.LayerNorm(64),
        torch.nn.LayerNorm((64, 6, 6)),
        torch.nn.RMSNorm(64),
        torch.nn.GELU(),
        torch.nn.Softmax(-1),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.MaxPool2d(2),
        torch.nn.AvgPool2d(2),
        torch.nn.Linear(64, 3),
    ],
    ids=str,
)
def test_tensors_without_entries_are_pytorchs(module: torch.nn.Module, shape: tuple[int, ...], level: Any) -> None:
    def run(function: Callable[..., Tensor]) -> tuple[type, Any]:
        x = torch.ones(shape, requires_grad=True)
        try:
            y = function(x * 1)
            y.sum().backward()
        except Exception as error:
            return type(error), str(error)
        return type(y.grad_fn), (y.shape, None if x.grad is None else x.grad.shape)

    kind, expected = run(module)
    mine, found = run(lean(module.forward, level))
    assert found == expected
    if isinstance(expected, str) or 0 in shape:
        assert mine is kind
