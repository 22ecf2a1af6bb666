"""One deterministic hypothesis profile: the suite gives the same verdict on every run."""

import atexit
import gc

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


def pytest_collectstart() -> None:
    """No garbage collection while modules are imported and tests are listed: nearly all of that stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage among what tests make alone: a million objects of modules and listed tests stay to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # extensions count what is left when Python ends


@pytest.fixture
def quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings of each way to compute a layer, for tests in which it is of no concern which is the fastest."""
    from randbp.estimators import race

    monkeypatch.setattr(race, "READINGS", (2, 2))
