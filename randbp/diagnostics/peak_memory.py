"""Peak memory of a stretch of work: PyTorch's allocator on a GPU, the process on a CPU."""

from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")

ALLOCATOR = "peak of PyTorch's CUDA allocator"
PROCESS = "peak resident set of the process, libraries included"
PROCESS_SINCE_START = "peak resident set of the process since it started, libraries included"
UNKNOWN = "not available on this platform"


class PeakMemory:
    """Peak memory from the construction of this object on.

    On a CUDA device it is the peak of PyTorch's caching allocator, which counts tensors only. On Linux without one it
    is the peak resident set of the process: interpreter, libraries and thread pools included, so that small models
    hardly show; where that may not be reset, it is the peak since the process started. :attr:`source` says which of
    these was measured. For the peak of a step's tensors see :class:`randbp.diagnostics.StepPeak`.

    The peak belongs to the device (process), not to this object: a second one resets it for the first.

    Args:
        device: Where the work runs.

    Attributes:
        start_bytes: Bytes in use at construction, ``None`` where the platform does not tell.
        source: What :attr:`bytes` is, in words.

    Example:
        >>> peak = PeakMemory("cpu")
        >>> held = torch.ones(32 * 2**20 // 4)  # 32 MiB
        >>> peak.bytes is None or peak.bytes >= 32 * 2**20
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.start_bytes: int | None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start_bytes, self.source = torch.cuda.memory_allocated(self.device), ALLOCATOR
            return
        self.source = PROCESS
        try:
            _CLEAR_REFS.write_text("5")  # sets the peak to what is resident now
        except OSError:
            self.source = PROCESS_SINCE_START
        self.start_bytes = _status_bytes("VmRSS", _STATUS)
        if self.start_bytes is None:
            self.source = UNKNOWN

    @property
    def bytes(self) -> int | None:
        """Highest number of bytes in use so far; ``None`` where the platform does not report it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status_bytes("VmHWM", _STATUS)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still take, now; ``None`` where the platform does not tell.

    On a CUDA device those that the driver has and those that PyTorch's allocator keeps unused. Else what Linux says is
    available, or what is left of the limit of the container (cgroup v2) if that is less.

    Example:
        >>> (available_bytes(torch.device("cpu")) or 1) > 0
        True
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [_status_bytes("MemAvailable", _MEMORY)]
    with suppress(OSError, ValueError):  # without a limit the file says "max"
        limit, taken = (int((_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - taken))
    return min((each for each in found if each is not None), default=None)


def _status_bytes(field: str, file: Path) -> int | None:
    """Read a field of Linux's ``/proc/self/status``, or of a file like it, which counts in KiB, as bytes."""
    with suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return None
