"""Activation checkpointing gives the gradient of the same step without it: every call's sample is drawn once."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import randbp
from randbp import Estimator, Exact, Spatial
from randbp.functional import conv, conv_transpose, linear
from tests.catalogue import DRAWN_OF_EACH_KIND


class Segment(nn.Module):
    """Calls a layer three times."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.other, self.norm = shared, nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.shared(x)) + self.other(x).tanh()
        return F.silu(self.norm(self.shared(x)) * self.shared(x))


class Repeated(nn.Module):
    """Two segments that call one layer several times, and calls of it outside of both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.first = Segment(self.shared)
        self.second = nn.Sequential(Segment(self.shared), Segment(self.shared))
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        for segment in (self.first, self.second):
            x = self.shared(x)
            x = checkpoint(segment, x, use_reentrant=False) if self.checkpointed else segment(x)
        return x.square().mean()


def gradients(model: nn.Module, loss: Tensor, passes: int = 1) -> list[Tensor]:
    return [
        grad
        for number in range(passes)
        for grad in torch.autograd.grad(loss, list(model.parameters()), retain_graph=number < passes - 1)
    ]


def check(model: Repeated, handle: Any, x: Tensor, random: bool = True) -> None:
    """The same gradients with checkpoints and without, step by step, each step with samples of its own."""
    seen: list[list[Tensor]] = []
    for step in range(3):
        found = []
        for model.checkpointed in (False, True):
            handle.set_step(step)
            found.append(gradients(model, model(x), passes=2))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
        assert not random or not any(torch.equal(found[0][0], before[0]) for before in seen)
        seen.append(found[0])


@pytest.mark.parametrize("estimator", DRAWN_OF_EACH_KIND, ids=str)
def test_several_calls_in_a_segment(estimator: Estimator) -> None:
    model, x = Repeated(), torch.randn(6, 4, 12, 12, requires_grad=True)
    with randbp.randomize(model, estimator) as handle:
        check(model, handle, x)
    with randbp.randomize(model, estimator) as handle:
        again = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # what is noted stays behind
        again.checkpointed = True
        again(x).backward()


@pytest.mark.parametrize("lean", [True, "exact"])
@pytest.mark.parametrize("estimator", [Exact(), *DRAWN_OF_EACH_KIND[:2]], ids=str)
def test_rounding_of_lean_mode(estimator: Estimator, lean: Any) -> None:
    model, x = Repeated(), torch.randn(16, 4, 16, 16, requires_grad=True)
    layers = "shared" if estimator.exact else None
    with randbp.randomize(model, estimator, layers=layers, lean=lean, bits=2) as handle:
        check(model, handle, x, random=not estimator.exact or lean is True)


@pytest.mark.parametrize("generators", [False, True])
@pytest.mark.parametrize("estimator", DRAWN_OF_EACH_KIND, ids=str)
def test_functions(estimator: Estimator, generators: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    last = torch.randn(5, 3, requires_grad=True)

    def run(use: bool) -> list[Tensor]:
        randbp.manual_seed(1)
        one = {"generator": torch.Generator().manual_seed(2) if generators else None}
        two = {"generator": torch.Generator().manual_seed(3) if generators else None}

        def segment(x: Tensor) -> Tensor:
            y = conv(x, first, padding=1, weight_vjp=estimator, **one).tanh()
            y = conv_transpose(y, second, padding=1, weight_vjp=estimator, **two).tanh()
            z = linear(y.movedim(1, -1).flatten(1, 2), last, weight_vjp=estimator, **one).mean()
            return y * z

        y = torch.linspace(-1, 1, 6 * 3 * 100).view(6, 3, 10, 10).requires_grad_()
        for _ in range(3):
            y = checkpoint(segment, y, use_reentrant=False) if use else segment(y)
        return list(torch.autograd.grad(y.square().sum(), (first, second, last)))

    for plain, again in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(plain, again)


def test_hooks_that_stay_need_no_memory_of_their_own() -> None:
    """Hooks around a whole training are no checkpoint, and calls without hooks are not noted at all."""
    model, x = nn.Conv2d(1, 1, 3), torch.randn(2, 1, 5, 5)
    randbp.randomize(model, Spatial(0.5))
    noted = model._randbp.stream._recomputation._segments  # type: ignore[union-attr]
    model(x).sum().backward()
    assert not noted
    keep = lambda tensor: tensor  # noqa: E731
    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(keep, keep):
            for _ in range(3):
                model(x).sum().backward()
    assert [len(segment) for segment in noted] == [9]
    with torch.autograd.graph.saved_tensors_hooks(Tensor.double, Tensor.float):  # these take no weak reference
        model(x).sum().backward()


def test_sequences_of_segments() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model, x = nn.Sequential(*(layer, nn.Tanh(), layer) * 3), torch.randn(4, 3, 8, 8)
    with randbp.randomize(model, Spatial(0.25)) as handle:
        for segments in (1, 2, 3, 4):
            found = []
            for parts in (0, segments):
                handle.set_step(1)
                y = checkpoint_sequential(list(model), parts, x, use_reentrant=False) if parts else model(x)
                found.append(gradients(model, y.square().sum()))
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other)
