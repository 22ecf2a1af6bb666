"""Commands in a process of their own that has PyTorch and Lightning already."""

import multiprocessing
import os
import sys
from pathlib import Path

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["randbp.cli.fit", "tests.cli.killed"])


def _run(folder: Path, commands: tuple[list[str], ...], environment: dict[str, str], log: Path, without: str) -> None:
    from randbp.cli.main import main

    os.chdir(folder)
    os.environ.update(environment)
    with log.open("ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    assert not any(main(command) for command in commands)
    assert not without or without not in sys.modules


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
