import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from randbp import Axes, Exact, IfFaster, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.callbacks.summary import describe_estimators
from randbp.cli.main import main
from randbp.report import PREFACE, compare, load_runs, print_table
from randbp.report.comparison_table import notes
from randbp.report.groups import Comparison, Group
from randbp.report.page import make_page
from randbp.report.pareto import pareto_front, pareto_plots
from randbp.report.plots import cost_plots, mean_curve, spread_curve
from tests.cli.run_folders import write_run


def by_keep(comparison: Comparison) -> dict[float, Group]:
    return {group.keep: group for group in comparison.groups}


def printed(comparison: Comparison) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    print_table(comparison, console)
    return console.export_text()


class Checker(HTMLParser):
    """Collects what a page refers to, its ids, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "br", "!doctype"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "action", "xlink:href"):
                self.targets.append(value or "")
            self.targets += re.findall(r"url\(([^)]*)\)", value or "")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "keep rates"
    for keep in (1.0, 0.5, 0.125):
        for seed in range(3):
            write_run(folder / f"keep={keep}-seed={seed}", keep, seed)
    return folder


def test_means_spreads_and_ratios_agree_with_pandas(sweep: Path) -> None:
    comparison = compare(load_runs(sweep))
    rows = []
    for path in sweep.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        keep = summary["estimators"]["weight_vjp"]["keep"]
        costs = {name: summary["cost"][name] for name in ("step_seconds", "held_bytes", "peak_bytes")}
        rows.append({"keep": keep, "accuracy": summary["metrics"]["test/accuracy"], **costs})
    table = pandas.DataFrame(rows).groupby("keep").agg(["mean", "std"])
    assert [group.keep for group in comparison.groups] == [1.0, 0.5, 0.125]
    for group in comparison.groups:
        for name in ("accuracy", "step_seconds", "held_bytes", "peak_bytes"):

            def measure(g: Group, name: str = name) -> Any:
                return g.metric("test/accuracy") if name == "accuracy" else g.cost(name)

            expected = table.loc[group.keep, name]
            assert measure(group).mean == pytest.approx(expected["mean"])
            assert measure(group).std == pytest.approx(expected["std"])
            relative = expected["mean"] / table.loc[1.0, name]["mean"]
            assert comparison.ratio(group, measure) == pytest.approx(relative)


def test_printed_table(sweep: Path) -> None:
    lines = printed(compare(load_runs(sweep))).splitlines()
    row = next(line for line in lines if line.strip().startswith("1/8"))
    told = "1/8 82.3 ± 1.0 % 0.90× 61.9 ± 5.6 ms 0.56× 13.8 MiB 0.34× 601 ± 1 MiB 1.00× 3"
    assert " ".join(row.split()) == told
    assert any("standard deviation" in line for line in lines)
    assert any("libraries included" in line for line in lines)


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal(tmp_path: Path, width: int) -> None:
    for keep in (1.0, 0.5):
        write_run(tmp_path / f"{keep}", keep)
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(compare(load_runs(tmp_path)), console)
    lines = console.export_text().splitlines()
    row = next(line for line in lines if line.split()[:1] == ["1/2"])
    assert " ".join(row.split()) == "1/2 85.0 % 0.94× 75.0 ms 0.75× 25.0 MiB 0.62× 600 MiB 1.00×"


def test_page_stands_alone(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert f"report in {sweep / 'report.html'}" in out
    page = (sweep / "report.html").read_text()
    checked = Checker(page)
    assert checked.open == []
    assert all(target.startswith("#") for target in checked.targets)
    assert "http" not in page and "@import" not in page
    assert len(checked.ids) == len(set(checked.ids))
    assert {target[1:] for target in checked.targets} <= set(checked.ids)
    assert page.count("<svg") == 7  # accuracy, loss, three costs, accuracy against two of them
    assert "mathdefault" not in page  # formulas are off, because names may have dollar signs in them
    assert not re.search(r"#00000[0-9]|#0000a[0-9]", page)  # every colour comes from the page
    text = " ".join(checked.text)
    for told in ("keep rates", "1/8", "0.34×", "82.3 ± 1.0 %", "1,234 parameters", "2 January 2026", "61.9 ± 5.6 ms"):
        assert told in text, told
    assert main(["report", str(sweep)]) == 0  # and once more over the earlier page
    assert (sweep / "report.html").read_text() == page


def test_without_an_exact_run_ratios_are_left_out(tmp_path: Path) -> None:
    for keep in (0.5, 0.25):
        write_run(tmp_path / f"keep={keep}", keep)
    comparison = compare(load_runs(tmp_path))
    text = printed(comparison)
    assert "×" not in text
    assert "ratios are left out" in text
    page = make_page(comparison, "no exact")
    assert "ratio to exact" not in page and "Held for backward, MiB" in page
    assert "×" not in "".join(Checker(page).text)


@pytest.mark.parametrize("keep", [1.0, 0.25, None])
def test_a_single_run(tmp_path: Path, keep: float | None) -> None:
    write_run(tmp_path / "only", keep)
    for folder in (tmp_path, tmp_path / "only"):
        comparison = compare(load_runs(folder))
        assert len(comparison.groups) == 1
        assert comparison.groups[0].exact == (keep != 0.25)
        page = make_page(comparison, "one")
        assert page.count("<svg") == 1  # the loss curve; one point makes no curve over keep rates
        assert Checker(page).open == []


def test_failed_runs_do_not_count_and_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1.0)
    write_run(tmp_path / "b", 0.5, seed=0)
    write_run(
        tmp_path / "c", 0.5, seed=1, status="failed", error="RuntimeError: <boom>", metrics={"test/accuracy": 0.0}
    )
    write_run(tmp_path / "d", 0.25, status="running", cost={"held_bytes": None, "step_seconds": None})
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "summary.json").write_text('{"format": 1, "status": "failed", "error": "no such data"}')
    comparison = compare(load_runs(tmp_path))
    half = by_keep(comparison)[0.5].metric("test/accuracy")
    assert half is not None and half.values == (pytest.approx(0.8504),)
    text = printed(comparison)
    assert "1 of 2" in text and "0 of 1" in text
    assert "c: RuntimeError: <boom>" in text
    assert "d: still running" in text
    assert "e: no such data" in text
    page = make_page(comparison, "failures")
    assert Checker(page).open == []
    assert "&lt;boom&gt;" in page and "<boom>" not in page


def test_other_settings_are_not_taken_for_seeds(tmp_path: Path) -> None:
    for rate in ("0.1", "0.01"):
        for keep in (1.0, 0.5):
            folder = tmp_path / f"lr={rate}-keep={keep}"
            write_run(folder, keep, metrics={"test/accuracy": 0.9 if rate == "0.1" else 0.6})
            (folder / "config.yaml").write_text(
                f"seed_everything: {keep}\nname: {rate}\ntensor_dropout: {{weight_vjp: {{keep: {keep}}}}}\n"
                f"model: {{init_args: {{lr: {rate}, schedule: {{warmup: {rate}}}}}}}\n"
            )
    comparison = compare(load_runs(tmp_path))
    assert [(group.keep, dict(group.settings)) for group in comparison.groups] == [
        (1.0, {"model.init_args.lr": "0.01"}),
        (0.5, {"model.init_args.lr": "0.01"}),
        (1.0, {"model.init_args.lr": "0.1"}),
        (0.5, {"model.init_args.lr": "0.1"}),
    ]
    for group in comparison.groups:
        exact = comparison.exact(group)
        assert exact is not None and exact.settings == group.settings
    assert "Spatial · lr 0.1" in printed(comparison)


def test_estimators_and_layers_are_told_apart(tmp_path: Path) -> None:
    half = {"keep": 0.5, "per_example": True}
    estimators: list[dict[str, Any]] = [
        {"weight_vjp": {"name": "Spatial", **half, "center": True}},
        {"weight_vjp": {"name": "Spatial", **half, "center": False}},
        {"weight_vjp": {"name": "Spatial", "keep": 1.0}, "input_vjp": {"name": "Channels", "keep": 0.5}},
        {"weight_vjp": {"name": "Axes", "keep": 0.5}, "input_vjp": {"name": "Axes", "keep": 0.5}},
        {"weight_vjp": {"name": "Axes", "keep": 0.5}, "layers": "features.*"},
    ]
    for index, estimator in enumerate(estimators):
        write_run(tmp_path / str(index), 0.5, estimators=estimator)
    write_run(tmp_path / "none", None)
    comparison = compare(load_runs(tmp_path))
    assert {comparison.label(group) for group in comparison.groups} == {
        "exact",
        "Spatial(center=True) (weight VJP) · layers all",
        "Spatial(center=False) (weight VJP) · layers all",
        "Channels (input VJP) · layers all",
        "Axes (both VJPs) · layers all",
        "Axes (weight VJP) · layers features.*",
    }
    assert all(comparison.exact(group) is not None for group in comparison.groups)
    assert Checker(make_page(comparison, "estimators")).open == []


def test_estimators_within_others_are_named(tmp_path: Path) -> None:
    estimators = [
        Rounding(4, Spatial(0.5)),
        Rounding(4, Spatial(0.25)),
        Rounding(4, Axes(0.5)),
        IfFaster(Spatial(0.5)),
        {"a": Spatial(0.5), "b*": Exact()},
    ]
    for index, estimator in enumerate(estimators):
        trainer = SimpleNamespace(callbacks=[TensorDropout(weight_vjp=estimator)])
        write_run(tmp_path / str(index), 0.5, estimators=json.loads(json.dumps(describe_estimators(trainer))))
    comparison = compare(load_runs(tmp_path))
    assert sorted(comparison.label(group) for group in comparison.groups) == [
        "IfFaster",
        "Rounding(estimator=Axes(bernoulli=False))",
        "Rounding(estimator=Spatial(per_example=True, center=True, runs=True))",
        "Rounding(estimator=Spatial(per_example=True, center=True, runs=True))",
        "by layer: Spatial 1/2, Exact",
    ]


def test_presets_and_lean_mode_are_told_apart_from_exact_and_from_each_other(tmp_path: Path) -> None:
    callbacks: list[dict[str, Any]] = [
        {"preset": "exact"},
        {"preset": "memory"},
        {"preset": "memory", "bits": 2},
        {"preset": "time"},
        {"weight_vjp": Rounding(4), "lean": True},
        {"weight_vjp": Exact(), "lean": "exact"},
        {"weight_vjp": Exact()},
    ]
    for index, arguments in enumerate(callbacks):
        described = describe_estimators(SimpleNamespace(callbacks=[TensorDropout(**arguments)]))
        write_run(tmp_path / str(index), 0.5, cost={"held_bytes": 1000 * index}, estimators=described)
    comparison = compare(load_runs(tmp_path))
    labels = [comparison.label(group) for group in comparison.groups]
    assert len(set(labels)) == len(callbacks) and labels.count("exact") == 1
    assert {"exact · preset exact", "exact · lean exact"} < set(labels)
    assert sum(" · preset memory · bits " in label for label in labels) == 2
    (exact,) = [group for group in comparison.groups if group.exact]
    assert all(comparison.exact(group) is exact for group in comparison.groups)


def test_disturbed_times_are_pointed_out(tmp_path: Path) -> None:
    write_run(tmp_path / "quiet", 1.0)
    write_run(tmp_path / "busy", 0.5, cost={"waiting_threads": 0.7})
    comparison = compare(load_runs(tmp_path))
    text = " ".join(notes(comparison))
    page = make_page(comparison, "disturbed")
    assert "bytes for backward of exact" in page and "the time of exact" not in page
    assert "Other work took processors from busy: do not trust the times." in text


def test_loss_curve_is_the_mean_over_seeds_with_its_spread(sweep: Path) -> None:
    group = by_keep(compare(load_runs(sweep)))[0.5]
    curve = mean_curve(group.runs)
    assert curve is not None
    assert list(curve.index) == list(range(0, 300, 3))
    assert curve[30] == pytest.approx(2.0 / 31 + 1.0)
    spread = spread_curve(group.runs)
    assert spread is not None and spread.to_dict() == pytest.approx(dict.fromkeys(curve.index, 1.0))  # of seeds 0, 1, 2
    assert spread_curve(group.runs[:1]) is None


def test_the_page_begins_with_the_folders_preface(sweep: Path) -> None:
    page = make_page(compare(load_runs(sweep)), "a")
    (sweep / PREFACE).write_text("<h2>Première</h2>", encoding="utf-8")
    first, second = make_page(compare(load_runs(sweep)), "a").split("</header><h2>Première</h2><h2>Keep rates</h2>")
    assert first in page and second.partition("</p>")[2] in page and Checker(first + "</header>" + second).open == []
    (sweep / PREFACE).write_bytes(b"\xff")
    results = load_runs(sweep)
    [damage] = results.damaged
    assert damage.path == sweep / PREFACE and "not valid UTF-8" in damage.what
    assert results.preface == "" and len(results.runs) == 9


def test_evaluations_and_hidden_folders_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1.0)
    write_run(tmp_path / "test-0", 1.0, status="finished")
    summary = json.loads((tmp_path / "test-0" / "summary.json").read_text())
    del summary["cost"]
    (tmp_path / "test-0" / "summary.json").write_text(json.dumps(summary))
    write_run(tmp_path / ".unfinished" / "b", 1.0)
    assert [run.name for run in load_runs(tmp_path).runs] == ["a"]


@pytest.mark.parametrize("which", ["one of two", "all of a group", "the exact run", "all"])
def test_disturbed_times_are_neither_plotted_nor_compared(tmp_path: Path, which: str) -> None:
    busy = {"step_seconds": 1.5, "waiting_threads": 3.0}  # fifteen times as long
    for keep in (1.0, 0.5, 0.25):
        for seed in (0, 1):
            disturbed = {
                "one of two": keep == 0.25 and seed == 1,
                "all of a group": keep == 0.25,
                "the exact run": keep == 1.0,
                "all": True,
            }[which]
            write_run(tmp_path / f"{keep}-{seed}", keep, seed, cost=busy if disturbed else {})
    comparison = compare(load_runs(tmp_path))
    quarter = by_keep(comparison)[0.25]
    trusted = quarter.cost("step_seconds", trusted=True)
    plots = cost_plots(comparison)
    titles = [re.findall(r'aria-label="([^"]*)"', plot)[0] for plot in plots]
    if which == "one of two":
        assert trusted is not None and trusted.values == (0.0625,)
        assert comparison.ratio(quarter, lambda g: g.cost("step_seconds", trusted=True)) == pytest.approx(
            0.0625 / 0.105
        )
    elif which in ("all of a group", "all"):
        assert trusted is None
    if which == "all":
        assert titles == ["Held for backward, ratio to exact", "Peak memory, ratio to exact"]
    elif which == "the exact run":  # nothing to relate to: in seconds, of the runs that were alone
        assert titles[0] == "Time per step, ms"
    else:
        assert titles[0] == "Time per step, ratio to exact"
    for row in printed(comparison).splitlines():
        if row.split()[:1] == ["1/4"]:
            assert ("0.60×" in row) == (which == "one of two") and "15" not in row.split("×")[0]
    assert "Ratios and plots leave them out." in " ".join(notes(comparison))


@pytest.mark.parametrize(
    ("target", "best"),
    [
        ("{name: test/accuracy, goal: maximize}", "Best run: 1.0-1, test/accuracy 0.9104, the highest of 4."),
        ("{name: test/accuracy}", "Best run: 0.5-0, test/accuracy 0.8504, the lowest of 4."),
        ("{name: cost/held_bytes, goal: minimize}", "Best run: 0.5-0, cost/held_bytes 2.621e+07, the lowest of 4."),
        ("{name: loss, goal: minimize}", "No finished run has the sweep's metric loss, so none is the best."),
    ],
)
def test_the_best_run_by_the_sweeps_metric_is_named(tmp_path: Path, target: str, best: str) -> None:
    for keep in (1.0, 0.5):
        for seed in (0, 1):
            write_run(tmp_path / f"{keep}-{seed}", keep, seed)
    write_run(tmp_path / "nan", 0.25, metrics={"test/accuracy": "nan"}, status="failed", error="no")
    write_run(tmp_path / "failed", 0.25, metrics={"test/accuracy": 2.0}, status="failed", error="no")
    by_accuracy = "Best run: 1.0-1, test/accuracy 0.9104, the highest of 4."  # without a sweep
    assert by_accuracy in notes(compare(load_runs(tmp_path)))
    (tmp_path / "sweep.yaml").write_text(f"metric: {target}\nparameters: {{}}\n")
    comparison = compare(load_runs(tmp_path))
    assert best in printed(comparison).splitlines()
    assert best in notes(comparison)  # which the page shows, too


def test_a_diverged_run_is_not_the_best(tmp_path: Path) -> None:
    for index, value in enumerate([0.3, "nan", "inf", 0.4]):
        write_run(tmp_path / str(index), 0.5, metrics={"val/accuracy": value})
    (tmp_path / "sweep.yaml").write_text("metric: {name: val/accuracy, goal: maximize}")
    assert "Best run: 3, val/accuracy 0.4, the highest of 4." in notes(compare(load_runs(tmp_path)))


def test_a_mean_over_layers_is_not_shown_as_a_keep_rate(tmp_path: Path) -> None:
    mappings: list[Any] = [
        {"a": Spatial(0.5), "b": Spatial(0.125), "c": Exact()},
        {"a": Spatial(0.125), "b": Spatial(0.5), "c": Exact()},  # the same of others
        Spatial(0.25),
    ]
    for index, estimator in enumerate(mappings):
        trainer = SimpleNamespace(callbacks=[TensorDropout(weight_vjp=estimator)])
        write_run(tmp_path / str(index), 0.5, estimators=json.loads(json.dumps(describe_estimators(trainer))))
    write_run(tmp_path / "exact", 1.0)
    comparison = compare(load_runs(tmp_path))
    labels = {comparison.label(group): group.leading.rate for group in comparison.groups}
    assert labels == {
        "exact": "1",
        "Spatial": "1/4",
        "by layer: Spatial 1/8–1/2, Exact, mapping 1": "mean 0.542",
        "by layer: Spatial 1/8–1/2, Exact, mapping 2": "mean 0.542",
    }
    text = "".join(Checker(make_page(comparison, "by layer")).text)
    assert "mean 0.542" in text and "hollow: mean over layers" in text and "13/24" not in text


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_no_point_beats_one_on_the_front_and_all_others_are_beaten(points: list[tuple[int, int]]) -> None:
    front = [points[index] for index in pareto_front(points)]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    assert set(front) == {it for it in points if not any(beats(other, it) for other in points)}
    assert front == sorted(set(front))


@pytest.mark.parametrize(("accuracy", "beaten"), [(0.9, True), (0.95, False)])
def test_the_front_is_of_accuracy_against_bytes_and_trusted_times(
    tmp_path: Path, accuracy: float, beaten: bool
) -> None:
    for keep, reached in ((1.0, accuracy), (0.5, 0.92), (0.25, 0.7)):
        write_run(tmp_path / f"{keep}", keep, metrics={"test/accuracy": reached}, cost={"waiting_threads": 0.9})
    [plot] = pareto_plots(compare(load_runs(tmp_path)))  # other work disturbed the times
    assert 'aria-label="Test accuracy, %, against held for backward"' in plot
    assert ("fill: var(--paper)" in plot) == beaten  # a hollow point
