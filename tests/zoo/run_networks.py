"""One training step of other libraries' networks: the loss, the gradients and the bytes. Run by ``make zoo``."""

import pytest

from .measure import measure
from .networks import CASES, Case


@pytest.mark.usefixtures("quick_races")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.library} {case.name}")
def test_network(case: Case) -> None:
    row = measure(case, draws=8)
    assert not row["faults"]
    assert row["p"] > 1e-3, row["worst"]
    assert row["memory"] < 0.3
