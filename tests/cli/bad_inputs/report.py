"""``randbp report`` on damaged folders: what cannot be read is named and left out, and the table comes first."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.cli.run_folders import write_run

from .rows import Command

PAGE = Path("rep/report.html")


def runs(**changes: Any) -> None:
    """Two exact runs without loss curves (which take long to draw), and one with changes in its summary."""
    for seed in (0, 1):
        write_run(Path(f"rep/keep=1-seed={seed}"), 1.0, seed)
        Path(f"rep/keep=1-seed={seed}/metrics.csv").unlink()
    write_run(Path("rep/bad"), 0.25, **changes)


def with_file(name: str, content: str | bytes) -> Callable[[], None]:
    def prepare() -> None:
        runs()
        Path("rep/bad", name).write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def with_summary(**changes: Any) -> Callable[[], None]:
    return lambda: runs(**changes)


def without(key: str) -> Callable[[], None]:
    def prepare() -> None:
        runs()
        path = Path("rep/bad/summary.json")
        summary = json.loads(path.read_text())
        del summary[key]
        path.write_text(json.dumps(summary))

    return prepare


def without_metrics() -> None:
    runs()
    Path("rep/bad/metrics.csv").unlink()


def row(
    name: str,
    prepare: Callable[[], None],
    says: str,
    counts: bool = False,
    check: Callable[[str], None] | None = None,
) -> Command:
    """A damaged run among good ones: after the table one line has the file and what is wrong with it.

    Args:
        name: The input in short.
        prepare: Lays the folder.
        says: The line, or a part of it; none if there is nothing to complain of.
        counts: Whether the run counts nevertheless.
        check: What else must hold.
    """

    def right(printed: str) -> None:
        lines = printed.splitlines()
        table = [line.split()[0] for line in lines if line.split()[:1] in (["1"], ["1/4"])]
        assert table == ["1", *["1/4"] * counts], printed
        if says:
            (line,) = [line for line in lines if says in line]
            assert lines.index(line) > max(number for number, one in enumerate(lines) if "MiB" in one)
            assert line.startswith("left out: rep/bad/")
        else:
            assert "left out" not in printed
        assert ("<svg" in PAGE.read_text()) == counts
        if check is not None:
            check(printed)

    return Command(name, ("report", "rep"), code=0, prepare=prepare, leaves=("rep/report.html",), check=right)


def accepted(name: str, prepare: Callable[[], None], *says: str, check: Callable[[str], None] | None = None) -> Command:
    """A folder of which there is a page."""
    return Command(name, ("report", "rep"), 0, says, prepare=prepare, leaves=("rep/report.html",), check=check)


def page_is_inert(printed: str) -> None:
    page = PAGE.read_text()
    assert "<img" not in page and "<script>" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x onerror=alert(1)>" in printed


def terminal_is_safe(printed: str) -> None:
    assert "\x1b" not in printed and "\u202e" not in printed
    assert "\\x1b[2J\\x1b]0;owned\\x07" in printed
    assert "[/red] [link=x] :smile: [bold" in printed


def nothing_ran(printed: str) -> None:
    assert not Path("ran").exists()


EVIL = "<img src=x onerror=alert(1)>"
TERMINAL = "\x1b[2J\x1b]0;owned\x07 [/red] [link=x] :smile: [bold \u202e$\\frac$"
COST_ZERO = {"step_seconds": 0, "held_bytes": 0, "peak_bytes": 0}


def same_everywhere(**changes: Any) -> Callable[[], None]:
    def prepare() -> None:
        for keep in (1.0, 0.5):
            for seed in (0, 1):
                write_run(Path("rep", f"keep={keep}-{seed}"), keep, seed, **changes)

    return prepare


def one_in_two(**changes: Any) -> Callable[[], None]:
    def prepare() -> None:
        write_run(Path("rep/exact"), 1.0)
        write_run(Path("rep/a"), 0.5, 0)
        write_run(Path("rep/b"), 0.5, 1, **changes)

    return prepare


def nan_is_told(printed: str) -> None:
    (line,) = [line for line in printed.splitlines() if line.split()[:1] == ["1/2"]]
    assert line.split()[1] in ("nan", "inf")


def table_came_first(printed: str) -> None:
    assert printed.index("held for backward") < printed.index("randbp report:")
    assert not [path for path in Path().rglob(".*") if path.is_file()], "part of a page is left"


def marked_up() -> None:
    for name in ("[/red] [bold]$\\frac$ :smile:", "数字"):
        for keep in (1.0, 0.5):
            folder = Path("rep", f"{len(name)}-{keep}")
            write_run(folder, keep, metrics={"test/accuracy [/x] $": 0.5})
            (folder / "config.yaml").write_text(json.dumps({"model": {"name": name}}))


def with_sweep(content: str) -> Callable[[], None]:
    def prepare() -> None:
        runs()
        Path("rep/sweep.yaml").write_text(content)

    return prepare


def no_page() -> None:
    runs()
    (PAGE / "in the way").mkdir(parents=True)


SUMMARIES: Mapping[str, tuple[str | bytes, str]] = {
    "report binary_json": (b"\xff\xfe\x00\x01", "rep/bad/summary.json: not valid JSON"),
    "report empty_json": ("", "rep/bad/summary.json: not valid JSON: EOF while parsing a value at line 1 column 0"),
    "report half_json": ('{"format": 1, "status": ', "rep/bad/summary.json: not valid JSON: EOF while parsing"),
    "report json_list": ("[1, 2]", "rep/bad/summary.json: [1, 2]: expected an object"),
    "report json_null": ("null", "rep/bad/summary.json: None: expected an object"),
    "report json text": ('"finished"', "rep/bad/summary.json: 'finished': expected an object"),
    "report json deep": ("[" * 100_000, "rep/bad/summary.json: not valid JSON: recursion limit"),
    "report json empty object": ("{}", "rep/bad/summary.json: format: missing"),
    "report run_missing_fields": (
        '{"format": 1, "status": "finished", "run": null, "cost": {"held_bytes": 5}}',
        "rep/bad/summary.json: run: missing",
    ),
}
CONFIGS: Mapping[str, tuple[str | bytes, str]] = {
    "report config_binary": (b"\xff\x00abc", "rep/bad/config.yaml: not valid YAML"),
    "report config in UTF-16": (b"\xff\xfe\x00\x01", "rep/bad/config.yaml: a str, expected a mapping"),
    "report config_half": ("model: {init_args: [", "rep/bad/config.yaml: not valid YAML"),
    "report config_list": ("- a\n- b\n", "rep/bad/config.yaml: a list, expected a mapping"),
    "report config text": ("just words", "rep/bad/config.yaml: a str, expected a mapping"),
    "report config_exec": (
        'a: !!python/object/apply:os.system ["touch ran"]',
        "rep/bad/config.yaml: not valid YAML: could not determine a constructor",
    ),
    "report config deep": ("[" * 5000, "rep/bad/config.yaml: n"),
    "report config of itself": ("a: &a [*a]", "rep/bad/config.yaml: nested too deeply"),
    "report config of many aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)),
        "rep/bad/config.yaml: more than 10,000 entries",
    ),
}
METRICS: Mapping[str, tuple[str | bytes, str]] = {
    "report metrics_garbage": (b"\x00\xff\xfe,\n\x01", "rep/bad/metrics.csv: not valid CSV"),
    "report metrics_inf": ("step,train/loss\n0,2.0\n1,inf\n2,-inf\n3,nan\n", ""),
    "report metrics empty": ("", ""),
    "report metrics of one column": ("step\n1\n", ""),
    "report metrics_ragged": ("step,train/loss\n0,1.0\n1,2.0,3,4\n", "rep/bad/metrics.csv: not valid CSV"),
    "report metrics_string": ("step,train/loss\n0,1.0\n1,abc\n", "line 3: train/loss='abc', expected a number"),
    "report metrics_text": ("step,train/loss\nabc,1.0\n", "line 2: step='abc', expected a number"),
    "report metrics infinite step": ("step,train/loss\ninf,1.0\n", "line 2: step=inf, expected a number"),
}
FIELDS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "report cost_string": ({"cost": {"held_bytes": "lots"}}, "cost.held_bytes='lots': expected a valid number"),
    "report cost_negative_huge": (
        {"cost": {"held_bytes": -5, "peak_bytes": 1e300}},
        "cost.held_bytes=-5: expected a value greater than or equal to 0",
    ),
    "report cost huge": ({"cost": {"peak_bytes": 1e300}}, "cost.peak_bytes=1e+300: expected a value"),
    "report cost nan": ({"cost": {"step_seconds": "nan"}}, "cost.step_seconds='nan': expected a valid number"),
    "report cost of a list": ({"cost": {"held_bytes": [1]}}, "cost.held_bytes=[1]: expected a valid number"),
    "report keep_string": (
        {"estimators": {"weight_vjp": {"name": "Spatial", "keep": "x"}}},
        "estimators.weight_vjp.keep='x': expected a valid number",
    ),
    "report keep 0": (
        {"estimators": {"weight_vjp": {"name": "Spatial", "keep": 0.0}}},
        "estimators.weight_vjp.keep=0.0: expected a value greater than 0",
    ),
    "report keep 7": (
        {"estimators": {"input_vjp": {"name": "Spatial", "keep": 7}}},
        "estimators.input_vjp.keep=7: expected a value less than or equal to 1",
    ),
    "report estimators text": ({"estimators": "Spatial"}, "estimators='Spatial': expected an object"),
    "report format_99": ({"format": 99}, "format=99: expected 1"),
    "report started_bad": ({"started": "not a day"}, "started='not a day': expected a valid datetime"),
    "report metrics list": ({"metrics": [0.5]}, "metrics=[0.5]: expected an object"),
    "report metric text": ({"metrics": {"test/accuracy": "high"}}, "metrics.test/accuracy='high': expected a valid"),
    "report status null": ({"status": None}, "status=None: expected a valid string"),
    "report epochs text": ({"progress": {"epochs": "3"}}, "progress.epochs='3': expected a valid integer"),
    "report environment null": ({"environment": None}, "environment=None: expected an object"),
}
ROWS = [
    Command("report missing folder", ("report", "nope"), says=("nope: no such folder",)),
    Command("report on a file", ("report", "good.yaml"), says=("good.yaml: no such folder",)),
    Command("report no args", ("report",), says=("the following arguments are required: folder",)),
    Command("report unknown option", ("report", "rep", "--out=x"), says=("--out=x",)),
    Command("report none", ("report", "rep"), prepare=lambda: Path("rep").mkdir(), says=("rep: no summary.json",)),
    Command(
        "report nothing but damage",
        ("report", "rep"),
        files={"rep/a/summary.json": "{", "rep/b/summary.json": b"\xff"},
        says=("rep: no run in it that can be read: rep/a/summary.json: not valid JSON", "(and 1 more)"),
    ),
    *(row(name, with_file("summary.json", text), says) for name, (text, says) in SUMMARIES.items()),
    *(row(name, with_file("config.yaml", text), says, check=nothing_ran) for name, (text, says) in CONFIGS.items()),
    *(row(name, with_file("metrics.csv", text), says, counts=True) for name, (text, says) in METRICS.items()),
    *(row(name, with_summary(**changes), says) for name, (changes, says) in FIELDS.items()),
    row("report without status", without("status"), "rep/bad/summary.json: status: missing"),
    row("report without metrics", without("metrics"), "", counts=True),
    row("report without environment", without("environment"), "", counts=True),
    row("report metrics_missing", without_metrics, "", counts=True),
    row("report nan_metrics", with_summary(metrics={"test/accuracy": "nan"}), "", counts=True),
    row("report cost zero", with_summary(cost=COST_ZERO), "", counts=True),
    row("report accuracy huge", with_summary(metrics={"test/accuracy": 1e308}), "", counts=True),
    row("report accuracy negative", with_summary(metrics={"test/accuracy": -3.0}), "", counts=True),
    accepted(
        "report xss",
        with_summary(cost={"peak_source": EVIL}, error=EVIL, run={"model": EVIL}, metrics={EVIL + "acc": 1}),
        check=page_is_inert,
    ),
    accepted(
        "report terminal codes",
        with_summary(status="failed", error=TERMINAL, environment={"device_name": TERMINAL}),
        check=terminal_is_safe,
    ),
    accepted("report NaN in a group of two", one_in_two(metrics={"test/accuracy": "nan"}), check=nan_is_told),
    accepted("report Inf in a group of two", one_in_two(metrics={"test/accuracy": "inf"}), check=nan_is_told),
    accepted("report accuracy NaN everywhere", same_everywhere(metrics={"test/accuracy": "nan"}), check=nan_is_told),
    accepted(
        "rich markup in names",
        lambda: write_run(Path("rep/[bold red]x[|bold]"), 0.5, status="failed", error="[/red] boom [link=x]"),
        "[bold red]x[|bold]: [/red] boom [link=x]",
    ),
    accepted("report nan", same_everywhere(metrics={"test_loss": "nan"}), "85.5 ± 0.7 %"),
    accepted(
        "report empty-data run",
        with_summary(cost=dict.fromkeys(COST_ZERO), progress={"epochs": 0}),
        "90.5 ± 0.7 %",
        "report in rep/report.html",
    ),
    accepted("report markup in settings", marked_up, "[/red] [bold]$\\frac$ :smile:", "name 数字"),
    Command(
        "report unicode",
        ("report", "ünïcode-数字"),
        code=0,
        prepare=lambda: write_run(Path("ünïcode-数字/ä"), 0.5),
        says=("report in ünïcode-数字/report.html",),
        leaves=("ünïcode-数字/report.html",),
    ),
    accepted(
        "report undecodable name",
        lambda: write_run(Path(os.fsdecode(b"rep/\xff\n")), 0.5, status="failed", error="no"),
        "\\udcff\\n: no",
    ),
    Command(
        "report output is dir",
        ("report", "rep", "--output=rep"),
        prepare=runs,
        says=("--output=rep: Is a directory, expected a file to write",),
        check=table_came_first,
    ),
    Command(
        "report output unwritable",
        ("report", "rep", "--output=/proc/x"),
        prepare=runs,
        says=("--output=/proc/x: No such file or directory",),
        check=table_came_first,
    ),
    Command(
        "report output below a file",
        ("report", "rep", "--output=good.yaml/x.html"),
        prepare=runs,
        says=("--output=good.yaml/x.html: ",),
        check=table_came_first,
    ),
    Command(
        "report output in a new folder",
        ("report", "rep", "--output=new/folder/x.html"),
        code=0,
        prepare=runs,
        says=("report in new/folder/x.html",),
        leaves=("new/folder/x.html",),
    ),
    Command(
        "report folder cannot be written",
        ("report", "rep"),
        code=1,
        prepare=no_page,
        says=("rep/report.html: Is a directory: the page could not be written, --output names another place",),
        check=table_came_first,
    ),
    accepted(
        "report goal of the sweep unknown",
        with_sweep("metric: {name: test/accuracy, goal: up}"),
        "left out: rep/sweep.yaml: metric: goal='up': expected 'minimize' or 'maximize'",
    ),
    accepted(
        "report metric of the sweep is text",
        with_sweep("metric: accuracy"),
        "left out: rep/sweep.yaml: metric: 'accuracy': expected a",
    ),
    accepted("report sweep file broken", with_sweep("metric: ["), "left out: rep/sweep.yaml: not valid YAML"),
]
