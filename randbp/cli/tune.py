"""``randbp tune``: an estimator for each layer of a configured model, as a file for ``randbp fit``."""

import argparse
import inspect
import tempfile
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from errno import EISDIR
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from randbp.callbacks.files import write_text
from randbp.randomize import UNSET
from randbp.tune import CANDIDATES, Assignment, LayerOptions, UnreachableBudget, assign
from randbp.tune.measure import measure
from randbp.tune.options import check_budget

from .errors import OptionParser, RunError, UsageError, condense, one_line
from .fit import CLI
from .quiet import quieten

DESCRIPTION = """\
Choose an estimator of the weight VJP for each layer: the least gradient variance within a budget of memory or time.
Takes all options of `randbp fit`, measures the model's layers on its first training batches without training it, and
writes a file to be given to `randbp fit` after the other files. --tensor_dropout.layers says which layers.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into options of ``tune`` and options of ``fit``."""
    parser = OptionParser(
        prog="randbp tune",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--budget", type=float, default=0.25, help="share of the exact layers' cost (default: 0.25)")
    parser.add_argument("--objective", choices=list(CANDIDATES), default="memory", help="what costs (default: memory)")
    parser.add_argument("--output", type=Path, default=Path("tuned.yaml"), help="file to write (default: tuned.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="write it even if it exists")
    parser.add_argument("--batches", type=int, default=1, help="training batches to measure on (default: 1)")
    parser.add_argument("--draws", type=int, default=4, help="draws per candidate and batch (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="timings per candidate (default: 3)")
    parser.add_argument(
        "--freed-only", action="store_true", help="leave layers exact whose input other modules hold as well"
    )
    options, rest = parser.parse_known_args(argv)
    try:
        check_budget(options.budget, options.objective)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    for name, least in (("batches", 1), ("draws", 2), ("rounds", 1 if options.objective == "time" else 0)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name}={getattr(options, name)}: expected at least {least}")
    check_output(options.output, options.overwrite)
    return options, rest


def check_output(path: Path, overwrite: bool) -> None:
    """Check that ``--output`` can be written, without leaving anything behind; its folders may be missing."""
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "Is a directory")
        if path.exists() and not overwrite:
            raise UsageError(f"--output={path}: this file exists, expected a new one or --overwrite")
        path.is_symlink()  # complains of a name that is too long, which the others do not
        folder = next(folder for folder in path.parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output={path}: {error.strerror}, expected a file to write") from error


class Measure(Callback):
    """Measure some of a model's layers on the first batches that reach the training step, then stop."""

    def __init__(self, options: argparse.Namespace, layers: str | list[str] | None) -> None:
        self.options, self.layers = options, layers
        self.batches: list[Any] = []
        self.measured: tuple[LayerOptions, ...] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse models that optimise by themselves."""
        if not pl_module.automatic_optimization:
            name = type(pl_module).__name__
            raise UsageError(f"model: {name} optimises by itself, expected a training_step that returns the loss")

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> int:
        """Collect the batch; after the last one, measure and return -1, which ends the epoch without an update."""
        self.batches.append(batch)
        if len(self.batches) < min(self.options.batches, trainer.num_training_batches):
            return 0
        whole = len(inspect.signature(pl_module.training_step).parameters) > 1

        def objective(batch: Any) -> Tensor:
            output = trainer.strategy.training_step(*((batch, 0) if whole else (batch,)))
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if not isinstance(loss, Tensor):
                raise UsageError(f"model: training_step returned {type(loss).__name__}, expected a loss")
            return loss

        of, candidates = self.options, CANDIDATES[self.options.objective]
        self.measured = measure(
            pl_module, self.batches, objective, candidates, self.layers, draws=of.draws, rounds=of.rounds
        )
        trainer.should_stop = True
        return -1


class TuneCLI(CLI):
    """The configuration of ``fit`` with a Trainer that only measures: one device, no logs, no checkpoints."""

    def __init__(self, options: argparse.Namespace, args: Sequence[str]) -> None:
        self.options = options
        super().__init__(["fit", *args])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Replace all callbacks, and everything that would train or leave files behind."""
        settings = self.config_init[self.subcommand]
        layers = self._option("tensor_dropout")["layers"]
        self.measuring = Measure(self.options, None if layers is UNSET else layers)
        settings["tensor_dropout"], settings["trainer"]["callbacks"] = Callback(), [self.measuring]
        self.save_config_callback = None
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        single = {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1, "max_steps": -1}
        unchecked = {"num_sanity_val_steps": 0, "limit_val_batches": 0}
        # The batches before the last are trained on, but no update comes of it.
        trainer: Trainer = LightningCLI.instantiate_trainer(
            self, accumulate_grad_batches=self.options.batches + 1, **quiet, **single, **unchecked, **kwargs
        )
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Measure, and write the file."""
        self.trainer.fit(**kwargs)
        if not self.measuring.measured:
            raise RunError("nothing was measured: the training data has no batch")
        count_shared = not self.options.freed_only
        try:
            chosen = assign(self.measuring.measured, self.options.budget, self.options.objective, count_shared)
        except UnreachableBudget as error:
            print(f"{error.cheapest}\n")
            raise UsageError(f"--{error}") from error
        print(f"{chosen}\n")
        text = as_file(chosen)
        try:
            write_text(self.options.output, text)
        except OSError as error:  # a disk that is full by now: the measurements are not lost for it
            print(text)
            raise RunError(f"--output={self.options.output}: {error.strerror}; its content is printed above") from error
        print(f"written to {self.options.output}: give it to randbp fit as the last --config")


def as_file(chosen: Assignment) -> str:
    """The configuration file of an assignment, with its table as a comment."""
    comment = "\n".join(f"# {line}".rstrip() for line in ["Written by randbp tune.", "", *str(chosen).splitlines()])
    content = {"tensor_dropout": {"weight_vjp": chosen.configuration()}}
    return f"{comment}\n{yaml.safe_dump(content, sort_keys=False)}"


def main(argv: Sequence[str]) -> int:
    """Measure, print the assignment, and write it."""
    options, rest = parse(argv)
    quieten()
    try:
        TuneCLI(options, rest)
    except ArgumentError as error:
        raise UsageError(condense(str(error))) from error
    except ValueError as error:
        raise UsageError(one_line(UsageError(error))) from error
    return 0
