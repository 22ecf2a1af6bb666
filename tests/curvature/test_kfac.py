"""The optimiser against dense matrices, and in all the ways a training loop uses it."""

import copy
import math

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from randbp import Spatial, randomize
from randbp.curvature import KFAC
from randbp.curvature.weight_matrices import Form, as_matrices, call_input, from_matrices, layer_call
from randbp.layers import kind_of

from .lightning_runs import Module, trainer
from .training import batch, loss_of, network, parameters, run


def per_example(model, x, y):
    """Per layer ``(X of the call, gradient of each example's own loss with respect to its output)``."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if kind_of(module):
            handles.append(module.register_forward_hook(lambda m, a, o, name=name: seen.__setitem__(name, (a[0], o))))
    loss = loss_of(model, x, y, "sum")
    grads = torch.autograd.grad(loss, [output for _, output in seen.values()])
    for handle in handles:
        handle.remove()
    return {name: (seen[name][0].detach(), grad) for name, grad in zip(seen, grads, strict=True)}


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_direction_solves_the_dense_system(approximation):
    """``vec(direction) = ((Γ + …) ⊗ (A + …))⁻¹ vec(gradient)`` for every group of every layer."""
    from randbp.curvature import input_factor, output_grad_factor

    damping, lr = 0.03, 0.7
    model, (x, y) = network(), batch()
    factors = {}
    for name, (given, grad) in per_example(model, x, y).items():
        module = model.get_submodule(name)
        _, spec, seen = call_input(layer_call(module, given, module(given)))
        a = input_factor(spec, seen, approximation, module.bias is not None)
        factors[name] = a, output_grad_factor(spec, kind_of(module)().channels_second(grad), approximation)
    optimizer = KFAC(model, lr, momentum=0, damping=damping, approximation=approximation, kl_clip=None)
    before = copy.deepcopy(model)
    loss_of(model, x, y).backward()
    optimizer.step()
    assert set(optimizer.layers) == set(factors) == {"0", "2", "4", "8"}
    for name, (a, gamma) in factors.items():
        module, old = model.get_submodule(name), before.get_submodule(name)
        bias = None if module.bias is None else module.bias.grad
        grad = as_matrices(Form.of(module), module.weight.grad, bias)
        moved = as_matrices(
            Form.of(module), old.weight - module.weight, None if module.bias is None else old.bias - module.bias
        )
        for g in range(len(grad)):
            size = [float(factor[g].diagonal().mean()) for factor in (a, gamma)]
            pi = math.sqrt(size[0] / size[1])
            left = a[g] + pi * damping**0.5 * torch.eye(len(a[g]), dtype=a.dtype)
            right = gamma[g] + damping**0.5 / pi * torch.eye(len(gamma[g]), dtype=a.dtype)
            expected = torch.linalg.solve(torch.kron(right, left), grad[g].flatten()).view(grad[g].shape)
            torch.testing.assert_close(moved[g] / lr, expected, rtol=1e-8, atol=1e-10)
    norm = model[3]
    torch.testing.assert_close(before[3].weight - norm.weight, lr * norm.weight.grad)  # plain SGD


def test_steps_are_shortened_to_the_bound():
    (x, y), lengths = batch(), []
    for clip in (None, 1e-4):
        model = network()
        old = copy.deepcopy(model)
        optimizer = KFAC(model, lr=0.5, momentum=0, kl_clip=clip, layers=["0", "8"])
        loss_of(model, x, y).backward()
        optimizer.step()
        moved = sum(
            float(((old.get_parameter(name) - p) * p.grad).sum().detach())
            for name, p in model.named_parameters()
            if name.split(".")[0] in ("0", "8")
        )
        lengths.append(0.5 * moved)  # lr² ⟨direction, gradient⟩
    assert lengths[0] > 1e-3
    # Shortened by ν, lr² ν ⟨direction, gradient⟩ is the geometric mean of the bound and what it was.
    assert lengths[1] == pytest.approx(math.sqrt(1e-4 * lengths[0]), rel=1e-6)


def test_factors_are_averaged_and_inverted_when_due():
    model = network()
    optimizer = KFAC(model, factor_every=3, inverse_every=6, decay=0.8, layers="8")
    state, seen = optimizer.state[model[8].weight], []
    for step in range(19):
        optimizer.zero_grad()
        x, y = batch(seed=step)
        with torch.no_grad():
            hidden = torch.cat([model[:8](x), torch.ones(8, 1, dtype=x.dtype)], 1)
        if step % 3 == 0 or step in (1, 2):
            seen.append(hidden.T @ hidden / 8)
        before = state.get("input_inverse")
        loss_of(model, x, y).backward()
        optimizer.step()
        assert (state["input_inverse"] is before) == (step % 6 != 0 and step not in (1, 2, 4))
    average = seen[0]
    for count, factor in enumerate(seen[1:], 2):
        average = average.lerp(factor, max(0.2, 1 / count))
    torch.testing.assert_close(state["input_factor"][0], average)
    assert state["updates"] == len(seen) == 9


def test_what_does_not_count():
    """Passes without gradients, repeated ones, evaluation, copies of the model, and what is removed."""
    x, y = batch()
    model = network()
    optimizer = KFAC(model)
    twin = copy.deepcopy(model)
    loss_of(twin, x, y).backward()
    with torch.no_grad():
        model(x)
    model(x)  # no backward pass
    model.eval()
    loss_of(model, x, y).backward()
    model.train()
    assert not optimizer._statistics.seen
    for reentrant in (False, True):
        cross_entropy(checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant), y).backward()
        assert {found.examples for found in optimizer._statistics.take().values()} == {8}
    optimizer.remove()
    loss_of(model, x, y).backward()
    assert not optimizer._statistics.seen
    optimizer.step()  # plain SGD


def test_layers_that_are_left_to_sgd():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.frozen, self.large = (nn.Linear(3, 3) for _ in range(4))
            self.second.weight = self.first.weight
            self.frozen.weight.requires_grad_(False)
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.large(self.frozen(self.second(self.first(x)))))

    model = Tied()
    assert set(KFAC(model).layers) == {"large", "last"}
    assert set(KFAC(model, layers="la*t").layers) == {"last"}
    assert set(KFAC(model, params=model.last.parameters()).layers) == {"last"}
    model.last = nn.Linear(3, 30)
    assert set(KFAC(model, largest=20).layers) == {"large"}
    optimizer = KFAC(model, layers="last")
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    copy_of_state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(copy_of_state)


def test_beside_randomised_layers_and_autocast():
    """Estimators leave inputs and outputs as they are, so the last layers' factors are the same."""
    (x, y), factors = batch(dtype=torch.float32), []
    for estimated in (False, True):
        model = network(dtype=torch.float32)
        optimizer = KFAC(model)
        if estimated:
            randomize(model, Spatial(0.5))
        loss_of(model, x, y).backward()
        optimizer.step()
        factors.append([optimizer.state[model[i].weight][f"{key}_factor"] for i in (0, 8) for key in ("input",)])
    assert all(torch.equal(a, b) for a, b in zip(*factors, strict=True))
    model = network(dtype=torch.float32)
    optimizer = KFAC(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, x, y)
    loss.backward()
    optimizer.step()
    half = [optimizer.state[model[i].weight]["input_factor"] for i in (0, 8)]
    for exact, rounded in zip(factors[0], half, strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.03 * exact.norm()


def digits():
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x, torch.tensor(y)


def digits_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def trained(make, steps):
    x, y = digits()
    model, generator = digits_network(), torch.Generator().manual_seed(0)
    optimizer = make(model)
    for _ in range(steps):
        index = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        loss_of(model, x[index], y[index]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss_of(model, x, y))


def test_needs_fewer_steps_than_the_best_sgd():
    """Thirty steps on handwritten digits, against SGD with the best of many learning rates."""
    rates = [0.01 * 2**power for power in range(9)]
    sgd = min(
        loss for rate in rates if (loss := trained(lambda m, r=rate: torch.optim.SGD(m.parameters(), r, 0.9), 30)) > 0
    )
    for approximation in ("reduce", "expand"):
        kfac = trained(lambda m, a=approximation: KFAC(m, lr=0.1, kl_clip=1e-2, approximation=a), 30)
        assert kfac < 0.7 * sgd, (approximation, kfac, sgd)


def module():
    return Module(digits_network().double(), lr=0.1, factor_every=2, inverse_every=4)


def loader(size):
    x, y = digits()
    return DataLoader(TensorDataset(x[:256].double(), y[:256]), batch_size=size)


@pytest.mark.filterwarnings("ignore")
def test_two_processes_see_the_whole_batch(tmp_path):
    alone, both = module(), module()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(alone, loader(64))
    processes = {"strategy": "ddp_spawn", "devices": 2, "use_distributed_sampler": False}
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False, **processes).fit(both, loader(64))
    torch.testing.assert_close(parameters(both), parameters(alone), rtol=1e-8, atol=1e-10)


class Uneven(Module):
    """One process sees forty examples of each batch, the other the rest, and one layer only there."""

    def __init__(self, folder):
        super().__init__(digits_network().double())
        self.folder, self.extra = folder, nn.Linear(10, 10).double()

    def training_step(self, batch, _):
        first = self.trainer.global_rank == 0
        x, y = (part[:40] if first else part[40:] for part in batch)
        found = self.network(x)
        return cross_entropy(found + 0 * self.extra.weight.sum() if first else self.extra(found), y)

    def configure_optimizers(self):
        return KFAC(self, lr=0.1, factor_every=1, inverse_every=1)

    def on_train_end(self):
        state = self.optimizers().optimizer.state
        layers = self.network[0], self.network[8], self.extra
        factors = [state[layer.weight][f"{key}_factor"] for layer in layers for key in ("input", "output_grad")]
        torch.save((parameters(self), factors), self.folder / f"{self.trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_processes_with_unequal_shares_agree(tmp_path):
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    processes = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    torch.manual_seed(0)
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False, **processes).fit(Uneven(tmp_path), loader(64))
    (weights, factors), (others, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(weights, others) and all(map(torch.equal, factors, theirs))
    for a in factors[::2]:  # the bias sees ones
        torch.testing.assert_close(a[0, -1, -1], torch.ones((), dtype=a.dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, r"lr=-1: expected a number from 0"),
        ({"lr": "fast"}, r"lr='fast': expected a number from 0"),
        ({"momentum": 1.0}, r"momentum=1.0: expected a number from 0 and below 1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1: expected a number from 0"),
        ({"damping": 0}, r"damping=0: expected a number above 0"),
        ({"damping": float("inf")}, r"damping=inf: expected a number above 0"),
        ({"decay": True}, r"decay=True: expected a number from 0 and below 1"),
        ({"kl_clip": 0}, r"kl_clip=0: expected a number above 0"),
        ({"approximation": "kfc"}, r"approximation='kfc': expected 'reduce' or 'expand'"),
        ({"reduction": "none"}, r"reduction='none': expected 'mean' or 'sum'"),
        ({"factor_every": 0}, r"factor_every=0: expected a positive integer"),
        ({"inverse_every": 2.5}, r"inverse_every=2.5: expected a positive integer"),
        ({"largest": 0}, r"largest=0: expected a positive integer"),
        ({"layers": "conv*"}, r"layers='conv\*': matches none of the layers '0', '2', '4', '8'"),
        ({"layers": [3]}, r"layers=3: matches none of the layers"),
        ({"largest": 1}, r"model: Sequential has no convolution or linear layer with at most largest=1 rows"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        KFAC(network(), **options)


def test_wrong_models():
    with pytest.raises(ValueError, match=r"model=3: expected an nn\.Module"):
        KFAC(3)
    with pytest.raises(ValueError, match="model: BatchNorm2d has no convolution or linear layer"):
        KFAC(nn.BatchNorm2d(3))


def test_matrices_of_modules_without_bias_come_back():
    module = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    weight, bias = from_matrices(
        Form.of(module), as_matrices(Form.of(module), module.weight, None), module.weight.shape
    )
    assert torch.equal(weight, module.weight) and bias is None


def test_products_that_overflow_are_left_out():
    model = nn.Linear(3, 2)
    optimizer = KFAC(model, lr=1e-2, reduction="sum", factor_every=1, inverse_every=1)
    for step in range(4):
        optimizer.zero_grad()
        (model(torch.ones(4, 3)) * (1e20 if step == 2 else 1)).sum().backward()
        for parameter in model.parameters():
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
    state = optimizer.state[model.weight]
    assert all(state[key].isfinite().all() for key in state if key != "updates") and state["updates"] == 3
    assert parameters(model).isfinite().all()


def test_empty_calls_named_inputs_and_repeated_calls():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = KFAC(nn.ModuleList([first, second]))
    x = torch.randn(4, 3)
    (first(input=x).sum() + second(x[:0]).sum()).backward()
    assert {name: seen.examples for name, seen in optimizer._statistics.seen.items()} == {"0": 4}
    for _ in range(50):
        first(torch.randn(10, 3)).sum().backward()
    seen = optimizer._statistics.seen["0"]
    assert seen.examples == 504 and sum(rows.numel() for rows in seen.input._rows) <= 16 * 10
    optimizer.step()


def test_a_frozen_bias_leaves_the_weight_its_curvature():
    steps = []
    for frozen in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3, bias=not frozen).double()
        if not frozen:
            model.bias.requires_grad_(False)
            model.bias.zero_()
        optimizer = KFAC(model, lr=0.1, kl_clip=None)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
            cross_entropy(model(x), torch.arange(8) % 3).backward()
            optimizer.step()
        steps.append(model.weight.detach().clone())
        model.requires_grad_(True)  # thawed or frozen later: a new beginning
        cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-10, atol=1e-12)


def test_modules_that_are_no_plain_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
            self.attention = nn.MultiheadAttention(4, 2)
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)
            self.head.weight = self.table.weight
            self.complex, self.lazy = nn.Linear(3, 3, dtype=torch.complex64), nn.LazyLinear(3)
            self.empty, self.plain = nn.Linear(3, 3), nn.Linear(3, 3)
            self.empty.weight = nn.Parameter(torch.zeros(0, 3))

    model = Odd()
    optimizer = KFAC(model, params=model.plain.parameters())
    assert set(optimizer.layers) == {"plain"}
    assert optimizer.left_plain == {
        "normed": "its weight is computed from parameters (by a mask, a norm or the like), not one of them",
        "attention": "its projections are part of F.multi_head_attention_forward",
        "attention.out_proj": "nn.MultiheadAttention reads its weight and does not call the layer",
        "head": "its weight is shared with another layer",
        "complex": "its weight has no real floating-point numbers",
        "lazy": "a lazy layer has no weight before its first call",
        "empty": "its weight is not among this optimiser's parameters",
    }
    with pytest.raises(ValueError, match="params: hold the weight of no layer"):
        KFAC(model, params=model.table.parameters())


def test_vectorised_gradients_do_not_count():
    model, (x, y) = network(), batch()
    optimizer = KFAC(model)
    given = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(given, x, y):
        return cross_entropy(torch.func.functional_call(model, given, x[None]), y[None])

    torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(given, x, y)
    assert not optimizer._statistics.seen
    run(model, optimizer, 1)
