"""All functions with a lean rule, as the catalogue calls them: PyTorch's values, its gradients, and what is held."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from randbp.diagnostics import memory_report
from randbp.lean.lean_call import is_in_place
from randbp.lean.rules import RULES
from tests.lean_catalogue import BY_NAME, Row, base_name

from .same import FORMS, assert_same, lean, values_and_grads
from .test_rounded import is_unbiased

FUNCTIONS: dict[str, list[Callable[..., Any]]] = {}
for each in RULES:
    FUNCTIONS.setdefault(base_name(each), []).append(each)
SAMPLED = {base_name(function) for function, rule in RULES.items() if rule.sample}
ROUNDED = [name for name in FUNCTIONS if RULES[FUNCTIONS[name][0]].level == "rounded"]
FEW = {"copysign", "hardshrink", "softshrink"}
"""Two levels, or three, are all there is: nothing is lost."""
PACKED = {"cdist", "std_mean", "var", "var_mean"}
"""PyTorch differentiates them, of an input that is rounded."""


def test_every_rule_is_in_the_catalogue() -> None:
    assert sorted(BY_NAME) == sorted(FUNCTIONS)


def called(row: Row, function: Callable[..., Any]) -> Callable[..., Any]:
    """The catalogue's call, with the floating results."""

    def call(*inputs: Tensor) -> Any:
        result = row.call(function, *inputs)
        return tuple(y for y in result if y.is_floating_point()) if isinstance(result, tuple) else result

    return call


def compare(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], inputs: list[Tensor], near: float) -> None:
    """Values bit for bit; gradients, too, or near."""
    try:
        expected = values_and_grads(theirs, *inputs)
    except (NotImplementedError, RuntimeError) as error:  # derivatives in place, or types, that PyTorch does not have
        with pytest.raises(type(error)):
            values_and_grads(ours, *inputs)
        return
    found = values_and_grads(ours, *inputs)
    outputs = len(expected) - sum(x.requires_grad for x in inputs)
    assert_same(found[:outputs], expected[:outputs])
    if not near:
        return assert_same(found, expected)
    for mine, other in zip(found[outputs:], expected[outputs:], strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= near * other.norm(), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name: str) -> None:
    row = BY_NAME[name]
    for function in FUNCTIONS[name]:
        call = called(row, function)
        compare(name, lean(call), call, row.tensors(), 0)
        compare(name, lean(call, True, 8), call, row.tensors(), 0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_of_other_forms(name: str, form: str) -> None:
    call = called(BY_NAME[name], FUNCTIONS[name][0])
    inputs = [FORMS[form](x.detach()).requires_grad_() for x in BY_NAME[name].tensors()]
    compare(name, lean(call), call, inputs, 0)
    compare(name, lean(call, True, 8), call, inputs, 0.05)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_and_checkpoints(name: str) -> None:
    function = min(FUNCTIONS[name], key=is_in_place)
    call, inputs = called(BY_NAME[name], function), BY_NAME[name].tensors()

    def cast(*x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(*x)

    compare(name, lean(cast), cast, inputs, 0)
    compare(name, lean(cast, True, 8), cast, inputs, 0.05)
    if is_in_place(function) or name == "setitem":  # a checkpoint would find its input overwritten
        return
    plain, again = lean(call, True, 4), lean(call, True, 4)
    held = values_and_grads(plain, *inputs)
    assert_same(values_and_grads(lambda *x: checkpoint(again, *x, use_reentrant=False), *inputs), held)


@pytest.mark.parametrize("name", [name for name in ROUNDED if name in SAMPLED - FEW])
def test_gradients_are_unbiased(name: str) -> None:
    row = BY_NAME[name]
    is_unbiased(called(row, FUNCTIONS[name][0]), tuple(row.tensors()), bits=2, draws=100)


@pytest.mark.parametrize("name", sorted(FEW))
def test_gradients_of_few_slopes_are_exact(name: str) -> None:
    row, function = BY_NAME[name], FUNCTIONS[name][0]
    compare(name, lean(called(row, function), True, 2), called(row, function), row.tensors(), 1e-6)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if RULES[FUNCTIONS[name][0]].level == "exact"])
def test_second_derivatives_of_exact_rules(name: str) -> None:
    call, inputs = called(BY_NAME[name], FUNCTIONS[name][0]), [x.detach() for x in BY_NAME[name].tensors()]

    def second(function: Callable[..., Any]) -> tuple[Tensor | None, ...] | type[Exception]:
        leaves = [x.double().requires_grad_() for x in inputs]
        torch.default_generator.manual_seed(0)
        try:
            found = function(*(x * x.abs() for x in leaves))
            total = sum(y.square().sum() for y in (found if isinstance(found, tuple) else (found,)))
            firsts = torch.autograd.grad(total, leaves, create_graph=True)  # type: ignore[arg-type]
            return torch.autograd.grad(sum(x.square().sum() for x in firsts), leaves, allow_unused=True)  # type: ignore[arg-type]
        except (RuntimeError, NotImplementedError) as error:  # some second derivatives PyTorch does not have
            return type(error)

    ours, theirs = second(lean(call)), second(call)
    if isinstance(theirs, type):
        return
    assert not isinstance(ours, type)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is other or (mine is not None and other is not None and torch.equal(mine, other))


@pytest.mark.parametrize("name", [name for name in ROUNDED if name not in PACKED])
def test_second_derivatives_are_refused(name: str) -> None:
    row, inputs = BY_NAME[name], BY_NAME[name].tensors()
    found = lean(lambda *x: called(row, FUNCTIONS[name][0])(*(each * 1 for each in x)), True)(*inputs)
    total = sum(y.sum() for y in (found if isinstance(found, tuple) else (found,)))
    grads = torch.autograd.grad(total, inputs, create_graph=True)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="double backward"):
        sum(grad.sum() for grad in grads).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_held(name: str) -> None:
    row, functions = BY_NAME[name], FUNCTIONS[name]
    function = min(functions, key=is_in_place)
    inputs = row.tensors()

    def held(level: Any) -> float:
        report = memory_report(lean(lambda *x: row.call(function, *(y * 1 for y in x)), level, 4), *inputs)
        return 8 * report.held_bytes / row.entries

    exact, rounded = row.bits
    assert (held("exact"), held(True)) == pytest.approx((held(False) if exact is None else exact, rounded), abs=0.006)
