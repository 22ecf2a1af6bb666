"""Train a small CNN on handwritten digits at keep rates 1, 1/2, 1/4, 1/8: what it costs, and what it reaches."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from randbp.cli.errors import UsageError
from randbp.cli.sweep import free_name, run_sweep

SWEEP = Path("configs/sweeps/demo.yaml")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all results (default: runs)")
    options, extra = parser.parse_known_args(argv)
    if not SWEEP.exists():
        print(f"demo: {SWEEP} is not here; run it from the root of the checkout", file=sys.stderr)
        return 2
    try:
        return run_sweep(SWEEP, name=free_name(options.root, "demo"), root=options.root, extra=extra)
    except UsageError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
