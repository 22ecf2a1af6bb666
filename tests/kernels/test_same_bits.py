"""All versions of a fused operation give the same bits.

With ``TRITON_INTERPRET=1`` in the environment and Triton installed, its versions are compared, too (``make triton``).
"""

import os

import pytest

import randbp  # noqa: F401
from randbp.kernels import use
from randbp.kernels.operator import OPERATORS, Backend, is_installed
from tests.kernels.cases import TABLE, Case, cases
from tests.kernels.same import assert_same, results


def compared(backend: Backend, most: int | None = None) -> list[tuple[Backend, Case]]:
    """Cases of the operations that a backend has a version of."""
    with use(backend):
        return [(backend, case) for case in cases(most) if OPERATORS[case.operator].backend("cpu") == backend]


COMPARED = compared("numba")
if is_installed("triton") and os.environ.get("TRITON_INTERPRET") == "1":
    COMPARED += compared("triton", most=16)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # the interpreter calculates with numpy
@pytest.mark.parametrize(("backend", "case"), COMPARED, ids=str)
def test_the_same_bits_as_the_reference(backend: Backend, case: Case) -> None:
    assert_same(case, results(case, backend), results(case, "reference"))


def test_every_operation_is_in_the_table() -> None:
    assert set(TABLE) == set(OPERATORS)


@pytest.mark.parametrize("operator", TABLE)
def test_every_choice_is_taken(operator: str) -> None:
    drawn = list(TABLE[operator].settings())
    for name, values in TABLE[operator].choices.items():
        assert {str(setting[name]) for setting in drawn} == {str(value) for value in values}
