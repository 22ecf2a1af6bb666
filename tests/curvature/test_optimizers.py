"""What all second-order optimisers do in a training loop, and Adam with a preconditioner in front of it."""

import copy
import math
import pickle
import socket
from functools import partial

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset

from .lightning_runs import Module, trainer
from .optimizers import EVERY, OPTIMIZERS, curvature, known
from .training import batch, loss_of, network, parameters, run
from .two_processes import process, results

OFTEN = {"factor_every": 2, "inverse_every": 3}
each = pytest.mark.parametrize("name", OPTIMIZERS)
every = pytest.mark.parametrize("name", EVERY)


def stepped(model, optimizer, losses):
    for loss in losses:
        loss(model).backward()
    optimizer.step()


@each
def test_sums_means_and_micro_batches_see_the_same_curvature(name):
    x, y = batch()
    halves = [(x[:3], y[:3]), (x[3:], y[3:])]  # of unequal size, each with its share of the mean
    results = []
    for losses, options in (
        ([lambda m: loss_of(m, x, y)], {}),
        ([lambda m: loss_of(m, x, y, "sum")], {"reduction": "sum", "lr": 0.1 / 8}),
        ([partial(lambda p, m: loss_of(m, *p) * len(p[0]) / 8, pair) for pair in halves], {}),
    ):
        model = network()
        optimizer = OPTIMIZERS[name](model, **{"lr": 0.1, "kl_clip": None, "momentum": 0.5, **options})
        for _ in range(2):
            optimizer.zero_grad()
            stepped(model, optimizer, losses)
        results.append(parameters(model))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-11)


@every
def test_a_resumed_run_goes_on_bit_for_bit(name):
    options = {"lr": 0.01, "weight_decay": 0.01, **OFTEN}
    model = network()
    optimizer = EVERY[name](model, **options)
    run(model, optimizer, 5)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    run(model, optimizer, 5, first=5)
    other = network(seed=9)
    resumed = EVERY[name](other, **options)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(other, resumed, 5, first=5)
    assert resumed.steps == 10 and len(known(resumed, other[0].weight)) > 2
    assert torch.equal(parameters(model), parameters(other))


@every
def test_what_is_not_finite_is_left_out(name):
    model, (x, y) = network(), batch()
    optimizer = EVERY[name](model, lr=0.01, factor_every=1, inverse_every=1)
    loss_of(model, x, y).backward()
    optimizer.step()
    before = copy.deepcopy(known(optimizer, model[0].weight))
    optimizer.zero_grad()
    x[0, 0, 0, 0] = math.inf
    loss_of(model, x, y).backward()
    optimizer.zero_grad()  # as where a step is given up
    optimizer.step()
    torch.testing.assert_close(known(optimizer, model[0].weight), before)
    assert curvature(optimizer)[model[0].weight]["updates"] == 1 and parameters(model).isfinite().all()


@each
def test_groups_have_their_own_numbers(name):
    model, (x, y) = network(), batch()
    old = copy.deepcopy(model)
    last = list(model[8].parameters())
    others = [p for p in model.parameters() if all(p is not q for q in last)]
    groups = [{"params": others, "lr": 0.0}, {"params": last}]
    optimizer = OPTIMIZERS[name](model, params=groups, lr=0.1, weight_decay=0.1)
    loss_of(model, x, y).backward()
    optimizer.step()
    for part, parameter in model.named_parameters():
        assert torch.equal(parameter, old.get_parameter(part)) == (not part.startswith("8."))
    with pytest.raises(ValueError, match="momentum=1: expected a number from 0 and below 1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "momentum": 1})


@every
def test_a_closure_and_a_schedule(name):
    model, (x, y) = network(), batch()
    optimizer = EVERY[name](model, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    losses = []
    for _ in range(5):
        losses.append(float(optimizer.step(closure).detach()))
        schedule.step()
    assert losses[-1] < losses[0] and optimizer.param_groups[0]["lr"] == 0.1 * 0.5**5


@every
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_resumes(name, tmp_path):
    x, y = batch(16)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    options = {"lr": 0.01, **OFTEN}
    whole, first, second = (Module(network(), EVERY[name], **options) for _ in range(3))
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(whole, loader)
    half = trainer(tmp_path, max_epochs=1)
    half.fit(first, loader)
    half.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path, max_epochs=2).fit(second, loader, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert torch.equal(parameters(whole), parameters(second))
    assert not torch.equal(parameters(whole), parameters(first))


@every
def test_scaled_gradients_are_unscaled_and_steps_that_overflow_dropped(name):
    results = []
    for scaled in (False, True):
        model = network(dtype=torch.float32)
        optimizer = EVERY[name](model, lr=0.01, **OFTEN)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=scaled)
        for seed in range(3):
            x, y = batch(seed=seed, dtype=torch.float32)
            if scaled and seed == 1:
                optimizer.zero_grad()
                scaler.scale(loss_of(model, x, y) * math.inf).backward()
                scaler.step(optimizer)
                scaler.update()
                assert optimizer.steps == 1
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                scaler.scale(loss_of(model, x[part], y[part]) / 2).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append([known(optimizer, model[8].weight), parameters(model)])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)
    for key, value in results[0][0].items():
        if key.endswith("factor"):
            torch.testing.assert_close(results[1][0][key], value, rtol=1e-3, atol=1e-5)


@every
def test_sixteen_bits_resume_with_all_bits_of_what_is_known(name):
    model, other = network(dtype=torch.bfloat16), network(dtype=torch.bfloat16)
    optimizer, resumed = EVERY[name](model, lr=0.1), EVERY[name](other, lr=0.1)
    x, y = batch(dtype=torch.bfloat16)
    for _ in range(2):
        loss_of(model, x, y).backward()
        optimizer.step()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, its in ((model, optimizer), (other, resumed)):
        its.zero_grad()
        loss_of(net, x, y).backward()
        its.step()
    mine, theirs = known(optimizer, model[0].weight), known(resumed, other[0].weight)
    assert {value.dtype for value in mine.values()} == {torch.float32} and mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    assert torch.equal(parameters(model), parameters(other))


@each
def test_a_state_of_sgd_is_a_beginning(name):
    model = network()
    optimizer = OPTIMIZERS[name](model)
    optimizer.load_state_dict(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict())
    run(model, optimizer, 1)
    assert optimizer.steps == 1 and known(optimizer, model[0].weight)


@each
def test_copies_of_the_optimizer_are_refused_and_of_the_model_are_free(name):
    model = network()
    optimizer = OPTIMIZERS[name](model)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=f"{name.split()[0]}: copies and pickles would lose the hooks"):
            copied(optimizer)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        loss_of(twin, *batch()).backward()
        assert not optimizer._statistics.seen


@each
def test_a_bias_that_freezes_and_thaws(name):
    """What is known has another shape each time, and a model in another precision follows."""
    model, (x, y) = network(), batch()
    optimizer = EVERY[name](model, lr=0.01, factor_every=1, inverse_every=2)
    for step in range(12):
        if step % 3 == 0:
            model[0].bias.requires_grad_(step % 2 == 0)
        if step == 6:
            model, x = model.float(), x.float()
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        assert parameters(model).isfinite().all()
    assert {value.dtype for value in known(optimizer, model[0].weight).values()} == {torch.float32}


def test_two_processes_step_as_one_on_the_whole_batch(tmp_path):
    """Each weight's inverses and bases are computed in one of them, and both have the same bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, tmp_path), nprocs=2)
    alone, refreshed = results(0, 1)
    (first, mine), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(refreshed) == 5 * 4 and sorted(mine + theirs) == refreshed and mine and theirs
    for name in alone:
        torch.testing.assert_close(first[name][0], alone[name][0], rtol=1e-6, atol=1e-8, msg=name)
        assert torch.equal(first[name][0], second[name][0]), name
        for key, value in first[name][1].items():
            assert torch.equal(value, second[name][1][key]), (name, key)
