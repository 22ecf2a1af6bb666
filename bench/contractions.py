"""Contractions of `randbp.tn` against PyTorch's own kernels and einconv, over the layers of five networks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from randbp import tn

from .harness import geometric_mean, interleave, save, show
from .layers import Layer, layers
from .memory import peak_bytes
from .place import Place

Contender = Callable[[], Tensor]


@dataclass(frozen=True)
class Target:
    """What a benchmark is held to: the geometric mean of ``peer's time / ours`` is at least ``least``."""

    peer: str
    least: float


def vjp_contenders(spec: tn.ConvSpec, which: str) -> dict[str, Contender]:
    """Ours, PyTorch's and einconv's weight or input VJP."""
    x, w = torch.randn(spec.input_shape), torch.randn(spec.weight_shape)
    v = torch.randn(spec.output_shape)
    padding = [left for left, _ in spec.padding]
    mask = [which == "input", which == "weight", False]
    backward = torch.ops.aten.convolution_backward.default

    def native() -> Tensor:
        results = backward(
            v, x, w, None, spec.stride, padding, spec.dilation, False, [0] * spec.dims, spec.groups, mask
        )
        return results[0 if which == "input" else 1]

    if which == "weight":
        net = tn.weight_vjp(spec)
        ours: Contender = lambda: net.contract(input=x, output_grad=v)  # noqa: E731
    else:
        net = tn.input_vjp(spec)
        ours = lambda: net.contract(weight=w, output_grad=v)  # noqa: E731
    return {"randbp": ours, "pytorch": native} | _einconv(which, spec, x, w, v)


def kfac_contenders(spec: tn.ConvSpec, which: str) -> dict[str, Contender]:
    """Ours, unfold with a matrix product, and einconv's KFAC factor."""
    x = torch.randn(spec.input_shape)
    padding = [left for left, _ in spec.padding]

    def unfolded() -> Tensor:
        u = F.unfold(x, spec.kernel_size, spec.dilation, padding, spec.stride).unflatten(1, (spec.groups, -1))
        if which == "expand":
            return torch.einsum("ngio,ngjo->gij", u, u) / spec.batch_size
        mean = u.mean(-1)
        return torch.einsum("ngi,ngj->gij", mean, mean) / spec.batch_size

    net = tn.kfac_expand(spec) if which == "expand" else tn.kfac_reduce(spec)
    ours: Contender = lambda: net.contract(input=x)  # noqa: E731
    contenders = {"randbp": ours, "unfold": unfolded} | _einconv(which, spec, x, x, x)
    return contenders if which == "expand" else contenders | {"bound": _least_work(spec, x)}


def _least_work(spec: tn.ConvSpec, x: Tensor) -> Contender:
    """What no way of computing KFAC-reduce can leave out: reading the input once, and the product at the end."""
    rows = spec.weight_shape[1] * _volume(spec.kernel_size)
    sums = torch.randn(spec.groups, rows, spec.batch_size)

    def least() -> Tensor:
        x.sum()
        return torch.bmm(sums, sums.transpose(1, 2))

    return least


def _einconv(which: str, spec: tn.ConvSpec, x: Tensor, w: Tensor, v: Tensor) -> dict[str, Contender]:
    """einconv's simplified expression, built once beforehand (its own users build it at every call)."""
    try:
        from einconv.expressions import convNd_input_vjp, convNd_kfac_reduce, convNd_kfc, convNd_weight_vjp
    except ImportError:
        return {}
    padding = tuple(left for left, _ in spec.padding)
    geometry: dict[str, Any] = {
        "stride": spec.stride,
        "padding": padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
    }
    if which == "weight":
        made = convNd_weight_vjp.einsum_expression(x, v, spec.kernel_size, **geometry)
    elif which == "input":
        made = convNd_input_vjp.einsum_expression(w, v, spec.input_size, **geometry)
    elif which == "reduce":
        made = convNd_kfac_reduce.einsum_expression(x, spec.kernel_size, **geometry)
    else:
        made = convNd_kfc.einsum_expression(x, spec.kernel_size, **geometry)
    equation, operands, shape = made
    return {"einconv": lambda: torch.einsum(equation, *operands).reshape(shape)}


BENCHMARKS: dict[str, tuple[Callable[[tn.ConvSpec], dict[str, Contender]], list[Target]]] = {
    "weight-vjp": (
        lambda spec: vjp_contenders(spec, "weight"),
        [Target("pytorch", 1 / 1.05), Target("einconv", 2.5)],
    ),
    "input-vjp": (
        lambda spec: vjp_contenders(spec, "input"),
        [Target("pytorch", 1 / 1.05), Target("einconv", 2.5)],
    ),
    "kfac-reduce": (
        lambda spec: kfac_contenders(spec, "reduce"),
        [Target("unfold", 30), Target("einconv", 5)],
    ),
    "kfac-expand": (
        lambda spec: kfac_contenders(spec, "expand"),
        [Target("unfold", 1), Target("einconv", 1)],
    ),
}


def measure(name: str, layer: Layer, budget: float, place: Place, check: bool = True) -> dict[str, Any]:
    """One benchmark on one layer: seconds and noise per contender, and extra memory of ours."""
    with place.tensors():
        contenders = BENCHMARKS[name][0](layer.spec)
    if check:
        reference = contenders["randbp"]()
        for peer, other in contenders.items():
            result = reference if peer == "bound" else other()
            if not torch.allclose(result, reference, rtol=1e-2, atol=1e-2 * float(reference.abs().max())):
                raise AssertionError(f"{name} on {layer.name}: contenders disagree")
    timings = interleave(contenders, budget)
    row: dict[str, Any] = {"layer": layer.name, "network": layer.network}
    for peer, timing in timings.items():
        row[peer] = timing.seconds
        row[f"{peer}_noise"] = timing.noise
        if timing.device is not None:
            row[f"{peer}_device"] = timing.device
    row["rounds"] = timings["randbp"].rounds
    result = contenders["randbp"]()
    size = result.element_size()
    for peer, other in contenders.items():
        if peer != "bound":
            extra = peak_bytes(other) - result.numel() * size
            row["extra_memory" if peer == "randbp" else f"{peer}_memory"] = extra / (
                size * _volume(layer.spec.input_shape)
            )
    return row


def _volume(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def run(name: str, pattern: str, budget: float, place: Place) -> dict[str, Any]:
    """One benchmark over layers: prints the table, writes the JSON, returns the summary."""
    rows, table = [], []
    targets = BENCHMARKS[name][1]
    peers = [target.peer for target in targets]
    torch.manual_seed(0)
    for layer in layers(pattern):
        row = measure(name, layer, budget, place)
        rows.append(row)
        known = [peer for peer in peers if peer in row]
        best = min((row[peer] for peer in known), default=row["randbp"])
        noise = max(row[f"{peer}_noise"] for peer in ["randbp", *known])
        table.append(
            [layer.name, f"{row['randbp'] * 1e3:.3f}"]
            + [f"{row[peer] / row['randbp']:.2f}x" for peer in known]
            + [f"{row['randbp'] / best:.2f}", f"{100 * row['extra_memory']:.1f} %", f"{100 * noise:.0f} %"]
        )
        shares = [
            f"{row[f'{p}_device'] / row['randbp_device']:.2f}x on the device" for p in known if f"{p}_device" in row
        ]
        print(" | ".join([*table[-1], *shares]), flush=True)
    summary: dict[str, Any] = {}
    for target in targets:
        ratios = [row[target.peer] / row["randbp"] for row in rows if target.peer in row]
        if ratios:
            mean = geometric_mean(ratios)
            summary[target.peer] = {"geometric_mean": mean, "worst": min(ratios), "held_to": target.least}
            if "randbp_device" in rows[0]:
                shares = [row[f"{target.peer}_device"] / row["randbp_device"] for row in rows if target.peer in row]
                summary[target.peer] |= {"device_geometric_mean": geometric_mean(shares), "device_worst": min(shares)}
                print(
                    f"time of {target.peer} over randbp's on the device alone: geometric mean "
                    f"{geometric_mean(shares):.2f}, worst {min(shares):.2f}"
                )
            table.append(
                [
                    f"geometric mean against {target.peer}",
                    "",
                    f"{mean:.2f}x",
                    f"(held to {target.least:.2f}x)",
                ]
            )
            table[-1] += [""] * (len(table[0]) - len(table[-1]))
    summary["worst_against_best_peer"] = max(
        (row["randbp"] / min(row[peer] for peer in peers if peer in row) for row in rows), default=None
    )
    extra = [max(row["extra_memory"], 1e-4) for row in rows]
    summary["extra_memory"] = {"geometric_mean": geometric_mean(extra), "worst": max(extra, default=None)}
    print(
        f"extra memory over the input's: geometric mean {100 * geometric_mean(extra):.2f} %, "
        f"worst {100 * max(extra):.1f} %"
    )
    if "bound" in rows[0]:
        for peer in known:
            most = geometric_mean([row[peer] / row["bound"] for row in rows if peer in row])
            summary[peer]["bound"] = most
            print(f"reading the input once and the last product alone would be {most:.2f}x faster than {peer}")
    show(
        f"{name}: time of each peer over randbp's ({torch.get_num_threads()} threads)",
        ["layer", "randbp ms", *peers, "/best", "extra memory", "noise"],
        table,
    )
    path = save(f"{name}{place.suffix}", rows, summary)
    print(f"written to {path}")
    return summary


def first_layer_of_convnext(budget: float, place: Place) -> dict[str, Any]:
    """KFAC-reduce of ConvNeXt-Base's first layer on (32, 3, 256, 256), for which literature has 3.7x over
    unfold on a GPU."""
    layer = layers("convnext-base.0")[0]
    row = measure("kfac-reduce", layer, budget, place)
    ratio = row["unfold"] / row["randbp"]
    print(
        f"{layer.name}: KFAC-reduce {ratio:.1f}x faster than unfold (literature: 3.7x on a GPU), "
        f"extra memory {100 * row['extra_memory']:.2f} % of the input, "
        f"noise {100 * row['randbp_noise']:.0f} %"
    )
    summary = {"over_unfold": ratio, "extra_memory": row["extra_memory"], "literature_gpu": 3.7}
    print(f"written to {save(f'convnext-first-layer{place.suffix}', [row], summary)}")
    return summary
