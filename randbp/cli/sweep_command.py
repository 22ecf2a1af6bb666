"""Command lines of a sweep's runs, in which W&B's own helper replaces the macros."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError

FIT = (sys.executable, "-m", "randbp.cli.main", "fit")
_DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
_MACRO = re.compile(r"\$\{.*\}\Z", re.DOTALL)
_ENVIRONMENT = re.compile(r"\$\{envvar:[A-Z0-9_]*\}")
_AGENT = ("env", "interpreter", "program", "args_json_file")
"""Macros that W&B's agent replaces by itself; its helper does the others."""


def command_line(
    command: Sequence[str], program: str, values: Mapping[str, Any], json_file: Path = Path("args.json")
) -> list[str]:
    """The command of one run, with macros replaced as a W&B agent does.

    ``randbp`` as the first word and ``${interpreter}`` become this very Python, so that a sweep needs no activated
    environment.

    Args:
        command: The sweep file's ``command``; empty for W&B's default, or, without a program, for ``randbp fit``.
        program: The value of ``${program}``.
        values: The run's parameters, nested ones in mappings.
        json_file: The value of ``${args_json_file}``; :func:`arguments_as_json` makes its content.

    Raises:
        UsageError: If this version of W&B has no such helper.

    Example:
        >>> command_line(["${env}", "randbp", "fit", "--config=a.yaml", "${args}"], "", {"model.lr": 0.1})[1:]
        ['-m', 'randbp.cli.main', 'fit', '--config=a.yaml', '--model.lr=0.1']
    """
    create_sweep_command, _ = _helpers()
    macros = _macros(values) | {
        "env": [],
        "interpreter": [sys.executable],
        "program": [program],
        "args_json_file": [str(json_file)],
    }
    words: list[str] = []
    for word in create_sweep_command(list(_with_default(command, program))):
        words += [str(it) for it in macros[word[2:-1]]] if _MACRO.match(word) else [word]
    return [*FIT[:3], *words[1:]] if words[:1] == ["randbp"] else words


def arguments_as_json(values: Mapping[str, Any]) -> str:
    """The content of the file that ``${args_json_file}`` names.

    Example:
        >>> arguments_as_json({"model.lr": 0.1})
        '{"model.lr": 0.1}'
    """
    return str(_macros(values)["args_json"][0])


def check_command(file: str, command: Sequence[str], program: str) -> None:
    """Check that the macros of a command are known."""
    known = [*_macros({}), *_AGENT]
    for number, word in enumerate(_with_default(command, program)):
        name = word[2:-1]
        if not _MACRO.match(word) or _ENVIRONMENT.search(word):
            continue
        if name not in known:
            every = ", ".join(f"${{{it}}}" for it in (*known, "envvar:NAME"))
            raise UsageError(f"{file}: command[{number}]={word!r}: expected one of {every}")
        if name == "program" and not program:
            raise UsageError(f"{file}: program: missing, expected what {word} in command[{number}] stands for")


def check_program(file: str, words: Sequence[str]) -> None:
    """Check that the program of a command exists."""
    if not words or words[0].startswith("-"):  # nothing but options
        raise UsageError(f"{file}: command: empty, expected a program")
    if shutil.which(words[0]) is None:
        raise UsageError(f"{file}: command: no program {words[0]!r} on the PATH, expected one that can be run")
    if words[0] != sys.executable:
        return
    match words[1:3]:
        case ["-m", module] if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UsageError(f"{file}: program={module!r}: no such module, expected one that can be imported")
        case [script, *_] if not script.startswith("-") and not Path(script).exists():
            raise UsageError(f"{file}: program={script!r}: no such file, expected a script")


def _with_default(command: Sequence[str], program: str) -> Sequence[str]:
    if command:
        return command
    return ("randbp", "fit", "${args}") if program in ("", "randbp") else _DEFAULT


def _macros(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of all macros that W&B's helper knows."""
    _, create_sweep_command_args = _helpers()
    macros = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    return {name: words for name, words in macros.items() if isinstance(words, list)}


def _helpers() -> tuple[Any, Any]:
    """Find W&B's functions for a sweep's command and its arguments; no other place knows where they are."""
    import wandb

    try:
        from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
    except ImportError as error:
        raise UsageError(f"wandb {wandb.__version__}: no create_sweep_command in it, expected wandb 0.31") from error
    return create_sweep_command, create_sweep_command_args
