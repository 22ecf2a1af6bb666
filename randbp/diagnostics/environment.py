"""The software and hardware under a measurement."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that measurements depend on.

    Args:
        device: Where the work runs.

    Returns:
        Plain data, ready for JSON; ``None`` for a package that is not installed.

    Example:
        >>> describe_environment(torch.device("cpu"))["device"]
        'cpu'
    """
    import randbp  # here, because randbp itself must not wait for this module

    lightning = None
    with suppress(PackageNotFoundError):
        lightning = version("lightning")
    cuda = device.type == "cuda"
    return {
        "randbp": randbp.__version__,
        "torch": torch.__version__,
        "lightning": lightning,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
