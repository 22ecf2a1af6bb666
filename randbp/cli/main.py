"""The entry point: finds the subcommand, and turns every failure into one line."""

import importlib
import os
import sys
from collections.abc import Sequence

from randbp import __version__

from .errors import UsageError, debugging, one_line
from .stopping import Stopped, Terminated, reason

TRAINING = {
    "fit": "train, then test: randbp fit --config configs/digits.yaml",
    "validate": "evaluate on the validation data, from a checkpoint with --ckpt_path",
    "test": "evaluate on the test data, from a checkpoint with --ckpt_path",
    "predict": "save a model's predictions, from a checkpoint with --ckpt_path",
}
OTHERS = {
    "advise": "tell what fits into a memory: randbp advise --config configs/digits.yaml --memory 8GiB",
    "tune": "choose an estimator for each layer: randbp tune --config configs/digits.yaml --budget 0.25",
    "sweep": "run a sweep file on this machine, without an account",
    "report": "compare the runs below a folder in one HTML page",
}

USAGE = f"""usage: randbp COMMAND [options]

Train with approximate backpropagation, and see what it saves and what it costs.

{chr(10).join(f"  {name:<9} {text}" for name, text in {**TRAINING, **OTHERS}.items())}

  randbp COMMAND --help   options of a command
  randbp --version        the version of randbp
  randbp --print_completion   a script for bash that completes commands, options and values
  --debug                 (or RANDBP_DEBUG=1) the full traceback of a failure
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, that of this process by default.

    The exit code is 0 for success, 1 for a failure while running, 2 for options that cannot be used.

    Example:
        >>> main(["--version"]) == 0
        randbp 0.1.0
        True
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words = [word for word in words if word != "--debug"]
        os.environ["RANDBP_DEBUG"] = "1"
    match words:
        case [] | ["-h" | "--help"]:
            print(USAGE, end="")
            return 0
        case ["--version"]:
            print(f"randbp {__version__}")
            return 0
        case ["--print_completion"]:
            print(importlib.import_module("randbp.cli.completion").script(), end="")
            return 0
        case [command, *_] if command not in TRAINING and command not in OTHERS:
            expected = ", ".join([*TRAINING, *OTHERS])
            print(f"randbp: no command {command!r}, expected one of {expected}", file=sys.stderr)
            return 2
    command, *options = words
    # Classes of the user's own are found in the folder where the command runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if command in TRAINING:
            return importlib.import_module("randbp.cli.fit").main([command, *options])
        return importlib.import_module(f"randbp.cli.{command}").main(options)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (KeyboardInterrupt, Stopped, Terminated) as stop:
        why, code = (str(stop), stop.code) if isinstance(stop, Stopped) else reason(stop) or ("stopped", 1)
        print(f"randbp {command}: {why}", file=sys.stderr)
        return code
    except Exception as error:
        if debugging():
            raise
        print(f"randbp {command}: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
