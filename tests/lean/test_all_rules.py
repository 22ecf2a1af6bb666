"""All functions with a lean rule, as the catalogue calls them: PyTorch's values, its gradients, and what is held."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from randbp.diagnostics import memory_report
from randbp.lean.rules import RULES
from tests.lean_catalogue import BY_NAME, ROWS, Row, base_name

from .same import assert_same, lean, values_and_grads

FUNCTIONS: dict[str, list[Callable[..., Any]]] = {}
for each in RULES:
    FUNCTIONS.setdefault(base_name(each), []).append(each)


def test_every_rule_is_in_the_catalogue_once() -> None:
    named = [name for row in ROWS for name in row.names.split()]
    assert sorted(named) == sorted(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name: str) -> None:
    row = BY_NAME[name]
    for function in FUNCTIONS[name]:
        check(row, function)


def check(row: Row, function: Callable[..., Any]) -> None:
    """Bit for bit where nothing is rounded; otherwise gradients are near at 8 bits."""

    def call(*inputs: torch.Tensor) -> Any:
        result = row.call(function, *inputs)
        return tuple(y for y in result if y.is_floating_point()) if isinstance(result, tuple) else result

    inputs = row.tensors()
    try:
        theirs = values_and_grads(call, *inputs)
    except (NotImplementedError, RuntimeError) as error:  # some derivatives in place PyTorch does not have
        assert function.__name__.endswith("_")
        with pytest.raises(type(error)):
            values_and_grads(lean(call, True), *inputs)
        return
    assert_same(values_and_grads(lean(call), *inputs), theirs)
    ours = values_and_grads(lean(call, True, 8), *inputs)
    outputs = len(theirs) - len(inputs)
    assert_same(ours[:outputs], theirs[:outputs])
    for mine, other in zip(ours[outputs:], theirs[outputs:], strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= 0.05 * other.norm()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_held(name: str) -> None:
    row, function = BY_NAME[name], FUNCTIONS[name][0]
    inputs = row.tensors()

    def held(level: Any) -> float:
        report = memory_report(lean(lambda *x: row.call(function, *(y * 1 for y in x)), level, 4), *inputs)
        return 8 * report.held_bytes / row.entries

    assert (held("exact"), held(True)) == pytest.approx(row.bits, abs=0.006)
