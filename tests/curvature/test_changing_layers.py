"""Layers whose parameters become others, move, freeze or go away while they are trained."""

import copy
import io
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

from randbp.curvature import KFAC

from .lightning_runs import Module, trainer

COMPUTED = "its weight is computed from parameters (by a mask, a norm or the like), not one of them"
FACTORS = {f"{name}_{what}" for name in ("input", "output_grad") for what in ("factor", "inverse")}


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
        x = x.to(next(model.parameters()))
        optimizer.zero_grad()
        cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()


def entries(optimizer):
    """How much there is in the state."""
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return len(optimizer.state), sum(tensor.numel() for tensor in tensors)


def made(model):
    return KFAC(model, lr=0.05, factor_every=1, inverse_every=2)


def drawn(*shape):
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def given(module, **parameters):
    for name, parameter in parameters.items():
        setattr(module, name, parameter)


CHANGES = {
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "old weight norm": lambda m: nn.utils.weight_norm(m[0]),
    "old spectral norm": lambda m: nn.utils.spectral_norm(m[0]),
    "weight norm": lambda m: parametrizations.weight_norm(m[0]),
    "spectral norm": lambda m: parametrizations.spectral_norm(m[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[3]),
    "another weight": lambda m: given(m[3], weight=nn.Parameter(m[3].weight.detach().clone())),
    "another shape": lambda m: given(m[3], weight=drawn(5, 64), bias=drawn(5)) or given(m[5], weight=drawn(3, 5)),
    "another layer": lambda m: m.__setitem__(3, nn.Linear(64, 6).double()),
    "frozen": lambda m: m[0].requires_grad_(False),
    "all frozen but the last": lambda m: m[:5].requires_grad_(False),
    "without bias": lambda m: given(m[3], bias=None),
    "without a parameter": lambda m: delattr(m[3], "bias") or given(m[3], bias=torch.zeros(6).double()),
    "two other weights": lambda m: given(m[3], weight=drawn(6, 64)) or given(m[0], weight=drawn(4, 2, 3, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("trained", [0, 3])
def test_training_goes_on(change, trained):
    """As with SGD: parameters that are still the optimiser's are trained, and the state grows no more."""
    model = network()
    optimizer = made(model)
    held = optimizer.param_groups[0]["params"]
    train(model, optimizer, trained)
    CHANGES[change](model)
    train(model, optimizer, 2, first=trained)
    size = entries(optimizer)
    before = [parameter.detach().clone() for parameter in held]
    train(model, optimizer, 6, first=trained + 2)
    assert entries(optimizer) == size
    for parameter, old in zip(held, before, strict=True):
        moves = parameter.grad is not None and bool(parameter.grad.any())
        assert parameter.isfinite().all() and (not moves or not torch.equal(parameter, old))
    assert change == "another shape" or set(optimizer.state[model[5].weight]) >= FACTORS
    saved = copy.deepcopy(optimizer.state_dict())
    torch.load(stored(saved), weights_only=True)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 1, first=20)


def stored(what):
    stream = io.BytesIO()
    torch.save(what, stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("change", ["pruned", *(name for name in CHANGES if name.endswith("norm"))])
def test_a_weight_that_is_computed_is_left_plain_and_told_of_once(change):
    model = network()
    optimizer = made(model)
    train(model, optimizer, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CHANGES[change](model)
        train(model, optimizer, 4, first=2)
    told = [str(each.message) for each in caught if "KFAC" in str(each.message)]
    assert told == [f"KFAC: plain steps for 1 layer: '0' ({COMPUTED}); all are in left_plain"]
    assert optimizer.left_plain == {"0": COMPUTED} and set(optimizer.layers) == {"3", "5"}


@pytest.mark.filterwarnings("ignore")
def test_curvature_comes_back_with_the_weight():
    """What is taken off again leaves the layer as it was, and its averages go on."""
    model = network()
    optimizer = made(model)
    train(model, optimizer, 3)
    CHANGES["pruned"](model)
    train(model, optimizer, 2, first=3)
    state = optimizer.state[model[0].weight_orig]
    assert state["updates"] == 3 and set(optimizer.left_plain) == {"0"}
    prune.remove(model[0], "weight")
    train(model, optimizer, 2, first=5)
    assert optimizer.state[model[0].weight]["updates"] == 5 and not optimizer.left_plain
    parametrizations.spectral_norm(model[0])
    train(model, optimizer, 1, first=7)
    parametrize.remove_parametrizations(model[0], "weight")
    train(model, optimizer, 1, first=8)
    assert not optimizer.left_plain


def test_a_new_weight_begins_anew_once_the_optimiser_has_it():
    """As a new optimiser would, and what was known of the old one is gone."""
    model = network()
    optimizer = made(model)
    train(model, optimizer, 3)
    old = model[3].weight
    CHANGES["another shape"](model)
    train(model, optimizer, 1, first=3)
    assert not FACTORS & set(optimizer.state[old])
    assert optimizer.left_plain["3"] == "its weight is not among this optimiser's parameters"
    new = [model[3].weight, model[3].bias, model[5].weight]
    optimizer.add_param_group({"params": new})
    assert not optimizer.left_plain
    twin = copy.deepcopy(model)
    fresh = KFAC(twin, lr=0.05, factor_every=1, inverse_every=1)
    train(twin, fresh, 1, first=4)
    train(model, optimizer, 1, first=4)
    for layer, theirs in ((model[3], twin[3]), (model[5], twin[5])):
        for key in ("input_factor", "output_grad_factor"):
            assert torch.equal(optimizer.state[layer.weight][key], fresh.state[theirs.weight][key])


def test_a_bias_that_is_added():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(72, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)).double()
    model = nn.Sequential(nn.Flatten(), *model)
    optimizer = made(model)
    train(model, optimizer, 2)
    model[1].bias = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    train(model, optimizer, 2, first=2)  # not the optimiser's: a constant
    assert optimizer.state[model[1].weight]["input_factor"].shape[1] == 72 and not model[1].bias.any()
    optimizer.add_param_group({"params": [model[1].bias]})
    train(model, optimizer, 3, first=4)
    assert optimizer.state[model[1].weight]["input_factor"].shape[1] == 73 and model[1].bias.any()


def test_a_parameter_that_is_taken_from_the_optimiser():
    model = network()
    optimizer = made(model)
    train(model, optimizer, 2)
    group, weight = optimizer.param_groups[0], model[3].weight
    group["params"] = [parameter for parameter in group["params"] if parameter is not weight]
    before = weight.detach().clone()
    train(model, optimizer, 2, first=2)
    assert torch.equal(weight, before) and weight not in optimizer.state
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 5


def test_freezing_and_thawing_keeps_the_averages():
    model = network()
    optimizer = made(model)
    train(model, optimizer, 3)
    model[0].requires_grad_(False)
    train(model, optimizer, 2, first=3)
    assert optimizer.left_plain == {"0": "its weight is frozen"}
    model[0].requires_grad_(True)
    train(model, optimizer, 2, first=5)
    assert optimizer.state[model[0].weight]["updates"] == 5 and not optimizer.left_plain


def test_weights_that_are_tied_later_and_untied_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.Tanh(), nn.Linear(72, 72), nn.Linear(72, 3)).double()
    optimizer = made(model)
    train(model, optimizer, 2)
    own = model[1].weight
    model[1].weight = model[3].weight
    with pytest.warns(UserWarning, match="plain steps for 2 layers: '1', '3' .its weight is shared with another"):
        train(model, optimizer, 2, first=2)
    model[1].weight = own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 3, first=4)
    assert not optimizer.left_plain and set(optimizer.state[own]) >= FACTORS


def test_a_weight_that_the_optimiser_loses_is_told_of():
    model = network()
    optimizer = made(model)
    train(model, optimizer, 1)
    CHANGES["another weight"](model)
    with pytest.warns(UserWarning, match="plain steps for 1 layer: '3' .its weight is not among"):
        train(model, optimizer, 1, first=1)


def test_the_bound_on_rows_is_the_last_that_is_served():
    """Without a bias there is no column for it."""
    model = nn.Sequential(nn.Linear(20, 3, bias=False), nn.Linear(3, 20), nn.Linear(20, 2))
    assert set(KFAC(model, largest=20).layers) == {"0", "1"}
    assert set(KFAC(model, largest=21).layers) == {"0", "1", "2"}


def test_frozen_layers_are_served_once_they_thaw():
    model = network()
    model[0].requires_grad_(False)
    optimizer = KFAC(model, params=model.parameters(), factor_every=1, inverse_every=1)
    train(model, optimizer, 2)
    assert optimizer.left_plain == {"0": "its weight is frozen"}
    model[0].requires_grad_(True)
    train(model, optimizer, 2, first=2)
    assert set(optimizer.state[model[0].weight]) >= FACTORS


@pytest.mark.parametrize(("first", "then"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_another_precision(first, then):
    """The state follows, so that a run in another precision from the start is near."""
    results = []
    for start in (first, then):
        model = network().to(start)
        optimizer = made(model)
        train(model, optimizer, 3)
        model.to(then)
        train(model, optimizer, 3, first=3)
        state = optimizer.state[model[0].weight]
        assert {state[key].dtype for key in FACTORS | {"momentum_buffer"}} == {then}
        results.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_half_precision_keeps_single_precision_of_the_factors():
    model = network()
    optimizer = made(model)
    train(model, optimizer, 3)
    model.to(torch.bfloat16)
    train(model, optimizer, 2, first=3)
    state = optimizer.state[model[3].weight]
    assert {state[key].dtype for key in FACTORS} == {torch.float32} and state["momentum_buffer"].dtype == torch.bfloat16


class Kept(torch.Tensor):
    """A subclass that lives on in whatever is computed from it, as images with metadata do."""


def test_the_state_holds_no_subclass_of_the_input():
    model = network()
    optimizer = KFAC(model)
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64).as_subclass(Kept)
    loss = cross_entropy(model(x), torch.arange(8) % 3)
    assert type(loss) is Kept
    loss.backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    assert {type(value) for each in state.values() for key, value in each.items() if key in FACTORS} == {torch.Tensor}
    torch.load(stored(optimizer.state_dict()), weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_lightning_prunes_and_checkpoints(tmp_path):
    x, y = torch.randn(32, 2, 6, 6, dtype=torch.float64), torch.arange(32) % 3
    module = Module(network(), lr=0.05, factor_every=1, inverse_every=2)
    pruning = ModelPruning("l1_unstructured", amount=0.5, parameters_to_prune=[(module.network[0], "weight")])
    run = trainer(tmp_path, max_epochs=3, callbacks=[pruning])
    run.fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert run.global_step == 12
    assert (module.network[0].weight == 0).float().mean() >= 0.5
