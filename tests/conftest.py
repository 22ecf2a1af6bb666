"""One deterministic hypothesis profile: the suite gives the same verdict on every run."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "randbp", deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck), database=None
)
settings.load_profile("randbp")


def pytest_collection_modifyitems() -> None:
    """One thread where tests run. A process that only hands them to others comes by without PyTorch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings of each way to compute a layer, for tests in which it is of no concern which is the fastest."""
    from randbp.estimators import race

    monkeypatch.setattr(race, "READINGS", (2, 2))
