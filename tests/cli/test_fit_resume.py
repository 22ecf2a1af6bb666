"""Whenever a training ends, by whatever signal, it goes on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from randbp.cli.run_folder import owned
from tests.cli.kill_fit import OPTIONS, difference, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run that nobody disturbed, and how many operations on files that took."""
    root = tmp_path_factory.mktemp("killed")
    code, _, operations, text = run(root, "whole")
    assert code == 0, text
    return root, operations


@pytest.mark.parametrize("part", range(4))
def test_a_killed_run_goes_on_as_if_undisturbed(whole, part):
    root, operations = whole
    # Somewhere in the first, second, third, last quarter of what is written.
    moment = random.Random(f"{part}").randint(1 + part * operations // 4, (part + 1) * operations // 4)
    assert run(root, str(part), last=moment)[0] == -signal.SIGKILL
    code, _, _, text = run(root, str(part), "--resume")
    assert code == 0, text
    assert not difference(root / "runs/g" / str(part), root / "runs/g/whole")


@pytest.mark.parametrize(
    "options",
    [
        ["--data.own_generator=true", "--trainer.accumulate_grad_batches=3"],
        ["--trainer.max_steps=14", "--trainer.max_epochs=-1"],
        ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_last=true"],
    ],
    ids=["generator of the loader", "so many steps", "checkpoints of the user's"],
)
def test_so_does_one_with_other_settings(tmp_path, options):
    code, _, operations, text = run(tmp_path, "whole", *options)
    assert code == 0, text
    assert run(tmp_path, "0", *options, last=operations * 2 // 3)[0] == -signal.SIGKILL
    assert [*(tmp_path / "runs/g/0/checkpoints").glob("la*.ckpt")], "killed before there was anything to go on from"
    code, _, _, text = run(tmp_path, "0", *options, "--resume")
    assert code == 0, text
    assert not difference(tmp_path / "runs/g/0", tmp_path / "runs/g/whole")


@pytest.mark.parametrize(
    ("end", "code", "why"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_ends_a_run_in_one_line_that_says_how_to_go_on(whole, end, code, why):
    root, operations = whole
    result, _, _, text = run(root, why, last=operations // 2, end=end)
    assert result == code
    folder = f"'runs/g/{why}'" if " " in why else f"runs/g/{why}"
    assert text.splitlines() == [f"randbp fit: {why}; to go on: randbp fit --resume={folder}"]
    result, _, _, text = run(root, why, f"--resume=runs/g/{why}")
    assert result == 0, text
    assert not difference(root / "runs/g" / why, root / "runs/g/whole")


def test_resuming_a_finished_run_changes_nothing_and_a_longer_one_goes_on(whole):
    root, _ = whole
    assert run(root, "twice", "--trainer.max_epochs=2")[0] == 0
    assert run(root, "twice", "--trainer.max_epochs=2", "--resume")[0] == 0
    assert run(root, "twice", "--resume", "--test_after_fit=true")[0] == 0
    rows = (root / "runs/g/twice/metrics.csv").read_text().splitlines()
    assert len(rows) == len((root / "runs/g/whole/metrics.csv").read_text().splitlines())
    assert not difference(root / "runs/g/twice", root / "runs/g/whole")


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "runs/g/x"
    folder.mkdir(parents=True)
    with owned(folder):
        code, _, _, text = run(tmp_path, "x", "--resume")
        assert code == 2
        assert text == "randbp fit: runs/g/x: another process is training there\n"
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert run(tmp_path, "x", "--resume", "--trainer.max_epochs=1")[0] == 0


@pytest.mark.parametrize("strategy", ["ddp_spawn"])
def test_processes_that_are_spawned(tmp_path, strategy):
    options = [*OPTIONS, "--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_epochs=2"]
    command = [sys.executable, "-m", "randbp.cli.main", "fit", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in runs/g/0") == 1
    rows = (tmp_path / "runs/g/0/metrics.csv").read_text().splitlines()
    assert "test_loss" in rows[0] and (tmp_path / "runs/g/0/checkpoints/last.ckpt").exists()
