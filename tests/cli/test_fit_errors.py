"""Errors about classes within classes, and how to see a traceback; more are in `bad_inputs/fit.py`."""

from pathlib import Path

import pytest
import yaml

from randbp.cli.errors import UsageError
from randbp.cli.main import main
from tests.cli.test_fit import CONFIG

IMAGES = "experiments.data.GeneratedImages"
CASES = {
    "unknown key of the data": (["--config=data.yaml"], f"data ({IMAGES}): no option 'sise' (did you mean size?)"),
    "unknown key of the network": (
        ["--model.model.init_args.depth=3"],
        "model.model (experiments.models.DigitsCNN): no option 'depth' (did you mean width?)",
    ),
    "unknown class in a file": (
        ["--config=network.yaml"],
        "model.model (experiments.models.Nope): module 'experiments.models' has no attribute 'Nope'",
    ),
    "unknown short name": (["--data=Nope"], "data: no class 'Nope' (expected module.Class)"),
    "wrong value for the data": (
        ["--data.init_args.val_fraction=2"],
        f"{IMAGES}: val_fraction must lie between 0 and 1, got 2.0",
    ),
    "wrong value for the network": (["--model.model=experiments.models.AllCNNC", "--model.model.width=0"], ""),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    network = {"model": {"class_path": "experiments.models.Nope"}}
    files = {
        "tiny": CONFIG,
        "data": {"data": {"class_path": IMAGES, "init_args": {"sise": 1}}},
        "network": {"model": {"class_path": "experiments.task.Classification", "init_args": network}},
    }
    for name, content in files.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.parametrize(("options", "expected"), CASES.values(), ids=CASES.keys())
def test_one_line_says_what_and_where(folder, capsys, options, expected):
    assert main(["fit", "--config=tiny.yaml", "--wandb=disabled", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("randbp fit: ") and line.endswith(expected) and len(line) < 300
    assert not list(folder.glob("runs/*/*"))


def test_unknown_command(capsys):
    assert main(["fti"]) == 2
    assert capsys.readouterr().err.startswith("randbp: no command 'fti', expected one of fit, validate,")


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(folder, monkeypatch, how):
    monkeypatch.setenv("RANDBP_DEBUG", "" if how == "flag" else "1")
    with pytest.raises(UsageError) as error:
        main(["fit", *(["--debug"] if how == "flag" else []), "--config=tiny.yaml", "--trainer.max_epochs=x"])
    assert error.value.__cause__ is not None


def test_missing_data_says_what_to_install(folder, capsys):
    options = ["--data=experiments.data.FashionMNIST", "--data.root=/nowhere"]
    assert main(["fit", "--config=tiny.yaml", "--wandb=disabled", *options]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "apt-get install dataset-fashion-mnist" in line
