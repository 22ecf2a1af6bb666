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


def refused(id: str, options: str | tuple[str, ...], *says: str) -> Command:
    """Options that cannot be used."""
    return Command(id, (*FIT, *([options] if isinstance(options, str) else options)), says=says)


def checkpoint(id: str, path: str, *says: str) -> Command:
    return Command(id, (*FIT, f"--ckpt_path={path}"), says=(f"--ckpt_path={path}: ", *says), prepare=checkpoints)


def failed(id: str, *options: str, says: tuple[str, ...]) -> Command:
    """A run that fails: what it had computed is there, with the traceback."""
    told = (*says, "traceback in runs/g/0/traceback.txt")
    return Command(id, (*FIT, *options), code=1, says=told, leaves=RUN, check=lambda _: status("failed"))


FILES = [
    Command("config file missing", ("fit", "--config=none.yaml"), says=("--config=none.yaml: No such file",)),
    Command("config file missing, -c", ("fit", "-c", "none.yaml"), says=("none.yaml: No such file",)),
    Command("config without a value", ("fit", "--config"), says=("--config",)),
    Command("no config at all", ("fit",), says=("missing model",)),
    refused("config is a directory", "--config=.", "--config=.: Is a directory"),
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
    refused("missing module", "--model=nosuch.Class", "model (nosuch.Class)", "No module named 'nosuch'"),
    refused("missing class", "--model=mine.Nope", "model (mine.Nope)", "'Nope'"),
    refused("typo in top key", "--modle=x", "no option", "modle"),
    refused("not a LightningModule", "--model=mine.NotLightning", "model", "LightningModule"),
    refused("unknown option", "--kep=0.5", "no option --kep=0.5"),
    refused("seed string", "--seed_everything=abc", "seed_everything: expected true, false or int, got abc"),
    *(
        refused(f"seed {seed}", f"--seed_everything={seed}", f"seed_everything={seed}", "0 to 4294967295")
        for seed in (99999999999999999999, -1)
    ),
    refused("max_epochs=-5", "--trainer.max_epochs=-5", "trainer: `max_epochs`", "-5"),
    refused("max_epochs=abc", "--trainer.max_epochs=abc", "trainer.max_epochs: expected int, got abc"),
    refused("wandb=maybe", "--wandb=maybe", "wandb: expected offline, online or disabled, got maybe"),
    refused("lr='abc'", "--model.lr=abc", "model.lr (mine.MyNet): expected float, got abc"),
    refused("devices=64", "--trainer.devices=64", "trainer.devices=64: expected 1 to "),
    refused("devices=0", "--trainer.devices=0", "trainer.devices=0: expected 1 to "),
    refused(
        "64 GPUs", ("--trainer.accelerator=cuda", "--trainer.devices=64"), "trainer: ", "accelerator=cuda, devices=64"
    ),
    refused("no such device", "--trainer.accelerator=tpu", "trainer: "),
    refused("strategy=nope", "--trainer.strategy=nope", "trainer: ", "strategy=nope"),
    refused("root is a file", "--trainer.default_root_dir=good.yaml", "default_root_dir='good.yaml'"),
    refused("root unwritable", "--trainer.default_root_dir=/proc/x", "default_root_dir='/proc/x'"),
    refused("resume what?", "--resume", "--resume: which run?", "--version"),
    refused("resume no run", "--resume=nope", "--resume=nope: expected the folder of a run"),
    Command("resume a test", ("test", "--config=good.yaml", "--version=0", "--resume"), says=("--resume: test has",)),
    *(
        refused(f"name {name!r}", f"--name={name}", f"--name={name!r}, {FOLDER}")
        for name in ("../x", "/elsewhere", "", "a/../../x", "a//b", ".", "..", "a\\b")
    ),
    refused("name of 300 letters", f"--name={'a' * 300}", "--name='aaa", "300 bytes", "255 at most"),
    refused("name of 200 umlauts", f"--name={'ü' * 200}", "--name='üüü", "400 bytes", "255 at most"),
    *(
        refused(f"version {name!r}", f"--version={name}", f"--version={name!r}, {FOLDER}")
        for name in ("a/b", "..", ".", "", "/x")
    ),
    refused("version of 300 letters", f"--version={'a' * 300}", "--version='aaa", "255 at most"),
    Command(
        "unicode name",
        (*FIT, "--name=ünïcode-数字"),
        code=0,
        says=("results in runs/ünïcode-数字/0",),
        leaves=("runs/*/0",),
    ),
]

ESTIMATORS = [
    refused("keep=nan", (*HALF, f"{WEIGHT}.keep=nan"), "weight_vjp.keep (randbp.Spatial)", "nan"),
    refused("keep=0", (*HALF, f"{WEIGHT}.keep=0"), "Spatial: keep=0.0, expected a number in (0, 1]"),
    refused("keep=half", (*HALF, f"{WEIGHT}.keep=half"), "(randbp.Spatial): expected float, got half"),
    refused("keep missing", f"{WEIGHT}=Spatial", "(randbp.Spatial): missing keep"),
    refused("keep w/o class", f"{WEIGHT}.keep=0.5", "weight_vjp: ", "class before its options"),
    *(
        refused(f"estimator {name}", f"{option}={name}", f"{option[2:]}: no estimator", f"mean {near}?", ALL)
        for option, name, near in (
            (WEIGHT, "Spatail", "Spatial"),
            (WEIGHT, "spatial", "Spatial"),
            (WEIGHT, "randbp.Spatail", "Spatial"),
            ("--tensor_dropout.input_vjp", "Chanels", "Channels"),
        )
    ),
    refused(
        "estimator within another one",
        (f"{WEIGHT}=Rounding", f"{WEIGHT}.bits=4", f"{WEIGHT}.estimator=Spatail"),
        "tensor_dropout.weight_vjp.estimator: no estimator 'Spatail' (did you mean Spatial?)",
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
    refused("bits=0", "--tensor_dropout.bits=0", "bits=0: expected an integer from 1 to 8"),
    refused("lean=maybe", "--tensor_dropout.lean=maybe", "lean: expected true, false or exact, got maybe"),
    refused("preset=fast", f"{PRESET}=fast", "preset: expected exact, memory or time, got fast"),
    file("preset=true", "tensor_dropout: {preset: true}", "preset: expected exact, memory or time, got True"),
    refused("preset and bits=0", (f"{PRESET}=memory", "--tensor_dropout.bits=0"), "bits=0: expected an"),
    refused("preset, no layer", (f"{PRESET}=memory", "--tensor_dropout.layers=nope"), "layers='nope': matches none"),
    refused("parts=0", "--tensor_dropout.parts=0", "parts=0: expected an integer >= 1"),
    refused("layers unmatched", (*HALF, "--tensor_dropout.layers=nope.*"), "layers='nope.*': matches none"),
    refused("layers=''", (*HALF, "--tensor_dropout.layers="), "layers='': matches none"),
    refused("layers='' of exact", "--tensor_dropout.layers=", "layers='': matches none"),
    refused("no conv, Spatial", ("--model=mine.NoConv", *HALF), "NoConv has no"),
    file(
        "keep=2 in a mapping",
        "tensor_dropout: {weight_vjp: {'*': {class_path: randbp.Spatial, init_args: {keep: 2.0}}}}",
        "tensor_dropout.weight_vjp['*']: Spatial: keep=2.0, expected a number in (0, 1]",
    ),
    file(
        "mapping of unmatched layers",
        "tensor_dropout: {weight_vjp: {nope: {class_path: Spatial, init_args: {keep: 0.5}}}}",
        "weight_vjp: key 'nope' matches none of the layers",
    ),
]

CHECKPOINTS = [
    refused("ckpt missing", "--ckpt_path=none.ckpt", "--ckpt_path=none.ckpt: no such file"),
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
