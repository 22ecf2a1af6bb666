"""Peak bytes of tensors that a call allocates; kernels' scratch memory is not seen."""

from collections.abc import Callable
from typing import Any

from randbp.diagnostics import LiveStorages


def peak_bytes(run: Callable[[], Any]) -> int:
    """Bytes that ``run`` holds at most beyond what was there before, its result included."""
    run()
    with LiveStorages() as live:
        run()
    return live.peak_bytes
