"""Compiled models: factors as without the compiler, or one warning."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from randbp.curvature import KFAC


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class SamePadding(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


def network(kind=nn.Conv2d):
    torch.manual_seed(0)
    size = 6 if kind is SamePadding else 4
    return nn.Sequential(kind(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * size**2, 3)).double()


def loss_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return cross_entropy(model(torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)), torch.arange(8) % 3)


def train(model, optimizer, steps, called=None):
    for seed in range(steps):
        optimizer.zero_grad()
        loss_of(model if called is None else called, seed).backward()
        optimizer.step()


def wrapped(model):
    return torch.compile(model, backend="aot_eager")


def in_place(model):
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("compiled", [wrapped, in_place])
@pytest.mark.filterwarnings("error:KFAC")
def test_compiled_models_step_as_others(compiled, caplog):
    plain, model = network(), network()
    train(plain, KFAC(plain, lr=0.1, factor_every=1, inverse_every=1), 3)
    optimizer = KFAC(model, lr=0.1, factor_every=1, inverse_every=1)
    with caplog.at_level(logging.WARNING):
        train(model, optimizer, 3, compiled(model))
    assert not caplog.records
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-9, atol=1e-11)


def test_a_graph_of_a_step_that_gathers_nothing_is_made_anew():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = network()
    optimizer = KFAC(model, factor_every=4, inverse_every=4)
    train(model, optimizer, 3)  # now comes the step 3, which is not due
    called = torch.compile(model, backend=backend)
    train(model, optimizer, 1, called)
    assert len(graphs) == 1 and optimizer.state[model[0].weight]["updates"] == 3
    train(model, optimizer, 1, called)
    assert optimizer.state[model[0].weight]["updates"] == 4


def test_a_graph_that_was_there_before_is_told_of_once():
    model = network()
    called = wrapped(model)
    loss_of(called, 0).backward()
    optimizer = KFAC(model, lr=0.1, factor_every=1, inverse_every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 3, called)
    told = [str(each.message) for each in caught if "KFAC" in str(each.message)]
    assert len(told) == 1 and "'0', '3'" in told[0] and "torch.compiler.reset()" in told[0]
    assert set(optimizer.left_plain) == {"0", "3"} and not optimizer.layers
    torch.compiler.reset()  # what the warning says
    train(model, optimizer, 1, called)
    assert set(optimizer.layers) == {"0", "3"}


def test_a_compiled_forward_pass_of_its_own_is_left_plain():
    model = network(SamePadding)
    optimizer = KFAC(model)
    with pytest.warns(
        UserWarning, match="KFAC: plain steps for 1 layer: '0' .its forward pass is its own and compiled"
    ):
        train(model, optimizer, 2, wrapped(model))
    assert set(optimizer.layers) == {"3"}
