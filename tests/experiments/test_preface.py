"""Methods side by side: printed, and as the first part of the report's page."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.demo.finding import finding
from experiments.demo.methods import METHODS, Methods
from experiments.demo.preface import make_preface, method_notes, print_methods
from experiments.demo.standing import standings
from randbp.cli.main import main
from randbp.report import PREFACE, Damaged
from randbp.report.summary_file import read_json
from tests.cli.run_folders import write_run
from tests.experiments.comparisons import content, memory, method
from tests.report.test_report import Checker

RIVAL = method("<rival> & co", "rival", held=0.05, peak=0.7, time=1.4)
TIMED = method("checkpointing", "rival", held=0.05, peak=0.7, time=1.4, accuracy=(None,), rounds=12)


def methods_of(*methods: dict[str, Any], **changes: Any) -> Methods:
    return Methods.model_validate(content(*methods) | changes)


def printed(methods: Methods) -> list[str]:
    console = Console(width=150, record=True, file=io.StringIO())
    print_methods(methods, console)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_the_page_begins_with_the_finding_and_ends_with_the_keep_rates(tmp_path: Path) -> None:
    methods = methods_of(memory(), RIVAL)
    for keep in (1.0, 0.5):
        write_run(tmp_path / f"keep={keep}", keep)
    (tmp_path / PREFACE).write_text(make_preface(methods))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    checked = Checker(page)
    text = " ".join(checked.text)
    assert checked.open == [] and len(checked.ids) == len(set(checked.ids))
    assert page.index("<p class=lead>With preset=&quot;memory&quot;") < page.index("<h2>Keep rates</h2>")
    assert page.index("<h2>Keep rates</h2>") < page.index("At keep rate 1/2")
    assert finding(standings(methods)) in text and "<rival> & co" in text and "<rival>" not in page
    assert page.count("<svg") == 2 + 7 and "Nothing: every preset pays here." in text
    for told in ("6.00 MiB", "0.12×", "110 ms", "1.05×", "0.08", "97.2 ± 0.1 %", "120 rounds", "3 seeds", "0.94"):
        assert told in text, told


def test_methods_are_printed() -> None:
    methods = methods_of(memory(time=1.9))
    lines = printed(methods)
    assert 'preset="memory" 6.00 MiB 0.12× 16.8 MiB 0.30× 199 ms 1.90× 0.08 97.2 ± 0.1 % +0.0 ± 0.4' in lines
    text = " ".join(lines)
    assert finding(standings(methods)) in text and '· preset="memory" takes 1.90× the time' in text


def test_what_was_only_timed_has_no_accuracy_in_table_and_plots() -> None:
    methods = methods_of(memory(), TIMED)
    lines = printed(methods)
    assert "checkpointing 2.40 MiB 0.05× 39.2 MiB 0.70× 146 ms 1.40× 0 – –" in lines
    assert "took part in 12 of these rounds, to be timed" in " ".join(lines)
    assert not any("took part" in note for note in method_notes(methods_of(memory())))
    page = make_preface(methods)
    assert "checkpointing" in page and page.count("<svg") == 2


@pytest.mark.parametrize(("waiting", "trusted"), [(None, True), (0.05, True), (0.5, False)])
def test_times_that_other_work_disturbed_are_not_to_be_trusted(waiting: float | None, trusted: bool) -> None:
    notes = method_notes(methods_of(memory(), waiting_threads=waiting))
    assert any("do not trust the times" in note for note in notes) != trusted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not valid JSON"),
        (json.dumps(content() | {"steps": -1}), "steps=-1: expected a value greater than or equal to 0"),
        (json.dumps(content() | {"model": 3}), "model=3: expected a valid string"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / METHODS).write_text(text)
    with pytest.raises(Damaged, match=f"{METHODS}: {told}"):
        read_json(tmp_path / METHODS, Methods)
