"""``randbp fit`` and its sisters."""

import json
import os
import pickle
from pathlib import Path

import torch

from .rows import Command

FIT = ("fit", "--config=good.yaml")
PRESET = "--tensor_dropout.preset"
WEIGHT = "--tensor_dropout.weight_vjp"
HALF = (f"{WEIGHT}=Spatial", f"{WEIGHT}.keep=0.5")
FOLDER = "expected the name of a folder"
NO_OPTIONS = "expected options such as model:, data:, trainer:"
ALL = "expected Axes, Batch, "
RUN = ("runs/g/0",)


class Evil:
    """Touches a file when it is loaded without care."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch evil",)


def checkpoints() -> None:
    Path("garbage.ckpt").write_bytes(b"not a checkpoint" * 10)
    Path("zero.ckpt").write_bytes(b"")
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": {"a": Evil()}}, "evil.ckpt")
    torch.save({"a": torch.ones(2)}, "plain.ckpt")
    weights = {"state_dict": {"a": torch.ones(2), "head.2.bias": torch.ones(3)}}
    torch.save(weights, "weights.ckpt")
    torch.save(weights | {"loops": {}, "optimizer_states": [], "lr_schedulers": []}, "foreign.ckpt")
    Path("half.ckpt").write_bytes(Path("foreign.ckpt").read_bytes()[:-200])
    Path("runs/g/damaged/checkpoints").mkdir(parents=True)
    Path("runs/g/damaged/checkpoints/last.ckpt").write_bytes(b"PK\3\4 and then nothing")


def status(expected: str, run: str = "runs/g/0") -> None:
    summary = json.loads(Path(run, "summary.json").read_text())
    assert summary["status"] == expected


def said_in_the_summary(_: str) -> None:
    assert "test_loss" in json.loads(Path("runs/g/0/summary.json").read_text())["not_finite"]


def file(id: str, content: str | bytes, *says: str, name: str = "it.yaml", options: tuple[str, ...] = FIT) -> Command:
    """A configuration file that is at fault."""
    return Command(id, (*options, f"--config={name}"), says=says, files={name: content})


def checkpoint(id: str, path: str, *says: str) -> Command:
    return Command(id, (*FIT, f"--ckpt_path={path}"), says=(f"--ckpt_path={path}: ", *says), prepare=checkpoints)


def failed(id: str, *options: str, says: tuple[str, ...]) -> Command:
    """A run that fails: what it had computed is there, with the traceback."""
    told = (*says, "traceback in runs/g/0/traceback.txt")
    return Command(id, (*FIT, *options), code=1, says=told, leaves=RUN, check=lambda _: status("failed"))


FILES = [
    Command("config file missing", ("fit", "--config=none.yaml"), says=("--config=none.yaml: no such file",)),
    Command("config file missing, -c", ("fit", "-c", "none.yaml"), says=("none.yaml: no such file",)),
    Command("config without a value", ("fit", "--config"), says=("--config",)),
    Command("no config at all", ("fit",), says=("missing model",)),
    Command("config is a directory", (*FIT, "--config=."), says=("--config=.: not a file",)),
    file("bad YAML", "name: [x\n", "--config=it.yaml: not YAML: ", "line 2"),
    file("binary config", b"\xff\xfe\x00", "--config=it.yaml: not text"),
    file("empty config", "", "--config=it.yaml: is empty", NO_OPTIONS),
    file("list config", "- a\n- b\n", "--config=it.yaml: has a list", NO_OPTIONS),
    file("text config", "words\n", "--config=it.yaml: has a str", NO_OPTIONS),
    Command(
        "config of a binary model",
        (*FIT, "--config=it.yaml"),
        says=("model: ", "b.yaml: not text"),
        files={"it.yaml": "model: b.yaml\n", "b.yaml": b"\xff\xfe"},
    ),
    Command("binary model", (*FIT, "--model=b.yaml"), says=("b.yaml: not text",), files={"b.yaml": b"\xff\xfe"}),
    Command("bad model", (*FIT, "--model=b.yaml"), says=("sub-config file b.yaml",), files={"b.yaml": "a: [x\n"}),
    file("name in a file", "name: ../../x\n", "--name='../../x'", FOLDER),
    file("version in a file", "version: ..\n", "--version='..'", FOLDER),
    file("control characters in a file", 'name: "a\\tb"\n', "--name='a\\tb'", "without control characters"),
    file("unknown key", "trainer: {max_epoch: 1}\n", "no option", "max_epoch"),
]

OPTIONS = [
    Command(
        "missing module", (*FIT, "--model=nosuch.Class"), says=("model (nosuch.Class)", "No module named 'nosuch'")
    ),
    Command("missing class", (*FIT, "--model=mine.Nope"), says=("model (mine.Nope)", "'Nope'")),
    Command("typo in top key", (*FIT, "--modle=x"), says=("no option", "modle")),
    Command("not a LightningModule", (*FIT, "--model=mine.NotLightning"), says=("model", "LightningModule")),
    Command("unknown option", (*FIT, "--kep=0.5"), says=("no option --kep=0.5",)),
    Command(
        "seed string", (*FIT, "--seed_everything=abc"), says=("seed_everything: expected true, false or int, got abc",)
    ),
    *(
        Command(
            f"seed {seed}", (*FIT, f"--seed_everything={seed}"), says=(f"seed_everything={seed}", "0 to 4294967295")
        )
        for seed in (99999999999999999999, -1)
    ),
    Command("max_epochs=-5", (*FIT, "--trainer.max_epochs=-5"), says=("trainer: `max_epochs`", "-5")),
    Command("max_epochs=abc", (*FIT, "--trainer.max_epochs=abc"), says=("trainer.max_epochs: expected int, got abc",)),
    Command("wandb=maybe", (*FIT, "--wandb=maybe"), says=("wandb: expected offline, online or disabled, got maybe",)),
    Command("lr='abc'", (*FIT, "--model.lr=abc"), says=("model.lr (mine.MyNet): expected float, got abc",)),
    Command("devices=64", (*FIT, "--trainer.devices=64"), says=("trainer.devices=64: expected 1 to ",)),
    Command("devices=0", (*FIT, "--trainer.devices=0"), says=("trainer.devices=0: expected 1 to ",)),
    Command(
        "64 GPUs",
        (*FIT, "--trainer.accelerator=cuda", "--trainer.devices=64"),
        says=("trainer: ", "accelerator=cuda, devices=64"),
    ),
    Command("strategy=nope", (*FIT, "--trainer.strategy=nope"), says=("trainer: ", "strategy=nope")),
    Command("root is a file", (*FIT, "--trainer.default_root_dir=good.yaml"), says=("default_root_dir='good.yaml'",)),
    Command("root unwritable", (*FIT, "--trainer.default_root_dir=/proc/x"), says=("default_root_dir='/proc/x'",)),
    Command("resume what?", (*FIT, "--resume"), says=("--resume: which run?", "--version")),
    Command("resume no run", (*FIT, "--resume=nope"), says=("--resume=nope: expected the folder of a run",)),
    Command("resume a test", ("test", "--config=good.yaml", "--version=0", "--resume"), says=("--resume: test has",)),
    *(
        Command(f"name {name!r}", (*FIT, f"--name={name}"), says=(f"--name={name!r}, {FOLDER}",))
        for name in ("../x", "/elsewhere", "", "a/../../x", "a//b", ".", "..", "a\\b")
    ),
    Command("name of 300 letters", (*FIT, f"--name={'a' * 300}"), says=("--name='aaa", "300 bytes", "255 at most")),
    Command("name of 200 umlauts", (*FIT, f"--name={'ü' * 200}"), says=("--name='üüü", "400 bytes", "255 at most")),
    *(
        Command(f"version {name!r}", (*FIT, f"--version={name}"), says=(f"--version={name!r}, {FOLDER}",))
        for name in ("a/b", "..", ".", "", "/x")
    ),
    Command("version of 300 letters", (*FIT, f"--version={'a' * 300}"), says=("--version='aaa", "255 at most")),
    Command(
        "unicode name",
        (*FIT, "--name=ünïcode-数字"),
        code=0,
        says=("results in runs/ünïcode-数字/0",),
        leaves=("runs/*/0",),
    ),
]

ESTIMATORS = [
    Command("keep=nan", (*FIT, *HALF, f"{WEIGHT}.keep=nan"), says=("weight_vjp.keep (randbp.Spatial)", "nan")),
    Command("keep=0", (*FIT, *HALF, f"{WEIGHT}.keep=0"), says=("Spatial: keep=0.0, expected a number in (0, 1]",)),
    Command("keep=half", (*FIT, *HALF, f"{WEIGHT}.keep=half"), says=("(randbp.Spatial): expected float, got half",)),
    Command("keep missing", (*FIT, f"{WEIGHT}=Spatial"), says=("(randbp.Spatial): missing keep",)),
    Command("keep w/o class", (*FIT, f"{WEIGHT}.keep=0.5"), says=("weight_vjp: ", "class before its options")),
    *(
        Command(
            f"estimator {name}", (*FIT, f"{option}={name}"), says=(f"{option[2:]}: no estimator", f"mean {near}?", ALL)
        )
        for option, name, near in (
            (WEIGHT, "Spatail", "Spatial"),
            (WEIGHT, "spatial", "Spatial"),
            (WEIGHT, "randbp.Spatail", "Spatial"),
            ("--tensor_dropout.input_vjp", "Chanels", "Channels"),
        )
    ),
    Command(
        "estimator within another one",
        (*FIT, f"{WEIGHT}=Rounding", f"{WEIGHT}.bits=4", f"{WEIGHT}.estimator=Spatail"),
        says=("tensor_dropout.weight_vjp.estimator: no estimator 'Spatail' (did you mean Spatial?)",),
    ),
    file("keep=.nan", "tensor_dropout: {weight_vjp: {class_path: Spatial, init_args: {keep: .nan}}}", "keep=nan"),
    *(
        file(
            f"estimator in a file, {where}",
            f"tensor_dropout: {{weight_vjp: {text}}}",
            "it.yaml: ",
            where,
            "mean Spatial?",
            ALL,
        )
        for where, text in (
            ("tensor_dropout.weight_vjp: no estimator 'spatial'", "{class_path: spatial, init_args: {keep: 0.5}}"),
            ("tensor_dropout.weight_vjp: no estimator 'Spatail'", "Spatail"),
            (
                "weight_vjp['features.*']: no estimator",
                "{'features.*': {class_path: randbp.Spatail, init_args: {keep: 1}}}",
            ),
            ("weight_vjp.estimator", "{class_path: Rounding, init_args: {bits: 4, estimator: {class_path: Spatail}}}"),
        )
    ),
    Command("estimator typo, tune", ("tune", "--config=good.yaml", f"{WEIGHT}=Spatail"), says=("mean Spatial?", ALL)),
    Command("bits=0", (*FIT, "--tensor_dropout.bits=0"), says=("bits=0: expected an integer from 1 to 8",)),
    Command(
        "lean=maybe", (*FIT, "--tensor_dropout.lean=maybe"), says=("lean: expected true, false or exact, got maybe",)
    ),
    Command("preset=fast", (*FIT, f"{PRESET}=fast"), says=("preset: expected exact, memory or time, got fast",)),
    file("preset=true", "tensor_dropout: {preset: true}", "preset: expected exact, memory or time, got True"),
    Command("preset and bits=0", (*FIT, f"{PRESET}=memory", "--tensor_dropout.bits=0"), says=("bits=0: expected an",)),
    Command(
        "preset, no layer",
        (*FIT, f"{PRESET}=memory", "--tensor_dropout.layers=nope"),
        says=("layers='nope': matches none",),
    ),
    Command("parts=0", (*FIT, "--tensor_dropout.parts=0"), says=("parts=0: expected an integer >= 1",)),
    Command(
        "layers unmatched", (*FIT, *HALF, "--tensor_dropout.layers=nope.*"), says=("layers='nope.*': matches none",)
    ),
    Command("layers=''", (*FIT, *HALF, "--tensor_dropout.layers="), says=("layers='': matches none",)),
    Command("layers='' of exact", (*FIT, "--tensor_dropout.layers="), says=("layers='': matches none",)),
    Command("no conv, Spatial", (*FIT, "--model=mine.NoConv", *HALF), says=("NoConv has no",)),
    file(
        "mapping of unmatched layers",
        "tensor_dropout: {weight_vjp: {nope: {class_path: Spatial, init_args: {keep: 0.5}}}}",
        "weight_vjp: key 'nope' matches none of the layers",
    ),
]

CHECKPOINTS = [
    Command("ckpt missing", (*FIT, "--ckpt_path=none.ckpt"), says=("--ckpt_path=none.ckpt: no such file",)),
    checkpoint("ckpt is garbage", "garbage.ckpt", "not a checkpoint"),
    checkpoint("ckpt is empty", "zero.ckpt", "not a checkpoint"),
    checkpoint("ckpt is cut off", "half.ckpt", "not a checkpoint"),
    checkpoint("evil checkpoint", "evil.ckpt", "holds more than tensors and plain values", "system"),
    checkpoint("evil pickle", "evil.pkl", "not a checkpoint"),
    checkpoint("plain state", "plain.ckpt", "expected one with a state_dict"),
    checkpoint("weights alone", "weights.ckpt", "holds weights alone"),
    checkpoint(
        "ckpt of another model",
        "foreign.ckpt",
        "of another model than MyNet: lacks ",
        "has 'a'",
        "size of 'head.2.bias'",
    ),
    Command(
        "test of another model's ckpt",
        ("test", "--config=good.yaml", "--ckpt_path=weights.ckpt"),
        says=("--ckpt_path=weights.ckpt: of another model",),
        prepare=checkpoints,
    ),
    Command(
        "resume from a damaged ckpt",
        (*FIT, "--version=damaged", "--resume"),
        says=("runs/g/damaged/checkpoints/last.ckpt: not a checkpoint",),
        prepare=checkpoints,
        leaves=("runs/g/damaged/.lock",),
    ),
]

RUNS = [
    failed("module raises", "--model=mine.Raises", says=("my own bug",)),
    failed("module calls sys.exit(7)", "--model=mine.Exits", says=("sys.exit(7)",)),
    failed("empty train data", "--data=mine.Empty", says=("data: the training data has no batch",)),
    failed("wrong shape", "--data=mine.Colour", says=("expected input[",)),
    failed("lr=-1", "--model.lr=-1", says=("Invalid learning rate: -1.0",)),
    failed("width=0", "--model.width=0", says=("RuntimeError",)),
    Command(
        "no conv, preset", (*FIT, "--model=mine.NoConv", f"{PRESET}=time"), code=0, says=("test_loss",), leaves=RUN
    ),
    Command("no conv, exact", (*FIT, "--model=mine.NoConv"), code=0, says=("test_loss",), leaves=RUN),
    Command(
        "NaN loss",
        (*FIT, "--model=mine.NaNLoss"),
        code=0,
        says=("test_loss nan", "not finite: ", "test_loss"),
        leaves=RUN,
        check=said_in_the_summary,
    ),
    Command(
        "validate without ckpt",
        ("validate", "--config=good.yaml"),
        code=0,
        says=("val_loss",),
        leaves=("runs/g/validate-0",),
    ),
    Command(
        "predict w/o predict_dl",
        ("predict", "--config=good.yaml"),
        code=1,
        says=("predict_dataloader", "traceback in runs/g/predict-0/traceback.txt"),
        leaves=("runs/g/predict-0",),
    ),
]

ROWS = [*FILES, *OPTIONS, *ESTIMATORS, *CHECKPOINTS, *RUNS]
