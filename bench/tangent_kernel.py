"""The empirical neural tangent kernel of whole networks: randbp's, and PyTorch's two ways with ``torch.func``.

These are the Jacobians of all examples (``vmap`` of ``jacrev``), multiplied parameter by parameter, and products of the
kernel with unit vectors (``vmap`` of ``vjp`` and ``jvp``), for one example and all others at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from experiments.models import AllCNNC, ResNet18
from experiments.ntk.run_ntk import network as digits_cnn
from randbp.curvature import ntk
from randbp.diagnostics import StepPeak

from .harness import interleave, matching, save, show

OURS, JACOBIANS = "randbp", "torch.func, Jacobians"
CLASSES = 10
# Network, input, examples.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "digits-cnn": (lambda: digits_cnn(64, 0), (1, 8, 8), 32),
    "all-cnn-c": (lambda: AllCNNC(CLASSES, width=0.5, dropout=False), (3, 32, 32), 16),
    "resnet-18": (lambda: ResNet18(CLASSES), (3, 64, 64), 4),
}


def by_jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """``[N, N, C, C]``."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    made = vmap(jacrev(lambda given, one: functional_call(model, given, (one[None],))[0]), (None, 0))(parameters, x)
    kernel = x.new_zeros(())
    for jacobian in made.values():
        rows = jacobian.flatten(2).flatten(0, 1)
        kernel = kernel + (rows @ rows.mT).view(*jacobian.shape[:2], *jacobian.shape[:2])
    return kernel.transpose(1, 2)


def by_products(model: nn.Module, x: Tensor) -> Tensor:
    """``[N, N, C, C]``."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def pair(first: Tensor, second: Tensor) -> Tensor:
        def outputs(one: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
            return lambda given: functional_call(model, given, (one[None],))[0]

        def product(cotangent: Tensor) -> Tensor:
            (pulled,) = vjp(outputs(second), parameters)[1](cotangent)
            pushed: Tensor = jvp(outputs(first), (parameters,), (pulled,))[1]
            return pushed

        return vmap(product)(torch.eye(CLASSES)).mT

    return torch.stack([vmap(partial(pair, one))(x) for one in x])


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    OURS: ntk,
    JACOBIANS: by_jacobians,
    "torch.func, products": by_products,
}


def run(pattern: str, budget: float, examples: int | None = None) -> dict[str, Any]:
    """Time and peak memory of the networks whose names start with the pattern's parts: a table each, one JSON file."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name in matching(pattern, NETWORKS):
        make, shape, count = NETWORKS[name]
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(examples or count, *shape)
        peaks, kernels = {}, {}
        ways = WAYS if name == "digits-cnn" else {way: WAYS[way] for way in (OURS, JACOBIANS)}  # products take minutes
        for way, function in ways.items():
            function(model, x[:1])
            with StepPeak("cpu") as peak:
                kernels[way] = function(model, x)
            peaks[way] = peak.bytes
        timings = interleave({way: partial(function, model, x) for way, function in ways.items()}, budget, (3, 9))
        summary[name] = {}
        for way, timing in timings.items():
            error = float((kernels[way] - kernels[OURS]).norm() / kernels[OURS].norm())
            assert error < 1e-3, (name, way, error)
            rows.append({"network": name, "way": way, "seconds": timing.seconds, "bytes": peaks[way], "error": error})
            summary[name][way] = [timing.seconds / timings[OURS].seconds, peaks[way] / peaks[OURS]]
        table = [[way, *(f"{ratio:.1f}" for ratio in ratios)] for way, ratios in summary[name].items()]
        ours = f"over {timings[OURS].seconds:.2f} s", f"peak over {peaks[OURS] / 2**20:.0f} MiB"
        show(f"kernel of {name}, {len(x)} images, {CLASSES} outputs", ["way", *ours], table)
    print(f"written to {save('ntk', rows, summary)}")
    return summary
