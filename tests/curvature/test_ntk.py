"""The empirical neural tangent kernel against explicit Jacobians of ``torch.func``."""

import re

import pytest
import torch
from torch import nn

from randbp import tn
from randbp.curvature import ntk
from randbp.curvature.jacobian_grams import _network
from randbp.diagnostics import LiveStorages

from .generated_networks import generated, jacobians
from .test_parameter_uses import tokens


def expected(model, x, y):
    """``Σ_θ J J'ᵀ`` from Jacobians of the whole network."""
    total = 0
    left, right = jacobians(model, x), jacobians(model, y)
    for name in left:
        a, b = (side[name].reshape(*side[name].shape[:2], -1) for side in (left, right))
        total = total + torch.einsum("ncp,mdp->nmcd", a, b)
    return total


def check(model, x, y, **options):
    whole = expected(model, x, x if y is None else y)
    made = ntk(model, x, y, **options)
    torch.testing.assert_close(made, whole, rtol=1e-8, atol=1e-8 * float(whole.abs().max()))
    traced = ntk(model, x, y, trace=True, **options)
    torch.testing.assert_close(traced, whole.diagonal(dim1=2, dim2=3).sum(2), rtol=1e-8, atol=1e-8 * float(whole.max()))
    assert all(parameter.grad is None for parameter in model.parameters())
    return made


@pytest.mark.parametrize("seed", range(18))
def test_kernels_of_generated_networks(seed):
    model, x = generated(seed, examples=3)
    y = None if seed % 2 else torch.randn(2, *x.shape[1:], dtype=x.dtype)
    check(model, x, y, memory=2**30 if seed % 4 < 2 else 10_000)


def test_tables_shared_weights_and_functional_calls():
    model, x = tokens()
    y = torch.randint(7, (2, 5))
    for other in (None, y):
        check(model, x, other)
        check(model, x, other, memory=1)
    model.table.weight.requires_grad_(False)  # no longer tied to anything: the layer that runs twice has networks
    check(model, x, y)


def small(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*layers).double().eval()


def test_outputs_of_any_shape_are_flattened():
    model, x = small(nn.Conv1d(2, 3, 2)), torch.randn(3, 2, 4, dtype=torch.float64)
    whole = expected(nn.Sequential(model, nn.Flatten()), x, x)
    torch.testing.assert_close(ntk(model, x), whole, rtol=1e-10, atol=1e-10)
    model = small(nn.Conv1d(2, 1, 4), nn.Flatten(0))
    assert ntk(model, x).shape == (3, 3, 1, 1)


def test_single_precision_and_autocast():
    model, x = generated(1)
    whole = expected(model, x, x)
    model, x = model.float(), x.float()
    made = ntk(model, x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), whole, rtol=1e-4, atol=1e-5 * float(whole.max()))
    with torch.autocast("cpu", torch.bfloat16):
        made = ntk(model, x)
    assert made.dtype == torch.float32
    assert 1e-6 < float((made - whole).norm() / whole.norm()) < 0.1


def test_blocks_of_examples_are_small_where_memory_is():
    model, x = (
        small(nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 4)).float(),
        torch.randn(24, 8, 8, 8),
    )
    seen = []
    model[0].register_forward_hook(lambda module, given, output: seen.append(len(output)))
    whole = ntk(model, x)
    assert seen == [1, 24]
    for memory in (2**17, 2**20):
        seen.clear()
        with LiveStorages() as live:
            made = ntk(model, x, memory=memory)
        torch.testing.assert_close(made, whole, rtol=1e-4, atol=1e-3)
        assert max(seen) < 24
        assert live.peak_bytes < 1.3 * memory + made.nbytes


def test_large_jacobians_are_made_for_few_examples_at_a_time():
    model, x = small(nn.Conv2d(24, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).float(), None
    x = torch.randn(16, 24, 9, 9)
    whole, memory = ntk(model, x), 2**22
    ntk(model, x, memory=memory)  # plans are made
    with LiveStorages() as live:
        made = ntk(model, x, memory=memory)
    torch.testing.assert_close(made, whole, rtol=1e-4, atol=1e-4 * float(whole.max()))
    assert live.peak_bytes < 1.3 * memory + made.nbytes


def test_a_use_whose_gradient_vanishes_for_the_first_example_is_missed_all_the_same():
    model, x = small(nn.Flatten(), nn.PReLU(3)), torch.randn(4, 3, dtype=torch.float64)
    x[0] = x[0].abs()
    with pytest.raises(ValueError, match=r"no rule for a use of '1\.weight'"):
        ntk(model, x)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):  # [N, T, C]
        return self.layer(x.transpose(0, 1)).mean(0)


class Hidden(nn.Linear):
    """Uses its weight once as a layer, once otherwise."""

    def forward(self, x):
        return super().forward(x) + self.weight.sum()


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (small(nn.Linear(3, 3), nn.PReLU()), (4, 3), "model: no rule for a use of '1.weight': only convolutions"),
        (small(Hidden(3, 3)), (4, 3), "model: no rule for a use of '0.weight'"),
        (small(nn.LSTM(3, 2)), (4, 3), "model: returns a tuple, expected a tensor"),
        (
            small(nn.Linear(3, 30), nn.Dropout()).train(),
            (4, 3),
            "depends on the other examples or on chance: call model.ev",
        ),
        (small(nn.Linear(3, 3), Centred()), (4, 3), "depends on the other examples or on chance"),
        (small(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)).train(), (4, 3, 2), "a batch norm takes its statistics from"),
        (small(Turned()), (5, 4, 3), "'0.layer.weight' is used where examples are not the first dimension"),
        (small(Turned()), (5, 1, 3), "a parameter is used where examples are not the first dimension"),
        (small(nn.Linear(3, 3)).requires_grad_(False), (4, 3), "model: no parameter needs a gradient"),
        (small(nn.Linear(3, 3)), (0, 3), r"x=tensor of shape (0, 3): expected a tensor of at least one example"),
    ],
)
def test_what_has_no_rule_is_named(model, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ntk(model, torch.randn(shape, dtype=torch.float64))
    assert "\n" not in str(caught.value)


def test_wrong_arguments():
    model, x = small(nn.Linear(3, 3)), torch.randn(2, 3, dtype=torch.float64)
    for arguments, message in (
        ({"y": x[:, :2]}, r"y: examples of shape (2,), expected (3,) as in x"),
        ({"y": 3}, "y=3: expected a tensor of at least one example"),
        ({"memory": 0}, "memory=0: expected a positive number of bytes"),
        ({"memory": "1GiB"}, "memory='1GiB': expected a positive number of bytes"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ntk(model, x, **arguments)


@pytest.mark.parametrize(
    ("inner", "outer", "size", "least"), [(3, 8, 16, 1.0), (64, 128, 4, 12.0), (256, 256, 2, 140.0)]
)
def test_plans_make_what_is_cheapest_first(inner, outer, size, least):
    """Multiply-adds against those of Jacobians first, which layers with many positions prefer."""
    spec = tn.ConvSpec((16, inner, size, size), outer, 3, padding=1)
    net = _network(spec, spec, 10, trace=False, same=True)
    weights, rows = outer * inner * 9, 16 * 10
    explicit = rows * weights * size**2 + rows**2 * weights
    assert explicit / least * 0.9 < net.plan().multiplications < explicit / least


def test_every_weight_of_a_linear_model_is_used():
    """Against the kernel of a linear layer in closed form: ``(⟨x_n, y_m⟩ + 1) δ_cc'``."""
    model, x = small(nn.Linear(5, 3)), torch.randn(4, 5, dtype=torch.float64)
    expected = ((x @ x.T + 1)[:, :, None, None] * torch.eye(3)).double()
    torch.testing.assert_close(ntk(model, x), expected)
