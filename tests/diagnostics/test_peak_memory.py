import subprocess
import sys
from pathlib import Path

import pytest
import torch

from randbp.diagnostics import PeakMemory, peak_memory

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def in_fresh_process(code: str) -> list[float]:
    """Numbers that the code prints, run where nothing else allocates."""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [float(word) for word in out.split()]


@linux
def test_peak_counts_what_was_freed_again_and_forgets_what_came_before() -> None:
    before, start, peak, after = in_fresh_process(
        "import torch; from randbp.diagnostics import PeakMemory\n"
        "first = PeakMemory('cpu'); x = torch.ones(96 * 2**18); del x\n"  # 96 MiB
        "before = first.bytes - first.start_bytes\n"
        "second = PeakMemory('cpu'); x = torch.ones(32 * 2**18); del x\n"
        "print(before, second.start_bytes, second.bytes - second.start_bytes, PeakMemory('cpu').start_bytes)"
    )
    # The kernel counts resident pages in batches per thread, so a peak may read a little low.
    assert 95 * MIB <= before < 112 * MIB
    assert 31 * MIB <= peak < 48 * MIB
    assert after < start + 16 * MIB


@linux
def test_falls_back_to_the_peak_since_process_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert PeakMemory("cpu").source == peak_memory.PROCESS
    monkeypatch.setattr(peak_memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    peak = PeakMemory("cpu")
    assert peak.source == peak_memory.PROCESS_SINCE_START
    assert peak.bytes is not None and peak.start_bytes is not None
    assert peak.bytes >= peak.start_bytes > 0


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_STATUS", "_CLEAR_REFS"):
        monkeypatch.setattr(peak_memory, name, tmp_path / "missing" / "file")
    peak = PeakMemory("cpu")
    assert (peak.source, peak.start_bytes, peak.bytes) == (peak_memory.UNKNOWN, None, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_allocator_peak() -> None:
    peak = PeakMemory("cuda")
    x = torch.ones(32 * MIB // 4, device="cuda")
    del x
    assert peak.source == peak_memory.ALLOCATOR
    assert peak.bytes is not None and peak.start_bytes is not None
    assert 32 * MIB <= peak.bytes - peak.start_bytes < 34 * MIB
