"""Lean mode beside everything else that people do with a model."""

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp import Exact, Spatial
from randbp.callbacks import TensorDropout
from randbp.diagnostics import LiveStorages, memory_report

LEVELS = ["exact", True]


class Net(nn.Module):
    """Modules and plain function calls, some in place, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.drop = nn.GroupNorm(4, 16), nn.Dropout(0.3)
        self.gate, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16 * 16, 10)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.twice(x)))
        return x * torch.sigmoid(self.gate(x)) + x

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = self.drop(self.body(self.body(x)))
        return self.head(F.gelu(F.avg_pool2d(x, 2)).flatten(1))


def data(batch: int = 8) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def grads(model: nn.Module, run: Callable[[], Tensor], seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    torch.default_generator.manual_seed(seed)
    run().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> bool:
    error = sum(float((left[n] - right[n]).square().sum()) for n in right)
    return left.keys() == right.keys() and error <= tolerance**2 * sum(float(g.square().sum()) for g in right.values())


def agrees(level: Any, ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float = 0.05) -> bool:
    return same(ours, exact) if level == "exact" else close(ours, exact, tolerance) and not same(ours, exact)


@pytest.fixture
def model() -> Net:
    torch.default_generator.manual_seed(0)
    return Net()


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_values_statistics_and_the_random_state(model: Net, level: Any) -> None:
    x, other = data(), copy.deepcopy(model)
    exact = grads(model, lambda: model(x).square().sum())
    state = torch.get_rng_state()
    with randbp.randomize(other, Exact(), lean=level, bits=8):
        assert agrees(level, grads(other, lambda: other(x).square().sum()), exact)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    assert same(grads(other, lambda: other(x).square().sum()), exact)  # and all is as before


@pytest.mark.parametrize("level", LEVELS)
def test_eval_and_no_grad_are_pytorchs(model: Net, level: Any) -> None:
    x = data()
    exact = grads(model.eval(), lambda: model(x).square().sum())
    before = memory_report(model, x).held_bytes
    with randbp.randomize(model, Spatial(0.5), lean=level, bits=1):
        assert same(grads(model, lambda: model(x).square().sum()), exact)
        assert memory_report(model, x).held_bytes == before
        with torch.no_grad():
            assert model.train()(x).grad_fn is None
        model.train().stem[1].eval()  # a frozen normalisation in a model that trains
        assert not isinstance(model.stem(x).grad_fn, type(None))


@pytest.mark.parametrize("level", LEVELS)
def test_less_is_held_and_bits_count(model: Net, level: Any) -> None:
    x, held = data(), {}
    exact = memory_report(model, x).held_bytes
    for bits in (2, 8):
        with randbp.randomize(model, Spatial(0.25), lean=level, bits=bits):
            held[bits] = memory_report(model, x).held_bytes
    assert held[8] < (0.8 if level == "exact" else 0.5) * exact
    assert (held[2] < held[8]) == (level is True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_grad_scaler(model: Net, level: Any, dtype: torch.dtype) -> None:
    x = data()

    def run(scale: float = 1.0) -> Tensor:
        with torch.autocast("cpu", dtype):
            return model(x).float().square().mean() * scale

    exact = grads(model, run)
    held = memory_report(model, x, loss=lambda _: run()).held_bytes
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), torch.optim.SGD(model.parameters(), lr=1e-3)
    with randbp.randomize(model, Exact(), lean=level, bits=8):
        assert agrees(level, grads(model, run), exact)
        assert memory_report(model, x, loss=lambda _: run()).held_bytes < 0.9 * held
        optimizer.zero_grad()
        scaler.scale(run()).backward()
        scaler.unscale_(optimizer)
        before = model.head.weight.clone()
        scaler.step(optimizer)
        scaler.update()
        assert not torch.equal(before, model.head.weight) and scaler.get_scale() == 256.0
        scaler.scale(run(float("inf"))).backward()  # overflow: the step is skipped
        before = model.head.weight.clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model.head.weight) and scaler.get_scale() == 128.0


class Segmented(nn.Module):
    """Runs a part of a network under a checkpoint."""

    def __init__(self, net: Net, how: str) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        stem = net.stem(x)
        if self.how == "module":
            y = checkpoint(net.stem, x.requires_grad_(), use_reentrant=False)
        elif self.how == "reentrant":
            y = checkpoint(net.stem, x.requires_grad_(), use_reentrant=True)
        elif self.how == "sequential":
            y = checkpoint_sequential(net.stem, 2, x.requires_grad_(), use_reentrant=False)
        elif self.how == "function":
            y = checkpoint(lambda x: F.relu(net.norm(net.twice(F.gelu(net.stem(x))))) * 2, x, use_reentrant=False)
        else:
            y = checkpoint(net.body, stem, use_reentrant=False)
        return net.head(F.avg_pool2d(F.gelu(y), 4).flatten(1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("how", ["module", "reentrant", "sequential", "function", "method"])
def test_checkpoints(model: Net, how: str, level: Any) -> None:
    x, whole = data(), Segmented(model, how)
    exact = grads(whole, lambda: whole(x).square().sum())
    before = memory_report(whole, x).held_bytes
    with randbp.randomize(whole, Exact(), lean=level, bits=8):
        assert agrees(level, grads(whole, lambda: whole(x).square().sum()), exact)
        # A few bytes for a number that some cache keeps, and the statistics that make the stem's output again: without
        # the checkpoint, batch normalisation holds these anyway.
        assert memory_report(whole, x).held_bytes <= before + 64 + 2 * 16 * 4
    with randbp.randomize(whole, Spatial(0.5), lean=level):
        assert len(grads(whole, lambda: whole(x).square().sum())) == len(exact)


@pytest.mark.parametrize("level", LEVELS)
def test_accumulation_and_retained_graphs(model: Net, level: Any) -> None:
    x = data()
    model.drop.p = 0.0
    exact = grads(model, lambda: model(x[:4]).square().sum() + model(x[4:]).square().sum())
    with randbp.randomize(model, Exact(), lean=level, bits=8):
        model.zero_grad()
        for part in (x[:4], x[4:]):
            model(part).square().sum().backward()
        assert close({name: p.grad for name, p in model.named_parameters()}, exact, 1e-5 if level == "exact" else 0.05)
        loss = model(x).square().sum()
        first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("level", LEVELS)
def test_frozen_layers_and_shared_parameters(model: Net, level: Any) -> None:
    x = data()
    model.stem.requires_grad_(False)
    model.norm.requires_grad_(False)
    model.gate.weight = nn.Parameter(model.twice.weight[:, :, :1, :1].detach().clone())
    model.head.bias.requires_grad_(False)
    other = nn.Sequential(model, nn.Linear(10, 10))
    other[1].weight = nn.Parameter(model.head.weight[:, :10].detach().clone())
    other.add_module("again", other[1])  # one module under two names, called twice
    exact = grads(other, lambda: other(x).square().sum())
    with randbp.randomize(other, Exact(), lean=level, bits=8):
        assert agrees(level, grads(other, lambda: other(x).square().sum()), exact)


def test_levels_of_single_layers(model: Net) -> None:
    x = data()
    exact = grads(model, lambda: model(x).square().sum())
    with randbp.randomize(model, Exact(), lean={"": "exact", "norm": True}, bits=2):
        ours = grads(model, lambda: model(x).square().sum())
        assert torch.equal(ours["head.weight"], exact["head.weight"])
        assert not torch.equal(ours["norm.weight"], exact["norm.weight"])
        rows = {(row.module, row.operation) for row in memory_report(model, x).rows}
        assert ("norm", "Norm") in rows and ("stem.1", "Norm") not in rows and ("Net", "gelu") in rows
    with randbp.randomize(model, Exact(), lean={"": False, "stem": "exact"}):
        rows = {(row.module, row.operation) for row in memory_report(model, x).rows}
        assert ("stem.2", "Piecewise") in rows and ("Net", "max_pool2d") in rows
        assert same(grads(model, lambda: model(x).square().sum()), exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lean": "fast"}, "lean='fast'"),
        ({"lean": 1}, "lean=1"),
        ({"lean": {"stem": "some"}}, "lean="),
        ({"lean": {"trunk": True}}, "lean='trunk': matches no module"),
        ({"lean": True, "bits": 0}, "bits=0"),
        ({"lean": True, "bits": True}, "bits=True"),
        ({"lean": True, "bits": 9}, "bits=9"),
    ],
)
def test_wrong_settings_are_named(model: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        randbp.randomize(model, **options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert type(model.twice) is nn.Conv2d


def test_handle_remove_leaves_no_trace(model: Net) -> None:
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    handle = randbp.randomize(model, lean=True)
    handle.remove()
    handle.remove()
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._forward_hooks_always_called


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_held_after_backward_or_failure(model: Net, level: Any) -> None:
    x = data()

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    with randbp.randomize(model, Spatial(0.25), lean=level):
        model(x).sum().backward()  # gradients exist from here on
        gc.collect()
        gc.disable()  # reference counting alone has to free it all
        try:
            with LiveStorages() as live:
                y = model(x).sum()
                assert live.bytes > 10_000
                y.backward()
                del y
                after_backward = live.bytes
                y = model(x)
                del y
                never = live.bytes
                hook = model.head.register_forward_pre_hook(stop)
                with pytest.raises(Stop):
                    model(x)
                hook.remove()
                failed = live.bytes
            assert (after_backward, never, failed) == (0, 0, 0)
        finally:
            gc.enable()
        assert len(torch.overrides._get_current_function_mode_stack()) == 0
        exact = memory_report(model, x)
        assert exact.kept_bytes == 0


def test_calls_within_calls_and_parts_called_alone(model: Net) -> None:
    x = data()
    with randbp.randomize(model, Exact(), lean=True):
        assert type(model.stem(x).grad_fn).__name__ == "_PiecewiseBackward"
        assert type(torch.relu(model.head.weight * 1).grad_fn).__name__ == "ReluBackward0"  # outside any module
        model.inner = None
        hook = model.norm.register_forward_hook(lambda *_: setattr(model, "inner", model.stem(x).sum()))
        model(x).sum().backward()
        hook.remove()
        model.inner = None


def test_threads_have_their_own_modes(model: Net) -> None:
    model.drop.p = 0.0
    exact = grads(model, lambda: model(data()).square().sum())
    results, errors = {}, []
    with randbp.randomize(model, Exact(), lean="exact"):
        replicas = [model._replicate_for_data_parallel() for _ in range(3)]

        def work(number: int, replica: nn.Module) -> None:
            try:
                # A replica shares hooks and parameters with the model, like those of nn.DataParallel.
                for key, module in model._modules.items():
                    setattr(replica, key, module)
                out = model if number == 0 else model.__class__.forward(replica, data())
                y = (out(data()) if number == 0 else out).square().sum()
                parameters = list(model.named_parameters())
                found = torch.autograd.grad(y, [p for _, p in parameters])
                results[number] = dict(zip([name for name, _ in parameters], found, strict=True))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(replicas)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert all(close(result, exact, 1e-5) for result in results.values()) and len(results) == 3


def test_copies_and_pickles_are_lean_and_independent(model: Net) -> None:
    x = data()
    handle = randbp.randomize(model, Spatial(0.25), lean=True)
    made = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    ours = grads(model, lambda: model(x).square().sum())
    held = memory_report(model, x).held_bytes
    handle.remove()
    for other in made:
        assert same(grads(other, lambda other=other: other(x).square().sum()), ours)
        assert memory_report(other, x).held_bytes == held
    assert memory_report(model, x).held_bytes > held


def test_noise_depends_on_seed_and_time_only(model: Net) -> None:
    x = data()

    def at(seed: int, *time: int, before: int = 0) -> dict[str, Tensor]:
        with randbp.randomize(model, Exact(), seed=seed, lean=True, bits=2) as handle:
            for step in range(before):
                handle.set_step(step)
                grads(model, lambda: model(x).square().sum())
            handle.set_step(*time)
            return grads(model, lambda: model(x).square().sum())

    first = at(0, 5)
    assert same(at(0, 5, before=3), first)
    for other in (at(1, 5), at(0, 6), at(0, 5, 1), at(0, 5, 0, 1)):
        assert not same(other, first)


@pytest.mark.parametrize("level", LEVELS)
def test_compiled_models_run(model: Net, level: Any) -> None:
    model.drop.p = 0.0
    x = data()
    exact = grads(model, lambda: model(x).square().sum())
    with randbp.randomize(model, Exact(), lean=level):
        compiled = torch.compile(model, backend="eager")
        assert close(grads(model, lambda: compiled(x).square().sum()), exact, 1e-5)


class Blocks(nn.Module):
    """Transformer-like: linear layers along a sequence, layer normalisation, attention, a gated activation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, width, 2, stride=2)
        self.norm, self.projections = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, 4 * width), nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).transpose(1, 2)
        query, key, value = self.projections(self.norm(x)).chunk(3, -1)
        x = x + self.out((query @ key.mT / 6).softmax(-1) @ value)
        left, right = self.wide(self.norm(x)).chunk(2, -1)
        return self.narrow(F.silu(left) * right)


@pytest.mark.parametrize("layers", [None, "*", ["projections", "wide"]])
def test_linear_and_transposed_layers(layers: Any) -> None:
    torch.default_generator.manual_seed(0)
    model, x = Blocks(), torch.randn(16, 4, 32)

    def loss() -> Tensor:
        return model(x).square().sum()

    exact, before = grads(model, loss), memory_report(model, x).held_bytes
    with randbp.randomize(model, Exact(), layers=layers, lean="exact"):
        assert same(grads(model, loss), exact)
    with randbp.randomize(model, randbp.Rounding(8), layers=layers, lean=True, bits=8) as handle:
        assert agrees(True, grads(model, loss), exact, 0.03)
        assert memory_report(model, x).held_bytes < 0.55 * before  # the softmax is held as it is
        assert len(handle.layers) == (1 if layers is None else 5 if layers == "*" else 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert close(grads(model, lambda: loss().float()), exact, 0.1)
        assert len(grads(model, lambda: checkpoint(model, x, use_reentrant=False).square().sum())) == len(exact)
    for estimator in (Spatial(0.25), randbp.Rounding(4, Spatial(0.5))):
        with randbp.randomize(model, estimator, layers=layers, lean=True):
            assert memory_report(model, x).held_bytes < 0.45 * before
            assert not same(grads(model, loss), exact)


def test_a_model_without_convolutions() -> None:
    torch.default_generator.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 8)), torch.randn(64, 64)
    exact = grads(model, lambda: model(x).square().sum())
    before = memory_report(model, x).held_bytes
    for level in LEVELS:
        with randbp.randomize(model, Exact(), lean=level, bits=8):
            assert agrees(level, grads(model, lambda: model(x).square().sum()), exact)
            # (The second layer holds the ReLU's output; exact mode adds the ReLU's bits to that.)
            assert memory_report(model, x).held_bytes < (1.02 if level == "exact" else 0.6) * before
    with pytest.raises(ValueError, match=r"has no nn\.Conv1d"):
        randbp.randomize(model, Spatial(0.5), lean=True)


def test_linear_layers_of_a_lean_network_are_unbiased() -> None:
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8)).double()
    x = torch.randn(6, 40, 16, dtype=torch.float64)

    def flat() -> Tensor:
        # Linear in the output: an unbiased gradient at every weight needs no more.
        return torch.cat([g.flatten() for g in grads(model, lambda: (model(x) * x[..., :8]).sum()).values()])

    exact = flat()
    with randbp.randomize(model, Spatial(0.5), layers="*", lean=True, bits=2):
        draws = torch.stack([flat() for _ in range(500)])
    z = (draws.mean(0) - exact).abs() / (draws.std(0) / 500**0.5 + 1e-6 * exact.abs().max())
    assert z.max() < 5.5 and draws.std(0).max() > 0.01 * exact.abs().max()


class Task(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.operations = [type(self.model.stem(batch[0]).grad_fn).__name__]
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_callback_makes_models_lean_while_they_fit(tmp_path: Any) -> None:
    loader = DataLoader(TensorDataset(data(16), torch.arange(16) % 10), batch_size=8)
    task, dropout = Task(), TensorDropout(Spatial(keep=0.25), lean=True, bits=3)
    assert dropout.state_dict()["settings"]["lean"] is True and dropout.state_dict()["settings"]["bits"] == 3
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, callbacks=[dropout], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, loader)
    assert task.operations == ["_PiecewiseBackward"]
    assert not any(m._forward_hooks for m in task.modules())
    with pytest.raises(ValueError, match="lean='fast'"):
        TensorDropout(lean="fast")
