"""``python -m bench [NAME …] [--layers PREFIXES] [--quick]``: run benchmarks, print tables, write
runs/bench/*.json.

``error`` and ``training`` run for many minutes, so they have to be named; both go on where they were interrupted.
"""

import argparse
import sys
from dataclasses import replace

import torch

from randbp.kernels import use

from . import calls, contractions, estimators, kernels, lean, overhead
from .harness import CLOCKS, use_clock
from .layers import NETWORKS
from .place import Place

LONG = ("error", "importance-error", "training", "baseline")
EXPERIMENTS = ("step", "importance", "second-order", "curvature", "ntk", "merit", *LONG)
QUICK = "all-cnn-c.1,resnet-18.4,mobilenet-v2.7,mobilenet-v2.11,convnext-base.0,convnext-base.5"


def main() -> None:
    """Parse arguments and run."""
    names = [*contractions.BENCHMARKS, "convnext-first-layer", "overhead", "calls", "estimators"]
    names += ["kernels", "step", "importance", "second-order", "merit", "lean", "ntk", "curvature"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run, by default {', '.join(names)}; long ones, only by name: {', '.join(LONG)}",
    )
    parser.add_argument(
        "--layers",
        default="",
        help=f"comma-separated networks ({', '.join(NETWORKS)}) or layers such as resnet-18.3",
    )
    parser.add_argument("--quick", action="store_true", help="six layers, small networks, a short time each")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per layer for the timed rounds")
    parser.add_argument("--write", metavar="FILE", help="baseline: record to this file")
    parser.add_argument(
        "--compare", metavar="FILE", help="baseline: compare with this file, end with 1 if anything differs"
    )
    parser.add_argument(
        "--no-times", action="store_true", help="lean, baseline: bytes and errors alone, for a busy machine"
    )
    parser.add_argument(
        *("--settings", "--estimators"),
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="lean, estimators: those whose name contains one of these, and exact; baseline: parts",
    )
    parser.add_argument(
        "--kernels", default="auto", choices=["auto", "reference", "numba"], help="what serves fused operations"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="cpu: processor time, which other work on the machine hardly disturbs; with --threads 1",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument(
        "--device",
        default="cpu",
        help="contractions, estimators, step, lean: cpu or cuda, whose products may use TensorFloat-32",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="contractions, estimators"
    )
    parser.add_argument("--width", type=float, help="error, merit, training: multiplies the channels of All-CNN-C")
    parser.add_argument("--draws", type=int, help="error: models and batches (default: 10)")
    parser.add_argument("--steps", type=int, help="training: of each run (default: 300)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*names, *LONG}
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)}; choose from {', '.join([*names, *LONG])}")
    torch.set_num_threads(arguments.threads)
    use_clock(arguments.clock)
    place = Place(arguments.device, getattr(torch, arguments.dtype))
    if place.device != "cpu":
        torch.set_float32_matmul_precision("high")
    with use(arguments.kernels):
        for name in arguments.names or names:
            if name == "baseline":
                _baseline(arguments)
            else:
                _run(name, arguments, place)


def _run(name: str, arguments: argparse.Namespace, place: Place) -> None:
    """One benchmark."""
    pattern = arguments.layers or (QUICK if arguments.quick else "")
    budget = 0.5 if arguments.quick else arguments.budget
    if name == "overhead":
        overhead.run()
    elif name == "calls":
        calls.run()
    elif name == "estimators":
        estimators.run(pattern, budget, place, arguments.settings)
    elif name == "kernels":
        kernels.run(arguments.layers, budget, arguments.quick)
    elif name == "lean":
        seconds = 0 if arguments.no_times else 20 * budget
        lean.run(arguments.layers, seconds, arguments.quick, arguments.settings, place)
    elif name == "convnext-first-layer":
        contractions.first_layer_of_convnext(budget, place)
    elif name in EXPERIMENTS:
        _experiment(name, arguments, place)
    else:
        contractions.run(name, pattern, budget, place)


def _baseline(arguments: argparse.Namespace) -> None:
    """Imported here, as it brings the tests' catalogue."""
    from . import baseline

    budget = 0 if arguments.no_times else arguments.budget / 6
    status = baseline.run(budget, arguments.write, arguments.compare, arguments.settings)
    if status:
        sys.exit(status)


def _experiment(name: str, arguments: argparse.Namespace, place: Place) -> None:
    """The benchmarks on whole networks; imported here, as they bring Lightning and matplotlib."""
    quick = arguments.quick
    width = {} if arguments.width is None else {"width": arguments.width}
    if name == "step":
        from . import step

        pattern = arguments.layers or ("all-cnn-c" if quick else "")
        step.run(pattern, 5.0 if quick else 15 * arguments.budget, place)
    elif name == "importance":
        from . import importance

        importance.run(
            arguments.layers or ("all-cnn-c" if quick else ""), 5.0 if quick else 15 * arguments.budget, place
        )
    elif name == "importance-error":
        from . import importance_error

        small = {"width": 0.04, "steps": 5, "batch": 8, "draws": 1} if quick else {}
        importance_error.run(arguments.layers, replace(importance_error.Setting(), **{**small, **width}))
    elif name == "second-order":
        from . import second_order

        second_order.run(arguments.layers or ("all-cnn-c" if quick else ""), 5.0 if quick else 15 * arguments.budget)
    elif name == "curvature":
        from . import curvature

        curvature.run(arguments.layers or ("all-cnn-c" if quick else ""), 2.0 if quick else 3 * arguments.budget)
    elif name == "ntk":
        from . import tangent_kernel

        tangent_kernel.run(arguments.layers or ("digits-cnn" if quick else ""), 5.0 if quick else 15 * arguments.budget)
    elif name == "merit":
        from . import merit

        merit.run(replace(merit.QUICK if quick else merit.Setting(), **width), 5.0 if quick else 15 * arguments.budget)
    elif name == "error":
        from . import error

        setting = error.QUICK if quick else error.Setting()
        error.run(replace(setting, draws=arguments.draws or setting.draws, **width))
    else:
        from . import training

        setting = training.QUICK if quick else training.Setting()
        training.run(replace(setting, steps=arguments.steps or setting.steps, **width))


if __name__ == "__main__":
    main()
