"""Lean mode is in force while modules of the model run, and at no other time."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from randbp.lean import make_lean
from randbp.randomize.layers import Clock

from .same import Call, Listens


def gradient_of(y: Tensor) -> str:
    return type(y.grad_fn).__name__


PLAIN, LEAN = "GeluBackward0", "_HeldSlopesBackward"


class Inner(nn.Module):
    """Fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(x * 1)
        if self.failure is not None:
            raise self.failure
        return y


class Model(nn.Module):
    """Goes on with its own operations if a part fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.catches, self.seen = Inner(), False, ""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        try:
            return self.inner(x)
        except BaseException:
            if not self.catches:
                raise
        y = F.gelu(x)
        self.seen = gradient_of(y)
        return y


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    handle = make_lean(model, True, 4, Clock(0).state)
    yield model
    handle.remove()
    assert _get_current_function_mode_stack() == []


def data(requires_grad: bool = True) -> Tensor:
    return torch.randn(4, 8, requires_grad=requires_grad)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_plain_code_is_pytorchs_at_once_after_any_failure(model: Model, failure: type[BaseException]) -> None:
    z = data()
    model.inner.failure = failure
    with pytest.raises(failure):
        model(z)
    assert gradient_of(F.gelu(z)) == PLAIN
    model.inner.failure = None
    for _ in range(2):
        assert gradient_of(model(z)) == LEAN
        assert gradient_of(F.gelu(z)) == PLAIN
        assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_that_survives_an_interrupt_of_a_part_stays_lean(model: Model, frozen: bool) -> None:
    model.inner.train(not frozen)
    model.inner.failure, model.catches = KeyboardInterrupt, True
    model(data())
    assert model.seen == LEAN
    assert _get_current_function_mode_stack() == []


def test_interrupts_leave_other_modes_alone(model: Model) -> None:
    model.inner.failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model(data())
    model.inner.failure = None
    with Listens() as listens:  # above what the interrupted pass left
        assert gradient_of(model(data())) == LEAN
        assert _get_current_function_mode_stack() == [listens]
        assert gradient_of(F.gelu(data())) == PLAIN and F.gelu in listens.seen
    assert _get_current_function_mode_stack() == []


def test_a_mode_that_the_model_enters_itself_stays_above(model: Model) -> None:
    def forward(x: Tensor) -> bool:
        with Listens() as listens:
            model.inner(x * 1)
            return _get_current_function_mode_stack()[-1] is listens

    model.inner.eval()
    model.forward = forward  # type: ignore[assignment, method-assign]
    assert model(data())


def test_interrupted_activations_are_let_go(model: Model) -> None:
    model.inner.failure = KeyboardInterrupt
    x = data() * 1
    known = weakref.ref(x)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    del x
    F.gelu(data())
    gc.collect()
    assert known() is None


def test_an_interrupt_in_one_thread_is_none_in_another(model: Model) -> None:
    started, stopped, seen = threading.Event(), threading.Event(), []

    def inside(x: Tensor) -> Tensor:
        started.set()
        stopped.wait(20)
        return F.gelu(x)

    model.add_module("slow", Call(inside))
    other = make_lean(model.slow, True, 4, Clock(0).state)
    thread = threading.Thread(target=lambda: seen.append(gradient_of(model.slow(data()))))
    thread.start()
    started.wait(20)
    model.inner.failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model(data())
    assert gradient_of(F.gelu(data())) == PLAIN
    stopped.set()
    thread.join()
    other.remove()
    assert seen == [LEAN]


def test_generators_run_where_they_are_resumed(model: Model) -> None:
    def steps(x: Tensor) -> Iterator[str]:
        while True:
            yield gradient_of(F.gelu(x * 1))

    running = steps(data())
    whole = Call(lambda x: (next(running), x)[0])
    handle = make_lean(whole, True, 4, Clock(0).state)
    assert [next(running), whole(data()), next(running), whole(data())] == [PLAIN, LEAN, PLAIN, LEAN]
    handle.remove()


@pytest.mark.parametrize("again", [lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)])
def test_an_interrupted_pass_may_be_run_again(model: Model, again: Callable[..., Tensor]) -> None:
    x = data()
    model.inner.failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        again(model, x)
    model.inner.failure = None
    again(model, x).sum().backward()
    assert x.grad is not None
    assert gradient_of(F.gelu(x)) == PLAIN and _get_current_function_mode_stack() == []
