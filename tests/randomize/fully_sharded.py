"""Two processes that train one model, sharded by FSDP2 or copied by DDP; quick to import."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from randbp import Importance, Spatial, randomize

PROCESSES = 2
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "memory": {"preset": "memory"},
    "lean": {"weight_vjp": Spatial(0.5), "lean": True},
    "importance": {"weight_vjp": Importance(0.5), "input_vjp": Importance(0.5), "layers": "*"},
}
ORDERS = ("sharded first", "randomized first", "copied")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, 5))


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(6, 4, 8, 8, generator=generator), torch.arange(6) % 5


def shard(model: nn.Sequential) -> None:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in (model[0], model[1], model[3], model[6], model):
        fully_shard(layer, mesh=mesh)


def gradients(rank: int, way: str, order: str) -> dict[str, Tensor]:
    """Gradients of two steps with this process's data; those of a model of several processes are of all their data."""
    model = network()
    if order == "sharded first":
        shard(model)
    handle = randomize(model, seed=3, **WAYS[way])
    if order == "randomized first":
        shard(model)
    run: nn.Module = DistributedDataParallel(model) if order == "copied" else model
    for step in range(2):
        handle.set_step(step, rank=rank)
        x, labels = batch(step, rank)
        cross_entropy(run(x), labels).backward()
    assert not handle.left_exact
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None and isinstance(grad, DTensor) == ("first" in order)
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def of_all_data(way: str) -> dict[str, Tensor]:
    """Gradients of one process that has all data."""
    model = network()
    with randomize(model, seed=3, **WAYS[way]):
        for step in range(2):
            x, labels = (torch.cat(parts) for parts in zip(*(batch(step, r) for r in range(PROCESSES)), strict=True))
            cross_entropy(model(x), labels).backward()
    return {name: it.grad for name, it in model.named_parameters() if it.grad is not None}


def overflow(rank: int) -> None:
    """A step whose gradients overflow in one process is skipped by all; the next is not."""
    model = network()
    shard(model)
    randomize(model, seed=3, **WAYS["importance"])
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.full_tensor().clone() for parameter in model.parameters()]  # type: ignore[attr-defined]
    for step in range(2):
        optimizer.zero_grad()
        x, labels = batch(step, rank)
        loss = scaler.scale(cross_entropy(model(x), labels))
        (loss * torch.inf if step == 0 and rank == 1 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after = [parameter.full_tensor() for parameter in model.parameters()]  # type: ignore[attr-defined]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == (step == 0)
        assert all(it.isfinite().all() for it in after) and scaler.get_scale() == 2.0


def compare(rank: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    for way in WAYS:
        own = gradients(rank, way, "whole")
        mean = {name: grad.clone() for name, grad in own.items()}
        for grad in mean.values():
            all_reduce(grad)
            grad /= PROCESSES
        for order in ORDERS:
            for name, grad in gradients(rank, way, order).items():
                torch.testing.assert_close(grad, mean[name], rtol=1e-4, atol=1e-6, msg=f"{way}, {order}, {name}")
        if way == "exact":
            for name, grad in of_all_data(way).items():
                torch.testing.assert_close(grad, mean[name], rtol=1e-4, atol=1e-6)
        else:  # the other process would draw otherwise, of the same data
            other = gradients(1 - rank, way, "whole")
            assert not any(torch.equal(own[name], other[name]) for name in own)
    overflow(rank)
    destroy_process_group()
