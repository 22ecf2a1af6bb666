"""Random and Bayesian search."""

import math
from typing import Any

import pytest
from scipy import stats

from randbp.cli.search import Draw, Trial, propose, values_at
from randbp.cli.sweep_file import SweepFile

MIXED = {
    "choice": {"values": ["a", "b", "c"]},
    "weighted": {"values": ["a", None, [1]], "probabilities": [0.25, 0.75, 0.0]},
    "whole": {"min": 2, "max": 4},
    "rate": {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
    "noise": {"distribution": "normal", "mu": 3.0, "sigma": 2.0},
    "fixed": {"value": 3},
}


def sweep(method: str, parameters: dict[str, Any], **others: Any) -> SweepFile:
    return SweepFile.model_validate({"name": "x", "method": method, "parameters": parameters, **others})


def test_random_draws_follow_their_distributions() -> None:
    it = sweep("random", MIXED)
    draws = [propose(it, [Trial({})] * number) for number in range(300)]
    assert draws == [propose(it, [Trial({})] * number) for number in range(300)]  # whatever has been drawn before
    assert draws[:9] != [propose(it, [Trial({})] * number, seed=1) for number in range(9)]
    runs = [values_at(it, draw) for draw in draws]
    columns = {name: [run[name] for run in runs] for name in MIXED}
    assert set(columns["fixed"]) == {3} and {*columns["choice"]} == {"a", "b", "c"} and {*columns["whole"]} == {2, 3, 4}
    # At a level of 1e-3 for each of these, with draws that are the same at every run of the tests.
    for name, count in (("choice", 3), ("whole", 3)):
        counts = [columns[name].count(value) for value in set(columns[name])]
        assert len(counts) == count and stats.chisquare(counts).pvalue > 1e-3
    assert stats.binomtest(columns["weighted"].count("a"), 300, 0.25).pvalue > 1e-3 and [1] not in columns["weighted"]
    assert stats.kstest(columns["rate"], stats.loguniform(1e-4, 1e-1).cdf).pvalue > 1e-3
    assert stats.kstest(columns["noise"], stats.norm(3, 2).cdf).pvalue > 1e-3


def search(it: SweepFile, count: int) -> list[Trial]:
    """Trials of a search for the place where the loss is least, or its negative most."""
    sign = 1 if it.metric is None or it.metric.goal == "minimize" else -1
    trials: list[Trial] = []
    for _ in range(count):
        draw = propose(it, trials)
        run = values_at(it, draw)
        loss = sign * (abs(math.log10(run["rate"]) + 2) + (run["choice"] != "b") + abs(run["whole"] - 3))
        trials.append(Trial(draw, "finished", (loss,), loss))
    return trials


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_bayesian_search_finds_what_random_search_does_not(goal: Any) -> None:
    late = {}
    for method in ("random", "bayes"):
        trials = search(sweep(method, MIXED, metric={"name": "loss", "goal": goal}), 40)
        late[method] = sum(abs(trial.value or 0.0) for trial in trials[20:]) / 20
    assert late["bayes"] < late["random"] / 2


def test_a_proposal_depends_on_what_came_of_the_others_and_on_nothing_else() -> None:
    it = sweep("bayes", MIXED, metric={"name": "loss"})
    trials = search(it, 14)
    assert propose(it, trials) == propose(it, list(trials))
    assert propose(it, trials) != propose(it, [Trial(t.draw, t.state, t.history, -(t.value or 0)) for t in trials])


@pytest.mark.parametrize(
    ("how", "state", "same_as"),
    [
        ({"impute": "worst"}, "failed", 9.0),
        ({"impute": "best"}, "failed", 1.0),
        ({"impute": "latest"}, "failed", 4.0),
        ({"impute_while_running": "worst"}, "open", 9.0),
        ({"impute_while_running": "latest"}, "open", 4.0),
    ],
)
@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_what_is_taken_for_a_run_without_a_result(how: dict[str, str], state: Any, same_as: float, goal: Any) -> None:
    it = sweep("bayes", {"x": {"min": 0.0, "max": 1.0}}, metric={"name": "loss", "goal": goal, **how})
    sign = 1 if goal == "minimize" else -1

    def trial(number: int, value: float | None, state: Any = "finished") -> Trial:
        return Trial({"x": number / 16}, state, (7.0 * sign, 4.0 * sign), None if value is None else value * sign)

    known = [trial(number, value) for number, value in enumerate([1, 9, *[2, 3, 5, 6] * 3])]
    without, like = [*known, trial(15, None, state)], [*known, trial(15, same_as)]
    other = [*known, trial(15, 0.5 if same_as > 1 else 9.5)]
    assert propose(it, without) == propose(it, like) != propose(it, other)


def test_stopped_runs_teach_what_they_have_reached() -> None:
    it = sweep("bayes", {"x": {"min": 0.0, "max": 1.0}}, metric={"name": "loss"})
    draws: list[Draw] = [{"x": number / 20} for number in range(20)]

    def trials(best: int) -> list[Trial]:
        return [Trial(draw, "stopped", (abs(n - best),), abs(n - best)) for n, draw in enumerate(draws)]

    low, high = propose(it, trials(3)), propose(it, trials(17))
    assert low["x"] < 0.5 < high["x"]
