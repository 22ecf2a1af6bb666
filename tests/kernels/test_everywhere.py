"""Fused operations give the same in threads and processes of all kinds, and to PyTorch's compiler."""

import io
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from randbp.kernels.operator import OPERATORS
from tests.kernels.cases import TABLE, Case, cases
from tests.kernels.same import assert_same, results

CASES = [case for case in cases(most=12) if all(x.numel() for x in case.arguments() if isinstance(x, Tensor))]
ONE_EACH = [next(case for case in CASES if case.operator == operator) for operator in TABLE]


def expected() -> list[tuple[Tensor, ...]]:
    return [results(case, "reference") for case in CASES]


def assert_all_same(ours: list[tuple[Tensor, ...]]) -> None:
    for case, mine, theirs in zip(CASES, ours, expected(), strict=True):
        assert_same(case, mine, theirs)


def run_all(_: Any = None) -> list[tuple[Tensor, ...]]:
    torch.set_num_threads(1)
    return [results(case, "auto") for case in CASES]


def saved(_: Any = None) -> bytes:
    """Results that a process can hand over without sharing memory."""
    buffer = io.BytesIO()
    torch.save(run_all(), buffer)
    return buffer.getvalue()


def test_any_number_of_threads_gives_the_same() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_all_same([results(case, "numba") for case in CASES])
    finally:
        torch.set_num_threads(before)


def test_threads_that_run_at_once_give_the_same() -> None:
    with ThreadPoolExecutor(4) as threads:
        for ours in threads.map(run_all, range(8)):
            assert_all_same(ours)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_process_gives_the_same(start: str) -> None:
    run_all()  # numba's threads have started in this process
    with multiprocessing.get_context(start).Pool(1) as processes:
        there = processes.map_async(saved, [0]).get(timeout=300)[0]
    assert_all_same(torch.load(io.BytesIO(there)))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_tensors_without_data_have_the_shapes_of_the_result(case: Case) -> None:
    with FakeTensorMode() as mode:
        fake = OPERATORS[case.operator](
            *(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in case.arguments())
        )
    fakes = fake if isinstance(fake, tuple | list) else (fake,)
    for ours, theirs in zip(fakes, results(case, "reference"), strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_compiled_graphs_hold_the_operation_whole(case: Case) -> None:
    torch._dynamo.reset()
    arguments = case.arguments()
    compiled = torch.compile(lambda *tensors: _call(case, arguments, tensors), fullgraph=True, backend="aot_eager")
    result = compiled(*(x for x in arguments if isinstance(x, Tensor)))
    assert_same(case, result if isinstance(result, tuple) else (result,), results(case, "reference"))


def _call(case: Case, arguments: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> Any:
    rest = iter(tensors)
    return OPERATORS[case.operator](*(next(rest) if isinstance(x, Tensor) else x for x in arguments))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_pytorch_finds_the_operator_well_registered(case: Case) -> None:
    operator = getattr(torch.ops.randbp, case.operator).default
    torch.library.opcheck(operator, case.arguments(), test_utils=("test_schema", "test_faketensor"))
