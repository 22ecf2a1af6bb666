"""Curvature of gradients that are discarded is discarded with them; scaled gradients are unscaled."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset

from randbp.curvature import GGN, KFAC, EmpiricalFisher, Hessian

from .lightning_runs import Module, trainer

FACTORS = [f"{name}_factor" for name in ("input", "output_grad")]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 3)
    return nn.Sequential(*layers).to(dtype)


def loss_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    x = x.to(next(model.parameters()).dtype)
    return cross_entropy(model(x), torch.arange(8) % 3)


def factors(optimizer):
    modules = optimizer.layers.values()
    return [optimizer.state[module.weight][key] for module in modules for key in FACTORS]


def one_pass(seed=0, **options):
    """The factors of a single backward pass, and the parameters after the step."""
    model = network()
    optimizer = KFAC(model, **options)
    loss_of(model, seed).backward()
    optimizer.step()
    return factors(optimizer), list(model.parameters())


WAYS = {
    "by the optimizer": lambda model, optimizer: optimizer.zero_grad(),
    "by the model": lambda model, optimizer: model.zero_grad(),
    "by zeros": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "by zeros of the model": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "by hand": lambda model, optimizer: [setattr(parameter, "grad", None) for parameter in model.parameters()],
    "by hand in place": lambda model, optimizer: [parameter.grad.detach_().zero_() for parameter in model.parameters()],
}


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("discard", WAYS)
def test_what_is_discarded_does_not_count(discard, approximation):
    expected, parameters = one_pass(seed=1, approximation=approximation)
    model = network()
    optimizer = KFAC(model, approximation=approximation)
    for _ in range(2):
        loss_of(model, seed=0).backward()
    WAYS[discard](model, optimizer)
    loss_of(model, seed=1).backward()
    optimizer.step()
    torch.testing.assert_close(factors(optimizer), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(model.parameters()), parameters, rtol=0, atol=0)


@pytest.mark.parametrize("discard", WAYS)
def test_a_skipped_batch_and_a_step_without_gradients(discard):
    expected, _ = one_pass(seed=1)
    model = network()
    optimizer = KFAC(model)
    loss_of(model, seed=0).backward()
    WAYS[discard](model, optimizer)
    optimizer.step()  # nothing to learn from
    assert all("updates" not in state for state in optimizer.state.values())
    loss_of(model, seed=1).backward()
    optimizer.step()
    assert all(state["updates"] == 1 for state in optimizer.state.values() if FACTORS[0] in state)
    torch.testing.assert_close(factors(optimizer)[:2], expected[:2], rtol=0, atol=0)


def test_a_batch_that_is_not_finite():
    expected, parameters = one_pass(seed=1)
    model = network()
    optimizer = KFAC(model)
    (loss_of(model, seed=0) * math.nan).backward()
    if not all(parameter.grad.isfinite().all() for parameter in model.parameters()):
        model.zero_grad()
    loss_of(model, seed=1).backward()
    optimizer.step()
    torch.testing.assert_close(factors(optimizer), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(model.parameters()), parameters, rtol=0, atol=0)


def test_a_closure_that_is_called_more_than_once():
    expected, _ = one_pass(seed=0)
    model = network()
    optimizer = KFAC(model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(3):
        closure()
    optimizer.step(closure)
    torch.testing.assert_close(factors(optimizer), expected, rtol=0, atol=0)


@pytest.mark.parametrize("separate", [False, True])
def test_sharpness_aware_steps_learn_from_the_second_gradient(separate):
    """The first pass only finds where to go; its gradients are dropped, or never were the parameters'."""

    def climb(model, grads, sign):
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.add_(grad, alpha=sign * 0.05)

    model = network()
    optimizer, parameters = KFAC(model), list(model.parameters())
    if separate:
        grads = torch.autograd.grad(loss_of(model), parameters)
    else:
        loss_of(model).backward()
        grads = [parameter.grad.clone() for parameter in parameters]
        optimizer.zero_grad()
    climb(model, grads, 1)
    twin = copy.deepcopy(model)
    loss_of(model).backward()
    climb(model, grads, -1)
    optimizer.step()
    alone = KFAC(twin)
    loss_of(twin).backward()
    alone.step()
    torch.testing.assert_close(factors(optimizer), factors(alone), rtol=0, atol=0)


def test_gradients_of_other_things_do_not_count():
    """Attacks on the input, penalties and inner loops compute gradients that no parameter gets."""
    expected, parameters = one_pass(seed=1)
    model = network()
    optimizer = KFAC(model)
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        torch.autograd.grad(cross_entropy(model(x), torch.arange(8) % 3), x)
    torch.autograd.grad(loss_of(model), list(model.parameters()), create_graph=True)
    loss = loss_of(model, seed=1)
    torch.autograd.grad(loss, model[0].bias, retain_graph=True)
    loss.backward()
    torch.autograd.grad(cross_entropy(model(x), torch.arange(8) % 3), x)
    optimizer.step()
    torch.testing.assert_close(factors(optimizer), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(model.parameters()), parameters, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:KFAC")
def test_a_penalty_on_weights_keeps_nothing_of_another_pass():
    model = network()
    optimizer = KFAC(model)
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(cross_entropy(model(x), torch.arange(8) % 3), x)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    assert not optimizer._statistics.seen
    optimizer.step()
    assert all("updates" not in state for state in optimizer.state.values())


@pytest.mark.filterwarnings("ignore:KFAC")
def test_other_weights_in_the_place_of_parameters_do_not_count():
    """As in meta-learning, whose outer gradient comes through weights that a step within has made."""
    model = network()
    optimizer = KFAC(model)
    given = {name: parameter * 1.5 for name, parameter in model.named_parameters()}
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    cross_entropy(torch.func.functional_call(model, given, x), torch.arange(8) % 3).backward()
    assert not optimizer._statistics.seen
    optimizer.step()
    assert set(optimizer.left_plain) == {"0", "2", "5"}


def test_gradients_that_are_changed_or_replaced_still_count():
    """Clipping between micro-batches, and copies of gradients, throw nothing away."""
    results = []
    for disturb in (False, True):
        model = network()
        optimizer = KFAC(model)
        for seed in range(3):
            (loss_of(model, seed) / 3).backward()
            if disturb:
                clip_grad_norm_(model.parameters(), 1e-3)
                for parameter in model.parameters():
                    parameter.grad = parameter.grad.clone()
        optimizer.step()
        results.append(factors(optimizer))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_loading_a_state_drops_what_is_pending():
    model = network()
    optimizer = KFAC(model)
    state = copy.deepcopy(optimizer.state_dict())
    loss_of(model, seed=0).backward()
    optimizer.load_state_dict(state)
    assert not optimizer._statistics.seen
    optimizer.step()
    assert all("updates" not in each for each in optimizer.state.values())


@pytest.mark.parametrize("reduction", ["mean", "sum", "tokens"])
@pytest.mark.parametrize("clip", [None, 1e-2])
@pytest.mark.parametrize("unscale", [False, True])
def test_scaled_gradients_are_unscaled(unscale, clip, reduction):
    results = []
    for scaled in (False, True):
        model = network(torch.float32)
        optimizer = KFAC(model, reduction=reduction)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**11, growth_interval=1, enabled=scaled)
        for seed in range(3):
            optimizer.zero_grad()
            for part in range(2):
                scaler.scale(loss_of(model, 2 * seed + part) / 2).backward()
            if unscale or clip:
                scaler.unscale_(optimizer)
            if clip:
                clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
        results.append((factors(optimizer), list(model.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_a_step_that_overflows_is_dropped():
    results = []
    for overflows in (False, True):
        model = network(torch.float32)
        optimizer, scaler = KFAC(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        if overflows:
            scaler.scale(loss_of(model, seed=0) * math.inf).backward()
            assert scaler.step(optimizer) is None and optimizer.steps == 0
            scaler.update()
            assert scaler.get_scale() == 2.0**9
            optimizer.zero_grad()
        scaler.scale(loss_of(model, seed=1)).backward()
        scaler.step(optimizer)
        results.append((factors(optimizer), list(model.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_lightning_scales_and_clips(tmp_path):
    """``precision="16-mixed"``, whose plug-in unscales, clips and steps; here with a scaler of the CPU."""
    from lightning.pytorch.plugins import MixedPrecision

    x, y = torch.randn(32, 2, 6, 6), torch.arange(32) % 3
    results = []
    for scale in (None, 2.0**8):
        module = Module(network(torch.float32), lr=0.01, factor_every=1, inverse_every=2)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        precision = MixedPrecision("16-mixed" if scaler else "bf16-mixed", "cpu", scaler)
        precision.forward_context = torch.enable_grad  # float32, to compare
        options = {"max_epochs": 1, "plugins": [precision], "gradient_clip_val": 0.1, "enable_checkpointing": False}
        trainer(tmp_path, **options).fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
        optimizer = module.optimizers().optimizer
        results.append([optimizer.state[module.network[i].weight][k] for i in (0, 2, 5) for k in FACTORS])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-7)


def product_with(kind):
    def run(model, x, y):
        operator = kind(model, (x, y), nn.CrossEntropyLoss())
        operator @ torch.ones(operator.shape[1], dtype=x.dtype)

    return run


def called_with_other_weights(model, x, y):
    others = {name: torch.zeros_like(each, requires_grad=True) for name, each in model.named_parameters()}
    cross_entropy(torch.func.functional_call(model, others, (x,)), y).backward()


BETWEEN = [*map(product_with, (Hessian, GGN, EmpiricalFisher)), called_with_other_weights]


@pytest.mark.parametrize("between", BETWEEN, ids=["Hessian", "GGN", "EmpiricalFisher", "functional_call"])
def test_what_runs_between_forward_and_backward_is_not_mixed_in(between):
    expected, parameters = one_pass()
    model = network()
    optimizer = KFAC(model)
    loss = loss_of(model)
    between(model, torch.randn(3, 2, 6, 6, dtype=torch.float64), torch.arange(3))
    loss.backward()
    optimizer.step()
    assert not optimizer.left_plain
    for mine, its in zip([*factors(optimizer), *model.parameters()], [*expected, *parameters], strict=True):
        assert torch.equal(mine, its)
