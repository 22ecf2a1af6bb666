"""Models whose parameters are spread over processes by FSDP2, or copied to them by DDP."""

from pathlib import Path

from torch.multiprocessing.spawn import start_processes

from tests.cli import forked  # noqa: F401 -- its server of processes has what they import
from tests.randomize.fully_sharded import PROCESSES, compare


def test_gradients_are_the_mean_of_those_of_the_processes(tmp_path: Path) -> None:
    start_processes(compare, (tmp_path,), nprocs=PROCESSES, start_method="forkserver")
