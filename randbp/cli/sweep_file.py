"""Sweep files in W&B's format: which runs they describe, and what each is called."""

import hashlib
import math
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError

FIT = (sys.executable, "-m", "randbp.cli.main", "fit")
Values = dict[str, Any]


@dataclass(frozen=True)
class SweepFile:
    """A sweep as its file describes it.

    Args:
        name: The file's ``name``, else the name of the file.
        method: ``"grid"`` or ``"random"``.
        parameters: For each parameter its description: ``value``, ``values`` or a range.
        command: The command with macros such as ``${args}``; empty for ``randbp fit ${args}``.
        program: What ``${program}`` stands for.
        run_cap: The largest number of runs, ``None`` for all.

    Example:
        >>> sweep = SweepFile("demo", "grid", {"keep": {"values": [1, 0.5]}, "seed": {"value": 0}})
        >>> list(sweep.runs())
        [{'keep': 1, 'seed': 0}, {'keep': 0.5, 'seed': 0}]
    """

    name: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    command: tuple[str, ...] = ()
    program: str = ""
    run_cap: int | None = None

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that differ between runs."""
        fixed = {key for key, it in self.parameters.items() if "value" in it or len(it.get("values", "..")) == 1}
        return tuple(key for key in self.parameters if key not in fixed)

    def runs(self, count: int | None = None, seed: int = 0) -> Iterator[Values]:
        """The parameter values of each run.

        Args:
            count: Number of runs of a random sweep, by default ``run_cap``; the largest number of a grid's.
            seed: Determines what a random sweep draws.

        Raises:
            UsageError: If a random sweep has no number of runs.
        """
        count = self.run_cap if count is None else count
        if self.method == "grid":
            choices = [[it["value"]] if "value" in it else it["values"] for it in self.parameters.values()]
            for index, values in enumerate(product(*choices)):
                if count is not None and index >= count:
                    return
                yield dict(zip(self.parameters, values, strict=True))
            return
        if count is None:
            raise UsageError("method='random': how many runs? Give --count, or run_cap in the sweep file")
        draw = random.Random(seed)
        for _ in range(count):
            yield {key: _draw(draw, it) for key, it in self.parameters.items()}


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UsageError: If the file cannot be read, or asks for something that only W&B itself can do.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise UsageError(f"{path}: expected a W&B sweep file with method and parameters")
    method = content.get("method", "grid")
    if method not in ("grid", "random"):
        raise UsageError(f"{path}: method={method!r}, expected grid or random; others need `wandb sweep` and an agent")
    parameters = content["parameters"]
    for key, description in parameters.items():
        _check_parameter(f"{path}: parameters.{key}", description, method)
    command = content.get("command") or []
    if not isinstance(command, list):
        raise UsageError(f"{path}: command={command!r}, expected a list of words")
    return SweepFile(
        name=str(content.get("name") or path.stem),
        method=method,
        parameters=parameters,
        command=tuple(str(word) for word in command),
        program=str(content.get("program") or ""),
        run_cap=content.get("run_cap"),
    )


def command_line(sweep: SweepFile, values: Values) -> list[str]:
    """The command of one run, with the file's macros replaced as a W&B agent does.

    ``randbp`` and ``${interpreter}`` become this very Python, so that a sweep needs no activated environment.

    Raises:
        UsageError: If the command holds a macro that has no meaning here.

    Example:
        >>> sweep = SweepFile("demo", "grid", {}, command=("${env}", "randbp", "fit", "--config=a.yaml", "${args}"))
        >>> command_line(sweep, {"model.lr": 0.1})[1:]
        ['-m', 'randbp.cli.main', 'fit', '--config=a.yaml', '--model.lr=0.1']
    """
    flags = [f"--{key}={value}" for key, value in values.items()]
    if not sweep.command and sweep.program in ("", "randbp"):
        return [*FIT, *flags]
    macros: dict[str, Sequence[str]] = {
        "${env}": [],
        "${interpreter}": [sys.executable],
        "${program}": [sweep.program],
        "${args}": flags,
        "${args_no_boolean_flags}": _no_boolean_flags(values),
    }
    words: list[str] = []
    for word in sweep.command or ("${interpreter}", "${program}", "${args}"):
        word = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda match: os.environ.get(match[1], match[1]), word)
        if word.startswith("${") and word not in macros:
            raise UsageError(f"command: {word} has no meaning here, expected one of {', '.join(macros)}")
        words += macros.get(word, [word])
    return [*FIT[:3], *words[1:]] if words[:1] == ["randbp"] else words


def version_name(sweep: SweepFile, values: Values) -> str:
    """A folder's name for one run: the varied parameters, each by the shortest ending that tells it from the others.

    Example:
        >>> sweep = SweepFile("", "grid", {k: {"values": [0, 1]} for k in ("weight_vjp.keep", "input_vjp.keep", "lr")})
        >>> version_name(sweep, {"weight_vjp.keep": 0.5, "input_vjp.keep": 1, "lr": 1e-3})
        'weight_vjp.keep=0.5-input_vjp.keep=1-lr=0.001'
    """
    names = _short_names(sweep.varied)
    full = "-".join(f"{names[key]}={values[key]}" for key in sweep.varied) or "run"
    safe = re.sub(r"[^\w.=+-]+", "_", full)
    if safe == full and len(full) <= 120:
        return full
    return f"{safe[:110]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        names[key] = next(
            (
                ending
                for ending in endings
                if not any(f".{other}".endswith(f".{ending}") for other in keys if other != key)
            ),
            key,
        )
    return names


def _no_boolean_flags(values: Values) -> list[str]:
    """W&B's form for programs whose switches take no value: true is the bare flag, false is nothing."""
    flags = [(key, value) for key, value in values.items() if value is not False]
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in flags]


def _check_parameter(where: str, description: Any, method: str) -> None:
    if isinstance(description, dict):
        if "parameters" in description:
            raise UsageError(f"{where}: nested parameters, expected one key with dots in it")
        if "value" in description:
            return
        if isinstance(description.get("values"), list) and description["values"]:
            return
        if method == "random" and {"min", "max"} <= description.keys():
            distribution = description.get("distribution")
            if distribution in (None, "uniform", "int_uniform", "log_uniform_values"):
                return
            raise UsageError(
                f"{where}.distribution={distribution!r}, expected uniform, int_uniform or log_uniform_values"
            )
    ranges = " or min and max" if method == "random" else ""
    raise UsageError(f"{where}={description!r}, expected value or values{ranges}")


def _draw(draw: random.Random, description: Mapping[str, Any]) -> Any:
    if "value" in description:
        return description["value"]
    if "values" in description:
        return draw.choices(description["values"], weights=description.get("probabilities"))[0]
    low, high = description["min"], description["max"]
    integers = isinstance(low, int) and isinstance(high, int)
    match description.get("distribution", "int_uniform" if integers else "uniform"):
        case "int_uniform":
            return draw.randint(low, high)
        case "uniform":
            return draw.uniform(low, high)
        case _:
            return math.exp(draw.uniform(math.log(low), math.log(high)))
