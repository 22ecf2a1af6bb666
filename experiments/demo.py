"""Train a small CNN on handwritten digits at keep rates 1, 1/2, 1/4, 1/8: what it costs, and what it reaches.

Takes the options of ``randbp sweep``, and never touches the results of an earlier demo.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from randbp.cli import sweep
from randbp.cli.errors import UsageError
from randbp.cli.stopping import Stopped

SWEEP = Path("configs/sweeps/demo.yaml")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--name")
    options, rest = parser.parse_known_args(argv)
    if not SWEEP.exists():
        print(f"demo: no {SWEEP} here, start it in the root of the checkout", file=sys.stderr)
        return 2
    name = options.name or sweep.free_name(options.root, "demo")
    try:
        return sweep.main([str(SWEEP), f"--root={options.root}", f"--name={name}", *rest])
    except (UsageError, Stopped) as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.code if isinstance(error, Stopped) else 2
