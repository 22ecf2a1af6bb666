"""What is said to fit is what then fits, by whole training steps; and the model is left as it was."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp.diagnostics import StepPeak
from randbp.estimators import chunks
from randbp.lean import split_batch
from randbp.tune import advisor, model_advice
from randbp.tune.growth import Examples, Sides
from randbp.tune.step_bytes import StepBytes

MIB = 2**20


def network(dims: int = 2) -> nn.Sequential:
    """Wide layers first, then narrow ones with many parameters: small steps peak elsewhere than large ones."""
    torch.manual_seed(0)
    conv, norm, pool = ((nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d), (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d))[dims - 2]
    head = (nn.AdaptiveAvgPool2d(4) if dims == 2 else nn.AdaptiveAvgPool3d(2), nn.Flatten())
    blocks = [conv(3, 16, 3, padding=1), norm(16), nn.ReLU(), conv(16, 16, 3, padding=1), nn.SiLU(), pool(2)]
    return nn.Sequential(*blocks, *head, nn.Linear(16 * (16 if dims == 2 else 8), 256), nn.ReLU(), nn.Linear(256, 5))


def images(count: int, *sides: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, *sides), torch.arange(count) % 5


def taken(model: nn.Module, batch: tuple[Tensor, Tensor], preset: str, make: Callable[..., Any]) -> int:
    """Bytes that two steps take at most in the order of Lightning, whose gradients outlive the next forward pass."""
    optimizer = make(model.parameters())
    model.zero_grad()

    def step() -> None:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with nullcontext() if preset == "plain" else randbp.randomize(model, preset=preset):  # type: ignore[arg-type]
        F.cross_entropy(model(batch[0]), batch[1])  # fills tables, times layers
        with StepPeak("cpu") as peak:
            step()
            step()
    model.zero_grad()
    there = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), *batch))
    return peak.bytes + there


@pytest.mark.parametrize(("dims", "grow", "tried"), [(2, "batch", True), (3, "image", True), (2, "batch", False)])
def test_what_is_said_to_fit_fits_and_a_tenth_more_does_not(
    dims: int, grow: Any, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_batch, "WORTHWHILE", 2**20)  # small steps are below, those with the largest sizes above
    monkeypatch.setattr(chunks, "LITTLE", 2**16)
    monkeypatch.setattr(model_advice, "advice_on", partial(model_advice.advice_on, longest=inf))
    monkeypatch.setattr(advisor, "FARTHEST", 4 if tried else 0.25)
    model, memory, make = network(dims), 6 * MIB, torch.optim.Adam
    batch = images(2, *(15,) * dims)
    advice = randbp.advise(model, batch, memory, grow=grow, optimizer=make, draws=0, rounds=0)
    sizes = Examples(2) if grow == "batch" else Sides.of_batch(batch)
    for row in advice.rows[: 4 if grow == "batch" else 3]:
        near = int(row.largest / 1.1)
        assert (row.measured_at > near) == tried or sizes.step > near
        more = int(1.1 * row.largest) + sizes.step
        assert taken(model, sizes.of(batch, int(row.largest / 1.1)), row.setting, make) <= memory, row
        assert taken(model, sizes.of(batch, more), row.setting, make) > memory, row
    assert max(advice.largest["plain"], advice.largest["exact"]) < advice.largest["memory"]


def state(model: nn.Module) -> list[Any]:
    grads = [parameter.grad for parameter in model.parameters()]
    return [model.state_dict(), grads, [module.training for module in model.modules()], torch.get_rng_state()]


class Translator(nn.Module):
    """Takes keywords and returns its loss, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(20, 16), nn.BatchNorm1d(6), nn.Linear(16, 20)
        self.drop = nn.Dropout(0.5).eval()  # a frozen part

    def forward(self, input_ids: Tensor, labels: Tensor, scale: float) -> dict[str, Tensor]:
        logits = self.head(self.drop(self.norm(self.embed(input_ids)).tanh())) * scale
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_a_model_of_keywords_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model, tokens = Translator(), torch.arange(24).view(4, 6) % 20
    batch = {"input_ids": tokens, "labels": tokens, "scale": 0.5}
    model(**batch)["loss"].backward()
    before = deepcopy(state(model))
    of_loss = lambda output: output["loss"]  # noqa: E731
    advice = randbp.advise(model, batch, "1MB", loss=of_loss, optimizer=torch.optim.SGD, rounds=1)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    weights = sum(p.numel() for p in model.parameters())
    buffers = 4 * (6 + 6) + 8
    assert advice.fixed == {
        "parameters": 4 * weights,
        "buffers": buffers,
        "gradients": 4 * weights,
        "optimiser state": 0,
    }
    assert advice.memory == 1_000_000 and advice.minibatch_noise > 0
    plain, exact, memory, _ = advice.rows
    assert plain.time_ratio == 1 and exact.time_ratio > 0 and plain.noise == exact.noise == 0 < memory.noise < 1


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**4)), min_size=1, max_size=5), st.integers(0, 10**8))
def test_the_largest_size_is_that_of_the_highest_of_all_lines(lines: list[tuple[int, int]], room: int) -> None:
    def peaks(amount: float) -> tuple[int, ...]:
        return tuple(int(start + slope * amount) for start, slope in lines)

    largest = StepBytes({amount: peaks(amount) for amount in (3.0, 7.0)}).largest(room, float)
    assert max(peaks(largest)) <= room or largest == 0
    assert max(peaks(largest + 1)) > room


def test_the_state_of_an_optimizer_counts_and_what_does_not_fit_is_said() -> None:
    model, batch = network(), images(4, 16, 16)
    weights = 4 * sum(p.numel() for p in model.parameters())
    made = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    advice = randbp.advise(model, batch, 3 * weights, optimizer=made, draws=0, rounds=0)
    assert advice.fixed["optimiser state"] == weights and not made.state
    assert set(advice.largest.values()) == {0} and "does not fit" in str(advice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "24 gigs"}, "memory='24 gigs': expected a positive number of bytes, or text such as"),
        ({"batch": images(4, 16, 16)[1:], "grow": "image"}, "grow='image': the batch has no images"),
        ({"optimizer": dict}, "optimizer=<class 'dict'>: expected a torch.optim.Optimizer, or what makes one"),
        ({"draws": 2}, "draws=2: expected 0 or an integer >= 4"),
        ({"grow": "depth"}, "grow='depth': expected 'batch' or 'image'"),
    ],
)
def test_errors_are_one_line(options: dict[str, Any], message: str) -> None:
    given = {"batch": images(4, 16, 16), "memory": "1GiB"} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        randbp.advise(network(), **given)
