"""Peak memory of a block of code, as PyTorch's allocator counts it."""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import profile, record_function

from .._torch.profiler import memory_profile, profiler_running
from .live_storages import LiveStorages

CPU_ALLOCATOR = "peak of PyTorch's CPU allocator above the start of a step"
CUDA_ALLOCATOR = "peak of PyTorch's CUDA allocator above the start of a step"
DISPATCHER = "peak of the tensors alive above the start of a step, kernels' scratch memory left out"

_MEMORY, _MARK = "[memory]", "randbp mark"
_FIELD = re.compile(r'"(ts|Addr|Bytes|Device Type)": (-?[\d.]+)')

_Event = tuple[int | None, int]
"""Address and size of an allocation, the size negative if it is given back; without an address, a mark."""


class StepPeak:
    """Peak of the bytes that PyTorch's allocator hands out within a block, relative to the block's start.

    On a CPU every allocation and release that PyTorch's profiler records is added up, kernels' scratch memory
    included; nothing rests on the process, so libraries, other threads' work and what came before do not show. (Memory
    that a library such as oneDNN takes from the system on its own is invisible to PyTorch.) While another profiler is
    running, tensors are followed at the dispatcher instead. On a CUDA device it is the caching allocator's peak.

    A step inside the block is slower, on a CPU by some microseconds per operation: measure time apart.

    Args:
        device: Where the work runs.
        gradients_of: Parameters whose ``.grad``, where it appears in the block, does not count: it belongs to the
            training as the parameters do. (On a CUDA device, reserve it before the block instead: it counts there.)

    Attributes:
        bytes: The peak, known at the end of the block.
        marks: Bytes in use at each call of :meth:`mark`, known at the end of the block.
        stretches: The peak of each stretch of the block, from one mark to the next: one more than there are marks.
        source: The measured quantity, in words.

    Example:
        >>> with StepPeak("cpu") as peak:
        ...     x = torch.ones(1024)
        ...     y = x + x
        ...     del x
        ...     peak.mark()
        ...     z = y + y
        >>> peak.bytes, peak.marks, peak.stretches
        (8192, [4096], [8192, 8192])
    """

    def __init__(self, device: torch.device | str, gradients_of: Iterable[Tensor] = ()) -> None:
        self.device = torch.device(device)
        self._gradients_of = list(gradients_of)
        self._stack = ExitStack()
        self._profile: profile | None = None
        self._live: LiveStorages | None = None

    def mark(self) -> None:
        """Record the bytes in use at this moment, for example between forward and backward pass."""
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.memory_allocated(self.device) - self._start)
            self._end_stretch()
        elif self._live is not None:
            self.marks.append(self._live.bytes)
            self._end_stretch()
        else:
            with record_function(_MARK):
                pass

    def _end_stretch(self) -> None:
        if self._live is not None:
            self.stretches.append(self._live.peak_bytes)
            self._live.peak_bytes = self._live.bytes
        else:
            self.stretches.append(torch.cuda.max_memory_allocated(self.device) - self._start)
            torch.cuda.reset_peak_memory_stats(self.device)

    def __enter__(self) -> "StepPeak":
        self.marks: list[int] = []
        self.stretches: list[int] = []
        if self.device.type == "cuda":
            self.source = CUDA_ALLOCATOR
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif profiler_running():
            self.source = DISPATCHER
            self._live = self._stack.enter_context(LiveStorages())
        else:
            self.source = CPU_ALLOCATOR
            self._profile = self._stack.enter_context(memory_profile())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if self._profile is None:
            self._end_stretch()
        else:
            grads = [p.grad for p in self._gradients_of if p.grad is not None]
            addresses = {grad.untyped_storage().data_ptr() for grad in grads}
            self.stretches, self.marks = _peaks(_events(self._profile), addresses)
        self.bytes = max(self.stretches)
        self._profile = self._live = None


def _events(profiled: profile) -> list[_Event]:
    """All allocator events, in order."""
    # The trace file is the profiler's public face; its records of memory have no other.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        named = path.read_text().split('"name": "')  # the other records, which are many, are not even parsed
    found = [dict(_FIELD.findall(record)) for record in named if record.startswith((_MEMORY, _MARK))]
    host = "0"  # the device type
    records = [record for record in found if record.get("Device Type", host) == host]
    records.sort(key=lambda record: float(record["ts"]))
    return [(int(r["Addr"]), int(r["Bytes"])) if "Addr" in r else (None, 0) for r in records]


def _peaks(events: list[_Event], persistent: set[int]) -> tuple[list[int], list[int]]:
    """The highest running sums of bytes from mark to mark and those at the marks, less what stays at ``persistent``."""
    last = {address: number for number, (address, size) in enumerate(events) if address in persistent}
    current = 0
    sizes: dict[int, int] = {}
    highest, marks = [0], []
    for number, (address, size) in enumerate(events):
        if address is None:
            marks.append(current)
            highest.append(current)
        elif size > 0 and last.get(address) != number:
            sizes[address] = size
            current += size
            highest[-1] = max(highest[-1], current)
        elif size < 0:  # what was there before the start is not in use above it
            current -= sizes.pop(address, 0)
    return highest, marks
