"""Names of predicates: one per predicate, the same in every process."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import nn

from randbp.callbacks import TensorDropout
from randbp.callbacks.predicate import predicate_name

Predicate = Callable[[str, nn.Module], bool]


def starts(prefix: Any) -> Predicate:
    def predicate(name: str, module: nn.Module) -> bool:
        return name.startswith(prefix)

    return predicate


def is_one_of(names: set[str], name: str, module: nn.Module) -> bool:
    return name in names


def predicates() -> list[Predicate]:
    late = lambda name, module: name == after  # noqa: E731
    assert predicate_name(late)  # what it reads is not there yet
    after = "a"
    return [
        lambda name, module: name == "a",
        lambda name, module: name == "b",
        lambda name, module: isinstance(module, nn.Linear),
        lambda name, module: isinstance(module, nn.Conv2d),
        lambda name, module: name in {"a", "b", "c"},
        lambda name, module: name in {"a", "b", "d"},
        lambda name, module, extra="a": name == extra,
        lambda name, module, extra="b": name == extra,
        late,
        starts("a"),
        starts("b"),
        starts(("a", "b")),
        partial(is_one_of, {"a", "b", "c"}),
        partial(is_one_of, {"a", "b", "d"}),
    ]


def test_different_predicates_have_different_names_and_equal_ones_the_same() -> None:
    names = [predicate_name(each) for each in predicates()]
    assert len(set(names)) == len(names) == 14
    assert names == [predicate_name(each) for each in predicates()]


def test_names_are_the_same_in_another_process() -> None:
    root = Path(__file__).parents[2]
    code = f"from {__name__} import *; print(*map(predicate_name, predicates()), sep='\\n')"
    for seed in ("1", "2"):  # of the order of sets
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
        assert result.stdout.split("\n")[:-1] == [predicate_name(each) for each in predicates()], result.stderr


def test_named_functions_and_classes_are_known_by_their_names() -> None:
    assert predicate_name(is_one_of) == f"{__name__}.is_one_of"
    assert predicate_name(nn.Identity()) == "torch.nn.modules.linear.Identity"


def test_a_trainer_takes_two_callbacks_with_lambdas(tmp_path: Path) -> None:
    names = ["head"]
    callbacks = [
        TensorDropout(layers=lambda name, module: isinstance(module, nn.Conv2d)),
        TensorDropout(layers=lambda name, module: name in names),
    ]
    keys = [callback.state_key for callback in callbacks]
    Trainer(callbacks=list(callbacks), logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    names.append("tail")  # a key that changed during a run would be lost in its checkpoint
    assert keys == [callback.state_key for callback in callbacks]
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # as it should be for equal ones
        same = [TensorDropout(layers=starts("a")), TensorDropout(layers=starts("a"))]
        Trainer(callbacks=list(same), logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
