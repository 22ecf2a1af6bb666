"""Models whose parameters are spread over processes by FSDP2, or copied to them by DDP, with and without Lightning."""

import socket
from pathlib import Path

from torch.multiprocessing.spawn import start_processes

from tests.cli import forked  # noqa: F401 -- its server of processes has what they import
from tests.randomize.fully_sharded import PROCESSES, compare
from tests.randomize.sharded_trainer import compare_trainers


def process(rank: int, folder: Path, port: int) -> None:
    compare(rank, folder)
    compare_trainers(rank, PROCESSES, port)


def test_gradients_are_the_mean_of_those_of_the_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(process, (tmp_path, port), nprocs=PROCESSES, start_method="forkserver")
