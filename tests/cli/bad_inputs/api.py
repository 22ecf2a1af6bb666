"""The Python API: wrong arguments end in one line that names the argument, its value and what is allowed."""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import randbp
from randbp import (
    Batch,
    IfFaster,
    LowResolution,
    NormSpatial,
    Projection,
    Rounding,
    Spatial,
    autotune,
    functional,
    randomize,
    tn,
)
from randbp.callbacks import CostMonitor, TensorDropout
from randbp.curvature import KFAC
from randbp.diagnostics import gradient_error, memory_report

from .rows import Call

NAN, INF = float("nan"), float("inf")
KEEP = "expected a number in (0, 1]"
ESTIMATOR = "expected an estimator such as Spatial(keep=0.25) or Exact()"
GOOD = "expected 'exact', 'memory' or 'time'"
NAMES = "matches none of the convolutions '0' or linear layers '3'"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def images(channels: int = 1) -> Tensor:
    return torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def batch() -> tuple[Tensor, Tensor]:
    return images(), torch.arange(4) % 3


def randomized(**options: Any) -> Callable[[], object]:
    return lambda: randomize(net(), **({"weight_vjp": Spatial(0.5)} | options))


def twice() -> None:
    model = net()
    randomize(model, Spatial(0.5))
    randomize(model, Spatial(0.5))


def conv(x: Any = None, weight: Any = None, **options: Any) -> Callable[[], object]:
    weight = torch.ones(4, 1, 3, 3) if weight is None else weight
    return lambda: functional.conv(images() if x is None else x, weight, **options)


def gradient(**options: Any) -> Tensor:
    """The estimated gradient of the convolution of :func:`net`, with weights that are always the same."""
    torch.manual_seed(0)
    model = net()
    with randomize(model, Spatial(keep=0.25), **options):
        nn.functional.cross_entropy(model(images()), batch()[1]).backward()
    assert model[0].weight.grad is not None
    return model[0].weight.grad


def seeds_repeat_and_differ() -> None:
    seeds = [0, -1, -2, 1, 2**31, 2**32, 2**63, 2**64 - 3, numpy.int64(7)]
    gradients = [gradient(seed=seed) for seed in seeds]
    for index, (seed, one) in enumerate(zip(seeds, gradients, strict=True)):
        assert torch.equal(one, gradient(seed=seed)), seed
        assert not any(torch.equal(one, other) for other in gradients[:index]), seed


def least_keep_rate() -> None:
    torch.manual_seed(0)
    model = net()
    with randomize(model, Spatial(keep=1e-30)) as handle:
        assert handle.keep_rates == {"0": 1e-30}
        nn.functional.cross_entropy(model(images()), batch()[1]).backward()
    found = model[0].weight.grad
    assert found is not None and found.isfinite().all() and found.any()


SPEC = tn.ConvSpec((2, 3, 8, 8), out_channels=4, kernel_size=3, padding=1)


def factors(**options: Any) -> Callable[[], object]:
    return lambda: KFAC(net(), **options)


def row(id: str, call: Callable[[], object], *says: str, error: type[Exception] = ValueError) -> Call:
    """A call that is refused."""
    return Call(id, call, says, error)


KEEPS: dict[str, Any] = {
    "nan": NAN,
    "0": 0,
    "-1": -1,
    "1.5": 1.5,
    "inf": INF,
    "'0.5'": "0.5",
    "None": None,
    "True": True,
    "tensor(0.5)": torch.tensor(0.5),
}


ROWS = [
    *(
        row(f"Spatial(keep={name})", lambda value=value: Spatial(keep=value), f"keep={value!r}", KEEP)
        for name, value in KEEPS.items()
    ),
    row("Spatial() no keep", lambda: Spatial(), "missing", "'keep'", error=TypeError),
    row("Spatial(0.5, center='yes')", lambda: Spatial(0.5, center="yes"), "center='yes'", "True or False"),
    row("Spatial(0.5, runs=-3)", lambda: Spatial(0.5, runs=-3), "runs=-3", "True or False"),
    Call("Spatial(keep=1e-30) use", least_keep_rate, says=None),
    row("Rounding(bits=0)", lambda: Rounding(bits=0), "bits=0", "an integer from 1 to 8"),
    row("Rounding(bits=2.5)", lambda: Rounding(bits=2.5), "bits=2.5", "an integer from 1 to 8"),
    row("Rounding(bits=64)", lambda: Rounding(bits=64), "bits=64", "an integer from 1 to 8"),
    row("Rounding(bits=4, estimator='Spatial')", lambda: Rounding(4, "Spatial"), "estimator='Spatial'"),
    row("Projection(kind='gauss')", lambda: Projection(0.5, kind="gauss"), "kind='gauss'", "'gaussian' or"),
    row("LowResolution(block=0)", lambda: LowResolution(0.5, block=0), "block=0", "an integer >= 2"),
    row("NormSpatial(top=2)", lambda: NormSpatial(0.5, top=2), "top=2", "a number in [0, 1)"),
    row("IfFaster(0.5)", lambda: IfFaster(0.5), "estimator=0.5", "expected an estimator"),
    row("randomize weight_vjp='Spatial'", randomized(weight_vjp="Spatial"), "weight_vjp='Spatial'", ESTIMATOR),
    row("randomize weight_vjp=Spatial (class)", randomized(weight_vjp=Spatial), "weight_vjp=<", ESTIMATOR),
    row("randomize weight_vjp=0.25", randomized(weight_vjp=0.25), "weight_vjp=0.25", ESTIMATOR),
    row("randomize layers='nope.*'", randomized(layers="nope.*"), "layers='nope.*'", NAMES),
    row("randomize layers=['0','nope']", randomized(layers=["0", "nope"]), "layers='nope'", NAMES),
    row("randomize layers=[]", randomized(layers=[]), "layers=[]", "at least one name or glob"),
    row("randomize layers=3", randomized(layers=3), "layers=3", "expected names, globs or a predicate"),
    row(
        "randomize mapping glob unmatched",
        randomized(weight_vjp={"nope": Spatial(0.5)}),
        "weight_vjp",
        "'nope'",
        "matches none",
    ),
    row("randomize mapping value wrong", randomized(weight_vjp={"0": 0.5}), "weight_vjp=0.5", "'0'"),
    row("randomize twice", twice, "layers", "'0' is already randomised"),
    row("randomize seed='a'", randomized(seed="a"), "seed='a'", "expected an integer"),
    Call("randomize seed=-1", seeds_repeat_and_differ, says=None),
    *(
        row(f"randomize seed={text}", randomized(seed=seed), f"seed={seed}", "from -2**63 to 2**64 - 1")
        for text, seed in {"2**80": 2**80, "2**64": 2**64, "-2**63-1": -(2**63) - 1}.items()
    ),
    row("TensorDropout seed=2**80", lambda: TensorDropout(seed=2**80), f"seed={2**80}"),
    row("manual_seed(2**80)", lambda: randbp.manual_seed(2**80), f"seed={2**80}"),
    row("gradient_error seed=2**80", lambda: gradient_error(net(), batch(), seed=2**80), f"seed={2**80}"),
    row("autotune seed='a'", lambda: autotune(net(), batch(), seed="a"), "seed='a'", "expected an integer"),
    *(
        row(f"{name} preset={value!r}", lambda make=make, value=value: make(preset=value), f"preset={value!r}", GOOD)
        for name, make in (
            ("randomize", lambda **options: randomize(net(), **options)),
            ("TensorDropout", TensorDropout),
        )
        for value in ("fast", True, ["memory"])
    ),
    row("randomize preset, bits=0", lambda: randomize(net(), preset="memory", bits=0), "bits=0: expected an"),
    row("randomize preset, layers='nope'", lambda: randomize(net(), preset="memory", layers="nope"), "layers=", NAMES),
    row("randomize weight_vjp=None", randomized(weight_vjp=None), "weight_vjp=None", ESTIMATOR),
    row("randomize lean=None", randomized(lean=None), "lean=None", "True, False, 'exact'"),
    row("randomize bits=99", randomized(bits=99), "bits=99", "an integer from 1 to 8"),
    row("randomize parts=0", randomized(parts=0), "parts=0", "an integer >= 1"),
    row("randomize lean='yes'", randomized(lean="yes"), "lean='yes'", "True, False, 'exact'"),
    row("randomize lean mapping unmatched", randomized(lean={"nope": True}), "lean", "'nope'", "matches no"),
    row("randomize(not a module)", lambda: randomize([1, 2]), "model=[1, 2]", "expected a torch.nn.Module"),
    row("randomize model without conv", lambda: randomize(nn.Linear(2, 2), Spatial(0.5)), "Linear has no"),
    row(
        "randomize input_vjp=Batch (weight only)",
        randomized(input_vjp=Batch(0.5)),
        "input_vjp=Batch",
        "Batch serves only weight_vjp",
    ),
    row("functional.conv wrong shape", conv(images(2)), "weight: shape (4, 1, 3, 3)", "(4, 2, 3, 3)"),
    row("functional.conv padding='bad'", conv(padding="bad"), "padding='bad'", "'same', 'valid'"),
    row("functional.conv stride=0", conv(stride=0), "stride=0", "expected one integer >= 1"),
    row("functional.conv weight_vjp='Spatial'", conv(weight_vjp="Spatial"), "weight_vjp='Spatial'", ESTIMATOR),
    row("functional.conv numpy input", conv(numpy.ones((1, 1, 8, 8))), "x: ndarray", "torch.Tensor"),
    row(
        "functional.linear wrong shape",
        lambda: functional.linear(torch.ones(3, 5), torch.ones(2, 6)),
        "x: shape (3, 5)",
        "C = 6",
    ),
    row("ConvSpec negative", lambda: tn.ConvSpec((1, 1, 8, 8), -1, 3), "out_channels=-1", "positive multiple"),
    row(
        "ConvSpec kernel larger than input",
        lambda: tn.ConvSpec((1, 1, 2, 2), 1, 5),
        "kernel_size=(5, 5)",
        "larger than the padded input (2, 2)",
    ),
    row(
        "net.contract wrong name",
        lambda: tn.weight_vjp(SPEC).contract(inpt=images(3)),
        "'inpt'",
        "weight_vjp takes input, output_grad",
    ),
    row(
        "net.contract wrong shape",
        lambda: tn.weight_vjp(SPEC).contract(input=torch.ones(2, 3, 9, 8), output_grad=torch.ones(2, 4, 8, 8)),
        "input of shape (2, 3, 9, 8)",
        "needs (2, 3, 8, 8)",
    ),
    row(
        "net.subsample unknown index",
        lambda: tn.weight_vjp(SPEC).subsample(zz=torch.tensor([0])),
        "'zz'",
        "the legs of weight_vjp are",
    ),
    row(
        "net.subsample out of range",
        lambda: tn.weight_vjp(SPEC).subsample(i1=torch.tensor([100])),
        "'i1'",
        "100",
        "allowed is 0 to 7",
    ),
    row("autotune budget=0", lambda: autotune(net(), batch(), budget=0), "budget=0", "in (0, 1]"),
    row("autotune budget=2", lambda: autotune(net(), batch(), budget=2), "budget=2", "in (0, 1]"),
    row(
        "autotune objective='speed'",
        lambda: autotune(net(), batch(), objective="speed"),
        "objective='speed'",
        "'memory' or 'time'",
    ),
    row("autotune data=None", lambda: autotune(net(), None), "sample_batch=None", "expected tensors"),
    row("gradient_error batch=None", lambda: gradient_error(net(), None), "batch=None", "expected tensors"),
    row("memory_report inputs=None", lambda: memory_report(net(), None), "inputs=None", "expected"),
    row(
        "gradient_error data wrong (x only)",
        lambda: gradient_error(net(), images()),
        "loss=None",
        "expected a pair (inputs, targets)",
    ),
    row(
        "gradient_error wrong labels",
        lambda: gradient_error(net(), (images(), torch.tensor([103, 0, 1, 2]))),
        "Target 103 is out of bounds",
        error=IndexError,
    ),
    row(
        "memory_report wrong input",
        lambda: memory_report(net(), images(3)),
        "to have 1 channels, but got 3 channels",
        error=RuntimeError,
    ),
    row("KFAC lr=-1", factors(lr=-1), "lr=-1", "expected a number from 0"),
    row("KFAC lr='x'", factors(lr="x"), "lr='x'", "expected a number from 0"),
    row("KFAC approximation='foo'", factors(approximation="foo"), "approximation='foo'", "'reduce' or 'expand'"),
    row("KFAC(parameters) like torch", lambda: KFAC(net().parameters(), lr=0.1), "model=<gen", "nn.Module"),
    row("TensorDropout(weight_vjp=0.25)", lambda: TensorDropout(weight_vjp=0.25), "weight_vjp=0.25", ESTIMATOR),
    row("TensorDropout(layers=5)", lambda: TensorDropout(layers=5), "layers=5", "names, globs or a predicate"),
    Call("TensorDropout() nothing", lambda: TensorDropout(), says=None),
    row(
        "TensorDropout(keep=.5)", lambda: TensorDropout(keep=0.5), "unexpected keyword argument 'keep'", error=TypeError
    ),
    row("CostMonitor(every=-1)", lambda: CostMonitor(every=-1), "unexpected keyword argument 'every'", error=TypeError),
    row("CostMonitor(-1)", lambda: CostMonitor(-1), "warmup_steps=-1", "at least 0"),
]
