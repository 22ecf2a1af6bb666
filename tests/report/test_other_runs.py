"""Reports of runs that other programs wrote."""

import pandas
import pytest
import wandb

from randbp.cli.main import main
from randbp.report import compare, load_runs
from randbp.report.wandb_file import read_wandb
from tests.cli.run_folders import write_run

RATES = (1.0, 0.5, 0.25)


def curve(keep: float, seed: int) -> pandas.DataFrame:
    steps = range(4)
    losses = [2.0 / (1 + step) + (1 - keep) + 0.1 * seed for step in steps]
    return pandas.DataFrame(
        {"step": steps, "loss": losses, "test/accuracy": [0.9 - 0.1 * (1 - keep) + 0.01 * seed] * 4}
    )


def test_runs_of_all_kinds_stand_on_one_page(tmp_path, capsys, monkeypatch):
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "all"
    folder.mkdir()
    tables = [curve(keep, 0).assign(run=f"r{keep}", keep=keep, estimator="Spatial", seed=0) for keep in RATES]
    pandas.concat(tables).assign(step_seconds=0.5, held_bytes=1e6).to_csv(folder / "table.csv", index=False)
    write_run(folder / "own", 0.5, 1)  # its metrics.csv is not a run of its own
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    config = {"keep": 0.25, "estimator": "Spatial", "seed": 1, "optimizer": {"lr": 0.1}}
    with wandb.init(mode="offline", dir=folder, project="p", config=config, settings=settings) as run:
        for row in curve(0.25, 1).to_dict("records"):
            run.log({"train/loss": row["loss"], "test/accuracy": row["test/accuracy"]})
        run.summary["best"] = 7.0
    wandb.teardown()  # now the file is whole
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = read_wandb(path)
    assert [row["train/loss"] for row in found.history] == pytest.approx(list(curve(0.25, 1)["loss"]))
    assert found.config["optimizer"] == {"lr": 0.1} and found.summary["best"] == 7.0

    results = load_runs(folder)
    assert not results.damaged
    told = {(run.summary.run.seed, run.estimate("weight_vjp").keep): run for run in results.runs}
    assert told.keys() == {(0, 1.0), (0, 0.5), (0, 0.25), (1, 0.5), (1, 0.25)}
    assert list(told[1, 0.25].losses) == pytest.approx(list(curve(0.25, 1)["loss"]))
    assert told[1, 0.25].config["optimizer.lr"] == "0.1" and told[1, 0.25].metrics["best"] == 7.0
    assert told[0, 1.0].exact and told[0, 0.5].cost("held_bytes") == 1e6
    assert main(["report", str(folder)]) == 0
    assert "Best run: " in capsys.readouterr().out and "<svg" in (folder / "report.html").read_text()

    groups = compare(load_runs(folder / "table.csv")).groups
    assert [group.keep for group in groups] == list(RATES)
    assert main(["report", str(folder / "table.csv"), f"--output={tmp_path / 'one.html'}"]) == 0


def test_a_missing_column_is_named_with_its_file(tmp_path, capsys):
    path = tmp_path / "plain.csv"
    for columns, missing in ((["loss"], "step"), (["step", "other"], "loss")):
        pandas.DataFrame([[1.0] * len(columns)], columns=columns).to_csv(path, index=False)
        assert main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert "plain.csv" in error and f"no column {missing}" in error and columns[0] in error
    pandas.DataFrame({"step": [0], "loss": [1.0], "keep": [3.0]}).to_csv(path, index=False)
    assert main(["report", str(path)]) == 2
    assert "keep" in capsys.readouterr().err


def test_a_file_of_wandb_that_is_cut_short_or_damaged(tmp_path):
    folder = tmp_path / "wandb/offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run-1.wandb").write_bytes(b":W&B\0\0\0" + bytes(4) + b"\x05\x00\x01" + b"\xff" * 5)
    with pytest.raises(ValueError, match=r"run-1\.wandb"):
        load_runs(tmp_path)
