"""Steps of all optimisers in one process or in two, for a test that compares them; quick to import."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from randbp.curvature import KBFGS, EigenvalueCorrected

from .optimizers import EVERY, BeforeAdam, known
from .training import batch, loss_of, network, parameters


@dataclass(frozen=True)
class Noted(EigenvalueCorrected):
    """A method that notes of which shape the bases are that it computes."""

    refreshed: ClassVar[list[tuple[int, ...]]] = []

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        super().refresh(state, damping)
        self.refreshed.append(tuple(state["eigenvalues"].shape))


def of_its_own(model, **options):
    """Adam behind a preconditioner of a model with a layer whose forward pass is its own."""
    inner = model[2].forward
    model[2].forward = lambda input: inner(input)
    return BeforeAdam(model, Noted("expand"), **options)


def kbfgs(model, inverse_every, **options):
    """K-BFGS, which has one interval."""
    return KBFGS(model, **options)


def results(rank, count):
    """Parameters and curvature by name after some steps, in one process or with others."""
    made = {}
    for name, make in {**EVERY, "of its own": of_its_own, "KBFGS": kbfgs}.items():
        model = network()
        optimizer = make(model, lr=0.01, factor_every=2, inverse_every=3)
        for step in range(7):
            x, y = batch(seed=step)

            def closure(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                loss_of(model, x[rank::count], y[rank::count]).backward()
                for parameter in model.parameters() if count > 1 else ():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= count

            optimizer.step(closure)
        made[name] = parameters(model), known(optimizer, model[4].weight)
    return made, sorted(Noted.refreshed)


def process(rank, port, folder):
    """One of two."""
    address = f"tcp://127.0.0.1:{port}"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save(results(rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
