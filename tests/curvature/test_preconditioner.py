"""Preconditioning in front of other optimisers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from randbp.curvature import KFAC, SINGD, KroneckerInverse, Preconditioner, StructuredInverseFree

from .lightning_runs import Module, trainer

OFTEN = {"factor_every": 2, "inverse_every": 3}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(75, 3)).to(dtype)


def loss_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64).to(model[0].weight.dtype)
    return cross_entropy(model(x), torch.arange(8) % 3)


def train(model, optimizer, steps, first=0, before=None):
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        if before is not None:
            before()
        optimizer.step()


def equal(first, second):
    return all(map(torch.equal, first.parameters(), second.parameters()))


def test_in_front_of_sgd_it_is_kfac():
    ends = []
    options = {"damping": 0.03, **OFTEN}
    for way in ("KFAC", "by hand", "by itself", "with closures"):
        model = network()
        if way == "KFAC":
            train(model, KFAC(model, 0.1, kl_clip=None, **options), 6)
        else:
            preconditioner = Preconditioner(model, KroneckerInverse(), **options)
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            if way == "by hand":
                train(model, optimizer, 6, before=preconditioner.step)
            elif way == "by itself":
                train(model, preconditioner.before(optimizer), 6)
            else:
                preconditioner.before(optimizer)
                for seed in range(6):

                    def closure(model=model, optimizer=optimizer, seed=seed):
                        optimizer.zero_grad()
                        loss = loss_of(model, seed)
                        loss.backward()
                        return loss

                    optimizer.step(closure) if seed % 2 else optimizer.step(closure=closure)
        ends.append(model)
    for model in ends[1:]:
        torch.testing.assert_close(list(model.parameters()), list(ends[0].parameters()), rtol=1e-12, atol=1e-14)
    assert equal(ends[1], ends[2]) and equal(ends[1], ends[3])


def test_a_method_that_inverts_nothing_follows_every_update():
    """Whatever the interval of inverses is: it is SINGD in front of SGD."""
    ends = []
    for way in (True, False):
        model = network()
        if way:
            optimizer = SINGD(model, 0.1, factor_every=2)
        else:
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            Preconditioner(model, StructuredInverseFree(), factor_every=2, inverse_every=5).before(optimizer)
        train(model, optimizer, 8)
        ends.append(list(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


def test_only_gradients_of_its_layers_change_and_the_bound_shortens_them():
    products = []
    for clip in (None, 1e-3):
        model = network()
        preconditioner = Preconditioner(model, KroneckerInverse(), kl_clip=clip, layers=["0", "5"])
        loss_of(model, 0).backward()
        before = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in model.named_parameters()}
        preconditioner.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is before[name][0]
            assert torch.equal(parameter.grad, before[name][1]) == (name[0] in "13")
        products.append(
            sum(float((before[name][1] * p.grad).sum()) for name, p in model.named_parameters() if name[0] in "05")
        )
    assert products[0] > 1e-2
    assert products[1] == pytest.approx((1e-3 * products[0]) ** 0.5, rel=1e-6)


def test_groups_have_their_own_damping():
    ends = []
    for dampings in ((0.1, 0.1), (0.1, 10.0)):
        model = network()
        layers = zip((model[0], model[5]), dampings, strict=True)
        groups = [{"params": layer.parameters(), "damping": damping} for layer, damping in layers]
        preconditioner = Preconditioner(model, KroneckerInverse(), params=groups)
        loss_of(model, 0).backward()
        preconditioner.step()
        ends.append([model[i].weight.grad for i in (0, 3, 5)])
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])
    assert ends[1][2].norm() < 0.5 * ends[0][2].norm()
    with pytest.raises(ValueError, match="damping=0: expected a number above 0"):
        preconditioner.add_param_group({"params": model[3].parameters(), "damping": 0})


@pytest.mark.filterwarnings("ignore")
def test_with_adam_lightning_resumes_bit_for_bit_and_clips(tmp_path):
    x, y = torch.randn(32, 2, 6, 6, dtype=torch.float64), torch.arange(32) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=8)

    class Adam(Module):
        def configure_optimizers(self):
            adam = torch.optim.Adam(self.parameters(), 1e-2)
            return Preconditioner(self, KroneckerInverse(), **OFTEN).before(adam)

    options = {"gradient_clip_val": 0.1}
    whole, first, second = (Adam(network()) for _ in range(3))
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False, **options).fit(whole, loader)
    half = trainer(tmp_path, max_epochs=1, **options)
    half.fit(first, loader)
    half.save_checkpoint(tmp_path / "one.ckpt")
    resumed = trainer(tmp_path, max_epochs=2, **options)
    resumed.fit(second, loader, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert equal(whole, second) and not equal(whole, first)


@pytest.mark.parametrize("clip", [False, True])
def test_scaled_gradients_are_unscaled_and_a_step_that_overflows_is_dropped(clip):
    ends = []
    for scaled in (False, True):
        model = network(torch.float32)
        preconditioner = Preconditioner(model, KroneckerInverse(), **OFTEN)
        optimizer = preconditioner.before(torch.optim.Adam(model.parameters(), 1e-2))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=scaled)
        for seed in range(4):
            optimizer.zero_grad()
            if scaled and seed == 1:
                scaler.scale(loss_of(model, seed) * float("inf")).backward()
                scaler.step(optimizer)
                scaler.update()
                assert preconditioner.steps == 1
                optimizer.zero_grad()
            scaler.scale(loss_of(model, seed)).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        ends.append([preconditioner.state[model[5].weight]["output_grad_factor"], *model.parameters()])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-6)


def test_states_of_other_runs():
    """A state without a preconditioner's is that of the optimiser alone."""
    model = network()
    optimizer = Preconditioner(model, KroneckerInverse(), **OFTEN).before(torch.optim.Adam(model.parameters()))
    optimizer.load_state_dict(torch.optim.Adam(model.parameters()).state_dict())
    train(model, optimizer, 2)
    assert optimizer.state_dict()["preconditioner"]["param_groups"][0]["steps"] == 2
    other = torch.optim.Adam(model.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, other, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, m: Preconditioner(m, None), r"method=None: expected a method such as KroneckerInverse\(\)"),
        (lambda p, m: Preconditioner(m, KroneckerInverse), r"method=<class 'randbp"),
        (lambda p, m: Preconditioner(m, KroneckerInverse(), damping=-1), "damping=-1: expected a number above 0"),
        (lambda p, m: KroneckerInverse("kfc"), "approximation='kfc': expected 'reduce' or 'expand'"),
        (lambda p, m: KroneckerInverse(decay=1), "decay=1: expected a number from 0 and below 1"),
        (lambda p, m: p.before(p), "optimizer=Preconditioner"),
        (lambda p, m: p.before("Adam"), "optimizer='Adam': expected another optimiser"),
    ],
)
def test_wrong_arguments(call, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        call(Preconditioner(model, KroneckerInverse()), model)
