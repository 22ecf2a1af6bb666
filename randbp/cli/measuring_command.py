"""Commands that measure a configured model on its first training batches, and write a file for ``randbp fit``."""

import inspect
import tempfile
from abc import abstractmethod
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Mapping, Sequence
from errno import EISDIR
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from randbp.callbacks.files import write_text
from randbp.diagnostics.objective import Objective

from .errors import OptionParser, RunError, UsageError, condense, one_line
from .fit import CLI
from .quiet import quieten


def add_output(parser: OptionParser, default: str) -> None:
    """Add the options that say where the file goes."""
    parser.add_argument("--output", type=Path, default=Path(default), help=f"file to write (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="write it even if it exists")


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
    """Call a function with a model, its first training batches and the loss of a batch, then stop."""

    def __init__(self, batches: int, measure: Callable[[Trainer, LightningModule, list[Any], Objective], Any]) -> None:
        self.wanted, self.measure = batches, measure
        self.batches: list[Any] = []
        self.measured: Any = None

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
        if len(self.batches) < min(self.wanted, trainer.num_training_batches):
            return 0
        whole = len(inspect.signature(pl_module.training_step).parameters) > 1

        def objective(batch: Any) -> Tensor:
            output = trainer.strategy.training_step(*((batch, 0) if whole else (batch,)))
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if not isinstance(loss, Tensor):
                raise UsageError(f"model: training_step returned {type(loss).__name__}, expected a loss")
            return loss

        self.measured = self.measure(trainer, pl_module, self.batches, objective)
        trainer.should_stop = True
        return -1


class MeasuringCLI(CLI):
    """The configuration of ``fit`` with a Trainer that only measures: one device, no logs, no checkpoints."""

    batches = 1

    def __init__(self, options: Namespace, args: Sequence[str]) -> None:
        self.options = options
        super().__init__(["fit", *args])

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule, batches: list[Any], objective: Objective) -> Any:
        """Measure the model."""

    @abstractmethod
    def result(self, measured: Any) -> tuple[Any, str]:
        """What is printed, and the text of the file."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Replace all callbacks, and everything that would train or leave files behind."""
        settings = self.config_init[self.subcommand]
        self.layers = self._option("tensor_dropout")["layers"]
        self.measuring = Measure(self.batches, self.measure)
        settings["tensor_dropout"], settings["trainer"]["callbacks"] = Callback(), [self.measuring]
        self.save_config_callback = None
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        single = {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1, "max_steps": -1}
        unchecked = {"num_sanity_val_steps": 0, "limit_val_batches": 0}
        # The batches before the last are trained on, but no update comes of it.
        trainer: Trainer = LightningCLI.instantiate_trainer(
            self, accumulate_grad_batches=self.batches + 1, **quiet, **single, **unchecked, **kwargs
        )
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Measure, and write the file."""
        self.trainer.fit(**kwargs)
        if not self.measuring.measured:
            raise RunError("nothing was measured: the training data has no batch")
        shown, text = self.result(self.measuring.measured)
        print(f"{shown}\n")
        try:
            write_text(self.options.output, text)
        except OSError as error:  # a disk that is full by now: the measurements are not lost for it
            print(text)
            raise RunError(f"--output={self.options.output}: {error.strerror}; its content is printed above") from error
        print(f"written to {self.options.output}: give it to randbp fit as the last --config")


def run(command: type[MeasuringCLI], options: Namespace, rest: Sequence[str]) -> int:
    """Run a command; an error is one line."""
    quieten()
    try:
        command(options, rest)
    except ArgumentError as error:
        raise UsageError(condense(str(error))) from error
    except ValueError as error:
        raise UsageError(one_line(UsageError(error))) from error
    return 0
