"""Generated wrong values for every argument of the public constructors: one line that names the argument."""

import inspect
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import randbp
from randbp import Batch, Estimator, Spatial, advise, autotune, functional, manual_seed, randomize, tn
from randbp.callbacks import CostMonitor, TensorDropout
from randbp.callbacks.latest_epoch import LatestEpoch
from randbp.curvature import KBFGS, KFAC, EigenvalueCorrected, KroneckerInverse, Preconditioner, factors, ntk
from randbp.diagnostics import gradient_error

NAN, INF = float("nan"), float("inf")
WRONG: list[Any] = [
    *(NAN, INF, -INF, None, True, "x", "", -1, 0, 1.5, -(10**30), 1j, b"x", [], {}, (), [1, 2, 3], {"x": 1}),
    *(object(), int, lambda: 0, numpy.float32(0.5), numpy.int64(3), numpy.array([0.5, 0.5]), numpy.array([])),
    *(torch.tensor(0.5), torch.tensor([1, 2]), torch.tensor([])),
]
VALUES: dict[str, Any] = {"keep": 0.5, "bits": 4, "estimator": Spatial(0.5)}
ESTIMATORS = [
    one for one in vars(randbp).values() if inspect.isclass(one) and issubclass(one, Estimator) and one != Estimator
]
# What may be meant, so that the model, the loss or PyTorch's optimiser itself says what is wrong with it.
MEANT = {
    "loss": callable,
    "layers": callable,
    "batch": lambda value: isinstance(value, str | Tensor),
    "sample_batch": lambda value: isinstance(value, str | Tensor),
    "params": lambda value: isinstance(value, Sized),
    "input_shape": lambda value: isinstance(value, Tensor),  # no spatial dimensions
    "bias": lambda value: isinstance(value, Tensor),  # of another type than the weight
}
BATCH = torch.ones(4, 1, 6, 6), torch.arange(4) % 2
NET = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))


def tuned(sample_batch: Any = BATCH, budget: Any = 0.9, **options: Any) -> object:
    return autotune(NET, sample_batch, budget=budget, **{"draws": 2, "rounds": 0} | options)


def measured(batch: Any = BATCH, **options: Any) -> object:
    return gradient_error(NET, batch, **{"draws": 4, "micro_batches": 0} | options)


def advised(batch: Any = BATCH, memory: Any = "64KiB", **options: Any) -> object:
    return advise(NET, batch, memory, **{"draws": 0, "rounds": 0} | options)


def randomized(**options: Any) -> None:
    randomize(NET, **{"weight_vjp": Spatial(0.5)} | options).remove()


def conv(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1, **options: Any) -> Tensor:
    given: dict[str, Any] = {"x": BATCH[0], "weight": NET[0].weight, "weight_vjp": Spatial(0.5)} | options
    return functional.conv(**given, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose(x: Any = BATCH[0], weight: Any = NET[0].weight[:1], **options: Any) -> Tensor:
    return functional.conv_transpose(x, weight, **{"weight_vjp": Spatial(0.5)} | options)


def linear(x: Any = BATCH[0], weight: Any = torch.ones(3, 6), **options: Any) -> Tensor:  # noqa: B008
    return functional.linear(x, weight, **{"weight_vjp": Batch(0.5)} | options)


def preconditioned(**options: Any) -> KFAC:
    return KFAC(NET, **options)


def quasi_newton(**options: Any) -> KBFGS:
    return KBFGS(NET, **options)


def kernel(x: Any = BATCH[0], **options: Any) -> Tensor:
    return ntk(NET, x, **options)


def before(method: Any = KroneckerInverse(), **options: Any) -> Preconditioner:  # noqa: B008
    return Preconditioner(NET, method, **options)


def gathered(data: Any = BATCH, loss: Any = nn.functional.cross_entropy, **options: Any) -> object:
    return factors(NET, data, loss, **options)


def spec(input_shape: Any = (1, 1, 6, 6), out_channels: Any = 2, kernel_size: Any = 3, **options: Any) -> tn.ConvSpec:
    return tn.ConvSpec(input_shape, out_channels, kernel_size, **options)


def arguments() -> Iterator[tuple[Callable[..., object], str]]:
    for kind in (*ESTIMATORS, CostMonitor, LatestEpoch):
        yield from ((kind, name) for name in inspect.signature(kind).parameters)
    yield from ((TensorDropout, name) for name in ("weight_vjp", "input_vjp", "layers", "seed", "bits", "parts"))
    yield manual_seed, "seed"
    yield from ((randomized, name) for name in ("weight_vjp", "input_vjp", "layers", "seed", "bits", "parts", "lean"))
    sizes = ("stride", "padding", "dilation", "groups")
    yield from ((conv, name) for name in ("x", "weight", "bias", "weight_vjp", "input_vjp", "generator", *sizes))
    yield from ((conv_transpose, name) for name in ("x", "weight", "output_padding", *sizes))
    yield from ((linear, name) for name in ("x", "weight", "bias", "weight_vjp", "input_vjp", "generator"))
    yield from ((preconditioned, name) for name in inspect.signature(KFAC).parameters if name != "model")
    yield from ((quasi_newton, name) for name in inspect.signature(KBFGS).parameters if name != "model")
    yield from ((before, name) for name in inspect.signature(Preconditioner).parameters if name != "model")
    yield from ((EigenvalueCorrected, name) for name in ("approximation", "decay"))
    yield kernel, "memory"
    yield from ((gathered, name) for name in inspect.signature(factors).parameters if name != "model")
    yield from ((spec, name) for name in ("input_shape", "out_channels", "kernel_size", *sizes))
    yield from ((tuned, name) for name in ("sample_batch", "budget", "draws", "rounds", "loss", "seed"))
    yield from ((advised, name) for name in ("batch", "memory", "loss", "grow", "optimizer", "draws", "rounds", "seed"))
    yield from ((measured, name) for name in ("batch", "draws", "micro_batches", "confidence", "loss", "seed"))


@pytest.mark.parametrize(
    ("function", "name"), [pytest.param(f, name, id=f"{f.__name__}-{name}") for f, name in arguments()]
)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_argument(
    function: Callable[..., object], name: str
) -> None:
    needed = inspect.signature(function).parameters
    given = {key: VALUES[key] for key, one in needed.items() if one.default is one.empty and key in VALUES}
    refused = 0
    for value in WRONG:
        if name in MEANT and MEANT[name](value):
            continue
        try:
            function(**given | {name: value})
        except (ValueError, TypeError) as error:
            assert name in str(error), f"{value!r}: {error}"
            assert "\n" not in str(error), f"{value!r}: {error}"
            refused += 1
    assert refused >= len(WRONG) / 2
