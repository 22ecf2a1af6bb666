"""``python -m experiments COMMAND``: what this repository shows, from a checkout."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "presets beside exact backpropagation, checkpointing and micro-batches, then keep rates; a report",
    "gradient-error": "relative error of estimated gradients against the keep rate; a plot and a table",
    "training-curves": "loss and accuracy against steps and seconds over keep rates, several seeds; a page",
    "memory": "bytes held by presets and estimators over networks, beside checkpoints and bf16; a page",
    "vjp-time": "times of weight and input VJPs per layer over keep rates, beside exact and a bound; a page",
    "kfac": "time and memory of KFAC-reduce and -expand per layer, beside unfolding and published figures; a page",
    "equal-time": "accuracy against measured seconds: estimators beside smaller batches, bf16 and checkpoints; a page",
    "second-order": "time and memory of second-order steps over SGD's; trainings beside SGD, AdamW and Muon; a page",
    "lean-training": "ResNet-18 on Fashion-MNIST, exact and with presets: does the accuracy differ? five seeds",
    "ntk": "learning of CNNs of several widths beside what their empirical tangent kernels predict; a page",
    "hessian-rank": "ranks of Hessian and Gauss-Newton matrices of linear CNNs against upper bounds; a page",
}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m experiments COMMAND [options]\n")
        print("\n".join(f"  {name:<15} {text}" for name, text in COMMANDS.items()))
        return 0
    command, *options = argv
    if command not in COMMANDS:
        print(f"experiments: no command {command!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"experiments.{command.replace('-', '_')}").main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
