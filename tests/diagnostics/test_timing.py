import statistics
from time import perf_counter, sleep

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.diagnostics import StepTimer, quartiles


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_quartiles_agree_with_the_statistics_module(values: list[float]) -> None:
    expected = statistics.quantiles(values, n=4, method="inclusive")
    assert quartiles(values) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)


def test_quartiles_of_one_and_of_nothing() -> None:
    assert quartiles([2.5]) == (2.5, 2.5, 2.5)
    with pytest.raises(ValueError, match="at least one number"):
        quartiles([])


def test_timer_agrees_with_the_clock_around_it() -> None:
    timer = StepTimer("cpu")
    outer = []
    for _ in range(3):
        begin = perf_counter()
        timer.start()
        sleep(0.002)
        timer.stop()
        outer.append(perf_counter() - begin)
    assert len(timer.seconds()) == 3
    for inside, outside in zip(timer.seconds(), outer, strict=True):
        assert 0.002 <= inside <= outside


def test_stop_without_start_and_start_without_stop_count_nothing() -> None:
    timer = StepTimer("cpu")
    timer.stop()
    timer.start()
    assert timer.seconds() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_timer_sees_the_device_work_without_waiting_for_it() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    (x @ x).sum().item()
    timer = StepTimer("cuda")
    begin = perf_counter()
    for _ in range(10):
        timer.start()
        for _ in range(10):
            x @ x
        timer.stop()
    queued = perf_counter() - begin
    total = sum(timer.seconds())
    finished = perf_counter() - begin
    assert len(timer.seconds()) == 10
    assert queued < 0.5 * finished
    assert 0.5 * finished < total <= finished
