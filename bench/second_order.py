"""Steps of K-FAC over steps of SGD, for whole networks.

A step of K-FAC is one of three: one that preconditions alone, one that also updates the factors, one that also inverts
them. With factors in every tenth and inverses in every hundredth step the three add up to the row "on average".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.models import AllCNNC, ResNet18
from randbp.curvature import KFAC

from .harness import interleave, matching, save, show

SGD = "SGD"
NEVER, STEPS = 10**9, 5  # the number of a step in which nothing is due
KINDS = {"preconditions": (NEVER, NEVER), "… and updates factors": (1, NEVER), "… and inverts them": (1, 1)}
# Network, image size, batch, classes.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    "all-cnn-c": (lambda: AllCNNC(dropout=False), 32, 128, 100),
    "resnet-18": (ResNet18, 224, 32, 1000),
}


def contender(make: Callable[[], nn.Module], images: Tensor, labels: Tensor, optimizer: Any) -> Callable[[], None]:
    """A training step of a model of its own."""
    torch.manual_seed(0)
    model = make().train()
    made = optimizer(model)

    def step() -> None:
        made.zero_grad()
        cross_entropy(model(images), labels).backward()
        made.step()
        for group in made.param_groups:
            group["steps"] = STEPS

    step()  # in the first one all is due
    return step


def measure(network: str, budget: float) -> dict[str, float]:
    """Seconds of each kind of step."""
    make, size, batch, classes = NETWORKS[network]
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))

    def kfac(approximation: Any, factors: int, inverses: int) -> Callable[[nn.Module], KFAC]:
        every = {"factor_every": factors, "inverse_every": inverses}
        return lambda model: KFAC(model, 1e-4, approximation=approximation, **every)  # type: ignore[arg-type]

    contenders = {SGD: contender(make, images, labels, lambda m: torch.optim.SGD(m.parameters(), 1e-4, momentum=0.9))}
    for approximation in ("reduce", "expand"):
        for kind, every in KINDS.items():
            made = contender(make, images, labels, kfac(approximation, *every))
            contenders[f"{approximation}: {kind}"] = made
    return {name: timing.seconds for name, timing in interleave(contenders, budget, (3, 9)).items()}


def run(pattern: str, budget: float) -> dict[str, Any]:
    """Time the networks whose names start with the pattern's parts: a table each, one JSON file."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for network in matching(pattern, NETWORKS):
        _, size, batch, _ = NETWORKS[network]
        seconds = measure(network, budget)
        rows += [{"network": network, "step": name, "seconds": found} for name, found in seconds.items()]
        summary[network] = {}
        for approximation in ("reduce", "expand"):
            plain, factors, inverses = (seconds[f"{approximation}: {kind}"] / seconds[SGD] for kind in KINDS)
            mean = plain + (factors - plain) / 10 + (inverses - factors) / 100
            summary[network] |= {
                **{f"{approximation}: {kind}": seconds[f"{approximation}: {kind}"] / seconds[SGD] for kind in KINDS},
                f"{approximation}: on average": mean,
            }
        table = [[name, f"{ratio:.2f}"] for name, ratio in summary[network].items()]
        title = f"step of {network}, {batch} images of {size}x{size}"
        show(title, ["K-FAC", f"over SGD's {seconds[SGD]:.2f} s"], table)
    print(f"written to {save('second-order', rows, summary)}")
    return summary
