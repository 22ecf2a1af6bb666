"""Train, validate, test and predict: LightningCLI with tensor dropout, run folders and loggers."""

import os
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's concern, not the user's

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console

from randbp import Estimator, Exact
from randbp.callbacks import TensorDropout
from randbp.callbacks.files import write_text
from randbp.callbacks.latest_epoch import FILENAMES, LatestEpoch, find_latest
from randbp.callbacks.monitor import CostMonitor
from randbp.callbacks.random_state import RandomState
from randbp.callbacks.summary import not_finite
from randbp.layers import is_convolution
from randbp.randomize import UNSET, PresetName, Unset

from .checkpoints import check_content, check_file
from .configuration import check_processes, check_values, each, parse
from .errors import RunError, UsageError, condense, one_line
from .loggers import WandbMode, close_loggers, make_loggers
from .metrics_file import KeepRows
from .option_groups import arrange
from .quiet import quieten
from .resume import CONFIG, how_to_resume, with_folder
from .run_callbacks import LogConfig, RefuseNoData
from .run_folder import claim, is_rank_zero, owned, withdraw
from .stopping import Stopped, reason, sigterm_raises


def tensor_dropout(
    preset: PresetName | None = None,
    weight_vjp: Estimator | Mapping[str, Estimator] | None = None,
    input_vjp: Estimator | Mapping[str, Estimator] | None = None,
    layers: Unset | str | list[str] | None = UNSET,
    seed: int | None = None,
    lean: bool | Literal["exact"] | Mapping[str, bool | Literal["exact"]] | None = None,
    bits: int | None = None,
    parts: int | None = None,
) -> TensorDropout:
    """Make the callback as the command line configures it: exact unless an estimator is given.

    Args:
        preset: ``exact`` (gradients bit for bit, fewer bytes), ``memory`` (everything in a few bits per entry) or
            ``time`` (each layer as fast as it can be with a small error). The other options go before it.
        weight_vjp: Estimator of the weights' gradients, e.g. ``Spatial`` with its ``keep``; or, in a file, one for
            each name or glob of layers.
        input_vjp: Estimator of the inputs' gradients, or one for each name or glob.
        layers: Names or globs of the layers, ``null`` for all convolutions; by default these or what the preset means.
        seed: Seed of the samples; by default that of the run (``--seed_everything``).
        lean: Whether all other operations hold the least for backward, too: ``true``, ``exact`` or, in a file, one of
            these or ``false`` for each name or glob of modules; by default ``false`` or what the preset means.
        bits: Bits per entry of what lean mode rounds, 4 by default.
        parts: Into how many parts of the batch lean mode splits the widest stretch of layers of a container, 4 by
            default.

    Example:
        >>> tensor_dropout().weight_vjp, tensor_dropout("memory").lean
        (Exact(), True)
    """
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    if preset is None and weight_vjp is None:
        weight_vjp = Exact()
    given = {"weight_vjp": weight_vjp, "input_vjp": input_vjp, "lean": lean, "bits": bits, "parts": parts}
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return TensorDropout(layers=layers, seed=seed, preset=preset, **told)


class CLI(LightningCLI):
    """LightningCLI for any LightningModule and data module by class path."""

    folder: Path | None = None

    def __init__(self, args: Sequence[str]) -> None:
        quiet: dict[str, Any] = {"exit_on_error": False}
        with ExitStack() as self.ownership:
            super().__init__(
                save_config_callback=None,
                trainer_defaults={"default_root_dir": "runs", "enable_model_summary": False},
                seed_everything_default=0,
                parser_kwargs={**quiet, **{name: dict(quiet) for name in self.subcommands()}},
                args=with_folder(args),
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and for each the Trainer's arguments that are not options; results are printed elsewhere."""
        return {name: skipped | {"verbose"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add randbp's own options."""
        parser.add_lightning_class_args(tensor_dropout, "tensor_dropout")
        parser.add_argument("--name", type=str, default="run", help="Folder of the run below trainer.default_root_dir.")
        parser.add_argument(
            "--version", type=str | int | None, default=None, help="Its folder below; by default a number."
        )
        parser.add_argument("--wandb", type=WandbMode, default="offline", help="Where W&B writes to.")
        parser.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="Go on with the run of that name and version after its latest epoch, from the start if there is none; "
            "--resume=FOLDER: with the run in that folder.",
        )
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Whether fit tests the trained model.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        arrange(parser, subcommand)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options; an error is one line."""
        self.config = parse(parser, self._subcommand_parsers[args[0]], args)
        options = self.config[self.config["subcommand"]]
        check_values(options)
        if options.get("ckpt_path") is not None:
            check_file("--ckpt_path", str(options["ckpt_path"]))

    def instantiate_classes(self) -> None:
        """Build all classes; an error is one line."""
        try:
            super().instantiate_classes()
        except BaseException as error:
            if self.folder is not None:
                withdraw(self.folder)
            if isinstance(error, UsageError) or not isinstance(error, Exception):
                raise
            needs = isinstance(error, ModuleNotFoundError) and error.name is None  # Lightning says what to install
            plain = needs or isinstance(error, ValueError | MisconfigurationException)
            message = condense(str(error) if plain else one_line(error))
            raise UsageError(f"trainer: {message}{self._machine()}" if self.folder is not None else message) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the run's folder, after every check that can fail, and give the trainer its loggers and callbacks."""
        options = self.config_init[self.subcommand]
        trainer, name = options["trainer"], options["name"]
        resume = self._resumes()
        check_processes(trainer)
        if not any(is_convolution(module) for module in self.model.modules()):
            self._leave_out_if_exact(options)
        if self.subcommand == "fit" and isinstance(options["tensor_dropout"], TensorDropout):
            options["tensor_dropout"].check(self.model)
        self._check_checkpoint("--ckpt_path", options.get("ckpt_path"))
        root, version = Path(trainer["default_root_dir"]), options["version"]
        prefix = "" if self.subcommand == "fit" else f"{self.subcommand}-"
        folder = claim(root, name, None if version is None else str(version), prefix, resume)
        self.ownership.enter_context(owned(folder))
        self.folder = folder
        if resume:
            self._go_on(folder)
        logger, *others = make_loggers(folder, f"{name}/{folder.name}", options["wandb"])
        bar = trainer["enable_progress_bar"] is not False and Console().is_terminal
        own = _as_list(trainer["callbacks"])
        first: list[Callback] = []
        if self.subcommand == "fit" and trainer["enable_checkpointing"] is not False:
            # Before all others, see there. Lightning would add a checkpoint of its own where there is none.
            taken = any(isinstance(callback, ModelCheckpoint) and callback.save_last for callback in own)
            first = [LatestEpoch(FILENAMES[taken]), RandomState(), KeepRows(logger)]
            trainer["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in own)
        last: list[Callback] = [LogConfig(self._resolved().as_dict()), RefuseNoData()]
        if bar and not any(isinstance(callback, ProgressBar) for callback in own):
            last.insert(0, RichProgressBar())
        if not any(isinstance(callback, CostMonitor) for callback in own):
            last.insert(0, CostMonitor())
        trainer["callbacks"] = [*first, *own, *last]
        return super().instantiate_trainer(
            logger=[logger, *others, *(own for own in _as_list(trainer["logger"]) if isinstance(own, Logger))],
            default_root_dir=str(folder),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in trainer["callbacks"]),
            **kwargs,
        )

    def _machine(self) -> str:
        """The given options by which the trainer chooses devices and processes."""
        usual = {"accelerator": "auto", "devices": "auto", "strategy": "auto", "num_nodes": 1, "precision": None}
        given = self.config[self.subcommand]["trainer"]
        told = [f"{name}={given[name]}" for name, value in usual.items() if given[name] != value]
        return f" ({', '.join(told)})" if told else ""

    def _check_checkpoint(self, option: str, path: Any) -> None:
        if path is not None and (content := check_file(option, str(path))) is not None:
            check_content(option, str(path), content, self.model, train=self.subcommand == "fit")

    def _resumes(self) -> bool:
        resume = bool(self._option("resume"))
        if resume and self.subcommand != "fit":
            raise UsageError(f"--resume: {self.subcommand} has nothing to go on with, only fit does")
        if resume and self._option("version") is None:
            raise UsageError("--resume: which run? Expected its --version, or its folder: --resume=runs/name/version")
        return resume

    def _go_on(self, folder: Path) -> None:
        """Use the latest epoch's checkpoint; if there is none, remove what an earlier process has logged."""
        if (checkpoint := find_latest(folder)) is not None:
            self._check_checkpoint("--resume", checkpoint)
            self.config_init[self.subcommand]["ckpt_path"] = checkpoint
        elif is_rank_zero():
            for name in ("metrics.csv", "summary.json"):
                (folder / name).unlink(missing_ok=True)

    def _resolved(self) -> Namespace:
        """The configuration with all defaults, in the form that repeats this run in another folder."""
        config = self.config[self.subcommand].clone()
        config["resume"] = False
        return config

    @staticmethod
    def _leave_out_if_exact(options: Any) -> None:
        """Drop the callback where nothing is to be estimated, so that models without convolutions can be trained."""
        callback = options["tensor_dropout"]
        both = (callback.weight_vjp, callback.input_vjp)
        exact = all(estimator.exact for vjp in both for _, estimator in each("", vjp)) and not callback.lean
        if exact and callback.layers is None:
            options["tensor_dropout"] = Callback()

    def fit(self, **kwargs: Any) -> None:
        """Train, then test the trained model if there are test data."""
        with self._on_file():
            self.trainer.fit(**kwargs)
            if self._option("test_after_fit") and not self.trainer.interrupted and self._has_test():
                self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    def validate(self, **kwargs: Any) -> None:
        """Evaluate on the validation data."""
        with self._on_file():
            self.trainer.validate(**kwargs, verbose=False)

    def test(self, **kwargs: Any) -> None:
        """Evaluate on the test data."""
        with self._on_file():
            self.trainer.test(**kwargs, verbose=False)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and save what the model returns for each batch to ``predictions.pt``."""
        with self._on_file() as folder:
            predictions = self.trainer.predict(**kwargs)
            rank = f"-{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            torch.save(predictions, folder / f"predictions{rank}.pt")

    @contextmanager
    def _on_file(self) -> Iterator[Path]:
        """Write configuration and the traceback of a failure into the run's folder, close W&B's run, print results."""
        assert self.folder is not None
        failed = True
        try:
            if is_rank_zero():
                text = self._parser(self.subcommand).dump(self._resolved(), skip_none=False)
                write_text(self.folder / CONFIG, text)
            yield self.folder
            failed = False
        except BaseException as error:
            if (stop := reason(error)) is not None:
                why, code = stop
                on = f"; to go on: {how_to_resume(self.folder)}" if self.subcommand == "fit" else ""
                raise Stopped(why + on, code) from error
            path = self.folder / "traceback.txt"
            path.write_text(traceback.format_exc())
            for note in getattr(error, "__notes__", ()):  # what fits, after an out-of-memory error
                print(note)
            what = f"sys.exit({error.code!r}) was called" if isinstance(error, SystemExit) else one_line(error)
            raise RunError(f"{what} (traceback in {path})") from error
        finally:
            close_loggers(self.trainer.loggers, failed)
        if self.trainer.is_global_zero:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            if odd := not_finite(metrics):
                print(f"not finite: {', '.join(odd)}")
            if metrics:
                print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            print(f"results in {self.folder}")

    def _has_test(self) -> bool:
        data: Any = self.model if self.datamodule is None else self.datamodule
        kind = LightningModule if self.datamodule is None else LightningDataModule
        return is_overridden("test_step", self.model) and is_overridden("test_dataloader", data, kind)

    def _option(self, name: str) -> Any:
        return self.config[self.subcommand][name]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else [*value] if isinstance(value, list) else [value]


def main(argv: Sequence[str]) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    quieten()
    try:
        with sigterm_raises():
            CLI(argv)
    except ArgumentError as error:  # from the hyper-parameters of a checkpoint
        raise UsageError(condense(str(error))) from error
    return 0
