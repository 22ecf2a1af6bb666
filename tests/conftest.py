"""One deterministic hypothesis profile: the suite gives the same verdict on every run."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "randbp", deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck), database=None
)
settings.load_profile("randbp")


def pytest_collection_modifyitems() -> None:
    """One thread where tests run. A process that only hands them to others comes by without PyTorch."""
    import torch

    torch.set_num_threads(1)
