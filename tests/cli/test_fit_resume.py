"""Whenever a training ends, by whatever signal, it goes on as if nothing had happened."""

import random
import signal

import pytest

from tests.cli.kill_fit import difference, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run that nobody disturbed, and how many operations on files that took."""
    root = tmp_path_factory.mktemp("killed")
    code, _, operations, text = run(root, "whole")
    assert code == 0, text
    return root, operations


@pytest.mark.parametrize("part", range(4))
def test_a_killed_run_goes_on_as_if_undisturbed(whole, part):
    root, operations = whole
    # Somewhere in the first, second, third, last quarter of what is written.
    moment = random.Random(f"{part}").randint(1 + part * operations // 4, (part + 1) * operations // 4)
    assert run(root, str(part), last=moment)[0] == -signal.SIGKILL
    code, _, _, text = run(root, str(part), "--resume")
    assert code == 0, text
    assert not difference(root / "runs/g" / str(part), root / "runs/g/whole")
