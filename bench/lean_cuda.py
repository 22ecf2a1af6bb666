"""``python -m bench lean --device cuda``: presets beside what PyTorch has for a GPU, and the batch that fits in 24 GiB.

To what :mod:`bench.lean` measures this adds activations in the host's memory, and for each way the largest batch whose
step fits in 24 GiB, with its images per second. Without limits of its own the device's time is a result, not a promise.
"""

import gc
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from .harness import show
from .lean import MIB, Run, chosen, finish, measure
from .lean_settings import NETWORKS, SETTINGS, Network, Setting
from .place import Place

MEMORY = 24 * 2**30  # [bytes]
SPARE = 2**29  # [bytes] left for what the allocator cannot use, and for kernels' workspaces
RIVALS = {
    "held by the host": Setting(elsewhere="host"),
}


def settings_here() -> dict[str, Setting]:
    """The settings of the processor without its limits of time, and the rivals.

    Example:
        >>> [title for title in settings_here() if "host" in title]
        ['held by the host']
    """
    return {title: replace(s, limits=replace(s.limits, time=None)) for title, s in (SETTINGS | RIVALS).items()}


def run(pattern: str, budget: float, quick: bool, settings: Sequence[str], place: Place) -> dict[str, Any]:
    """As :func:`bench.lean.run`, on a GPU."""
    names = [name for name in NETWORKS if not pattern or any(part in name for part in pattern.split(","))]
    rows = []
    for name in names:
        network, ways = NETWORKS[name], chosen(settings_here(), settings)
        found = measure(name, network, budget, quick, ways, place)
        _clear()
        model = network.build().train().to(place.device)
        for row in found:
            size, seconds = largest(network, model, ways[row["setting"]], row, place)
            row["largest"], row["images_per_second"] = size, size / seconds if seconds else 0.0
            print(f"{name}, {row['setting']}: {size} images in 24 GiB", flush=True)
        report(name, found)
        rows += found
    return finish(f"lean{place.suffix}", names, rows)


def largest(
    network: Network, model: nn.Module, setting: Setting, row: dict[str, Any], place: Place
) -> tuple[int, float]:
    """The largest batch whose step fits into :data:`MEMORY`, and the seconds that it takes.

    The peak grows linearly with the batch: two of them tell where the memory ends, and that batch is then tried, with
    the allocator kept to this memory; where it fails, one that is a twentieth smaller.
    """
    batch, peak = row["batch"], row["peak"]
    twice = _peak(network, model, setting, 2 * batch, place)
    free = MEMORY - SPARE - torch.cuda.memory_allocated(place.device)
    size = batch + int((free - peak) / max(1.0, (twice - peak) / batch))
    torch.cuda.set_per_process_memory_fraction(MEMORY / torch.cuda.get_device_properties(place.device).total_memory)
    try:
        while size > 0:
            try:
                return size, _seconds(network, model, setting, size, place)
            except torch.cuda.OutOfMemoryError:
                size = int(size * 0.95)
            finally:
                _clear()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return 0, 0.0


def _peak(network: Network, model: nn.Module, setting: Setting, batch: int, place: Place) -> int:
    current = Run(network, model, setting, batch, place.device)
    with current.on():
        peak = current.measure()[1]
    _clear()
    return peak


def _seconds(network: Network, model: nn.Module, setting: Setting, batch: int, place: Place) -> float:
    """Of a step, median of five after two."""
    current = Run(network, model, setting, batch, place.device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    with current.on():
        for _ in range(7):
            start.record()
            current.step()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return median(times[2:])


def _clear() -> None:
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of a network."""
    exact = rows[0]
    title = f"{name}, {exact['batch']} images: exact holds {exact['held'] / MIB:.0f} MiB"
    columns = ["over exact", "held", "peak", "error", "over noise", "time", "images in 24 GiB", "images per second"]
    table = [
        [
            row["setting"],
            *(f"{row[key]:.3f}" for key in ("held_ratio", "peak_ratio", "error", "of_noise")),
            f"{row['time_ratio']:.2f}" if "time_ratio" in row else "",
            str(row["largest"]),
            f"{row['images_per_second']:.0f}",
        ]
        for row in rows
    ]
    show(title, columns, table)
