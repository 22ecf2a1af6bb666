"""A lean model in ``eval()`` mode is PyTorch's, bit for bit: its fast paths look at hooks, modes and classes."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

import randbp
from randbp import Exact, Spatial
from randbp._torch import hooks

from .same import Listens


class Attention(nn.Module):
    """Self-attention alone, with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y, weights = self.attention(x, x, x, key_padding_mask=mask)
        return torch.cat([y.flatten(), weights.flatten(), self.attention(x, x, x, need_weights=False)[0].flatten()])


class Layer(nn.TransformerEncoderLayer):
    """One layer of an encoder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(16, 4, 32, batch_first=True, **options)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, src_key_padding_mask=mask)


class Encoder(nn.TransformerEncoder):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, nn.LayerNorm(16))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, src_key_padding_mask=mask)


class Inside(nn.Module):
    """An encoder within a network that has operations of its own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.gelu(self.head(self.encoder(F.gelu(x), src_key_padding_mask=mask)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "layer": Layer,
    "layer, norm first": lambda: Layer(norm_first=True),
    "encoder": Encoder,
    "inside": Inside,
}
STATES: dict[str, Callable[[nn.Module], Any]] = {
    "eval": lambda model: model.eval(),
    "train, then eval": lambda model: model.train()(*data()) is None or model.eval(),
    "by hand": lambda model: [setattr(module, "training", False) for module in model.modules()],
    "frozen, in a network that trains": lambda model: (
        model.train(),
        [m.eval().requires_grad_(False) for m in model.modules() if "Transformer" in type(m).__name__],
    ),
    "frozen layers alone": lambda model: (
        model.train(),
        [m.eval() for m in model.modules() if isinstance(m, (nn.TransformerEncoderLayer, nn.MultiheadAttention))],
        model.requires_grad_(False),
    ),
}
GRADS: dict[str, Callable[[], Any]] = {
    "grad": nullcontext,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def data() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(5, 12, dtype=torch.bool)
    mask[1:, 8:] = True
    mask[3, 4:] = True
    return torch.randn(5, 12, 16, generator=torch.Generator().manual_seed(0)), mask


def made(name: str) -> nn.Module:
    torch.default_generator.manual_seed(0)
    return MODELS[name]()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:randomize")
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_pytorchs(name: str, state: str, grad: str) -> None:
    plain, lean, sampled = (made(name) for _ in range(3))
    randbp.randomize(lean, Exact(), lean=True)
    layers: Any = (lambda name, module: isinstance(module, nn.Linear)) if name != "attention" else None
    randbp.randomize(sampled, Exact() if layers is None else Spatial(keep=0.5), layers=layers, lean="exact")
    results = []
    for model in (plain, lean, sampled):
        STATES[state](model)
        torch.default_generator.manual_seed(1)
        with GRADS[grad]():
            results.append([model(*data()) for _ in range(2)])
    assert all(
        torch.equal(ours, theirs) for model in results[1:] for ours, theirs in zip(model, results[0], strict=True)
    )
    if (name, state, grad) == ("encoder", "eval", "no grad"):
        layer_norm_of_padding = results[0][0][3, -1]
        assert torch.equal(layer_norm_of_padding, torch.zeros(16))  # which only the fast path puts there


@pytest.mark.parametrize("level", [True, "exact"])
def test_gradients_in_eval_mode_are_pytorchs(level: Any) -> None:
    plain, lean = made("inside").eval(), made("inside").eval()
    randbp.randomize(lean, Exact(), lean=level)
    for model in (plain, lean):
        model(*data()).square().sum().backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def is_lean(model: nn.Module) -> bool:
    """Whether the last operation of a training step's network, and that of a part of it, are lean mode's."""
    parts = (model.train()(*data()), model.head[1](torch.ones(9, 9, requires_grad=True)))
    names = {type(part.grad_fn).__name__ for part in parts}
    assert len(names) == 1
    return names == {"_HeldSlopesBackward"}


@pytest.mark.parametrize("implementation", [hooks._IMPLEMENTATION, "what PyTorch does not have"])
def test_modules_are_watched_and_left_as_they_were(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_IMPLEMENTATION", implementation)
    model = made("inside")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    assert not is_lean(model)
    first, second = (randbp.randomize(part, Exact(), lean=True) for part in (model, model.head))
    assert is_lean(model) and _get_current_function_mode_stack() == []
    first.remove()
    assert type(model.head[1](torch.ones(9, 9, requires_grad=True)).grad_fn).__name__ == "_HeldSlopesBackward"
    second.remove()
    second.remove()
    assert not is_lean(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_no_module_gets_a_hook() -> None:
    model = made("inside")
    with randbp.randomize(model, Exact(), lean=True):
        assert is_lean(model)
        for module in model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks


def test_copies_and_pickles_are_lean_in_training_and_pytorchs_in_eval_mode() -> None:
    model, plain = made("inside"), made("inside").eval()
    handle = randbp.randomize(model, Exact(), lean=True)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))]
    handle.remove()
    assert not is_lean(model)
    for other in copies:
        with torch.no_grad():
            other.head[0].weight.mul_(2.0)  # a copy runs its own weights
            assert not torch.equal(other.eval()(*data()), plain(*data()))
            other.head[0].weight.mul_(0.5)
            assert torch.equal(other(*data()), plain(*data()))
        assert (
            is_lean(other)
            and type(other.head[1](torch.ones(9, 9, requires_grad=True)).grad_fn).__name__ == "_HeldSlopesBackward"
        )


def test_models_go_without_waiting_for_the_garbage_collector() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    parameter = weakref.ref(model[0].weight)
    handle = randbp.randomize(model, Exact(), layers="*", lean=True)
    model(torch.randn(2, 3)).sum().backward()
    gc.disable()
    try:
        del model, handle
        assert parameter() is None
    finally:
        gc.enable()


def test_replicas_run_their_own_parameters() -> None:
    model = nn.Linear(3, 3)
    with randbp.randomize(model, Exact(), layers="*", lean=True):
        replica = model._replicate_for_data_parallel()
        replica.weight, replica.bias = torch.zeros(3, 3), torch.ones(3)
        assert torch.equal(replica(torch.randn(2, 3)), torch.ones(2, 3))


class Gelu(nn.Module):
    """Calls a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x * 1)


def test_modules_compiled_in_place_are_left_to_their_graphs() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    early, late = Gelu(), Gelu()
    early.compile(backend="eager", fullgraph=True)
    handles = [randbp.randomize(model, Exact(), lean=True) for model in (early, late)]
    late.compile(backend="eager", fullgraph=True)
    for model in (early, late):
        assert torch.equal(model(x), F.gelu(x)) and "HeldSlopes" not in type(model(x).grad_fn).__name__
    for handle in handles:
        handle.remove()
    for model in (early, late):
        assert model._compiled_call_impl is not None and torch.equal(model(x), F.gelu(x))


class Around(nn.Module):
    """Enters a mode of its own around a part of it that is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.mode = nn.Sequential(nn.GELU()).eval(), Listens()
        self.stacks: list[list[Any]] = []

    def forward(self, x: Tensor) -> Iterator[str]:
        with self.mode:
            y = self.part(x)
            self.stacks.append(_get_current_function_mode_stack())
            z = F.gelu(x)
        return [type(value.grad_fn).__name__ for value in (y, z, F.gelu(x))]


def test_modes_come_back_in_their_order() -> None:
    model, x = Around(), torch.randn(4, 8, requires_grad=True)
    with randbp.randomize(model, Exact(), lean=True), Listens() as outer:
        for _ in range(2):
            assert model(x) == ["GeluBackward0", "_HeldSlopesBackward", "_HeldSlopesBackward"]
            stack = model.stacks.pop()
            assert [type(mode).__name__ for mode in stack] == ["Listens", "_Mode", "Listens"] and stack[0] is outer
            assert _get_current_function_mode_stack() == [outer]
        assert F.gelu in model.mode.seen and F.gelu in outer.seen
