"""Names of predicates: one per predicate, the same in every process."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from torch import nn

from randbp.callbacks import TensorDropout, predicate
from randbp.callbacks.predicate import predicate_name

from .predicates import is_one_of, predicates, starts


def test_different_predicates_have_different_names_and_equal_ones_the_same() -> None:
    names = [predicate_name(each) for each in predicates(predicate_name)]
    assert len(set(names)) == len(names) == 14
    assert names == [predicate_name(each) for each in predicates(predicate_name)]


def test_names_are_the_same_in_another_process() -> None:
    root, here = Path(__file__).parents[2], [predicate_name(each) for each in predicates(predicate_name)]
    code = (
        f"import runpy; from {predicates.__module__} import predicates\n"
        f"predicate_name = runpy.run_path({predicate.__file__!r})['predicate_name']\n"  # by itself: no Lightning
        "print(*map(predicate_name, predicates(predicate_name)), sep='\\n')"
    )
    for seed in ("1", "2"):  # of the order of sets
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
        assert result.stdout.split("\n")[:-1] == here, result.stderr


def test_named_functions_and_classes_are_known_by_their_names() -> None:
    assert predicate_name(is_one_of) == "tests.callbacks.predicates.is_one_of"
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
