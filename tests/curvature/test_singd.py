"""SINGD against dense matrices, and in the ways a training loop uses it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from randbp.curvature import SINGD, Preconditioner, StructuredInverseFree, input_factor, output_grad_factor
from randbp.curvature.structures import STRUCTURES
from randbp.curvature.weight_matrices import Form, as_matrices, call_input, layer_call
from randbp.layers import kind_of

from .test_changing_layers import CHANGES, entries, train
from .test_changing_layers import network as changing
from .test_kfac import batch, loss_of, network, parameters, per_example, run, trained
from .test_structures import step as published

PAIRS = [*((name, name) for name in STRUCTURES), ("diagonal", "dense"), ("hierarchical", "diagonal")]
NUMBERS = {"damping": 0.03, "normalized": True, "adaptive": True, "momentum": 0.4, "rate": 0.7}


def wide(seed=0):
    """A network with more rows than the structures have blocks, and a layer of each kind."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(2, 33, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(33, 6, 2, groups=3, bias=False), nn.Tanh()
    up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, *up, nn.Linear(4, 3)).double()


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("names", PAIRS)
def test_steps_are_those_of_dense_matrices(names, approximation):
    """Three steps: ``K`` and ``C`` of every group by the published formulas, and ``C Cᵀ G K Kᵀ``."""
    lr, model, known = 0.5, wide(), {}
    numbers = {"factor_lr": 0.7, "factor_momentum": 0.4, "damping": 0.03, "factor_every": 1}
    optimizer = SINGD(model, lr, momentum=0, structures=names, approximation=approximation, **numbers)
    for number in range(3):
        x, y = batch(seed=number)
        seen, before = per_example(model, x, y), copy.deepcopy(model)
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        for name, (given, grad) in seen.items():
            module, old = model.get_submodule(name), before.get_submodule(name)
            _, spec, inputs = call_input(layer_call(old, given, old(given)))
            a = input_factor(spec, inputs, approximation, module.bias is not None)
            gamma = output_grad_factor(spec, kind_of(module)().channels_second(grad), approximation)
            form, bias = Form.of(module), module.bias
            grads = as_matrices(form, module.weight.grad, None if bias is None else bias.grad)
            moved = as_matrices(form, old.weight - module.weight, None if bias is None else old.bias - bias)
            for g in range(len(a)):
                sizes = len(a[g]), len(gamma[g])
                roots, momenta = known.get((name, g)) or (
                    [torch.eye(size, dtype=torch.float64) for size in sizes],
                    [torch.zeros(size, size, dtype=torch.float64) for size in sizes],
                )
                (k, c), _ = known[name, g] = published(names, roots, momenta, (a[g], gamma[g]), **NUMBERS)
                torch.testing.assert_close(moved[g] / lr, c @ c.mT @ grads[g] @ k @ k.mT, rtol=1e-8, atol=1e-10)


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.entries = max(self.entries, *sizes, 0)
        return result


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_diagonal_structures_make_no_matrix_of_a_layers_rows(approximation):
    model = nn.Sequential(nn.Conv2d(40, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 2))
    optimizer, x = SINGD(model, approximation=approximation), torch.randn(4, 40, 6, 6)
    with Largest() as largest:
        loss_of(model, x, torch.arange(4) % 2).backward()
        optimizer.step()
    assert 4 * 40 * 36 <= largest.entries < 361 * 40
    state = optimizer.state[model[0].weight]
    assert {key: tuple(state[key].shape) for key in state if "root" in key} == {
        "input_root": (1, 361),
        "output_grad_root": (1, 2),
        "input_root_momentum": (1, 361),
        "output_grad_root_momentum": (1, 2),
    }


@pytest.mark.parametrize("names", PAIRS)
def test_a_resumed_run_goes_on_bit_for_bit(names):
    options = {"lr": 0.03, "factor_every": 3, "structures": names, "weight_decay": 0.01}
    model, other = wide(), wide(seed=1)
    optimizer, resumed = SINGD(model, **options), SINGD(other, **options)
    run(model, optimizer, 4)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    run(model, optimizer, 4, first=4)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(other, resumed, 4, first=4)
    assert torch.equal(parameters(model), parameters(other)) and resumed.steps == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    """Factors are in single precision, resume with all their bits, and stay close to those of single precision."""
    model, exact, other = network(dtype=dtype), network(dtype=torch.float32), network(dtype=dtype)
    options = {"lr": 0.03, "factor_every": 1, "factor_lr": 0.5, "structures": ("hierarchical", "diagonal")}
    optimizers = [SINGD(each, **options) for each in (model, exact, other)]
    with torch.no_grad():
        exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    for step in range(12):
        for each, optimizer in zip((model, exact), optimizers, strict=False):
            optimizer.zero_grad()
            loss_of(each, *batch(seed=step, dtype=next(each.parameters()).dtype)).backward()
            optimizer.step()
    states = [optimizer.state[each[0].weight] for each, optimizer in zip((model, exact), optimizers, strict=False)]
    for key in ("input_root", "output_grad_root"):
        found, expected = (state[key] for state in states)
        assert found.dtype == torch.float32 and (found - expected).norm() < 0.03 * expected.norm()
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert torch.equal(optimizers[2].state[other[0].weight]["input_root"], states[0]["input_root"])
    assert parameters(model).isfinite().all()


def test_losses_of_any_scale_do_no_harm():
    """A normalised update changes a factor by less than its size, and products that overflow are left out."""
    model = nn.Linear(3, 2)
    optimizer = SINGD(model, lr=1e-3, reduction="sum", factor_every=1)
    for scale in (1e6, 1, 1e20, 1e-6, 1e4):
        before = copy.deepcopy(optimizer.state[model.weight]) if optimizer.steps else None
        optimizer.zero_grad()
        (model(torch.ones(4, 3)) * scale).sum().backward()
        for parameter in model.parameters():
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
        if before is not None:
            for key in ("input_root", "output_grad_root"):
                change = (optimizer.state[model.weight][key] / before[key] - 1).abs().max()
                assert change <= 0.1 + 1e-6 and (change == 0) == (scale == 1e20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("structures", ["diagonal", "hierarchical"])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_may_change(change, structures):
    """Parameters that are still the optimiser's are trained, the state grows no more, and it can be loaded."""
    model = changing()
    optimizer = SINGD(model, 0.05, factor_every=1, structures=structures)
    held = optimizer.param_groups[0]["params"]
    train(model, optimizer, 3)
    CHANGES[change](model)
    train(model, optimizer, 2, first=3)
    size, before = entries(optimizer), [parameter.detach().clone() for parameter in held]
    train(model, optimizer, 3, first=5)
    assert entries(optimizer) == size
    for parameter, old in zip(held, before, strict=True):
        moves = parameter.grad is not None and bool(parameter.grad.any())
        assert parameter.isfinite().all() and (not moves or not torch.equal(parameter, old))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 1, first=20)


def test_weights_in_channels_last_order():
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = network().to(memory_format=layout)
        optimizer = SINGD(model, factor_every=1, weight_decay=0.1)
        run(model, optimizer, 3)
        found.append(parameters(model))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_factors_stay_finite():
    """An update that would overflow leaves them as they were."""
    model = nn.Linear(3, 2)
    optimizer = SINGD(model, lr=0.0, normalize=False, factor_every=1)
    for scale in (1.0, 1e17):
        optimizer.zero_grad()
        (model(torch.ones(4, 3) * 1e4).sum() * scale).backward()
        optimizer.step()
        state = {key: value for key, value in optimizer.state[model.weight].items() if "root" in key}
        if scale == 1.0:
            before = copy.deepcopy(state)
    assert optimizer.state[model.weight]["updates"] == 2 and all(torch.equal(before[key], state[key]) for key in state)


def test_damping_is_that_of_a_weights_group():
    roots = []
    for damping in (0.5, 0.01):
        model, (x, y) = network(), batch()
        last = list(model[8].parameters())
        others = [p for p in model.parameters() if all(p is not q for q in last)]
        groups = [{"params": others, "damping": 0.01}, {"params": last, "damping": damping}]
        optimizer = SINGD(model, params=groups, factor_every=1)
        loss_of(model, x, y).backward()
        optimizer.step()
        roots.append([optimizer.state[model[index].weight]["input_root"] for index in (0, 8)])
    assert torch.equal(roots[0][0], roots[1][0]) and bool((roots[0][1] < roots[1][1]).all())


@pytest.mark.parametrize("structures", ["diagonal", "dense", "hierarchical"])
def test_needs_fewer_steps_than_the_best_sgd(structures):
    """Thirty steps on handwritten digits, against the loss 2.24 of SGD with the best of nine learning rates."""
    options = {"factor_every": 2, "factor_lr": 0.5, "kl_clip": 1e-3, "structures": structures}
    assert trained(lambda model: SINGD(model, 0.03, **options), 30) < 0.85 * 2.24
    assert trained(lambda model: torch.optim.SGD(model.parameters(), 2.56, 0.9), 30) > 2.2


def test_before_another_optimizer():
    """``.grad`` becomes what SINGD itself moves along."""
    model, other, (x, y) = network(), network(), batch()
    optimizer = SINGD(model, lr=1.0, momentum=0, factor_every=1)
    method = StructuredInverseFree()
    preconditioner = Preconditioner(other, method, damping=1e-2, factor_every=1, inverse_every=1)
    before = parameters(model)
    loss_of(model, x, y).backward()
    optimizer.step()
    loss_of(other, x, y).backward()
    preconditioner.step()
    moved = torch.cat([parameter.grad.flatten() for parameter in other.parameters()])
    torch.testing.assert_close(before - parameters(model), moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"structures": "toeplitz"},
            r"structures=\('toeplitz', 'toeplitz'\): expected one or two of 'dense', 'diagonal'",
        ),
        ({"structures": ("dense",)}, r"structures=\('dense',\): expected one or two of"),
        ({"structures": 3}, r"structures=3: expected one or two of"),
        ({"structures": ([], "dense")}, r"structures=\(\[\], 'dense'\): expected one or two of"),
        ({"factor_lr": -1}, r"factor_lr=-1: expected a number from 0"),
        ({"factor_momentum": 1}, r"factor_momentum=1: expected a number from 0 and below 1"),
        ({"approximation": "kfc"}, r"approximation='kfc': expected 'reduce' or 'expand'"),
        ({"damping": 0}, r"damping=0: expected a number above 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SINGD(network(), **options)
