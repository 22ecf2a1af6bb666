"""``python -m experiments gradient-error``."""

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.gradient_error.images import IMAGE_SHAPE, NUM_CLASSES, Images, RandomImages, real_images
from experiments.gradient_error.plot import draw_figure
from experiments.gradient_error.protocol import measure, record, untrained_model
from experiments.gradient_error.results import DrawsFile, finding, fraction, summarise
from experiments.gradient_error.series import SERIES
from randbp.cli.errors import OptionParser, UsageError, debugging, one_line
from randbp.cli.report import make_console
from randbp.cli.run_folder import claim
from randbp.diagnostics.environment import describe_environment
from randbp.draws.draw import mix

FULL = {"draws": 10, "batch_size": 128, "width": 1.0, "keep": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4]}
QUICK = {"draws": 3, "batch_size": 32, "width": 0.25, "keep": [1 / 16, 1 / 4, 1 / 2]}


def main(argv: Sequence[str]) -> int:
    """Measure, and write the figure, the tables and the verdict into a new folder.

    Args:
        argv: Options.

    Returns:
        The exit code: 0 whether or not the finding holds, 2 for options or data that cannot be used, 1 if the run
        failed, 130 if it was interrupted; what was measured until then is reported all the same.
    """
    console = make_console()
    try:
        options = parse(argv)
        data = [real_images(options.cifar_root), RandomImages()]
        for images in data:  # too large a batch or too small a width fails here, before there is a folder
            images.batch(options.batch_size, torch.Generator())
        untrained_model(options.width, NUM_CLASSES, options.seed)
        out = options.out.resolve() if options.out.name in ("", "..") else options.out
        folder = claim(out.parent, out.name, None)
    except (UsageError, OSError, ValueError) as error:
        print(f"gradient-error: {one_line(error)}", file=sys.stderr)
        return 2
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "cifar_root")}
    settings |= {"data": [images.name for images in data], "environment": describe_environment(torch.device("cpu"))}
    settings["estimators"] = {series.label: repr(series.estimator(0.5)) for series in SERIES}
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    code = 0
    try:
        with DrawsFile(folder / "draws.csv") as file:
            run(options, data, file, console)
    except KeyboardInterrupt:
        print("gradient-error: interrupted; what was measured until then:", file=sys.stderr)
        code = 130
    except Exception as error:
        if debugging():
            raise
        print(f"gradient-error: {one_line(error)}", file=sys.stderr)
        code = 1
    draws = pd.read_csv(folder / "draws.csv")
    if not draws.empty:
        report(draws, options, folder, console)
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of the full or the quick run filled in.

    Raises:
        UsageError: One line that names the option, its value and what is allowed.
    """
    description = (
        "Relative error of estimated kernel gradients of an untrained All-CNN-C (cross-entropy, no dropout, 3x32x32 "
        "images, 100 classes) against the keep rate: channel and spatial sampling of the literature beside randbp's "
        "estimators, on real and on synthetic images. Writes PNG, SVG, CSV and the verdict on the published finding."
    )
    parser = OptionParser(prog="python -m experiments gradient-error", description=description, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="narrow model, small batch, few draws: under a minute")
    parser.add_argument("--draws", type=int, help="models and batches (default: 10; quick: 3)")
    parser.add_argument("--batch-size", type=int, help="images per batch (default: 128; quick: 32)")
    parser.add_argument("--width", type=float, help="multiplies the channels of All-CNN-C (default: 1; quick: 1/4)")
    parser.add_argument("--keep", type=_number, nargs="+", metavar="P", help="keep rates, e.g. 1/16 1/4 0.5")
    parser.add_argument("--seed", type=int, default=0, help="of models, batches and samples (default: 0)")
    parser.add_argument("--cifar-root", type=Path, help="folder with CIFAR-100, to use as the real data")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gradient-error"), help="each run makes a numbered folder in it"
    )
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("draws", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}={getattr(options, name)}, expected at least 1")
    for keep in options.keep:
        if not 0 < keep < 1:
            raise UsageError(f"--keep={keep:g}, expected numbers between 0 and 1 (at 1 there is no error to plot)")
    options.keep = sorted(set(options.keep))
    return options


def _number(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number such as 0.25 or 1/4") from None


def run(options: argparse.Namespace, data: Sequence[Images], file: DrawsFile, console: Console) -> None:
    """Measure every estimator at every keep rate on the same models and batches; each result is written at once."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=options.draws * len(data) * len(SERIES) * len(options.keep))
        for draw in range(options.draws):
            model = untrained_model(options.width, NUM_CLASSES, mix(options.seed, draw))
            for images in data:
                progress.update(task, description=f"draw {draw + 1} of {options.draws}, {images.name}")
                key = crc32(images.name.encode())
                generator = torch.Generator().manual_seed(mix(options.seed, draw, key) & 0xFFFFFFFF)
                layers = record(model, *images.batch(options.batch_size, generator))
                for series in SERIES:
                    for keep in options.keep:
                        seed = mix(options.seed, draw, key, crc32(f"{series.label} {keep!r}".encode()))
                        result = measure(layers, series.estimator(keep), seed)
                        file.add((images.name, images.real, draw, series.label, keep, result.error, result.held))
                        progress.advance(task)


def report(draws: pd.DataFrame, options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Write summary, figure and verdict, and print them."""
    summary = summarise(draws)
    summary.to_csv(folder / "summary.csv", index=False)
    verdict = finding(draws)
    (folder / "finding.txt").write_text(verdict + "\n", encoding="utf-8")
    count = summary["draws"].max()
    setting = f"All-CNN-C before training, width {options.width:g}, batch {options.batch_size}, "
    setting += f"{'×'.join(map(str, IMAGE_SHAPE))} images; mean and standard deviation of {count} draws"
    draw_figure(summary, setting, [folder / "gradient_error.png", folder / "gradient_error.svg"])
    for name, rows in summary.groupby("data", sort=False):
        console.print(_table(f"{name}: relative error by keep rate", rows))
    console.print(verdict, highlight=False, markup=False, soft_wrap=True)
    console.print(f"figure, tables and settings in {folder}", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, rows: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left")
    keeps = sorted(rows["keep"].unique(), reverse=True)
    table.add_column("estimator")
    for keep in keeps:
        table.add_column(fraction(keep), justify="right")
    for label, curve in rows.groupby("estimator", sort=False):
        cells = curve.set_index("keep")[["mean", "std"]].reindex(keeps)
        table.add_row(str(label), *(f"{mean:.3f} ± {std:.3f}" for mean, std in cells.itertuples(index=False)))
    return table
