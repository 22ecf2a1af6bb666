"""Commands in a process of their own that has PyTorch and Lightning already."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["randbp.cli.fit", "tests.cli.killed"])


def _print_to(log: Path) -> None:
    with log.open("ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _run(folder: Path, commands: tuple[list[str], ...], environment: dict[str, str], log: Path, without: str) -> None:
    from randbp.cli.main import main

    os.chdir(folder)
    os.environ.update(environment)
    _print_to(log)
    assert not any(main(command) for command in commands)
    assert not without or without not in sys.modules


def run_watched(
    words: list[str], folder: Path, log: Path, last: int | None, end: Callable[[], None], counted: Any
) -> NoReturn:
    """Run a command in this process: count its operations on files below a folder, and end before the last one."""
    from randbp.cli.main import main

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event in ("open", "os.rename", "os.mkdir", "os.remove") else None
        if isinstance(path, str | bytes | Path) and os.path.abspath(os.fsdecode(path)).startswith(str(folder)):
            counted.value += 1
            if counted.value == last:
                end()

    _print_to(log)
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    sys.exit(main(words))


def run_commands(folder: Path, *commands: list[str], without: str = "", **environment: str) -> str:
    """Run commands that succeed, one after the other in one process, and return what they print.

    Args:
        folder: Where they run.
        commands: The commands.
        without: A package that must not be imported.
        environment: Variables of the environment.
    """
    log = folder / "printed.txt"
    process = processes.Process(target=_run, args=(folder, commands, environment, log, without))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()
