"""Kronecker factors against PyTorch's autograd, layer by layer."""

import random

import pytest
import torch
from torch import nn
from torch.func import functional_call

from randbp import tn
from randbp.curvature import damped_inverses, input_factor, output_grad_factor
from randbp.curvature.weight_matrices import Form, as_matrices, call_input, from_matrices, layer_call
from randbp.layers import kind_of

CASES = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (3, 4, 9)),
    (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(1, 0)), (2, 3, 5, 6)),
    (nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False), (3, 4, 4, 5)),
    (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (3, 2, 5, 4)),
    (nn.Conv2d(2, 4, (2, 3), padding="same", padding_mode="reflect"), (3, 2, 5, 4)),
    (nn.Conv3d(2, 2, 2, bias=False), (2, 2, 3, 4, 3)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (3, 4, 4)),
    (nn.ConvTranspose2d(2, 3, (3, 2), stride=2, dilation=(1, 2)), (2, 2, 3, 4)),
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3, bias=False), (4, 6, 5)),
    (nn.Linear(5, 3), (2, 3, 2, 5)),
]
IDS = [str(module) for module, _ in CASES]


def drawn(module, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        return module, x, module(x)


def unfolded(module, x, y):
    """``U`` ``[N, G, R, O]``: what each output of the first channel of a group is the product of with its kernel."""
    groups = getattr(module, "groups", 1)
    parameters = dict(module.named_parameters())

    def outputs(*given):
        made = functional_call(module, dict(zip(parameters, given, strict=True)), x)
        return kind_of(module)().channels_second(made).flatten(2).unflatten(1, (groups, -1))[:, :, 0]  # [N, G, O]

    jacobians = torch.autograd.functional.jacobian(outputs, tuple(parameters.values()))
    batch, _, positions = jacobians[0].shape[:3]
    result = []
    for n in range(batch):
        for g in range(groups):
            rows = []
            for o in range(positions):
                weight, *bias = (jacobian[n, g, o] for jacobian in jacobians)
                rows.append(as_matrices(Form.of(module), weight, *(bias or [None]))[g, 0])
            result.append(torch.stack(rows, 1))
    return torch.stack(result).unflatten(0, (batch, groups))


@pytest.mark.parametrize(("module", "shape"), CASES, ids=IDS)
def test_factors_equal_their_definition(module, shape):
    module, x, y = drawn(module, shape)
    grad = torch.randn_like(y)
    u = unfolded(module, x, y)
    n, g, _, positions = u.shape
    v = kind_of(module)().channels_second(grad).flatten(2).unflatten(1, (g, -1))
    _, spec, seen = call_input(layer_call(module, x, y))
    bias = module.bias is not None
    mean, summed = u.mean(3), v.sum(3)
    expected = {
        "reduce": (torch.einsum("ngr,ngs->grs", mean, mean) / n, torch.einsum("ngd,nge->gde", summed, summed) / n),
        "expand": (
            torch.einsum("ngro,ngso->grs", u, u) / n,
            torch.einsum("ngdo,ngeo->gde", v, v) / (n * positions),
        ),
    }
    for approximation, (left, right) in expected.items():
        a = input_factor(spec, seen, approximation, bias)
        torch.testing.assert_close(a, left, rtol=1e-10, atol=1e-10)
        gamma = output_grad_factor(spec, kind_of(module)().channels_second(grad), approximation)
        torch.testing.assert_close(gamma, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_expanded_inputs_of_transposed_convolutions_meet_phase_by_phase(dims):
    """Any strides and dilations, with common divisors and without, and paddings that leave less than an input."""
    generator = random.Random(dims)
    for _ in range(60 // 4**dims + 10):
        groups = generator.choice((1, 2))
        arguments = {
            name: tuple(generator.randint(low, high) for _ in range(dims))
            for name, (low, high) in {
                "stride": (1, 4),
                "dilation": (1, 4),
                "kernel_size": (1, 4),
                "padding": (0, 2),
            }.items()
        }
        size = tuple(generator.randint(2, 4) for _ in range(dims))
        arguments["padding"] = tuple(
            min(padding, ((each - 1) * s + d * (k - 1)) // 2)
            for padding, each, s, d, k in zip(
                *(arguments["padding"], size, arguments["stride"], arguments["dilation"], arguments["kernel_size"]),
                strict=True,
            )
        )
        adjoint = tn.transposed_spec((2, 2 * groups, *size), out_channels=groups, groups=groups, **arguments)
        x = torch.randn(2, 2 * groups, *size, dtype=torch.float64)
        u = tn.unfold_transpose(adjoint).contract(input=x).unflatten(1, (groups, -1))
        found = input_factor(tn.ConvTransposeSpec(adjoint), x, "expand")
        torch.testing.assert_close(found, torch.einsum("ngro,ngso->grs", u, u) / 2, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("module", "shape"), CASES, ids=IDS)
def test_matrices_are_what_the_factors_stand_beside(module, shape):
    """The weight's gradient is ``Σ_n Σ_o V U`` in their order of rows and columns, and the way back is the inverse."""
    module, x, _ = drawn(module, shape)
    y = module(x)
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(module.parameters()), grad)
    u = unfolded(module, x, y)
    v = kind_of(module)().channels_second(grad).flatten(2).unflatten(1, (u.shape[1], -1))
    matrices = as_matrices(Form.of(module), grads[0], grads[1] if len(grads) > 1 else None)
    torch.testing.assert_close(matrices, torch.einsum("ngdo,ngro->gdr", v, u))
    for back, grad in zip(from_matrices(Form.of(module), matrices, module.weight.shape), (*grads, None), strict=False):
        assert (back is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(back, grad, rtol=0, atol=0)


def test_size_of_a_transposed_output_may_be_an_argument():
    module, x = nn.ConvTranspose2d(2, 3, 3, stride=2).double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    y = module(x, output_size=(10, 9))
    _, spec, _ = call_input(layer_call(module, x, y))
    assert spec.output_shape == tuple(y.shape) == (2, 3, 10, 9)


def test_reduce_is_exact_where_positions_are_averaged():
    """One example, a convolution and a mean over positions: the Fisher matrix is ``Γ ⊗ A``."""
    module, x, _ = drawn(nn.Conv2d(2, 3, 3, stride=2), (1, 2, 7, 6))
    y = module(x)
    (y.mean((2, 3)) ** 3).sum().backward(inputs=[*module.parameters(), y.retain_grad() or y])
    grad = as_matrices(Form.of(module), module.weight.grad, module.bias.grad)[0].flatten()
    _, spec, seen = call_input(layer_call(module, x, y))
    product = torch.kron(output_grad_factor(spec, y.grad)[0], input_factor(spec, seen, bias=True)[0])
    torch.testing.assert_close(product, torch.outer(grad, grad), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverses_are_damped_and_singular_factors_do_no_harm(dtype):
    torch.manual_seed(0)
    rows, columns = torch.randn(2, 3, 40, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    a, gamma = rows.mT @ rows, columns.mT @ columns  # of rank three
    for damping in (1.0, 1e-3, 1e-12):
        left, right = damped_inverses(a, gamma, damping)
        pi = ((a.diagonal(dim1=1, dim2=2).mean(1)) / (gamma.diagonal(dim1=1, dim2=2).mean(1))).sqrt().view(2, 1, 1)
        root = damping**0.5
        for inverse, factor, shift in ((left, a, root * pi), (right, gamma, root / pi)):
            values, vectors = torch.linalg.eigh(factor.double())
            expected = vectors / (values.clamp_min(0) + shift.double().view(2, 1)).unsqueeze(1) @ vectors.mT
            tolerance = (1e-3 if dtype == torch.float32 else 1e-7) / min(1, damping**0.5)
            assert inverse.isfinite().all()
            assert (inverse.double() - expected).norm() <= tolerance * expected.norm()
    zero = torch.zeros(1, 3, 3, dtype=dtype)
    assert all(inverse.isfinite().all() for inverse in damped_inverses(zero, a[:1], 1e-2))


def test_names_of_approximations_are_checked():
    _, spec, _ = call_input(layer_call(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1, 2)))
    for call in (
        lambda: input_factor(spec, torch.zeros(1, 2, 1), "kfc"),
        lambda: output_grad_factor(spec, torch.zeros(1, 2, 1), "kfc"),
    ):
        with pytest.raises(ValueError, match="approximation='kfc': expected 'reduce' or 'expand'"):
            call()


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_autocast_does_not_round_factors_and_shapes_are_checked(approximation):
    module, x, y = drawn(nn.Conv2d(3, 4, 3), (2, 3, 5, 6))
    _, spec, seen = call_input(layer_call(module, x, y))
    seen, grad = seen.float(), y.float()

    def both():
        return input_factor(spec, seen, approximation, True), output_grad_factor(spec, grad, approximation)

    with torch.autocast("cpu", torch.bfloat16):
        under = both()
    assert all(map(torch.equal, under, both()))
    with pytest.raises(ValueError, match=r"output_grad: shape \(1, 4, 3, 4\), expected \(2, 4, 3, 4\)"):
        output_grad_factor(spec, grad[:1], approximation)
