"""What randbp does to one training step of a network: loss, gradients, bytes and what stays as it is."""

import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import randbp
from randbp.diagnostics import MemoryReport, memory_report
from randbp.diagnostics.significance import t_test
from randbp.randomize import RandomizedHandle

from .networks import Case, Task

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "memory": {"preset": "memory"},
    "time": {"preset": "time"},
    "lean": {"weight_vjp": randbp.Exact(), "layers": "*", "lean": True},
}
"""Name of a column: arguments of :func:`randbp.randomize`."""


class Step(NamedTuple):
    """The loss, and the gradients of trainable parameters and of inputs that ask for one."""

    loss: Tensor
    grads: dict[str, Tensor]


class Bias(NamedTuple):
    """Relative error of all gradients together; the parameter most likely to have a bias, and how unlikely none is."""

    error: float
    worst: str
    p_value: float


def step(task: Task, batch: dict[str, Any], half: bool = False) -> Step:
    """One forward and backward pass from a fixed random state; ``half`` under autocast to bfloat16."""
    state = {name: buffer.clone() for name, buffer in task.named_buffers()}
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        loss = task(**batch)
    wanted = {n: p for n, p in task.named_parameters() if p.requires_grad}
    wanted |= {n: t for n, t in batch.items() if isinstance(t, Tensor) and t.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    with torch.no_grad():
        for name, buffer in task.named_buffers():
            buffer.copy_(state[name])
    return Step(loss.detach(), {n: g.detach() for n, g in zip(wanted, found, strict=True) if g is not None})


def held(task: Task, batch: dict[str, Any], half: bool = False) -> MemoryReport:
    """The bytes held for backward."""

    class Cast(nn.Module):
        def forward(self, **batch: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return task(**batch)

    torch.manual_seed(0)
    model: nn.Module = task
    if half:
        model = Cast()
        model.task = task
    return memory_report(model, **batch)


def bias(task: Task, batch: dict[str, Any], exact: Step, handle: RandomizedHandle, draws: int) -> Bias:
    """Compare the mean over draws with exact gradients, by a t-test for each parameter.

    Half of the draws say in which direction a bias could be, the other half whether there is one.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in exact.grads}
    for number in range(draws):
        handle.set_step(number)
        for name, grad in step(task, batch).grads.items():
            found[name].append((grad - exact.grads[name]).double().flatten())
    squares = sum(torch.stack(ds).square().sum().item() for ds in found.values()) / draws
    length = sum(grad.double().square().sum().item() for grad in exact.grads.values())
    p_values = {}
    for name, differences in found.items():
        first, second = torch.stack(differences).chunk(2)
        direction, grad = first.sum(0), exact.grads[name].double().flatten()
        rounding = 1e-5 * grad.norm().item() + 1e-6 * length**0.5  # a key's bias has no gradient but rounding errors
        along = t_test(torch.stack(differences) @ grad / grad.norm().clamp_min(1e-30), rounding)
        ahead = t_test(second @ direction / direction.norm().clamp_min(1e-30), rounding, one_sided=True)
        p_values[name] = min(1.0, 2 * min(along, ahead))
    worst = min(p_values, key=p_values.__getitem__)
    return Bias((squares / length) ** 0.5, worst, min(1.0, p_values[worst] * len(p_values)))


def largest(report: MemoryReport, most: int = 3) -> str:
    """Who holds the most."""
    rows = [row for row in report.rows if row.bytes > 0.05 * report.held_bytes][:most]
    return ", ".join(
        f"{row.module.removeprefix('network.')} {row.operation} {row.bytes / report.held_bytes:.0%}" for row in rows
    )


def measure(case: Case, draws: int = 16) -> dict[str, Any]:
    """All columns of a network's row, as plain values."""
    task, batch = case.task()
    exact, exact_half = step(task, batch), step(task, batch, half=True)
    before, before_half = held(task, batch), held(task, batch, half=True)
    row: dict[str, Any] = {"library": case.library, "network": case.name, "bytes": before.held_bytes, "faults": []}
    for setting, arguments in SETTINGS.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            handle = randbp.randomize(task, **arguments)
            with handle:
                lossy = step(task, batch)
                if not torch.equal(lossy.loss, exact.loss):
                    row["faults"].append(f"{setting}: loss {lossy.loss.item()} instead of {exact.loss.item()}")
                if lossy.grads.keys() != exact.grads.keys():
                    row["faults"].append(f"{setting}: other parameters have gradients")
                if setting == "exact":
                    unequal = [n for n, g in lossy.grads.items() if not torch.equal(g, exact.grads[n])]
                    row["faults"] += [f"exact: gradients of {', '.join(unequal[:3])}"] if unequal else []
                report = held(task, batch)
                row[setting] = report.held_bytes / before.held_bytes
                row["layers"], row["left"] = len(handle.layers), handle.left_exact
                if setting == "memory":
                    row["rest"] = largest(report)
                    half = step(task, batch, half=True)
                    if not torch.equal(half.loss, exact_half.loss):
                        row["faults"].append(f"autocast: loss {half.loss.item()} instead of {exact_half.loss.item()}")
                    row["half"] = held(task, batch, half=True).held_bytes / before_half.held_bytes
                    row["error"], row["worst"], row["p"] = bias(task, batch, exact, handle, draws)
        row["told"] = row.get("told", []) + [f"{setting}: {w.message}" for w in told if "randomize" in str(w.message)]
    again = step(task, batch)
    if not all(torch.equal(g, exact.grads[n]) for n, g in again.grads.items()):
        row["faults"].append("not restored")
    return row
