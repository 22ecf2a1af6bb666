"""Fused operations: time of each backend, bytes moved, and the share of the machine's copy bandwidth that they reach.

Encode and decode work on 6.4 million entries in 4 bits. Of all others the largest call is taken that a training step of
some networks makes (``preset="memory"``, ``"time"`` and a sampler). Bytes moved are those of the tensors given and
returned; the bandwidth is that of a copy of 256 MiB, one of the contenders in each round (calls on tensors that the
caches hold may reach more).

Held to: at least half of the copy bandwidth.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from randbp import kernels
from randbp.kernels.operator import OPERATORS, Backend, Operator, is_installed

from .harness import interleave, save, show
from .lean import Run
from .lean_settings import NETWORKS, SETTINGS

ROWS, ENTRIES, BITS, BLOCK = 128, 50_176, 4, 256
COPIED = 2**26  # [entries]
HELD_TO = 0.50
STEPS = ("preset memory", "preset time", "Spatial(1/8), lean")
FEW = ("all-cnn-c", "mobilenet-v2", "convnext-base")


@dataclass(frozen=True)
class Case:
    """A call of an operation: what was given to it, and the bytes of that and of the results."""

    operator: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: int

    def run(self, backend: Backend) -> None:
        """Once, by one backend."""
        with kernels.use(backend):
            self.operator(*self.args, **self.kwargs)

    @property
    def shapes(self) -> str:
        """Of the largest tensor given, with its dtype."""
        largest = max(_tensors((self.args, self.kwargs)), key=lambda t: t.nbytes)
        return f"{'x'.join(map(str, largest.shape))} {str(largest.dtype).removeprefix('torch.')}"


def bytes_of(*values: Any) -> int:
    """Bytes of all tensors in some values.

    Example:
        >>> bytes_of((torch.ones(3), [torch.ones(2, dtype=torch.uint8)]), 7)
        14
    """
    return sum(tensor.nbytes for tensor in _tensors(values))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def largest_calls() -> Iterator[dict[str, Case]]:
    """The largest call of each operation within the block, by its name; its tensors are copies.

    Example:
        >>> from randbp.codecs import Uniform
        >>> with largest_calls() as found:
        ...     _ = Uniform(bits=4, entries=512).encode(torch.ones(3, 512), seed=0)
        >>> found["encode"].shapes
        '3x512 float32'
    """
    found: dict[str, Case] = {}
    call = Operator.__call__

    def record(self: Operator, *args: Any, **kwargs: Any) -> Any:
        given = bytes_of(args, kwargs)
        result = call(self, *args, **kwargs)
        moved = given + bytes_of(result)
        if self.name not in found or moved > found[self.name].moved:
            found[self.name] = Case(self, *_copied((args, kwargs)), moved)
        return result

    with mock.patch.object(Operator, "__call__", record):
        yield found


def _copied(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), values)


def cases(pattern: str, quick: bool) -> dict[str, Case]:
    """Encode and decode of many entries, and the largest calls of the others in training steps."""
    names = [name for name in NETWORKS if (any(p in name for p in pattern.split(",")) if pattern else name in FEW)]
    with largest_calls() as found:
        for name in names[:1] if quick else names:
            network = NETWORKS[name]
            torch.manual_seed(0)
            model = network.build().train()
            for title in STEPS:
                run = Run(network, model, SETTINGS[title], max(4, network.batch // (16 if quick else 4)))
                with run.on():
                    run.step()
    rows = torch.randn(ROWS // 16 if quick else ROWS, ENTRIES, generator=torch.Generator().manual_seed(0))
    for dithered in (False, True):
        suffix = ", dithered" if dithered else ""
        codes, scales = kernels.encode(rows, 1, 0, BITS, BLOCK, dithered)
        moved = bytes_of(rows, codes, scales)
        found["encode" + suffix] = Case(kernels.encode, (rows, 1, 0, BITS, BLOCK, dithered), {}, moved)
        decoding = (codes, scales, 1, 0, BITS, BLOCK, ENTRIES, dithered, rows.dtype)
        found["decode" + suffix] = Case(kernels.decode, decoding, {}, moved)
    return dict(sorted(found.items()))


def run(pattern: str, budget: float, quick: bool) -> dict[str, Any]:
    """Time all operations: a table, a JSON file, the summary.

    Args:
        pattern: Parts of networks' names, separated by commas; empty for a few.
        budget: Seconds per operation.
        quick: Whether to take fewer entries and one network.
    """
    backends: list[Backend] = ["reference", *(["numba"] if is_installed("numba") else [])]  # type: ignore[list-item]
    source, target = torch.ones(COPIED // (16 if quick else 1)), torch.empty(COPIED // (16 if quick else 1))
    rows: list[dict[str, Any]] = []
    for name, case in cases(pattern, quick).items():
        contenders: dict[str, Callable[[], Any]] = {each: partial(case.run, each) for each in backends}
        timings = interleave(contenders | {"copy": lambda: target.copy_(source)}, budget)
        bandwidth = 2 * source.nbytes / min(timings["copy"].readings)
        row: dict[str, Any] = {"operation": name, "of": case.shapes, "moved": case.moved, "bandwidth": bandwidth}
        for each in backends:
            row[each] = min(timings[each].readings)
            row[f"{each} share"] = case.moved / row[each] / bandwidth
        first, last = (timings[each].readings for each in (backends[0], backends[-1]))
        row["over reference"] = median(slow / fast for slow, fast in zip(first, last, strict=True))
        rows.append(row)
        print(f"{name} of {case.shapes}: {1e3 * row[backends[-1]]:.2f} ms", flush=True)
    missing = sorted(set(OPERATORS) - {row["operation"] for row in rows})
    columns = ["operation, largest tensor given", "moved", *backends, "times faster", f"of copying ({HELD_TO})"]
    show(
        f"fused operations; copying {max(row['bandwidth'] for row in rows) / 1e9:.1f} GB/s",
        columns,
        _table(rows, backends),
    )
    served = f"{backends[-1]} share"
    missed = [
        f"{row['operation']}: {row[served]:.2f} of the copy bandwidth < {HELD_TO}"
        for row in rows
        if row[served] < HELD_TO
    ]
    for line in [f"missed: {line}" for line in missed] + [f"not called by these networks: {name}" for name in missing]:
        print(line)
    summary = {"missed": missed, "not_called": missing}
    print(f"written to {save('kernels', rows, summary)}")
    return summary


def _table(rows: list[dict[str, Any]], backends: list[Backend]) -> list[list[str]]:
    return [
        [
            f"{row['operation']}  {row['of']}",
            f"{row['moved'] / 1e6:.1f} MB",
            *(f"{1e3 * row[each]:.2f} ms" for each in backends),
            f"{row['over reference']:.1f}",
            f"{row[f'{backends[-1]} share']:.2f}",
        ]
        for row in rows
    ]
