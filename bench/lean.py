"""Memory and time of a whole training step: presets beside checkpoints, half precision and small batches.

Held: what the forward pass leaves for backward. Peak: of forward and backward pass. Both count bytes of PyTorch's
allocator, without parameters and their gradients. Error: of all gradients, ‖ĝ - g‖ / ‖g‖, of one draw; beside it, over
the noise of the minibatch's own gradient. Time: of a step over the exact step's, median over rounds in which all take
turns. Bytes and errors are the same on a busy machine, times are not. Compiled graphs need a C++ compiler, and draw
other dropout masks than eager mode, so that their error on networks with dropout is that of another step.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional as F

import randbp
from randbp.diagnostics import StepPeak
from randbp.diagnostics.minibatch_noise import parts_of, squared_differences

from .half import held_in_half
from .harness import interleave, save, show
from .lean_settings import NETWORKS, SETTINGS, Network, Setting, add_checkpoints
from .place import Place

MIB = 2**20
MICRO_BATCHES = 8  # for the noise of the minibatch


class Run:
    """A network in one setting."""

    def __init__(self, network: Network, model: nn.Module, setting: Setting, batch: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        # All settings share the parameters, and hence the gradients.
        self.setting, self.model = setting, deepcopy(model, {id(p): p for p in model.parameters()})
        self.x = torch.randn(batch, 3, network.size, network.size).to(device)
        self.labels = torch.randint(0, 100, (batch,)).to(device)
        self.device = device
        if setting.checkpoints:
            add_checkpoints(self.model, network.blocks)
        self.forward = self.model if setting.compiled is None else compiled(self.model, setting.compiled)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Randomised, or to be compiled with its share of activations, for as long as the context lasts."""
        options, share = self.setting.randomize, self.setting.compiled
        with nullcontext() if options is None else randbp.randomize(self.model, **options), activations(share):
            yield

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a micro-batch."""
        with self._elsewhere(x):
            return F.cross_entropy(self.forward(x), labels) / self.setting.parts

    def _elsewhere(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.setting.elsewhere == "bf16":
            return held_in_half([*self.model.parameters(), x])
        return save_on_cpu(pin_memory=True) if self.setting.elsewhere == "host" else nullcontext()

    def step(self, after_forward: Callable[[], None] = lambda: None) -> None:
        """Forward and backward passes, from no gradients."""
        self.model.zero_grad(set_to_none=self.device == "cpu")  # a GPU's peak counts gradients that appear
        torch.manual_seed(1)  # dropout
        parts = self.setting.parts
        for x, labels in zip(self.x.chunk(parts), self.labels.chunk(parts), strict=True):
            loss = self.loss(x, labels)
            after_forward()
            loss.backward()

    def measure(self) -> tuple[int, int, Tensor]:
        """Bytes held for backward, peak and all gradients, of one step."""
        if self.device == "cpu":  # what is cached for good counts for no step
            self.loss(self.x[:2], self.labels[:2]).backward()
            self.model.zero_grad()
        else:
            self.step()
        gc.collect()
        with StepPeak(self.device, self.model.parameters()) as peak:
            self.step(peak.mark)
        return peak.marks[0], peak.bytes, self.gradient()

    def gradient(self) -> Tensor:
        """All gradients of the last step, which are gone then."""
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        self.model.zero_grad()
        return gradient

    def noise(self) -> float:
        """How far the minibatch's gradient strays from that of all images, in its own lengths, from micro-batches."""
        parts = parts_of((self.x, self.labels), MICRO_BATCHES)
        parameters = list(self.model.parameters())

        def gradients(part: Any) -> list[Tensor]:
            torch.manual_seed(1)
            found = torch.autograd.grad(self.loss(*part), parameters, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]

        if not parts:
            return float("nan")
        square = squared_differences(gradients, parts).sum(1).mean() / 2 / len(parts)
        self.step()
        return float(square.sqrt() / self.gradient().norm())


def compiled(model: nn.Module, share: float) -> Any:
    """A compiled model; one that may hold less has options of its own, or it would run the other one's graphs."""
    return torch.compile(model, options=None if share == 1 else {"max_autotune": False})


def activations(share: float | None) -> AbstractContextManager[Any]:
    """What a graph that is compiled within may hold of its activations; PyTorch has no other name for it."""
    if share is None or share == 1:
        return nullcontext()
    from torch._functorch import config

    return config.patch(activation_memory_budget=share)  # type: ignore[no-any-return]


def run(
    pattern: str,
    budget: float,
    quick: bool,
    settings: Sequence[str] = ("",),
    place: Place = Place(),  # noqa: B008
) -> dict[str, Any]:
    """Measure the chosen networks; times only where ``budget`` seconds per network are given.

    Args:
        pattern: Parts of networks' names, separated by commas; empty for all.
        budget: Seconds per network for the timed rounds, of which there are three at least.
        quick: Whether to take a quarter of the batch.
        settings: Parts of settings' names; exact is always there.
        place: The processor by default; a GPU has rivals of its own (:mod:`bench.lean_cuda`).
    """
    if place.device != "cpu":
        from . import lean_cuda

        return lean_cuda.run(pattern, budget, quick, settings, place)
    names = [name for name in NETWORKS if not pattern or any(part in name for part in pattern.split(","))]
    rows = []
    for name in names:
        found = measure(name, NETWORKS[name], budget, quick, chosen(SETTINGS, settings), place)
        report(name, NETWORKS[name], found)
        rows += found
    return finish("lean", names, rows)


def chosen(settings: dict[str, Setting], parts: Sequence[str]) -> dict[str, Setting]:
    """Exact, and the settings whose names contain one of these texts."""
    return {title: s for title, s in settings.items() if title == "exact" or any(part in title for part in parts)}


def measure(
    name: str, network: Network, budget: float, quick: bool, settings: dict[str, Setting], place: Place
) -> list[dict[str, Any]]:
    """The chosen settings of one network."""
    batch = max(4, network.batch // 4) if quick else network.batch
    torch.manual_seed(0)
    model = network.build().train().to(place.device)
    runs = {title: Run(network, model, setting, batch, place.device) for title, setting in settings.items()}
    rows: list[dict[str, Any]] = []
    exact, noise = torch.empty(0, device=place.device), runs["exact"].noise()
    for title, current in runs.items():
        with current.on():
            held, peak, gradient = current.measure()
        exact = exact if rows else gradient
        row = {"network": name, "setting": title, "batch": batch, "held": held, "peak": peak, "noise": noise}
        rows.append(row | relations(rows[0] if rows else row, row, float((gradient - exact).norm() / exact.norm())))
        print(f"{name}, {title}: {rows[-1]['held_ratio']:.3f} held, error {rows[-1]['error']:.3g}", flush=True)
    if budget:
        with ExitStack() as stack:
            for current in runs.values():
                stack.enter_context(current.on())
            timings = interleave({title: current.step for title, current in runs.items()}, budget)
        first = timings["exact"].readings
        for row in rows:
            timing = timings[row["setting"]]
            row["seconds"] = timing.seconds
            row["time_ratio"] = median(mine / its for mine, its in zip(timing.readings, first, strict=True))
    for row in rows:
        row["missed"] = missed(row, settings[row["setting"]])
    return rows


def relations(first: dict[str, Any], row: dict[str, Any], error: float) -> dict[str, Any]:
    """What is held and the peak over those of the exact step, and the error over the noise."""
    ratios = {f"{what}_ratio": row[what] / first[what] for what in ("held", "peak")}
    return ratios | {"error": error, "of_noise": error / row["noise"]}


KEYS = {"held": "held_ratio", "peak": "peak_ratio", "error": "error", "of_noise": "of_noise", "time": "time_ratio"}
NAMES = {"of_noise": "error over minibatch noise"}


def missed(row: dict[str, Any], setting: Setting) -> list[str]:
    """Which limits a row misses, and by how much."""
    found = [f"error {row['error']:.3g} > 0"] if setting.limits.same_bits and row["error"] else []
    for what, key in KEYS.items():
        limit = setting.limits.of(what, row["network"])
        if limit is not None and row.get(key, 0) > limit:
            found.append(f"{NAMES.get(what, what)} {row[key]:.3f} > {limit:.3f}")
    return found


def report(name: str, network: Network, rows: list[dict[str, Any]]) -> None:
    """Print the table of a network."""
    exact = rows[0]
    title = (
        f"{name}, {exact['batch']} images of {network.size}²: exact holds {exact['held'] / MIB:.0f} MiB, peak "
        f"{exact['peak'] / MIB:.0f} MiB, minibatch noise {exact['noise']:.2g}"
        + (f", step {exact['seconds']:.2f} s" if "seconds" in exact else "")
        + "; in brackets the limit, ! where missed"
    )
    columns = ["over exact", "held", "peak", "error", "over noise", "time"]
    show(title, columns, [_cells(row, SETTINGS[row["setting"]]) for row in rows])


def _cells(row: dict[str, Any], setting: Setting) -> list[str]:
    cells = [row["setting"]]
    for what, key in KEYS.items():
        limit = 0.0 if what == "error" and setting.limits.same_bits else setting.limits.of(what, row["network"])
        value = row.get(key)
        if value is None:
            cells.append("")
        elif limit is None:
            cells.append(f"{value:.3g}" if what == "error" else f"{value:.3f}")
        else:
            cells.append(f"{value:.3g} ({limit:.3g}){'!' if value > limit else ''}")
    return cells


def finish(title: str, names: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print what is missed, write the rows, return the summary."""
    lines = [f"{row['network']} {row['setting']}: {what}" for row in rows for what in row["missed"]]
    for line in lines:
        print(f"missed: {line}")
    summary = {"missed": lines}
    suffix = "" if names == list(NETWORKS) else "-" + "-".join(names)
    print(f"written to {save(title + suffix, rows, summary)}")
    return summary
