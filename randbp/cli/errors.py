"""Errors in one line."""

import argparse
import os
import re
from typing import NoReturn


class UsageError(Exception):
    """Raised for options or a configuration that cannot be used."""


class RunError(Exception):
    """Raised for a run that failed after it had started."""


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are a :class:`UsageError`, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UsageError`."""
        raise UsageError(message)


_OF_THE_EXTRA = ("lightning", "jsonargparse", "torchmetrics", "wandb", "optuna", "scipy")


def debugging() -> bool:
    """Whether failures should show their traceback."""
    return os.environ.get("RANDBP_DEBUG", "") not in ("", "0")


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, preceded by its class where that says more.

    Of an error of the file system it is the file, and what is wrong with it.

    Example:
        >>> one_line(KeyError("lr")), one_line(UsageError("no file"))
        ("KeyError: 'lr'", 'no file')
        >>> one_line(NotADirectoryError(20, "Not a directory", "a/b"))
        'a/b: Not a directory'
    """
    if isinstance(error, ModuleNotFoundError) and error.name in _OF_THE_EXTRA:
        return f"{error.name} is not installed: pip install 'randbp[cli]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, UsageError | RunError | FileNotFoundError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_KEY = re.compile(r'Parser key "([^"]+)": ')
_CLASS = re.compile(r"Problem with given class_path '([^']+)': ")
_GIVEN = re.compile(r" Given value type: .*? Given value: (.*)$")
_WORDING = {
    _GIVEN.pattern: "",
    r" ?- Expected a <class 'NoneType'>": "",
    # Of "an estimator, or a mapping to estimators" a user who errs nearly always meant the first.
    r"(collections\.abc\.Mapping\[.*?\](?:, <class 'NoneType'>)?\] Errors: .*) - "
    r"(?:Expected a <class 'collections\.abc\.Mapping'>|Expected a dot import path string: \S+"
    r"|Unexpected import path format: \S+)$": r"\1",
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ": "",
    r"- Expected a path but .*? either not accessible or invalid( |$)": "",
    r"Option '([^']+)' is not accepted": r"no option '\1'",
    r"Subcommand '\w+' does not accept option '([^']+)'": r"no option '\1'",
    r"[Uu]nrecognized arguments: ": "no option ",
    r"[Tt]he following arguments are required: (?:(?:fit|validate|test|predict)\.)?": "missing ",
    r"Expected a dot import path string: (.*?)(?: - Expected .*)?$": r"no class '\1' (expected module.Class)",
    r"Expected an? (?:<class '([^']+)'>|typing\.)": r"expected \1",
    r"\. Got value: ": ", got ",
    r"expected list - (?!expected )": "",
}
"""What is said instead of jsonargparse's words, in this order."""

# Of a list or a mapping: the same fault again, as if it were one class.
_AGAIN = re.compile(r" - (?:Problem with given class_path |Not a valid subclass of ).*$")

# Of an option that takes one of several types, or of several values.
_ALTERNATIVES = re.compile(r"^expected (?=.* - expected |Literal\[)(.*?)(?=, got |$)")


def _listed(match: re.Match[str]) -> str:
    """List types and values as a user writes them.

    Example:
        >>> _ALTERNATIVES.sub(_listed, "expected bool - expected Literal['exact'], got maybe")
        'expected true, false or exact, got maybe'
    """
    names: list[str] = []
    for kind in match[1].split(" - expected "):
        if kind.startswith("Literal["):
            names += [value.strip(" '\"") for value in kind.removeprefix("Literal[").removesuffix("]").split(",")]
        else:
            names += ["true", "false"] if kind == "bool" else [kind]
    return f"expected {', '.join(names[:-1])} or {names[-1]}" if names[1:] else f"expected {names[0]}"


def condense(message: str) -> str:
    """Turn jsonargparse's indented explanation into one line: the key, the class, what is wrong.

    Example:
        >>> condense('''Parser key "data": Problem with given class_path 'my.Data': Option 'x' is not accepted''')
        "data (my.Data): no option 'x'"
    """
    text = " ".join(message.split())
    given = _GIVEN.search(text)
    for pattern, wording in _WORDING.items():
        text = re.sub(pattern, wording, text)
    keys: list[str] = []
    owner = ""
    while True:
        text = text.lstrip(" -")
        if match := _KEY.match(text):
            keys.append(match[1])
        elif match := _CLASS.match(text):
            owner = match[1]
        else:
            break
        text = text[match.end() :]
    text = _AGAIN.sub("", text)
    if given and not owner and (match := re.search(r"class_path='([^']+)'", given[1])):
        owner = match[1]
    if given and text.startswith("expected") and "got" not in text:
        text += f", got {given[1]}"
    text = _ALTERNATIVES.sub(_listed, text)
    place = ".".join(keys) + (f" ({owner})" if owner and keys else owner)
    return f"{place}: {text}" if place else text
