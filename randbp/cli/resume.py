"""``randbp fit --resume``: go on in the folder of an earlier run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError
from .yaml_file import read_mapping

CONFIG = "config.yaml"


def with_folder(args: Sequence[str]) -> list[str]:
    """Replace ``--resume=FOLDER`` among the options by the options of that run.

    Its configuration comes first, so that other options override it. Without a folder ``--resume`` stays as it is.

    Example:
        >>> with_folder(["fit", "--name=a", "--version=0", "--resume"])
        ['fit', '--name=a', '--version=0', '--resume=true']
    """
    command, *rest = args
    kept: list[str] = []
    folder: str | None = None
    while rest:
        word = rest.pop(0)
        if word == "--resume":
            word = f"--resume={rest.pop(0) if rest and not rest[0].startswith('-') else 'true'}"
        if word.startswith("--resume=") and word.removeprefix("--resume=").lower() not in ("true", "false"):
            folder = word.removeprefix("--resume=")
            word = "--resume=true"
        kept.append(word)
    return [command, *([] if folder is None else _options(folder)), *kept]


def how_to_resume(folder: Path) -> str:
    """The command that continues a run.

    Example:
        >>> how_to_resume(Path("runs/digits/0"))
        'randbp fit --resume=runs/digits/0'
    """
    return f"randbp fit --resume={shlex.quote(str(folder))}"


def _options(folder: str) -> list[str]:
    config = Path(folder) / CONFIG
    if not config.is_file():
        raise UsageError(f"--resume={folder}: expected the folder of a run, with a {CONFIG} in it")
    # The folder may have moved since, as a whole: its place counts, and of the name as much as fits to that.
    place = Path(folder).absolute()
    content, fault = read_mapping(config)
    if fault:
        raise UsageError(f"{config}: not a configuration: {fault}")
    name = content.get("name")
    parts = Path(name).parts if isinstance(name, str) else ()
    if place.parent.parts[-len(parts) :] != parts or not parts:
        parts = (place.parent.name,)
    root = Path(folder).parent
    for _ in parts:
        root = root.parent if root.name not in ("", "..") else root.absolute().parent
    return [
        f"--config={config}",
        f"--trainer.default_root_dir={root}",
        f"--name={'/'.join(parts)}",
        f"--version={place.name}",
    ]
