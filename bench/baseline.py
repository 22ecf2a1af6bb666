"""What is held, multiplied, estimated, planned and needed today, in one file that later states are compared with.

``python -m bench baseline --write FILE`` records it, ``--compare FILE`` measures again, prints what differs and ends
with 1 if anything does. Tolerances: bytes, multiply-adds and plans none; peaks a hundredth; variances 5 standard errors
of the two measurements; times, which are ratios to the exact VJP of the same run, thrice the quartiles' spread and a
twentieth. ``--no-times`` leaves times out; ``--settings`` takes
parts by their names: described, variances, plans, rules, steps, times.
"""

import gc
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randbp import Estimator, Exact, tn
from randbp.diagnostics import memory_report
from randbp.estimators import Draw
from randbp.kernels import backends
from randbp.lean.rules import RULES
from randbp.tn import ConvSpec
from randbp.tn.planning.plan import make_plan
from tests.catalogue import ESTIMATORS
from tests.lean.same import lean
from tests.lean_catalogue import BY_NAME, base_name

from .calls import one_thread
from .harness import interleave, machine
from .layers import Layer, layers
from .lean import Run
from .lean_settings import NETWORKS, SETTINGS

Rows = dict[str, dict[str, Any]]
LAYERS = (
    "all-cnn-c.1,all-cnn-c.2,all-cnn-c.7,resnet-18.0,resnet-18.3,resnet-18.4,vgg-19.8,mobilenet-v2.3,mobilenet-v2.7,"
    "mobilenet-v2.11,convnext-base.0,convnext-base.5"
)
TIMED = "all-cnn-c.1,resnet-18.4,mobilenet-v2.7,mobilenet-v2.11,convnext-base.0,convnext-base.5"
VARIED = "all-cnn-c.2,resnet-18.4,mobilenet-v2.11,convnext-base.0"
KEEP = 0.25
DRAWS = 16
OPERATIONS: tuple[Callable[[Any], tn.TensorNetwork], ...] = (
    *(tn.conv, tn.weight_vjp, tn.input_vjp, tn.unfold, tn.per_example_weight_vjp, tn.kfac_expand, tn.kfac_reduce),
    *(tn.gradient_gram, tn.ggn_diagonal),
)
BATCHES = {"resnet-18": 2, "vgg-19": 1, "all-cnn-c": 16, "mobilenet-v2": 8, "convnext-base": 4}
STEPS = ("exact", "preset exact", "preset memory", "Spatial(1/8), lean", "the same in 4 bits")


def chosen() -> dict[str, Estimator]:
    """All estimators of the catalogue but those that only choose, as tests of real layers take them."""
    made = {case.name: case.real or case.make(KEEP) for case in ESTIMATORS if not case.chooses}
    return {f"{name}, {estimator}": estimator for name, estimator in made.items()}


def described() -> Rows:
    """Bytes that are held, by description and by a sketch without data, and multiply-adds."""
    rows = {}
    for layer in layers(LAYERS):
        x = torch.empty(layer.spec.input_shape, device="meta")
        for name, estimator in chosen().items():
            said = estimator.describe(layer.spec)
            row = {"held": said.held_bytes, "weight": said.weight_multiply_adds, "input": said.input_multiply_adds}
            if estimator.fixed_size:
                sketch = (Exact() if estimator.exact else estimator).sketch(x, layer.spec, Draw(0))
                row["sketched"] = sum(tensor.untyped_storage().nbytes() for tensor in sketch)
            rows[f"{layer.network}.{layer.number} | {name}"] = row
    return rows


def shrunk(spec: ConvSpec) -> ConvSpec:
    """A layer of the same kind that takes little time."""
    groups = 1 if spec.groups == 1 else min(spec.groups, 16)
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    size = [min(i, 16) for i in spec.input_size]
    shape = (6, groups * min(inner, 16), *size)
    return replace(spec, input_shape=shape, out_channels=groups * min(outer, 16), groups=groups)


def variances() -> Rows:
    """Squared errors over the squared VJP, of smooth images and of noise as output gradients: mean, standard error."""
    rows = {}
    for layer in layers(VARIED):
        spec = shrunk(layer.spec)
        generator = torch.Generator().manual_seed(0)
        x = torch.nn.functional.avg_pool2d(torch.randn(spec.input_shape, generator=generator), 3, 1, 1).relu()
        v, w = (torch.randn(shape, generator=generator) for shape in (spec.output_shape, spec.weight_shape))
        exact_weight = Exact().weight_vjp((x,), v, spec, Draw(0))
        exact_input = Exact().input_vjp(v, w, spec, Draw(0))
        for name, estimator in chosen().items():
            if estimator.exact:
                continue

            def weight(draw: Draw, estimator: Estimator = estimator, x: Tensor = x, v: Tensor = v) -> Tensor:
                return estimator.weight_vjp(estimator.sketch(x, spec, draw), v, spec, draw)  # noqa: B023

            row: dict[str, Any] = {"stated": estimator.describe(spec).relative_variance}
            row["weight"] = _errors(weight, exact_weight)
            if "input_vjp" in estimator.serves:
                row["input"] = _errors(lambda draw, e=estimator: e.input_vjp(v, w, spec, draw), exact_input)  # noqa: B023
            rows[f"{layer.network}.{layer.number} | {name}"] = row
    return rows


def _errors(estimate: Callable[[Draw], Tensor], exact: Tensor) -> list[float]:
    errors = torch.tensor(
        [float((estimate(Draw(n)) - exact).square().sum() / exact.square().sum()) for n in range(DRAWS)]
    )
    return [float(f"{value:.5g}") for value in (errors.mean(), errors.std() / math.sqrt(DRAWS))]


def plans() -> Rows:
    """The plans of operations, as printed, and a hash of that."""
    rows = {}
    for layer in layers(LAYERS):
        for operation in OPERATIONS:
            text = str(make_plan(operation(layer.spec), torch.float32, torch.device("cpu")))
            key = f"{layer.network}.{layer.number} | {operation.__name__}"
            rows[key] = {"hash": sha256(text.encode()).hexdigest()[:16], "printed": text.splitlines()}
    return rows


def rules() -> Rows:
    """Bytes that the catalogue's call of each function holds: PyTorch's, exact rules', and rounded to 4 bits."""
    rows: Rows = {}
    for function in RULES:
        name = base_name(function)
        if name in rows:
            continue
        case = BY_NAME[name]

        def call(*x: Tensor, case: Any = case, function: Any = function) -> Any:
            return case.call(function, *(y * 1 for y in x))

        levels = {"plain": False, "exact": "exact", "rounded": True}
        found = {what: memory_report(lean(call, level, 4), *case.tensors()) for what, level in levels.items()}
        rows[name] = {what: report.held_bytes for what, report in found.items()}
    return rows


def steps() -> Rows:
    """Bytes held and peaks of training steps."""
    rows = {}
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        model = network.build().train()
        for title in STEPS:
            run = Run(network, model, SETTINGS[title], BATCHES[name])
            with run.on():
                held, peak, _ = run.measure()
            rows[f"{name} | {title}"] = {"held": held, "peak": peak}
            del run
            gc.collect()
    return rows


def times(budget: float) -> Rows:
    """Both VJPs over the exact ones, drawing and storing included."""
    rows = {}
    for layer in layers(TIMED):
        for vjp in ("weight_vjp", "input_vjp"):
            rows.update(_times(layer, vjp, budget))
    return rows


def _times(layer: Layer, vjp: str, budget: float) -> Rows:
    spec = layer.spec
    x, v, w = (torch.randn(shape) for shape in (spec.input_shape, spec.output_shape, spec.weight_shape))
    seeds = iter(range(10**9))

    def run(estimator: Estimator) -> Tensor:
        draw = Draw(next(seeds))
        if vjp == "input_vjp":
            return estimator.input_vjp(v, w, spec, draw)
        return estimator.weight_vjp(estimator.sketch(x, spec, draw), v, spec, draw)

    serving = {name: one for name, one in chosen().items() if vjp in one.serves and not one.exact}
    contenders = {"exact": Exact(), **serving}
    timings = interleave({name: lambda one=one: run(one) for name, one in contenders.items()}, budget * len(contenders))
    first = timings.pop("exact")
    return {
        f"{layer.network}.{layer.number} | {vjp} | {name}": {
            "ratio": float(f"{timing.seconds / first.seconds:.4g}"),
            "noise": float(f"{max(timing.noise, first.noise):.2g}"),
        }
        for name, timing in timings.items()
    }


def measure(budget: float, names: Sequence[str] = ("",)) -> dict[str, Any]:
    """The parts whose names contain a text; times only where ``budget`` seconds per contender are given."""
    torch.manual_seed(0)
    parts: dict[str, Callable[[], Rows]] = {
        "described": described,
        "variances": variances,
        "plans": plans,
        "rules": rules,
        "steps": steps,
    }
    found: dict[str, Any] = {"environment": environment()}
    if budget:
        parts["times"] = lambda: times(budget)
    for name, part in parts.items():
        if any(text in name for text in names):
            with nullcontext() if name == "times" else one_thread():  # on whose number plans depend
                found[name] = part()
            print(f"{name}: {len(found[name])} rows", flush=True)
    return found


def environment() -> dict[str, Any]:
    """What may explain a difference."""
    served = sorted({backend for places in backends().values() for backend in places.values()})
    place = {name: value for name, value in machine().items() if name != "platform"}
    return place | {"kernels": served, "capability": torch.backends.cpu.get_cpu_capability()}


def dumped(found: dict[str, Any]) -> str:
    """JSON with a row a line."""
    lines = []
    for part, rows in found.items():
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row, ensure_ascii=False)}" for key, row in rows.items())
        lines.append(f" {json.dumps(part)}: {{\n{inner}\n }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """A line for each row that differs by more than its tolerance, or that only one of both has."""
    for part in (part for part in new if part in old and part != "environment"):
        for key in old[part].keys() | new[part].keys():
            before, after = old[part].get(key), new[part].get(key)
            if before is None or after is None:
                yield f"{part}: {key}: {'new' if before is None else 'gone'}"
                continue
            for what in before.keys() | after.keys():
                if what != "printed" and not _agree(part, what, before, after):
                    yield f"{part}: {key}: {what} {before.get(what)} is now {after.get(what)}"


def _agree(part: str, what: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    mine, other = after.get(what), before.get(what)
    if mine is None or other is None:
        return mine is other
    if part == "variances" and what != "stated":
        return abs(mine[0] - other[0]) <= 5 * math.hypot(mine[1], other[1]) + 1e-4 * abs(other[0])
    if part == "times":
        noise = 3 * max(before["noise"], after["noise"]) + 0.05
        return what == "noise" or abs(mine - other) <= noise * other
    return abs(mine - other) <= other / 100 if what == "peak" else mine == other


def run(budget: float, write: str | None, compare: str | None, names: Sequence[str] = ("",)) -> int:
    """Write parts of a baseline, beside those that the file has, or compare them with it; the exit status.

    Raises:
        ValueError: If neither or both are to be done.
    """
    if (write is None) == (compare is None):
        raise ValueError("baseline: expected one of --write FILE and --compare FILE")
    old = json.loads(Path(compare).read_text()) if compare else None
    found = measure(budget, names)
    if write:
        before = json.loads(Path(write).read_text()) if Path(write).exists() else {}
        Path(write).write_text(dumped({**before, **found}))
        print(f"written to {write}")
        return 0
    lines = sorted(differences(old, found))
    print("\n".join(lines) or "nothing differs")
    for part in old.keys() ^ found.keys():
        print(f"not compared: {part}")
    return bool(lines)
