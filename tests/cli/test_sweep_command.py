"""Command lines of runs, against those of W&B's agent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps import utils
from wandb.wandb_agent import Agent, AgentProcess

from randbp.cli.sweep_command import check_command, command_line

values = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(0.001, 1),
    st.sampled_from(["Spatial", "a b", "x/y", "", None]),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 2)),
)
MACROS = (
    *("args", "args_no_boolean_flags", "args_no_hyphens", "args_no_equals", "args_json", "args_json_file"),
    *("args_append_hydra", "args_override_hydra", "program", "interpreter", "env"),
)


def agents(command: list[str], program: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What W&B's agent would start."""
    started: list[list[str]] = []

    def start(self: AgentProcess, command: list[str], **others: Any) -> None:
        started.append(command)

    monkeypatch.setattr(AgentProcess, "__init__", start)
    agent = Agent.__new__(Agent)
    agent.__dict__.update(_sweep_command=list(command), _in_jupyter=False, _function=None, _run_processes={})
    agent.__dict__.update(_forward_signals=False)
    arguments = {key: {"value": value} for key, value in parameters.items()}
    agent._command_run({"run_id": "r", "program": program, "args": arguments})
    return started[0]


@given(st.dictionaries(st.sampled_from(["a", "b.c", "d"]), values, max_size=3), st.lists(st.sampled_from(MACROS)))
def test_it_is_that_of_the_agent(
    tmp_path_factory: pytest.TempPathFactory, parameters: dict[str, Any], macros: list[str]
) -> None:
    command = ["${interpreter}", "${program}", "x", *(f"${{{name}}}" for name in macros), "a${envvar:HOME}b", "7"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("agent"))
        for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
            patch.setenv(name, "")
        patch.setenv("WANDB_SWEEP_ID", "s")
        Path("wandb/sweep-s").mkdir(parents=True)
        theirs = agents(command, "p.py", parameters, patch)
        ours = command_line(command, "p.py", parameters, Path("wandb/sweep-s/config-r.json"))
        if "args_json_file" in macros:
            assert Path("wandb/sweep-s/config-r.json").read_text() == json.dumps(parameters)
    assert [sys.executable if word == "python" else word for word in theirs if word != "/usr/bin/env"] == ours
    assert ours[-2] == f"a{os.environ['HOME']}b"


def test_without_a_command_it_is_wandbs_default_or_fit() -> None:
    assert command_line([], "p.py", {"a": 1}) == [sys.executable, "p.py", "--a=1"]
    assert utils.DEFAULT_SWEEP_COMMAND == ["${env}", "${interpreter}", "${program}", "${args}"]
    for program in ("", "randbp"):
        assert command_line([], program, {"a": 1}) == [sys.executable, "-m", "randbp.cli.main", "fit", "--a=1"]


def test_what_the_check_lets_pass_can_be_made() -> None:
    for name in MACROS:
        check_command([f"${{{name}}}"], "p.py")
        command_line([f"${{{name}}}"], "p.py", {"a": {"b": None}})
