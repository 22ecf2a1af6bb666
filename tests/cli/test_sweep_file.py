"""Sweep files in W&B's format; what they may not say is in `bad_inputs/sweep.py`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from randbp.cli.distributions import LISTED, NUMERIC, Distribution
from randbp.cli.sweep_file import Hyperband, Metric, SweepFile, read_sweep
from randbp.cli.sweep_plan import version_name

ROOT = Path(__file__).parents[2]
reals = st.floats(-50, 50).map(lambda x: round(x, 3))
above_zero = st.floats(1e-3, 50).map(lambda x: round(x, 3))
steps = st.one_of(st.integers(1, 4), st.sampled_from([0.1, 0.25, 3.5]))


def parameters(content: dict[str, Any]) -> Mapping[str, Distribution]:
    return SweepFile.model_validate({"name": "x", "method": "random", "parameters": content}).drawn


def grid(content: dict[str, Any]) -> SweepFile:
    return SweepFile.model_validate({"name": "x", "method": "grid", "parameters": content})


@st.composite
def settings_of(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Settings with which a distribution has a meaning."""
    base = name.removeprefix("q_")
    match base:
        case "normal" | "log_normal":
            found: dict[str, Any] = {"mu": draw(st.floats(-3, 3)), "sigma": draw(st.floats(0.125, 3))}
        case "beta":
            found = {"a": draw(above_zero), "b": draw(above_zero)}
        case "int_uniform":
            found = dict(zip(("min", "max"), sorted(draw(st.tuples(*[st.integers(-9, 9)] * 2))), strict=True))
        case _:
            ends = above_zero if base.endswith("values") else reals
            low, high = sorted(draw(st.tuples(ends, ends)))
            found = {"min": low, "max": high + 0.5}
    return found | ({"q": draw(steps)} if name.startswith("q_") else {})


def scipys(name: str, it: dict[str, Any]) -> Any:
    """The same distribution from scipy."""
    match name.removeprefix("q_"):
        case "uniform":
            return stats.uniform(it["min"], it["max"] - it["min"])
        case "log_uniform":
            return stats.loguniform(math.exp(it["min"]), math.exp(it["max"]))
        case "inv_log_uniform":  # 1/x is log-uniform between these exponents
            return stats.loguniform(math.exp(-it["max"]), math.exp(-it["min"]))
        case "log_uniform_values" | "inv_log_uniform_values":
            return stats.loguniform(it["min"], it["max"])
        case "normal":
            return stats.norm(it["mu"], it["sigma"])
        case "log_normal":
            return stats.lognorm(s=it["sigma"], scale=math.exp(it["mu"]))
    return stats.beta(it["a"], it["b"])


@pytest.mark.parametrize("name", sorted(NUMERIC.keys() - {"int_uniform"}))
@given(st.data(), st.floats(0.001, 0.999))
def test_quantiles_are_those_of_the_distribution(name: str, data: st.DataObject, p: float) -> None:
    given_settings = data.draw(settings_of(name))
    (parameter,) = parameters({"a": {"distribution": name} | given_settings}).values()
    expected = scipys(name, given_settings).ppf(p)
    found = parameter.quantile(p)
    if "q" not in given_settings:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
        return
    q = given_settings["q"]
    assert abs(found - expected) <= q / 2 + 1e-9 * max(1, abs(expected))
    assert found / q == pytest.approx(round(found / q), rel=1e-12, abs=1e-9)
    assert isinstance(found, int) == isinstance(q, int)
    assert (
        isinstance(q, int) or float(f"{found:.15g}") == found
    )  # no noise in the last digits, which would be part of a folder's name


@pytest.mark.parametrize("name", sorted(NUMERIC))
def test_every_distribution_of_the_format_is_read_and_draws_what_is_finite(name: str) -> None:
    @given(settings_of(name))
    def check(given_settings: dict[str, Any]) -> None:
        (parameter,) = parameters({"a": {"distribution": name} | given_settings}).values()
        assert parameter.distribution == name
        assert all(math.isfinite(parameter.quantile(p)) for p in (0.0, 0.5, 1.0))
        if name == "q_uniform":
            assert {parameter.quantile(p) for p in np.linspace(0, 1, 50)} <= set(parameter.choices)

    check()


def test_the_distribution_follows_from_the_settings_as_in_wandb() -> None:
    found = parameters(
        {
            "constant": {"value": None},
            "listed": {"values": ["a", [1, 2], {"b": True}]},
            "weighted": {"values": [1, 2], "probabilities": [0.25, 0.75]},
            "whole": {"min": 0, "max": 3},
            "real": {"min": 0, "max": 3.0},
            "named": {"distribution": "categorical", "values": [1], "probabilities": [1]},
        }
    )
    assert [it.distribution for it in found.values()] == [
        *("constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform"),
        "categorical_w_probabilities",
    ]
    assert set(LISTED) | set(NUMERIC) >= {it.distribution for it in found.values()}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_weights_are_honoured(weights: list[int]) -> None:
    probabilities = [weight / sum(weights) for weight in weights]
    (it,) = parameters({"a": {"values": list("abcde")[: len(weights)], "probabilities": probabilities}}).values()
    found = [it.quantile((n + 0.5) / (20 * sum(weights))) for n in range(20 * sum(weights))]
    assert [found.count(letter) for letter in "abcde"[: len(weights)]] == [20 * weight for weight in weights]


values = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(0.001, 1), st.sampled_from(["Spatial", "a b", "x/y"]))
keys = st.lists(st.sampled_from(["a", "b", "c.keep", "d.keep", "d.e.keep"]), min_size=1, unique=True)


@given(st.data())
def test_a_grid_has_every_combination_once_under_its_own_name(data: st.DataObject) -> None:
    content: dict[str, Any] = {}
    for key in data.draw(keys):
        choices = data.draw(st.lists(values, min_size=1, max_size=3, unique_by=str))
        content[key] = {"values": choices} if len(choices) > 1 or data.draw(st.booleans()) else {"value": choices[0]}
    sweep = grid(content)
    runs = list(sweep.grid())
    sizes = [len(it.get("values", "1")) for it in content.values()]
    assert len({str(run) for run in runs}) == len(runs) == math.prod(sizes)
    for key, description in content.items():
        assert {str(run[key]) for run in runs} == {
            str(v) for v in description.get("values", [description.get("value")])
        }
    names = [version_name(sweep.varied, run) for run in runs]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and " " not in name and len(name.encode()) < 200 for name in names)


@given(st.lists(st.text(min_size=1, max_size=130), min_size=1, max_size=3, unique=True))
def test_names_of_runs_are_names_of_folders_whatever_the_values(texts: list[str]) -> None:
    names = [version_name(("a",), {"a": text}) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(Path(name).name == name and name.isprintable() and len(name.encode()) < 200 for name in names)


def test_a_grid_of_ranges() -> None:
    ranges = {"a": {"min": -1, "max": 1}, "b": {"distribution": "q_uniform", "min": 0.1, "max": 0.3, "q": 0.1}}
    runs = list(grid(ranges).grid())
    assert runs == [{"a": a, "b": b} for a in (-1, 0, 1) for b in (0.1, 0.2, 0.3)]


def test_nested_parameters_have_one_flag_by_the_outermost_key() -> None:
    content = {
        "a": {"value": 1},
        "b": {"parameters": {"c": {"values": [1, 2]}, "d": {"parameters": {"e": {"value": 3}}}}},
    }
    sweep = grid(content)
    assert [sweep.nested(run) for run in sweep.grid()] == [{"a": 1, "b": {"c": c, "d": {"e": 3}}} for c in (1, 2)]
    assert [version_name(sweep.varied, run) for run in sweep.grid()] == ["c=1", "c=2"]


def test_a_whole_file(tmp_path: Path) -> None:
    content = {
        "name": "all/of it",
        "description": "…",
        "project": "p",
        "entity": "e",
        "program": "train.py",
        "method": "bayes",
        "metric": {
            "name": "loss",
            "goal": "maximize",
            "target": 0.5,
            "impute": "best",
            "impute_while_running": "latest",
        },
        "parameters": {"a": {"min": 0.5, "max": 1}},
        "command": ["${env}", "${interpreter}", "${program}", 7, "${args_json}", "x${envvar:HOME}"],
        "run_cap": 4,
        "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3, "strict": True},
        "kind": "sweep",
        "apiVersion": "v1",
        "controller": {"type": "local"},
    }
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(content))
    sweep = read_sweep(path)
    assert (sweep.name, sweep.method, sweep.run_cap, sweep.program) == ("all/of it", "bayes", 4, "train.py")
    assert sweep.metric == Metric.model_validate(content["metric"])
    assert sweep.metric.goal == "maximize" and sweep.metric.impute_while_running == "latest"
    assert sweep.early_terminate is not None and sweep.early_terminate.bands == [3, 9] and sweep.early_terminate.strict
    assert sweep.command[3] == "7"


@pytest.mark.parametrize(
    ("described", "bands"),
    [
        ({"min_iter": 2}, [2, 6, 18]),
        ({"min_iter": 1, "eta": 1.5}, [1, 2, 3]),
        ({"max_iter": 27, "s": 3}, [1, 3, 9]),
        ({"max_iter": 10, "s": 9, "eta": 2}, [1, 2, 5]),
    ],
)
def test_bands(described: dict[str, Any], bands: list[int]) -> None:
    assert Hyperband.model_validate({"type": "hyperband", **described}).bands[:3] == bands


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=9), st.sampled_from([2, 3]), st.booleans()
)
def test_who_falls_behind_is_not_among_the_best(histories: list[list[float]], eta: int, strict: bool) -> None:
    rule = Hyperband(type="hyperband", min_iter=1, eta=eta, strict=strict)
    for history in histories:
        band = rule.missed(history, histories, Metric(name="m"))
        mirrored = [[-value for value in it] for it in histories]
        assert band == rule.missed([-value for value in history], mirrored, Metric(name="m", goal="maximize"))
        reached = max((band for band in rule.bands if band <= len(history)), default=None)
        if reached is None:
            assert band is None
            continue
        own = history[reached - 1] if strict else min(history)
        better = sum(it[reached - 1] < own for it in histories if len(it) >= reached)
        rivals = sum(len(it) >= reached for it in histories)
        assert (band == reached) == (better > rivals // eta)
        if band is None:
            assert better <= rivals / eta


def test_repository_files_are_read() -> None:
    for path in sorted((ROOT / "configs/sweeps").glob("*.yaml")):
        assert read_sweep(path).parameters
