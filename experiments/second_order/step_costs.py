"""Time and peak memory of a step over SGD's, on average."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, unfold

from experiments.models import VGG19, ResNet18
from randbp.curvature import EKFAC, KFAC, SINGD, input_factor
from randbp.diagnostics import StepPeak
from randbp.diagnostics.timing import interleave, seconds_per_call
from randbp.tn import ConvSpec

NEVER, STEPS = 10**9, 5  # the number of a step in which nothing is due
FACTORS, INVERSES = 10, 100  # steps from one update to the next
ROUNDS = (3, 9)


@dataclass(frozen=True)
class Network:
    """A network at the size of a processor's memory, and the published ratios for it at full size.

    Attributes:
        build: Makes it.
        images: Shape of a batch.
        published: Time and peak memory of a step of SINGD (reduce, diagonal) by tensor networks over SGD's, on an A40.
    """

    build: Callable[[], nn.Module]
    images: tuple[int, ...]
    published: tuple[float, float] | None = None


NETWORKS: dict[str, Network] = {
    "resnet-18": Network(partial(ResNet18, 10, stem="cifar"), (64, 3, 32, 32), (1.33, 1.00)),
    "vgg-19": Network(partial(VGG19, 10, head="cifar"), (64, 3, 32, 32), (1.16, 1.14)),
    "resnet-18, 8 images": Network(partial(ResNet18, 10, stem="cifar"), (8, 3, 32, 32)),
}
PUBLISHED, UNFOLDED = "SINGD (reduce, diagonal)", "singd, unfolded (expand, diagonal)"
FIRST_LAYER = {"published, on a GPU": 3.7}


def _peer(model: nn.Module) -> Any:
    from singd.optim.optimizer import SINGD as Unfolded

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    parameters = [p for layer in layers for p in layer.parameters()]
    return Unfolded(model, parameters, 1e-4, structures=("diagonal", "diagonal"), T=FACTORS, warn_unsupported=False)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9),
    **({UNFOLDED: _peer} if find_spec("singd") else {}),
    PUBLISHED: lambda model: SINGD(model, 1e-4),
    "SINGD (expand, diagonal)": lambda model: SINGD(model, 1e-4, approximation="expand"),
    "SINGD (reduce, dense)": lambda model: SINGD(model, 1e-4, structures="dense"),
    "KFAC (reduce)": lambda model: KFAC(model, 1e-4),
    "KFAC (reduce, rank 64)": lambda model: KFAC(model, 1e-4, rank=64),
    "KFAC (expand)": lambda model: KFAC(model, 1e-4, approximation="expand"),
    "EKFAC (reduce)": lambda model: EKFAC(model, 1e-4),
}


def kinds_of(name: str) -> dict[str, float]:
    """The kinds of steps of an optimiser, and how often each is taken."""
    if name == "SGD":
        return {"plain": 1.0}
    if "KFAC" not in name or "rank" in name:
        return {"plain": 1 - 1 / FACTORS, "factors": 1 / FACTORS}
    return {"plain": 1 - 1 / FACTORS, "factors": 1 / FACTORS - 1 / INVERSES, "inverses": 1 / INVERSES}


class Stepper:
    """A model of its own whose optimiser takes steps of a chosen kind."""

    def __init__(self, name: str, network: Network) -> None:
        torch.manual_seed(0)
        self._images = torch.randn(network.images)
        self._labels = torch.randint(10, network.images[:1])
        self._model = network.build().train()
        self._optimizer = OPTIMIZERS[name](self._model)
        self.step()  # in the first one all is due

    def step(self, kind: str | None = None) -> None:
        """Take a step."""
        if kind is not None:
            self._arrange(kind)
        self._optimizer.zero_grad()
        cross_entropy(self._model(self._images), self._labels).backward()
        self._optimizer.step()

    def _arrange(self, kind: str) -> None:
        optimizer = self._optimizer
        if hasattr(optimizer, "H_Ks"):  # the peer
            optimizer.steps = FACTORS if kind == "factors" else 1
            optimizer._grad_scales.update({optimizer.steps - 1: 1.0, optimizer.steps: 1.0})
        elif hasattr(optimizer, "factor_every"):
            optimizer.factor_every = NEVER if kind == "plain" else 1
            optimizer.inverse_every = 1 if kind == "inverses" or not optimizer.method.costly else NEVER
            for group in optimizer.param_groups:
                group["steps"] = STEPS
            optimizer._prepare()


def measured(network: Network, names: Mapping[str, Any], budget: float) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of a step of each optimiser on average, all measured in turn.

    A kind of step that takes more than a tenth of the budget, such as one with eigendecompositions of large matrices,
    is timed once.
    """
    steppers = {name: Stepper(name, network) for name in names}
    contenders = {
        (name, kind): partial(stepper.step, kind) for name, stepper in steppers.items() for kind in kinds_of(name)
    }
    peaks: dict[str, int] = {}
    long: dict[tuple[str, str], list[float]] = {}
    cpu = torch.device("cpu")
    for (name, kind), step in contenders.items():
        with StepPeak(cpu) as peak:
            seconds = seconds_per_call(step, 1, cpu)
        peaks[name] = max(peaks.get(name, 0), peak.bytes)
        if seconds > budget / 10:
            long[name, kind] = [seconds]
    short = {key: step for key, step in contenders.items() if key not in long}
    timings = long | interleave(short, lambda run, times: seconds_per_call(run, times, cpu), ROUNDS, budget)
    return {
        name: {
            "seconds": sum(share * median(timings[name, kind]) for kind, share in kinds_of(name).items()),
            "bytes": float(peaks[name]),
        }
        for name in names
    }


def first_layer(images: int, size: int, budget: float) -> dict[str, float]:
    """Seconds of KFAC-reduce's input factor of ConvNeXt-Base's first layer by a network, and by unfolding."""
    spec = ConvSpec((images, 3, size, size), 128, 4, stride=4)
    x = torch.randn(spec.input_shape)

    def unfolding() -> Tensor:
        rows = unfold(x, 4, stride=4).mean(2)
        return rows.T @ rows / len(rows)

    cpu = torch.device("cpu")
    contenders = {"randbp": lambda: input_factor(spec, x), "unfolded": unfolding}
    timings = interleave(contenders, lambda run, times: seconds_per_call(run, times, cpu), ROUNDS, budget)
    return {name: median(readings) for name, readings in timings.items()}
