"""``randbp fit --resume``: go on in the folder of an earlier run."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError
from .yaml_file import read_options

CONFIG = "config.yaml"


def with_folder(args: Sequence[str]) -> list[str]:
    """Replace ``--resume=FOLDER`` among the options by the options of that run.

    Its configuration comes first, so that other options override it. Without a folder ``--resume`` stays as it is.

    Example:
        >>> with_folder(["fit", "--resume", "--name=a", "--version=0"])
        ['fit', '--name=a', '--version=0', '--resume=true']
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="true")
    given, rest = parser.parse_known_args(args[1:])
    if given.resume is None or given.resume.lower() in ("true", "false"):
        return [args[0], *rest, *([] if given.resume is None else [f"--resume={given.resume}"])]
    config = Path(given.resume) / CONFIG
    if not config.is_file():
        raise UsageError(f"--resume={given.resume}: expected the folder of a run, with a {CONFIG} in it")
    # The folder may have moved since, as a whole: its place counts, and the name if it fits to that.
    name, place = str(read_options(config).get("name")), config.parent
    if len(place.parts) < 3 or ".." in place.parts:
        place = Path(os.path.abspath(place))
    if not place.parent.as_posix().endswith(f"/{name}"):
        name = place.parent.name
    root = place.parent.as_posix().removesuffix(f"/{name}")
    where = [f"--trainer.default_root_dir={root}", f"--name={name}", f"--version={place.name}"]
    return [args[0], f"--config={config}", *where, *rest, "--resume=true"]


def how_to_resume(folder: Path) -> str:
    """The command that continues a run."""
    return f"randbp fit --resume={shlex.quote(str(folder))}"
