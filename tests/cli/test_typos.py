"""A typo in any key names the key that was meant, and help shows first what is randbp's."""

import random
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import randbp
from randbp import randomize
from randbp.callbacks import KeepRateSchedule
from randbp.callbacks.keep_rate_schedule import Named
from randbp.cli import completion
from randbp.cli.configuration import ESTIMATORS, parse
from randbp.cli.errors import UsageError
from randbp.cli.main import OTHERS, TRAINING
from randbp.cli.sweep_file import read_sweep
from randbp.cli.typos import arguments, check_class_keys, near_option, options_of
from tests.cli.bad_inputs.api import net


@pytest.fixture(scope="module")
def parsers() -> Any:
    return completion.parsers()


def typo(word: str) -> str:
    """A word with two letters exchanged, one doubled, left out or replaced by a neighbour in the alphabet."""
    draw = random.Random(word)
    at = draw.randrange(1, max(2, len(word) - 1))
    middle = word[at]
    return (
        word[:at]
        + draw.choice((word[at : at + 2][::-1], middle * 2, "", chr(ord(middle) + 1)))
        + (word[at + 1 :] if len(word) > 3 else word[at:])
    )


def refusal(parsers: Any, *words: str) -> str:
    with pytest.raises(UsageError) as error:
        parse(parsers["fit"].parent_parser, parsers["fit"], ["fit", *words])
    return str(error.value)


def test_every_option(parsers: Any) -> None:
    known = options_of(parsers["fit"])
    assert len(known) > 70
    for key in known:
        *before, last = key.split(".")
        for wrong in (".".join([*before, typo(last)]), ".".join([typo(key.split(".")[0]), *key.split(".")[1:]])):
            if wrong not in known:
                assert near_option(wrong, known) == key, wrong
    drawn = random.Random(0).sample(sorted(key for key in known if key[-5:] != ".help"), 8)
    for key in drawn:
        assert refusal(parsers, f"--{typo(key)}=1").endswith(f" (did you mean {key}?)")
        nested: Any = 1
        for part in reversed(typo(key).split(".")):
            nested = {part: nested}
        assert f"(did you mean {key}?)" in refusal(parsers, f"--config={yaml.safe_dump(nested)}")


@pytest.mark.parametrize("name", [*ESTIMATORS, *(f"callbacks.{name}" for name in randbp.callbacks.__all__)])
def test_every_argument_of_estimators_and_callbacks(name: str) -> None:
    for key in filter(lambda key: len(key) > 3, arguments(f"randbp.{name}")):
        content = {"a": [{"class_path": f"randbp.{name}", "init_args": {typo(key): 1}}]}
        fault = check_class_keys(content)
        assert fault is not None and fault.startswith(f"a[0] (randbp.{name}): no option ")
        assert f"(did you mean {key}?)" in fault


def config(**content: Any) -> str:
    return f"--config={yaml.safe_dump(content)}"


CALLBACK = {"class_path": "randbp.callbacks.VarianceControl", "init_args": {"buget": 0.1}}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momntum": 0.9}}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--optimizer=SDG", "SGD"),
        ("--optimizer=torch.optim.SDG", "SGD"),
        ("--optimizer=torch.optm.SGD", "optim"),
        ("--optimizer=toch.optim.SGD", "torch"),
        ("--trainer.callbacks=randbp.callbacks.CostMonitr", "CostMonitor"),
        ("--trainer.callbacks=CostMonitr", "CostMonitor"),
        ("--tensor_dropout.preset=memroy", "memory"),
        ("--tensor_dropout.lean=exat", "exact"),
        ("--wandb=offlin", "offline"),
        ("--max_epochs=3", "trainer.max_epochs"),
        (config(optimizer=SGD), "momentum"),
        (config(trainer={"callbacks": [CALLBACK]}), "budget"),
    ],
)
def test_classes_and_values(parsers: Any, word: str, meant: str) -> None:
    said = refusal(parsers, word)
    assert f"(did you mean {meant}?)" in said and "\n" not in said and len(said) < 250, said


def test_every_key_of_a_sweep_file(tmp_path: Path) -> None:
    sweep = yaml.safe_load((Path(__file__).parents[2] / "configs/sweeps/search.yaml").read_text())

    def places(content: Any, *before: str) -> list[tuple[str, ...]]:
        found = [(*before, key) for key in content]
        return found + [it for key in content if isinstance(content[key], dict) for it in places(content[key], key)]

    parameters = set(sweep["parameters"])  # whose names are the program's options
    for *before, key in places(sweep):
        if key in parameters:
            continue
        changed = yaml.safe_load(yaml.safe_dump(sweep))
        inner = changed["parameters"].get(before[0], changed.get(before[0])) if before else changed
        inner[typo(key)] = inner.pop(key)
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(UsageError, match=rf"s\.yaml: .*\(did you mean {key}\?\)"):
            read_sweep(tmp_path / "s.yaml")


def test_names_in_python() -> None:
    for preset in ("exact", "memory", "time"):
        with pytest.raises(ValueError, match=rf"\(did you mean {preset}\?\)$"):
            randomize(net(), preset=typo(preset))  # type: ignore[call-overload]
    for schedule in get_args(Named):
        with pytest.raises(ValueError, match=rf"\(did you mean {schedule}\?\)$"):
            KeepRateSchedule(typo(schedule))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(did you mean float16\?\)$"):
        randbp.Precision(dtype="flaot16")  # type: ignore[arg-type]


def test_help_begins_with_what_is_randbps(parsers: Any) -> None:
    text = parsers["fit"].format_help()
    order = ["usage: randbp fit", "--name", "--tensor_dropout.preset", "--model ", "--trainer.accelerator "]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_completion(tmp_path: Path, parsers: Any) -> None:
    (tmp_path / "it.sh").write_text(completion.script())
    ask = 'source it.sh; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _randbp; echo "${COMPREPLY[@]}"'

    def completed(*words: str) -> set[str]:
        command = ["bash", "-c", ask, "bash", "randbp", *words]
        return set(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split())

    assert completed("") == {*TRAINING, *OTHERS}
    for name, parser in parsers.items():
        own = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
        assert own <= {word.removesuffix("=") for word in completed(name, "--")}
    assert completed("fit", "--tensor_dropout.pre") == {"--tensor_dropout.preset="}
    assert completed("tune", "--trainer.max_ep") == {"--trainer.max_epochs="}
    assert completed("fit", "--tensor_dropout.preset", "=") == {"exact", "memory", "time"}
    assert completed("fit", "--tensor_dropout.weight_vjp", "=", "Ro") == {"Rounding"}
    assert completed("advise", "--grow", "=", "b") == {"batch"}
    assert completed("sweep", "conf") == set()  # files, by bash itself
