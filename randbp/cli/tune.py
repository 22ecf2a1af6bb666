"""``randbp tune``: an estimator for each layer of a configured model, as a file for ``randbp fit``."""

import argparse
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from randbp.diagnostics.objective import Objective
from randbp.randomize import UNSET
from randbp.tune import CANDIDATES, Assignment, UnreachableBudget, assign
from randbp.tune.measure import measure
from randbp.tune.options import check_budget

from .errors import OptionParser, UsageError
from .measuring_command import MeasuringCLI, add_output, check_output, run

DESCRIPTION = """\
Choose an estimator of the weight VJP for each layer: the least gradient variance within a budget of memory or time.
Takes all options of `randbp fit`, measures the model's layers on its first training batches without training it, and
writes a file to be given to `randbp fit` after the other files. --tensor_dropout.layers says which layers.
"""


def make_parser() -> OptionParser:
    """Make the parser of the command's own options."""
    parser = OptionParser(
        prog="randbp tune",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--budget", type=float, default=0.25, help="share of the exact layers' cost (default: 0.25)")
    parser.add_argument("--objective", choices=list(CANDIDATES), default="memory", help="what costs (default: memory)")
    add_output(parser, "tuned.yaml")
    parser.add_argument("--batches", type=int, default=1, help="training batches to measure on (default: 1)")
    parser.add_argument("--draws", type=int, default=4, help="draws per candidate and batch (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="timings per candidate (default: 3)")
    parser.add_argument(
        "--freed-only", action="store_true", help="leave layers exact whose input other modules hold as well"
    )
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into options of ``tune`` and options of ``fit``."""
    options, rest = make_parser().parse_known_args(argv)
    try:
        check_budget(options.budget, options.objective)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    for name, least in (("batches", 1), ("draws", 2), ("rounds", 1 if options.objective == "time" else 0)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name}={getattr(options, name)}: expected at least {least}")
    check_output(options.output, options.overwrite)
    return options, rest


class TuneCLI(MeasuringCLI):
    """Measures candidates layer by layer, and chooses among them."""

    @property
    def batches(self) -> int:  # type: ignore[override]
        """On how many batches it measures."""
        wanted: int = self.options.batches
        return wanted

    def measure(self, trainer: Trainer, module: LightningModule, batches: list[Any], objective: Objective) -> Any:
        """Measure the candidates."""
        candidates, layers = CANDIDATES[self.options.objective], None if self.layers is UNSET else self.layers
        of = self.options
        return measure(module, batches, objective, candidates, layers, draws=of.draws, rounds=of.rounds)

    def result(self, measured: Any) -> tuple[Assignment, str]:
        """The assignment and its file."""
        count_shared = not self.options.freed_only
        try:
            chosen = assign(measured, self.options.budget, self.options.objective, count_shared)
        except UnreachableBudget as error:
            print(f"{error.cheapest}\n")
            raise UsageError(f"--{error}") from error
        return chosen, as_file(chosen)


def as_file(chosen: Assignment) -> str:
    """The configuration file of an assignment, with its table as a comment."""
    comment = "\n".join(f"# {line}".rstrip() for line in ["Written by randbp tune.", "", *str(chosen).splitlines()])
    content = {"tensor_dropout": {"weight_vjp": chosen.configuration()}}
    return f"{comment}\n{yaml.safe_dump(content, sort_keys=False)}"


def main(argv: Sequence[str]) -> int:
    """Measure, print the assignment, and write it."""
    return run(TuneCLI, *parse(argv))
