"""W&B: what it records offline, and the sweep file as its agent would run it."""

import csv
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from wandb.proto import wandb_internal_pb2
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from randbp.cli.main import main
from randbp.cli.sweep_command import command_line
from randbp.cli.sweep_file import read_sweep
from randbp.cli.sweep_plan import Plan
from tests.cli.forked import run_commands
from tests.cli.test_fit import CONFIG

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "configs/sweeps/keep_rate.yaml"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with a configuration of seconds in place of the digits'."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/digits.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "digits"}))
    return tmp_path


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: LevelDB's log format after a header of seven bytes.

    Blocks of 32 KiB hold pieces with checksum (4 bytes), length (2) and kind (1): whole, first, middle, last.
    """
    block, position, record = 32768, 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:  # padding
            position += block - position % block
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_records(folder: Path) -> tuple[dict, list[dict]]:
    """Configuration and history of the one offline run below a folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    config: dict = {}
    history: list[dict] = []
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return config, history


def test_the_agents_command_runs_as_it_is(checkout):
    """The sweep's file is W&B's too, and `test_sweep_command.py` compares the command with that of its agent."""
    assert load_sweep_config(str(SWEEP))["method"] == "grid"
    sweep = read_sweep(SWEEP)
    assert all(sweep.parameters[name].size >= 3 for name in ("seed_everything", "tensor_dropout.weight_vjp.keep"))
    assignment = {"seed_everything": 2, "tensor_dropout.weight_vjp.keep": 0.25}
    python, m, module, *words = command_line(sweep.command, sweep.program, assignment)
    assert (python, m, module) == (sys.executable, "-m", "randbp.cli.main")
    run_commands(checkout, words, WANDB_SWEEP_ID="abc123", WANDB_RUN_ID="run42", WANDB_MODE="offline")
    folder = checkout / "runs/keep_rate/0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["estimators"]["weight_vjp"]["name"] == "Spatial"
    assert summary["estimators"]["weight_vjp"]["keep"] == 0.25
    assert summary["run"]["seed"] == 2
    assert next((folder / "wandb").glob("offline-run-*")).name.endswith("run42")
    config, history = wandb_records(folder)
    assert config["tensor_dropout"]["weight_vjp"]["init_args"]["keep"] == 0.25
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    for metric in ("train/loss", "val/accuracy", "test/accuracy", "cost/held_bytes"):
        recorded = [row[metric] for row in history if metric in row]
        assert recorded == pytest.approx([float(row[metric]) for row in rows if row[metric]]), metric


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_first_run_of_every_file_trains(checkout, path):
    """W&B reads the file, and the command of its first run trains as the file says, here for two steps."""
    assert load_sweep_config(str(path))["parameters"]
    few = ("--wandb=disabled", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    first = next(iter(Plan(path, root=checkout / "runs", extra=few)))
    python, m, module, *words = first.command
    assert (python, m, module) == (sys.executable, "-m", "randbp.cli.main")
    assert main(words) == 0
    assert first.status == "finished" and first.epochs == (1, 1)
    metric = read_sweep(path).metric
    assert metric is not None and first.value(metric.name) is not None
    if (given := json.loads(first.arguments).get("tensor_dropout.weight_vjp")) is not None:
        assert first.summary()["estimators"]["weight_vjp"]["name"] == given


def test_under_an_agent_its_mode_counts(checkout, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["fit", "--config=configs/digits.yaml", "--wandb=offline", "--trainer.max_epochs=1"]) == 0
    assert not list(checkout.glob("runs/*/*/wandb"))


def test_without_wandb_a_note_and_the_csv_file(checkout, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert main(["fit", "--config=configs/digits.yaml", "--trainer.max_epochs=1"]) == 0
    assert capsys.readouterr().err == "W&B is not installed (pip install wandb): metrics go to metrics.csv only\n"
    assert (checkout / "runs/digits/0/metrics.csv").exists()


def test_offline_runs_say_how_to_upload_them_and_end(checkout):
    # Two runs in one process: the first one's W&B run must not swallow the second's metrics.
    command = ["fit", "--config=configs/digits.yaml", "--trainer.max_epochs=1"]
    printed = run_commands(checkout, command, [*command, "--seed_everything=1"])
    told = [line.split()[0] for line in printed.splitlines()]
    assert told == ["W&B:", "test/loss", "results"] * 2, printed
    assert printed.count("W&B: wandb sync runs/digits/") == 2
    losses = []
    for number in "01":
        config, history = wandb_records(checkout / "runs/digits" / number)
        assert config["seed_everything"] == int(number)
        losses.append([row["train/loss"] for row in history if "train/loss" in row])
    assert len(losses[0]) == len(losses[1]) == 4
    assert losses[0] != losses[1]
