"""Inputs that look wrong, or were once taken for it, and are right: runs go on, are tested and are repeated."""

import contextlib
import io
from pathlib import Path

from randbp.cli.main import main

from .rows import Command

RUN = ("fit", "--config=good.yaml", "--name=first")
LAST = "runs/first/0/checkpoints/last.ckpt"
QUICK = "command: [sh, -c, 'exit 0']\n"
NESTED = """
tensor_dropout:
  weight_vjp:
    features.*:
      class_path: randbp.Rounding
      init_args: {bits: 4, estimator: {class_path: randbp.Spatial, init_args: {keep: 3.0}}}
"""


def first_run() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(list(RUN)) == 0


def after(name: str, *argv: str, leaves: str) -> Command:
    """A command on what a run has left; it has a folder of its own, and the run stays as it was."""
    says = ("test_loss", f"results in {leaves}")
    return Command(name, argv, code=0, says=says, prepare=first_run, leaves=(leaves,))


def sweep(name: str, content: str, runs: int) -> Command:
    """A sweep whose runs do nothing, as what matters is which they are."""

    def made(printed: str) -> None:
        assert len(list(Path("runs/s").glob("*/summary.json"))) == runs

    return Command(name, ("sweep", "s.yaml"), code=0, files={"s.yaml": QUICK + content}, leaves=("runs/s",), check=made)


ROWS = [
    Command(
        "estimator YAML wrong nested",
        ("fit", "--config=good.yaml", "--config=it.yaml"),
        says=("tensor_dropout.weight_vjp", "keep=3.0", "(0, 1]"),
        files={"it.yaml": NESTED},
    ),
    Command(
        "print_config with bad",
        ("fit", "--config=good.yaml", "--trainer.max_epochs=-5", "--print_config"),
        code=0,
        says=("max_epochs: -5", "class_path: mine.MyNet"),
    ),
    Command(
        "weight_vjp help",
        ("fit", "--tensor_dropout.weight_vjp.help=Spatial"),
        code=0,
        says=("weight_vjp.per_example", "larger error"),
    ),
    after("resume ckpt", *RUN, "--trainer.max_epochs=2", f"--ckpt_path={LAST}", leaves="runs/first/1"),
    after("resume 2", *RUN, f"--ckpt_path={LAST}", leaves="runs/first/1"),
    after("test ckpt", "test", *RUN[1:], f"--ckpt_path={LAST}", leaves="runs/first/test-0"),
    after(
        "test ckpt w/ config.yaml of run",
        *("test", "--config=runs/first/0/config.yaml", f"--ckpt_path={LAST}"),
        leaves="runs/first/test-0",
    ),
    after("fit with config.yaml of run", "fit", "--config=runs/first/0/config.yaml", leaves="runs/first/1"),
    sweep("sweep nested.yaml", "method: grid\nparameters: {a: {parameters: {b: {values: [1, 2]}}}}\n", 2),
    sweep(
        "sweep bayes.yaml",
        "method: bayes\nrun_cap: 2\nmetric: {name: test_loss}\nparameters: {a: {min: 0.0, max: 1.0}}\n",
        2,
    ),
    sweep("sweep version_override.yaml", "method: grid\nparameters: {version: {value: mine}}\n", 1),
]
