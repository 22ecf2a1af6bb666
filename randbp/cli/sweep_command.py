"""Command lines of a sweep's runs, with macros replaced as a W&B agent does."""

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from randbp.text.near_words import nearest

from .errors import UsageError
from .schema import at_key

Values = Mapping[str, Any]
_DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
_MACRO = re.compile(r"\$\{.*\}\Z", re.DOTALL)
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def _flags(prefix: str) -> Callable[[Values], list[str]]:
    return lambda values: [f"{prefix}{name}={value}" for name, value in values.items()]


_ARGUMENTS: dict[str, Callable[[Values], list[str]]] = {
    "args": _flags("--"),
    "args_no_hyphens": _flags(""),
    "args_append_hydra": _flags("+"),
    "args_override_hydra": _flags("++"),
    "args_no_equals": lambda values: [word for name, value in values.items() for word in (f"--{name}", str(value))],
    "args_no_boolean_flags": lambda values: [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items() if value is not False
    ],
    "args_json": lambda values: [json.dumps(values)],
}
"""Macros that stand for a run's parameters."""
_OTHERS = ("env", "interpreter", "program", "args_json_file")


def command_line(
    command: Sequence[str], program: str, values: Values, json_file: Path = Path("args.json")
) -> list[str]:
    """The command of one run.

    ``randbp`` as the first word and ``${interpreter}`` become this very Python, so that a sweep needs no activated
    environment. An empty command stands for W&B's default or, without a program, for ``randbp fit``. The caller
    writes the values to the JSON file.

    Example:
        >>> command_line(["${env}", "randbp", "fit", "--config=a.yaml", "${args}"], "", {"model.lr": 0.1})[1:]
        ['-m', 'randbp.cli.main', 'fit', '--config=a.yaml', '--model.lr=0.1']
    """
    macros = {name: words(values) for name, words in _ARGUMENTS.items()}
    macros |= zip(_OTHERS, ([], [sys.executable], [program], [str(json_file)]), strict=True)
    words: list[str] = []
    for word in _with_default(command, program):
        plain = _ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[1]), word)
        words += macros[plain[2:-1]] if _MACRO.match(plain) else [plain]
    return [sys.executable, "-m", "randbp.cli.main", *words[1:]] if words[:1] == ["randbp"] else words


def check_command(command: Sequence[str], program: str) -> None:
    """Check that the macros of a command are known; an error is one of a sweep file's keys."""
    known = (*_ARGUMENTS, *_OTHERS)
    for number, word in enumerate(_with_default(command, program)):
        name = word[2:-1]
        if not _MACRO.match(word) or _ENVIRONMENT.search(word):
            continue
        if name not in known:
            every = ", ".join(f"${{{it}}}" for it in (*known, "envvar:NAME"))
            raise at_key(f"command[{number}]", f"={word!r}: expected one of {every}{nearest(name, known)}")
        if name == "program" and not program:
            raise at_key("program", f": missing, expected what {word} in command[{number}] stands for")


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
