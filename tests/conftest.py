"""One deterministic hypothesis profile: the suite gives the same verdict on every run."""

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "randbp", deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck), database=None
)
settings.load_profile("randbp")
torch.set_num_threads(1)
