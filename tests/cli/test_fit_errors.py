"""Whatever cannot be used ends in one line on stderr, exit code 2, and leaves no trace."""

from pathlib import Path

import pytest
import yaml

from randbp.cli.errors import UsageError
from randbp.cli.main import main
from tests.cli.test_fit import CONFIG, OWN

SPATIAL = "--tensor_dropout.weight_vjp=Spatial"
KEEP = "--tensor_dropout.weight_vjp.keep="

CASES = {
    "unknown option": (["--trainer.max_epochz=1"], "no option --trainer.max_epochz=1"),
    "unknown key of the trainer": (["--config=trainer.yaml"], "no option 'trainer.max_epoch'"),
    "unknown key of the data": (["--config=data.yaml"], "data (experiments.data.GeneratedImages): no option 'sise'"),
    "unknown key of the network": (
        ["--model.model.init_args.depth=3"],
        "model.model (experiments.models.DigitsCNN): no option 'depth'",
    ),
    "unknown class": (
        ["--model=experiments.nope.Net"],
        "model (experiments.nope.Net): module 'experiments' has no attribute 'nope'",
    ),
    "unknown class in a file": (
        ["--config=network.yaml"],
        "model.model (experiments.models.Nope): module 'experiments.models' has no attribute 'Nope'",
    ),
    "unknown short name": (["--data=Nope"], "data: no class 'Nope' (expected module.Class)"),
    "unknown estimator": (
        ["--tensor_dropout.weight_vjp=Spatia"],
        "or a class of your own as module.Class",
    ),
    "keep is missing": ([SPATIAL], "tensor_dropout.weight_vjp (randbp.Spatial): missing keep"),
    "keep = a": ([SPATIAL, KEEP + "a"], "tensor_dropout.weight_vjp.keep (randbp.Spatial): expected float, got a"),
    "keep = 0": (
        [SPATIAL, KEEP + "0"],
        "tensor_dropout.weight_vjp: Spatial: keep=0.0, expected a number in (0, 1]",
    ),
    "keep = 1.5": (
        [SPATIAL, KEEP + "1.5"],
        "tensor_dropout.weight_vjp: Spatial: keep=1.5, expected a number in (0, 1]",
    ),
    "keep of an estimator that has none": (
        [KEEP + "0.5"],
        "expected the estimator's class before its options, e.g. Spatial",
    ),
    "wrong type": (["--trainer.max_epochs=x"], "trainer.max_epochs: expected int, got x"),
    "wrong choice": (["--wandb=maybe"], "wandb: expected offline, online or disabled, got maybe"),
    "wrong value for the data": (
        ["--data.init_args.val_fraction=2"],
        "experiments.data.GeneratedImages: val_fraction must lie between 0 and 1, got 2.0",
    ),
    "wrong value for the network": (["--model.model=experiments.models.AllCNNC", "--model.model.width=0"], None),
    "folder as version": (["--version=a/b"], "--version='a/b', expected the name of a folder"),
    "folder outside": (["--name=../up"], "--name='../up', expected the name of a folder"),
    "missing file": (["--config=nope.yaml"], "--config=nope.yaml: no such file"),
    "no YAML": (["--config=broken.yaml"], "line 1, column 5"),
    "no such device": (["--trainer.accelerator=tpu"], None),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    network = {
        "class_path": "experiments.task.Classification",
        "init_args": {"model": {"class_path": "experiments.models.Nope"}},
    }
    files = {
        "tiny": CONFIG,
        "trainer": {"trainer": {"max_epoch": 1}},
        "data": {"data": {"class_path": "experiments.data.GeneratedImages", "init_args": {"sise": 1}}},
        "network": {"model": network},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "broken.yaml").write_text("a: [")
    return tmp_path


@pytest.mark.parametrize(("options", "expected"), CASES.values(), ids=CASES.keys())
def test_one_line_says_what_and_where(folder, capsys, options, expected):
    assert main(["fit", "--config=tiny.yaml", "--wandb=disabled", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("randbp fit: ")
    assert len(lines[0]) < 300
    if expected is not None:
        assert lines[0].endswith(expected)
    assert not list(folder.glob("runs/*/*"))


def test_a_run_without_model_says_so(folder, capsys):
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == "randbp fit: missing model\n"


def test_unknown_command(capsys):
    assert main(["fti"]) == 2
    assert capsys.readouterr().err.startswith("randbp: no command 'fti', expected one of fit, validate,")


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(folder, monkeypatch, how):
    monkeypatch.setenv("RANDBP_DEBUG", "" if how == "flag" else "1")
    with pytest.raises(UsageError) as error:
        main(["fit", *(["--debug"] if how == "flag" else []), "--config=tiny.yaml", "--trainer.max_epochs=x"])
    assert error.value.__cause__ is not None


def test_a_pattern_that_matches_no_layer_is_named(folder, capsys):
    options = [SPATIAL, KEEP + "0.5", "--tensor_dropout.layers=features.*"]
    assert main(["fit", "--config=tiny.yaml", "--wandb=disabled", *options]) == 2
    assert not list(folder.glob("runs/*/*"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "layers='features.*': matches none of the convolutions" in lines[0]


def test_estimating_a_model_without_convolutions_is_refused(folder, capsys, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    Path("their_project.py").write_text(OWN)
    options = [
        "--model=their_project.Net",
        "--data=their_project.Data",
        "--wandb=disabled",
        "--optimizer=torch.optim.SGD",
    ]
    assert main(["fit", *options, SPATIAL, KEEP + "0.5"]) == 2
    assert "has no nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d" in capsys.readouterr().err


def test_missing_data_says_what_to_install(folder, capsys):
    options = ["--data=experiments.data.FashionMNIST", "--data.root=/nowhere"]
    assert main(["fit", "--config=tiny.yaml", "--wandb=disabled", *options]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "apt-get install dataset-fashion-mnist" in line
