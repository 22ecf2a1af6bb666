"""What is said of a comparison follows from its numbers: when a preset wins, ties and loses."""

from math import nan
from typing import Any

import pytest

from experiments.demo.finding import advice, finding, other_findings
from experiments.demo.methods import Methods
from experiments.demo.standing import median_interval, timing_noise
from tests.experiments.comparisons import content, memory, method, standings_of

START = 'With preset="memory" training holds 1/8 of the memory that exact backpropagation holds for its backward pass'


def said(**changes: Any) -> str:
    return finding(standings_of(memory(**changes)))


def advised(*methods: dict[str, Any]) -> list[str]:
    return advice(standings_of(*methods), minibatch_noise=0.94)


def test_a_preset_that_wins() -> None:
    told = f"{START} (30 % of its peak), takes 1.05× the time, and reaches the same accuracy within the seeds' spread"
    assert said() == f"{told} (97.2 % against 97.2 %)."
    assert advised(memory()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"held": 0.99}, "training holds as much as exact backpropagation, "),
        ({"held": 1.3}, "training holds 1.3 times the memory that exact backpropagation holds"),
        ({"held": 0.42}, "training holds 42 % of the memory"),
        ({"peak": 0.5}, "(half of its peak)"),
        ({"time": 1.0}, ", takes the same time, and"),
        ({"time": 1.015}, ", takes the same time, and"),  # too little to matter
        ({"time": 1.2, "noise": 0.3}, ", takes the same time, and"),  # too noisy to tell: rounds at 0.84 and 1.56
        ({"time": 0.8}, ", takes 0.80× the time, and"),
        ({"time": 1.9}, ", but takes 1.90× the time, and"),
        ({"held": 1.0, "time": 1.06}, ", but takes 1.06× the time, and"),  # nothing is had for it
        ({"accuracy": (0.960, 0.962, 0.964)}, "but loses 1.0 points of accuracy, further than seeds differ"),
        ({"accuracy": (0.980, 0.982, 0.985)}, "and reaches 1.0 points more accuracy, further than seeds differ"),
        ({"accuracy": (0.970, 0.972, 0.964)}, "and reaches 0.3 points less accuracy, which three seeds cannot tell"),
        ({"accuracy": (0.985, 0.972, 0.974)}, "and reaches 0.5 points more accuracy, which three seeds cannot tell"),
        ({"accuracy": (0.970, 0.972, 0.974)}, "and reaches the same accuracy."),
        ({"accuracy": (0.970, 0.972, 0.974), "error": 0.0}, "same accuracy, for its gradients are the same, bit for"),
        ({"accuracy": (0.970, nan, 0.974)}, "but the training did not come to a finite result"),
    ],
)
def test_words_change_with_the_numbers(changes: dict[str, Any], told: str) -> None:
    assert told in said(**changes)


def test_the_first_sentence_is_of_the_preset_that_holds_least_and_the_others_follow() -> None:
    time = method('preset="time"', "preset", time=0.8)
    rival = method("checkpointing", "rival", held=0.05, peak=0.7, time=1.4)
    stand = standings_of(time, memory(), rival)
    assert finding(stand).startswith(START)
    others = other_findings(stand)
    assert others[0].startswith('With preset="time" training holds as much as exact, takes 0.80× the time, and reaches')
    assert others[1].startswith(
        "With checkpointing training holds 1/20 of the memory (70 % of the peak), but takes 1.40×"
    )
    assert len(others) == 2


def test_of_what_was_only_timed_the_gradient_is_told() -> None:
    timed = {"accuracy": (None,), "rounds": 12}
    same = method('preset="exact"', "preset", held=0.05, time=1.04, **timed)
    other = method("8 micro-batches", "rival", held=0.125, time=1.1, error=0.91, **timed)
    stand = standings_of(same, memory(), other)
    assert finding(stand).startswith(START)  # of the presets that were trained
    first, second = other_findings(stand)
    assert first.endswith("takes 1.04× the time, and its gradients are the same, bit for bit.")
    assert second.endswith("takes 1.10× the time, and its gradient strays by 0.91 of the exact one's norm.")
    assert stand[1].time.estimate == pytest.approx(1.04) and len(stand[1].ratios) == 12
    assert advised(same, memory(), other) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (memory(time=1.9), "takes 1.90× the time: holding less costs"),
        (memory(time=1.9, reference=True), "pip install 'randbp[cpu]'"),
        (memory(held=1.0, time=1.3), "saves no memory here: leave it off"),
        (memory(held=1.0, time=1.0), "saves neither time nor memory here"),
        (memory(accuracy=(0.960, 0.962, 0.964)), "its gradient error is 0.08, the minibatch's own noise 0.94"),
        (memory(accuracy=(0.970, 0.972, 0.964)), "has 0.3 points less accuracy, which may be chance"),
    ],
)
def test_what_does_not_pay_is_named_with_what_to_change(given: dict[str, Any], told: str) -> None:
    [line] = advised(given)
    assert line.startswith('preset="memory"') and told in line


@pytest.mark.parametrize(("peak", "time", "wins"), [(0.3, 1.0, True), (0.4, 1.0, False), (0.2, 1.3, False)])
def test_a_rival_that_needs_less_of_both_is_recommended(peak: float, time: float, wins: bool) -> None:
    lines = advised(memory(), method("8 micro-batches", "rival", held=0.05, peak=peak, time=time))
    assert [line.startswith("With 8 micro-batches training peaks no higher") for line in lines] == [True] * wins


def test_times_are_compared_round_by_round() -> None:
    """The machine's drift, which all methods of a round meet, does not show in ratios."""
    [exact, other] = standings_of(memory(time=1.05))
    assert exact.time.estimate == 1.0
    assert other.time.low == pytest.approx(1.05) and other.time.high == pytest.approx(1.05)
    assert 0.02 < timing_noise(Methods.model_validate(content(memory()))) < 0.1


def test_the_medians_interval_covers_it_as_often_as_stated() -> None:
    """2,000 samples of 60: a coverage of 0.95 fails here with a probability below 1e-6 (five standard errors)."""
    import torch

    samples = torch.randn(2000, 60, generator=torch.Generator().manual_seed(0)).tolist()
    intervals = [median_interval(sample) for sample in samples]
    covered = sum(interval.low <= 0 <= interval.high for interval in intervals) / len(intervals)
    assert 0.95 - 5 * (0.95 * 0.05 / 2000) ** 0.5 < covered < 0.99
