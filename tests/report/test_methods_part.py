"""Methods side by side: read from their file, printed, and as the first part of the page."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from randbp.cli.main import main
from randbp.report import METHODS, compare, load_runs, print_methods
from randbp.report.finding import finding
from randbp.report.methods_file import Methods
from randbp.report.methods_part import method_notes
from randbp.report.page import make_page
from randbp.report.standing import standings
from tests.cli.run_folders import write_run
from tests.cli.test_report import Checker
from tests.report.comparisons import content, memory, method

RIVAL = method("<rival> & co", "rival", held=0.05, peak=0.7, time=1.4)


def folder_with(tmp_path: Path, text: str) -> Path:
    for keep in (1.0, 0.5):
        write_run(tmp_path / f"keep={keep}", keep)
    (tmp_path / METHODS).write_text(text)
    return tmp_path


def test_the_page_begins_with_the_finding_and_ends_with_the_keep_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = content(memory(), RIVAL)
    folder = folder_with(tmp_path, json.dumps(given))
    assert main(["report", str(folder)]) == 0
    sentence = finding(standings(Methods.model_validate(given)))
    assert sentence in " ".join(capsys.readouterr().out.split())
    page = (folder / "report.html").read_text()
    checked = Checker(page)
    text = " ".join(checked.text)
    assert checked.open == [] and len(checked.ids) == len(set(checked.ids))
    assert page.index("<p class=lead>With preset=&quot;memory&quot;") < page.index("<h2>Keep rates</h2>")
    assert page.index("<h2>Keep rates</h2>") < page.index("At keep rate 1/2")
    assert sentence in text and "<rival> & co" in text and "<rival>" not in page
    assert page.count("<svg") == 2 + 5 and "Nothing: every preset pays here." in text
    for told in ("6.00 MiB", "0.12×", "110 ms", "1.05×", "0.08", "97.2 ± 0.1 %", "120 rounds", "3 seeds", "0.94"):
        assert told in text, told


def test_methods_need_no_runs_of_a_sweep_to_be_printed() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    print_methods(Methods.model_validate(content(memory(time=1.9))), console)
    printed = console.export_text()
    row = next(line for line in printed.splitlines() if line.strip().startswith('preset="memory"'))
    assert (
        " ".join(row.split())
        == 'preset="memory" 6.00 MiB 0.12× 16.8 MiB 0.30× 199 ms 1.90× 0.08 97.2 ± 0.1 % +0.0 ± 0.4'
    )
    assert '· preset="memory" takes 1.90× the time' in printed


def test_what_was_only_timed_has_no_accuracy_in_table_and_plots(tmp_path: Path) -> None:
    timed = method("checkpointing", "rival", held=0.05, peak=0.7, time=1.4, accuracy=(None,), rounds=12)
    methods = Methods.model_validate(content(memory(), timed))
    console = Console(width=150, record=True, file=io.StringIO())
    print_methods(methods, console)
    printed = console.export_text()
    row = next(line for line in printed.splitlines() if line.strip().startswith("checkpointing"))
    assert " ".join(row.split()) == "checkpointing 2.40 MiB 0.05× 39.2 MiB 0.70× 146 ms 1.40× 0 – –"
    assert "took part in 12 of these rounds, to be timed" in printed
    assert not any("took part" in note for note in method_notes(Methods.model_validate(content(memory()))))
    folder_with(tmp_path, json.dumps(content(memory(), timed)))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "checkpointing" in page and page.count("<svg") == 2 + 5


@pytest.mark.parametrize(("waiting", "trusted"), [(None, True), (0.05, True), (0.5, False)])
def test_times_that_other_work_disturbed_are_not_to_be_trusted(waiting: float | None, trusted: bool) -> None:
    notes = method_notes(Methods.model_validate(content(memory()) | {"waiting_threads": waiting}))
    assert any("do not trust the times" in note for note in notes) != trusted


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (None, "not valid JSON"),
        ({"steps": -1}, "steps=-1: expected a value greater than or equal to 0"),
        ({"methods": []}, "expected the exact method, then others, a preset among them"),
        ({"methods": [memory(), RIVAL]}, "expected the exact method, then others"),
        ({"methods": content(RIVAL)["methods"]}, "expected the exact method, then others, a preset"),
        ({"methods": [*content(memory())["methods"], memory()]}, "expected different names"),
        ({"methods": content(memory(accuracy=(None,)))["methods"]}, "expected accuracies of the exact method and of a"),
        ({"methods": content(memory(rounds=39))["methods"]}, "expected the exact method's seeds, and as many timed"),
        (
            {"methods": content(memory(), method("a", "rival", accuracy=(None,), rounds=41))["methods"]},
            "a: expected the exact method's first seeds, and no more timed steps",
        ),
        ({"model": 3}, "model=3: expected a valid string"),
    ],
)
def test_a_damaged_file_is_named_and_the_runs_stay(tmp_path: Path, changes: dict[str, Any] | None, told: str) -> None:
    text = "{" if changes is None else json.dumps(content(memory()) | changes)
    results = load_runs(folder_with(tmp_path, text))
    assert results.methods is None and len(results.runs) == 2
    [damage] = results.damaged
    assert damage.path.name == METHODS and told in damage.what and "\n" not in damage.what
    assert METHODS in make_page(compare(results), "damaged")
