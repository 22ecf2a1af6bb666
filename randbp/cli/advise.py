"""``randbp advise``: what fits into a memory, with a configured model, as a table and a file for ``randbp fit``."""

import argparse
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from randbp.diagnostics.objective import Objective
from randbp.text.units import parse_bytes
from randbp.tune import Advice
from randbp.tune.model_advice import advice_on, check_counts

from .errors import OptionParser, UsageError
from .measuring_command import MeasuringCLI, add_output, check_output, run

DESCRIPTION = """\
Tell the largest batch that fits into a memory, as the model is and with each preset, and what that costs in time and
noise. Takes all options of `randbp fit`, measures steps of the model on its first training batch without training it
(each up to two seconds, some fifty in all), and writes the gentlest preset in which that batch fits to a file, for
`randbp fit` after the other files.
"""


def make_parser() -> OptionParser:
    """Make the parser of the command's own options."""
    parser = OptionParser(
        prog="randbp advise",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--memory", required=True, help="the memory, such as 24GiB")
    parser.add_argument("--grow", choices=["batch", "image"], default="batch", help="what grows (default: batch)")
    add_output(parser, "advised.yaml")
    parser.add_argument("--draws", type=int, default=4, help="draws for the added noise, 0 for none (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="timings per setting, 0 for none (default: 3)")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into options of ``advise`` and options of ``fit``."""
    options, rest = make_parser().parse_known_args(argv)
    try:
        options.memory = parse_bytes("memory", options.memory)
        check_counts(options.draws, options.rounds)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    check_output(options.output, options.overwrite)
    return options, rest


class AdviseCLI(MeasuringCLI):
    """Measures what fits."""

    def measure(self, trainer: Trainer, module: LightningModule, batches: list[Any], objective: Objective) -> Advice:
        """Measure the model as it is, and with each preset."""
        of = self.options
        (optimizer,) = trainer.optimizers
        return advice_on(
            module, batches[0], objective, of.memory, of.grow, optimizer, of.draws, of.rounds, own_loss=True
        )

    def result(self, measured: Advice) -> tuple[Advice, str]:
        """The advice and its file."""
        return measured, measured.configuration()


def main(argv: Sequence[str]) -> int:
    """Measure, print the advice, and write it."""
    return run(AdviseCLI, *parse(argv))
