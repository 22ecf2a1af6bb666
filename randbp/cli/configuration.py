"""Checks of options and configuration files: each error is one line, and comes before anything is created."""

import argparse
import os
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import instantiate_class
from torch.utils._pytree import tree_leaves

import randbp
from randbp import Estimator
from randbp.text.near_words import nearest

from .errors import UsageError, condense, one_line
from .typos import check_class_keys, suggest
from .yaml_file import read_options

LARGEST_SEED = 2**32 - 1  # the largest seed that NumPy accepts
FEW_PROCESSES = 8  # always permitted, even with fewer cores, so that people can try something out [processes]

ESTIMATORS = sorted(
    name
    for name, value in vars(randbp).items()
    if isinstance(value, type) and issubclass(value, Estimator) and value is not Estimator
)

# What the parser makes of an estimator's options without its class, and of one estimator in a place where an earlier
# file has a mapping of them; it does not tell which.
_ABSTRACT = "randbp.Estimator"
_MIXED = (
    "one estimator cannot replace the mapping in an earlier file, expected a mapping such as {'*': …}; where there is "
    "none, expected the estimator's class before its options, e.g. Spatial"
)
_NO_ESTIMATOR = re.compile(
    r"(tensor_dropout\.\w+_vjp[^:]*?)(?: \([^)]*\))?: (?:no class '([^']*)' \(expected module\.Class\)"
    r"|module 'randbp(?:\.estimators)?' has no attribute '([^']*)')"
)


def parse(parser: Any, command: argparse.ArgumentParser, args: Sequence[str]) -> Namespace:
    """Parse the options, which are those of a ``command`` of the parser, and the files that they name."""
    for file in config_files(args):
        check_config(file)
    try:
        return parser.parse_args(args)
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:  # the latter of a file that an option names
        raise UsageError(suggest(_message(str(error)), command) + _unreadable_among(args)) from error


def _message(error: str) -> str:
    message = condense(error)
    if (place := message.partition(f" ({_ABSTRACT})"))[1]:
        message = f"{place[0]}: {_MIXED}"
    if found := _NO_ESTIMATOR.match(message):
        message = f"{found[1]}: {no_estimator(found[2] or found[3])}"
    return message


def config_files(args: Sequence[str]) -> list[str]:
    """The configuration files that the options name; one may also be the text of a configuration."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    try:
        return list(parser.parse_known_args(args)[0].config)
    except ArgumentError as error:  # --config at the end
        raise UsageError(f"--config: {error.message}") from error


def check_config(file: str) -> None:
    """Check that a configuration file exists and has options in it."""
    if not Path(file).exists() and ("\n" in file or ":" in file or "{" in file):
        return  # text, which the parser takes as well
    try:
        content = read_options(file)
        if (fault := check_class_keys(content)) is not None:
            raise UsageError(f"{file}: {fault}")
        dropout = content.get("tensor_dropout")
        for key in ("weight_vjp", "input_vjp"):
            value = dropout.get(key) if isinstance(dropout, dict) else None
            for where, name in _class_names(f"tensor_dropout.{key}", value):
                if name.removeprefix("randbp.") not in ESTIMATORS and "." not in name.removeprefix("randbp."):
                    raise UsageError(f"{file}: {where}: {no_estimator(name)}")
    except UsageError as error:
        raise UsageError(f"--config={error}") from error


def no_estimator(name: str) -> str:
    """Make the error for an unknown estimator name, which lists the known ones.

    Example:
        >>> no_estimator("spatail").partition(",")[0]
        "no estimator 'spatail' (did you mean Spatial?)"
    """
    meant = nearest(name.rpartition(".")[2], ESTIMATORS)
    return f"no estimator {name!r}{meant}, expected {', '.join(ESTIMATORS)}, or a class of your own as module.Class"


def check_values(options: Namespace) -> None:
    """Check estimators, the seed and the number of processes, whose errors are clearest beside their keys."""
    for key in ("weight_vjp", "input_vjp"):
        for where, estimator in each(f"tensor_dropout.{key}", options["tensor_dropout"][key]):
            try:
                _build(estimator)
            except ValueError as error:
                raise UsageError(f"{where}: {one_line(UsageError(error))}") from error
    seed = options["seed_everything"]
    if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed_everything={seed}: expected an integer from 0 to {LARGEST_SEED}, true or false")


def check_processes(trainer: Namespace) -> None:
    """Refuse more processes than a CPU can sensibly run: Lightning would start them all."""
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    most = max(FEW_PROCESSES, os.cpu_count() or 1)
    if accelerator == "cpu" and str(devices).isdecimal() and not 1 <= int(devices) <= most:
        raise UsageError(f"trainer.devices={devices}: expected 1 to {most} processes on this machine's processor")


def each(name: str, estimators: Any) -> Iterator[tuple[str, Any]]:
    """One estimator (or its configuration), or those of a mapping, each with the name that errors use for it."""
    if isinstance(estimators, dict):
        yield from ((f"{name}[{pattern!r}]", estimator) for pattern, estimator in estimators.items())
    else:
        yield name, estimators


def _build(config: Any) -> Any:
    """Build the object of a parsed ``class_path`` and those among its ``init_args``; leave any other value as it is."""
    if not isinstance(config, Namespace):
        return config
    if config.class_path == _ABSTRACT:
        raise ValueError(_MIXED)
    values = {key: _build(value) for key, value in vars(config.get("init_args", Namespace())).items()}
    return instantiate_class((), {"class_path": config.class_path, "init_args": values})


def _class_names(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names of estimators in a file, and their places in it: one name, or one for each layer."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict) and "class_path" in value:
        inner = value.get("init_args")
        yield from _class_names(where, value["class_path"])
        yield from _class_names(f"{where}.estimator", inner.get("estimator") if isinstance(inner, dict) else None)
    elif isinstance(value, dict):
        for pattern, one in value.items():
            yield from _class_names(f"{where}[{pattern!r}]", None if pattern == "init_args" else one)


def _unreadable_among(args: Sequence[str]) -> str:
    """Find the file among the options' values that is not a configuration, since the parser does not always name it."""
    files = [Path(word.partition("=")[2]) for word in args]
    for file in filter(Path.is_file, map(Path, config_files(args))):
        files += [file.parent / value for value in tree_leaves(read_options(file)) if isinstance(value, str)]
    try:
        for file in files:
            if file.suffix in (".yaml", ".yml", ".json") and file.exists():
                read_options(file)
    except UsageError as error:
        return f" ({error})"
    return ""
