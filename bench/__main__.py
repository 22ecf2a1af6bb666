"""``python -m bench [NAME …] [--layers PREFIXES] [--quick]``: run benchmarks, print tables, write
runs/bench/*.json."""

import argparse

import torch

from . import contractions, estimators, lean, overhead
from .layers import NETWORKS

QUICK = "all-cnn-c.1,resnet-18.4,mobilenet-v2.7,mobilenet-v2.11,convnext-base.0,convnext-base.5"


def main() -> None:
    """Parse arguments and run."""
    names = [*contractions.BENCHMARKS, "convnext-first-layer", "overhead", "estimators", "lean"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run, by default all: {', '.join(names)}"
    )
    parser.add_argument(
        "--layers",
        default="",
        help=f"comma-separated networks ({', '.join(NETWORKS)}) or layers such as resnet-18.3",
    )
    parser.add_argument("--quick", action="store_true", help="six layers, a short time each")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per layer for the timed rounds")
    parser.add_argument("--no-times", action="store_true", help="lean: bytes and errors alone, for a busy machine")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)}; choose from {', '.join(names)}")
    torch.set_num_threads(arguments.threads)
    pattern = arguments.layers or (QUICK if arguments.quick else "")
    budget = 0.5 if arguments.quick else arguments.budget
    for name in arguments.names or names:
        if name == "overhead":
            overhead.run()
        elif name == "estimators":
            estimators.run(pattern, budget)
        elif name == "lean":
            lean.run(arguments.layers, 0 if arguments.no_times else 20 * budget, arguments.quick)
        elif name == "convnext-first-layer":
            contractions.first_layer_of_convnext(budget)
        else:
            contractions.run(name, pattern, budget)


if __name__ == "__main__":
    main()
