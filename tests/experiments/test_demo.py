"""The demo: methods that take turns, a sweep over keep rates, and one page of both."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import randbp
from experiments.__main__ import main
from experiments.data import FashionMNIST, GeneratedImages
from experiments.demo import run_demo
from experiments.demo.compared import WAYS
from experiments.demo.gradients import gradient_errors
from experiments.demo.methods import METHODS, Methods
from experiments.demo.side_by_side import CONVOLUTIONS, COUNTED_EVERY, TIMED, WARMUP, train_side_by_side
from experiments.demo.turns import Pause, take_turns
from experiments.models import SmallVGG
from randbp.cli.sweep_plan import Plan
from randbp.report import PREFACE
from randbp.report.summary_file import read_json

ROOT = Path(__file__).parents[2]
# A few steps of narrow networks: what counts here is that all parts meet.
SHORT = ("--seeds=1", "--steps=7", "--width=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
NARROW = "--model.init_args.model.init_args.width=4"


@pytest.fixture
def decided_races() -> None:
    """The layers of the network have been timed, which takes more memory than a step, whichever test is first."""
    network, images = SmallVGG(10, 1, 8, CONVOLUTIONS), torch.randn(64, 1, 28, 28)
    with randbp.randomize(network, preset="memory"):
        functional.cross_entropy(network(images), torch.arange(64) % 10).backward()


@pytest.mark.usefixtures("decided_races")
def test_demo_compares_methods_and_keep_rates_and_spares_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(run_demo, "TEST_IMAGES", 64)
    earlier = tmp_path / "demo" / "keep=1" / "summary.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    assert main(["demo", f"--root={tmp_path}", "--count=2", "--jobs=2", *SHORT, NARROW]) == 0
    assert earlier.read_text() == "{}" and not (tmp_path / "demo" / "report.html").exists()

    runs = tmp_path / "demo-2"
    out = " ".join(capsys.readouterr().out.split())
    assert 'With preset="memory" training holds' in out and "keep rate" in out and "1/2" in out
    assert f"report in {runs / 'report.html'}" in out
    page = (runs / "report.html").read_text()
    assert page.index("<p class=lead>With preset=&quot;memory&quot; training") < page.index("<h2>Keep rates</h2>")
    assert "DigitsCNN" in page and "SmallVGG" in page and "checkpointing" in page

    methods = read_json(runs / METHODS, Methods)
    assert [method.name for method in methods.methods] == [way.name for way in WAYS]
    by_name = {method.name: method.trainings[0] for method in methods.methods}
    exact, memory = by_name["exact"], by_name['preset="memory"']
    assert by_name['preset="exact"'].gradient_error == 0
    assert {method.name for method in methods.methods if method.trained} == {way.name for way in WAYS if way.trained}
    assert memory.held_bytes < exact.held_bytes / 5 and memory.peak_bytes < exact.peak_bytes
    assert by_name["8 micro-batches"].held_bytes < exact.held_bytes / 7
    assert len(exact.seconds) == 7 - WARMUP
    assert all(one.seed == 0 and len(one.seconds) <= len(exact.seconds) for one in by_name.values())

    second = json.loads((runs / "keep=0.5" / "summary.json").read_text())
    assert second["estimators"]["weight_vjp"]["name"] == "Spatial" and "test/accuracy" in second["metrics"]

    written = (runs / "methods.json").read_text()
    (runs / PREFACE).unlink()
    again = ["demo", f"--root={tmp_path}", "--name=demo-2", "--resume", "--count=2", "--jobs=2", *SHORT, NARROW]
    assert main(again) == 0 and (runs / "methods.json").read_text() == written
    assert (runs / "report.html").read_text().startswith(page.partition("<h2>Keep rates")[0])


def test_the_ways_differ_in_nothing_but_the_backward_pass(tmp_path: Path) -> None:
    data = GeneratedImages(channels=1, size=8, train_size=128, test_size=32, batch_size=16, val_fraction=0.1)
    data.setup()
    exact, same = WAYS[0], replace(WAYS[1], trained=True)
    trained = train_side_by_side((exact, same), data, tmp_path, seed=3, steps=WARMUP + 1, width=2)
    one, other = (trained[way.name]["network"].state_dict() for way in (exact, same))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert trained["exact"]["held_bytes"] > trained[same.name]["held_bytes"]
    assert trained["exact"]["accuracy"] == trained[same.name]["accuracy"]


def test_what_is_only_timed_takes_part_in_the_first_rounds(tmp_path: Path) -> None:
    data = GeneratedImages(channels=1, size=8, train_size=256, test_size=32, batch_size=8, val_fraction=0.1)
    data.setup()
    steps = TIMED + 3
    found = train_side_by_side(WAYS, data, tmp_path, seed=0, steps=steps, width=2)
    for way in WAYS:
        counted = sum(step % COUNTED_EVERY == 0 for step in range(WARMUP, steps if way.trained else TIMED))
        assert len(found[way.name]["seconds"]) == (steps if way.trained else TIMED) - WARMUP - counted
        assert (found[way.name]["accuracy"] is not None) == way.trained


def test_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    network, batch = SmallVGG(width=2), (torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    errors = gradient_errors(network, batch, WAYS, seed=0)
    assert errors["exact"] == errors['preset="exact"'] == errors["checkpointing"] == 0
    assert 0 < errors['preset="memory"'] < 0.5 and 0 < errors["8 micro-batches"] < 3
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_tasks_take_turns_in_rounds() -> None:
    seen: list[tuple[int, str]] = []
    working: list[str] = []

    def task(name: str, rounds: int) -> Any:
        def run(pause: Pause) -> int:
            for number in range(rounds):
                pause()
                working.append(name)
                seen.append((number, name))
                assert working == [name]
                working.remove(name)
            return rounds

        return run

    assert take_turns({"a": task("a", 3), "b": task("b", 5), "c": task("c", 3)}) == {"a": 3, "b": 5, "c": 3}
    assert [number for number, _ in seen] == sorted(number for number, _ in seen)
    orders = {tuple(name for number, name in seen if number == which) for which in range(3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    many: list[str] = []
    take_turns({name: lambda pause, name=name: [(pause(), many.append(name)) for _ in range(8)] for name in "abc"})
    assert len({tuple(many[at : at + 3]) for at in range(0, 24, 3)}) > 1  # not the same order every round


def test_a_task_that_fails_ends_the_others() -> None:
    ended: list[str] = []

    def patient(pause: Pause) -> None:
        try:
            while True:
                pause()
        finally:
            ended.append("patient")

    def failing(pause: Pause) -> None:
        pause()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        take_turns({"patient": patient, "failing": failing})
    assert ended == ["patient"]


def test_demo_has_the_four_keep_rates_and_nothing_else_differs(tmp_path: Path) -> None:
    runs = list(Plan(ROOT / "configs/sweeps/demo.yaml", "demo", tmp_path))
    assert [run.version for run in runs] == ["keep=1", "keep=0.5", "keep=0.25", "keep=0.125"]
    flag = "--tensor_dropout.weight_vjp.keep="
    common = {tuple(word for word in run.command if not word.startswith((flag, "--version="))) for run in runs}
    assert len(common) == 1


def test_demo_takes_the_images_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in run_demo.DATA.items():
        monkeypatch.setattr(kind, "load", GeneratedImages(channels=1, size=28, test_size=1500).load)
        data = run_demo.images(name)
        assert type(data) is kind and data.test is not None and len(data.test.labels) == run_demo.TEST_IMAGES
    assert set(run_demo.ABOUT_DATA) == set(run_demo.DATA.values())


def test_demo_says_where_fashion_mnist_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(run_demo.DATA, "fashion-mnist", partial(FashionMNIST, str(tmp_path / "nowhere")))
    assert main(["demo", f"--root={tmp_path / 'runs'}", "--data=fashion-mnist"]) == 2
    told = capsys.readouterr().err
    assert "demo: --data=fashion-mnist: no Fashion-MNIST file" in told and "apt-get install dataset-fashion" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--seeds=0", f"--steps={WARMUP + 1}", "--width=0"])
def test_wrong_options_are_named(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["demo", f"--root={tmp_path}", option]) == 2
    assert f"demo: {option}: expected an integer >= " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--help"]) == 0
    assert "gradient-error" in capsys.readouterr().out
    assert main(["dmeo"]) == 2
    assert "no command 'dmeo', expected one of demo, gradient-error" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "start it in the root of the checkout" in capsys.readouterr().err
