"""Whatever is measured, the model is left as it was found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import randbp
from randbp.diagnostics import gradient_error, memory_report
from tests.diagnostics.test_gradient_error import batch, network

MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "gradient error": lambda model, data, **options: gradient_error(model, data, draws=4, **options),
    "memory": lambda model, data, loss=None: memory_report(model, data[0], loss=loss),
    "tuning": lambda model, data, **options: randbp.autotune(model, data, 0.25, rounds=1, draws=2, **options),
}


def snapshot(model: nn.Module) -> list[Any]:
    parts: list[Any] = [p.detach().clone() for p in model.parameters()]
    parts += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    parts += [b.clone() for b in model.buffers()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    ids = [id(b) for b in model.buffers()]
    return [*parts, [(m.training, type(m)) for m in model.modules()], hooks, ids, torch.get_rng_state()]


def same(left: list[Any], right: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("mode", ["train", "eval", "frozen norm"])
@pytest.mark.parametrize("what", MEASUREMENTS)
def test_the_model_is_left_as_it_was_even_after_a_failure(what: str, mode: str) -> None:
    model, data = network(nn.BatchNorm2d(6), nn.Dropout(0.5)), batch()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    model[0].bias.grad = None
    if mode == "eval":
        model.eval()
    elif mode == "frozen norm":
        model[2].eval()
    before = snapshot(model)
    MEASUREMENTS[what](model, data)
    assert same(before, snapshot(model))

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        MEASUREMENTS[what](model, data, loss=fails)
    assert same(before, snapshot(model))
