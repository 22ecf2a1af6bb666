"""Whole training steps whose rows are drawn in the backward pass, over exact ones, and their rivals.

Both VJPs of all convolutions and linear layers are estimated; a step is forward, cross-entropy, backward and plain SGD
on random images, without lean mode. ``Precision`` and autocast multiply everything in bfloat16 and drop nothing: what
sampling saves, it has to save beside these.

Held to: ``Importance(1/2)`` with inputs in 4 bits takes at most 0.75 of the exact step of All-CNN-C and VGG-19, 0.90 of
ResNet-18's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from randbp import IfFaster, Importance, Precision, Rounding, Spatial, randomize

from .harness import Timing, interleave, matching, over, save, show
from .place import Place
from .step import EXACT, FORWARD, NETWORKS

HALF = "Importance(1/2), 4 bits"
HELD_TO = {"all-cnn-c": 0.75, "vgg-19": 0.75, "resnet-18": 0.90}
AUTOCAST = "autocast to bfloat16, forward pass included"
SCHEMES: dict[str, dict[str, Any]] = {
    "Precision": {"weight_vjp": Precision(), "input_vjp": Precision()},
    "Precision, 4 bits": {"weight_vjp": Precision(estimator=Rounding(4)), "input_vjp": Precision()},
    "preset time": {"preset": "time"},
    "Importance(1/2)": {"weight_vjp": Importance(1 / 2), "input_vjp": Importance(1 / 2)},
    HALF: {"weight_vjp": Importance(1 / 2, bits=4), "input_vjp": Importance(1 / 2, bits=4)},
    "the same where faster": {
        "weight_vjp": IfFaster(Importance(1 / 2, bits=4)),
        "input_vjp": IfFaster(Importance(1 / 2)),
    },
    "Importance(1/4), 4 bits": {"weight_vjp": Importance(1 / 4, bits=4), "input_vjp": Importance(1 / 4, bits=4)},
    "Importance(1/2), examples": {
        "weight_vjp": Importance(1 / 2, "examples"),
        "input_vjp": Importance(1 / 2, "examples"),
    },
    "Spatial(1/2)": {"weight_vjp": Spatial(1 / 2), "input_vjp": Spatial(1 / 2)},
}


def measure(network: str, budget: float, place: Place, rounds: tuple[int, int] = (3, 15)) -> dict[str, Timing]:
    """Timings of the exact step, the forward pass and all schemes."""
    make, size, batch = NETWORKS[network]
    torch.manual_seed(0)
    with place.tensors():
        model = make().train()
        images = torch.randn(batch, 3, size, size)
        labels = torch.randint(100 if network == "all-cnn-c" else 1000, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step(narrow: bool = False) -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=narrow):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def estimated(arguments: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            with randomize(model, **{"layers": "*"} | arguments):
                step()

        return run

    contenders: dict[str, Callable[[], None]] = {EXACT: step, FORWARD: forward, AUTOCAST: lambda: step(narrow=True)}
    contenders |= {name: estimated(arguments) for name, arguments in SCHEMES.items()}
    return interleave(contenders, budget, rounds)


def run(pattern: str, budget: float, place: Place) -> dict[str, Any]:
    """Time the networks whose names start with the pattern's parts: a table and a JSON file each."""
    summary: dict[str, Any] = {}
    for network in matching(pattern, NETWORKS):
        timings = measure(network, budget, place)
        limit, (_, size, batch) = HELD_TO[network], NETWORKS[network]
        rows, table = over(timings, EXACT)
        title = f"step of {network}, {batch} images of {size}x{size}; {HALF} is held to {limit:.2f}"
        show(title, ["both VJPs", "median", "over exact", "noise"], table)
        summary[network] = {"ratio": timings[HALF].seconds / timings[EXACT].seconds, "held_to": limit}
        print(f"written to {save(f'importance-{network}{place.suffix}', rows, summary[network])}")
    return summary
