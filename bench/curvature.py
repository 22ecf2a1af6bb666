"""Kronecker factors of whole networks by randbp, curvlinops, BackPACK and singd: time and memory in one run.

"Factors alone" are those of the inputs and output gradients that hooks saw, layer by layer, for layers of which a
library makes the same factors (not for grouped ones, of which curvlinops and singd make one matrix); "with passes" is
a forward and backward pass with all that a library does to have its factors. A ratio is a peer's time over that of
randbp for the same layers. Memory is the peak of such a pass beyond that of a plain backward pass. Factors that
randbp holds are part of it and are also shown apart: those of reduce are rows where these are few, of which the peers
make matrices.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.models import AllCNNC, ResNet18
from experiments.models.convnext import Block
from randbp.curvature import Approximation, factors
from randbp.diagnostics import StepPeak

from .curvature_libraries import LIBRARIES, Library, Seen, seen_in, served
from .harness import Timing, interleave, matching, save, show

Batch = tuple[Tensor, Tensor]


class _PositionMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def _unet_block() -> nn.Module:
    """Two convolutions and the transposed one that goes up again; in modules that BackPACK knows, so without a norm."""
    return nn.Sequential(
        *(nn.Conv3d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose3d(32, 16, 2, stride=2), nn.Flatten()),
    )


# Network, shape of a batch, classes.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet-18": (lambda: ResNet18(10, stem="cifar"), (64, 3, 32, 32), 10),
    "all-cnn-c": (lambda: AllCNNC(dropout=False), (128, 3, 32, 32), 100),
    "convnext-block": (lambda: nn.Sequential(Block(128, 1.0), _PositionMean()), (16, 128, 32, 32), 128),
    "unet-block-3d": (_unet_block, (2, 16, 16, 16, 16), 16 * 32**3),
}
APPROXIMATIONS: tuple[Approximation, ...] = ("reduce", "expand")


def made(network: str) -> tuple[nn.Module, Batch]:
    """A network and a batch."""
    make, shape, classes = NETWORKS[network]
    torch.manual_seed(0)
    return make(), (torch.randn(shape), torch.randint(classes, shape[:1]))


def factors_alone(network: str, approximation: Approximation, budget: float) -> list[dict[str, Any]]:
    """Time of each library for the layers that it serves, beside randbp's for the same layers."""
    contenders: dict[str, Callable[[], Any]] = {}
    layers: dict[str, tuple[str, ...]] = {}
    all_layers = 0
    for library in LIBRARIES:
        if not library.installed or approximation not in library.approximations:
            continue
        model, batch = made(network)
        if library.name == "BackPACK" and why_not(library, made(network)[0], batch, approximation):
            continue  # its functions of layers serve more than its passes do
        seen = seen_in(model, batch[0], lambda output, labels=batch[1]: cross_entropy(output, labels))  # type: ignore[misc]
        try:
            make = library.of_layers(model, batch, approximation)
        except Exception:  # it takes none of the layers
            continue
        mine = [each for each in served(make, seen) if library.grouped or getattr(each.module, "groups", 1) == 1]
        all_layers = max(all_layers, len(seen))
        if not mine:
            continue
        layers[library.name] = tuple(each.name for each in mine)
        contenders[library.name] = _all_of(make, mine)
        if layers[library.name] != layers["randbp"]:
            ours = LIBRARIES[0].of_layers(model, batch, approximation)
            contenders[_beside(library)] = _all_of(ours, mine)
    timings = interleave(contenders, budget, (3, 15))
    rows = []
    for library in LIBRARIES:
        if library.name in timings:
            beside = timings.get(_beside(library), timings["randbp"])
            rows.append(_row(network, approximation, "factors alone", library, timings[library.name], beside))
            rows[-1]["layers"] = f"{len(layers[library.name])} of {all_layers}"
    return rows


def _beside(library: Library) -> str:
    return f"randbp on the layers of {library.name}"


def _all_of(make: Callable[[Seen], Any], seen: list[Seen]) -> Callable[[], Any]:
    return lambda: [make(each) for each in seen]


def why_not(library: Library, model: nn.Module, batch: Batch, approximation: Approximation) -> str:
    """The first line of the error if a library does not take a model; empty if it does."""
    try:
        library.of_model(model, batch, approximation)()
    except Exception as error:
        return str(error).strip().split("\n", 1)[0] or type(error).__name__
    return ""


def with_passes(network: str, approximation: Approximation, budget: float) -> list[dict[str, Any]]:
    """Time and peak memory of a pass with all factors of a library, and what the library does not take."""
    model, batch = made(network)

    def plain() -> None:
        model.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()

    contenders: dict[str, Callable[[], Any]] = {"plain": plain}
    rows, refused = [], []
    for library in LIBRARIES:
        if library.installed and approximation in library.approximations and library.name != "randbp, matrices":
            own, _ = made(network)
            if why := why_not(library, own, batch, approximation):
                refused.append({"network": network, "approximation": approximation, "what": "with passes"})
                refused[-1] |= {"library": library.name, "refused": why[:70]}
            else:
                contenders[library.name] = library.of_model(own, batch, approximation)
    peaks = {name: _peak(run) for name, run in contenders.items()}
    timings = interleave(contenders, budget, (3, 15))
    held = sum(
        each.numel() * each.element_size()
        for product in factors(model, batch, nn.CrossEntropyLoss(), "empirical", approximation).values()
        for factor in product.factors
        for each in factor.held
    )
    for library in LIBRARIES:
        if library.name in timings:
            row = _row(network, approximation, "with passes", library, timings[library.name], timings["randbp"])
            row |= {"over_plain": timings[library.name].seconds / timings["plain"].seconds}
            row |= {"extra_bytes": peaks[library.name] - peaks["plain"], "factor_bytes": held}
            rows.append(row)
    return rows + refused


def _peak(run: Callable[[], Any]) -> int:
    run()
    with StepPeak(torch.device("cpu")) as peak:
        kept = run()
    del kept
    return peak.bytes


def _row(network: str, approximation: str, what: str, library: Library, own: Timing, ours: Timing) -> dict[str, Any]:
    return {
        "network": network,
        "approximation": approximation,
        "what": what,
        "library": library.name,
        "seconds": own.seconds,
        "noise": own.noise,
        "over_randbp": own.seconds / ours.seconds,
    }


def inverses(network: str, approximation: Approximation, budget: float) -> list[dict[str, Any]]:
    """Damped inverses and eigen-decompositions of all factors of a network, by randbp and curvlinops."""
    model, batch = made(network)
    ours = factors(model, batch, nn.CrossEntropyLoss(), "empirical", approximation)
    contenders: dict[str, Callable[[], Any]] = {
        "inverses: randbp": lambda: [product.inverse(1e-2) for product in ours.values()],
        "eigenvalues: randbp": lambda: [product.eigh() for product in ours.values()],
    }
    curvlinops = next(library for library in LIBRARIES if library.name == "curvlinops")
    if curvlinops.installed:
        from curvlinops import KFACInverseLinearOperator

        operator = curvlinops._operator(model, batch, approximation)  # type: ignore[attr-defined]
        operator.compute_kronecker_factors()

        def inverse(**arguments: Any) -> Callable[[], Any]:
            def run() -> Any:
                inverted = KFACInverseLinearOperator(operator, damping=1e-2, **arguments)
                return [inverted._compute_or_get_cached_inverse(name) for name in operator._mapping]

            return run

        contenders["inverses: curvlinops"] = inverse(use_heuristic_damping=True)
        contenders["eigenvalues: curvlinops"] = inverse(use_exact_damping=True)
    timings = interleave(contenders, budget, (3, 9))
    rows = []
    for name, timing in timings.items():
        what, library = name.split(": ")
        rows.append({"network": network, "what": what, "library": library, "approximation": approximation})
        rows[-1] |= {"seconds": timing.seconds, "noise": timing.noise}
        rows[-1] |= {"over_randbp": timing.seconds / timings[f"{what}: randbp"].seconds}
    return rows


def run(pattern: str, budget: float) -> dict[str, Any]:
    """Measure the networks whose names start with the pattern's parts: two tables each, one JSON file."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for network in matching(pattern, NETWORKS):
        for approximation in APPROXIMATIONS:
            alone = factors_alone(network, approximation, budget)
            whole = with_passes(network, approximation, budget)
            rows += alone + whole
            summary[f"{network}, {approximation}"] = _summary(alone, whole)
            _show(network, approximation, alone, whole)
            if network == "all-cnn-c":
                rows += (found := inverses(network, approximation, budget))
                table = [[row["what"], row["library"], *_time(row)] for row in found]
                columns = ["what", "library", "seconds", "over randbp's", "noise"]
                show(f"{network}, {approximation}: inverses of factors", columns, table)
    print(f"written to {save('curvature', rows, summary)}")
    return summary


def _summary(alone: list[dict[str, Any]], whole: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest and the smallest peer over randbp."""
    peers = [row["over_randbp"] for row in alone if not row["library"].startswith("randbp")]
    extra = {row["library"]: row["extra_bytes"] for row in whole if "extra_bytes" in row}
    own = extra.pop("randbp")
    return {
        "fastest_peer_over_randbp": min(peers, default=None),
        "extra_bytes_over_smallest_peer": own / min(extra.values()) if extra else None,
    }


def _time(row: dict[str, Any]) -> list[str]:
    return [f"{row['seconds']:.4f}", f"{row['over_randbp']:.2f}", f"{row['noise']:.0%}"]


def _show(network: str, approximation: str, alone: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    table = [[row["library"], row["layers"], *_time(row)] for row in alone]
    columns = ["library", "layers", "seconds", "over randbp's", "noise"]
    show(f"{network}, {approximation}: factors alone ({torch.get_num_threads()} threads)", columns, table)
    table = [
        [
            row["library"], *_time(row), f"{row['over_plain']:.2f}", f"{row['extra_bytes'] / 1e6:.1f}",
            f"{row['factor_bytes'] / 1e6:.1f}",
        ]
        if "seconds" in row else [row["library"], row["refused"]]
        for row in whole
    ]  # fmt: skip
    columns = ["library", "seconds", "over randbp's", "noise", "over a plain pass", "extra MB", "of it factors, MB"]
    show(f"{network}, {approximation}: with passes", columns, table)
