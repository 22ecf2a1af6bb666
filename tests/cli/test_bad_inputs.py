"""Inputs that cannot be used end in one line that says what and where; nothing is lost, nothing lands elsewhere."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from randbp.cli.main import main
from tests.cli.bad_inputs import accepted, api, fit, report, sweep, tune
from tests.cli.bad_inputs.rows import Call, Command

PROJECT = Path(__file__).parent / "bad_inputs" / "project"
COMMANDS = [row for table in (accepted, fit, report, sweep, tune) for row in table.ROWS]
PYTHONS_WORDS = re.compile(r"Traceback|\b[A-Z]\w*(?:Error|Exception)\b|<class '")


def ids(rows: list[Command] | list[Call]) -> list[str]:
    names = [row.id for row in rows]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return names


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's project, alone in another one so that what lands outside is seen."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("RANDBP_DEBUG", "RANDBP_RUN_FOLDER", "PL_GLOBAL_SEED"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("row", COMMANDS, ids=ids(COMMANDS))
def test_command(row: Command, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in row.files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(text.encode() if isinstance(text, str) else text)
    if row.prepare is not None:
        row.prepare()
    before = content(project)
    capfd.readouterr()
    code = main(list(row.argv))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert code == row.code, out + err
    assert "Traceback" not in out + err
    assert row.expected_lines in (None, len(lines)), lines
    if row.code:
        assert not lines or lines[-1].startswith(f"randbp {row.argv[0]}: "), lines
    if row.code == 2:
        assert not PYTHONS_WORDS.search(err), err
    told = err if row.code else out + err
    for fragment in row.says:
        assert fragment in told
    after = content(project)
    assert {name: after.get(name) for name in before} == before, "a file that was there has changed"
    allowed = {path for pattern in row.leaves for path in project.glob(pattern)}
    stray = [name for name in set(after) - set(before) if not allowed & {project / name, *(project / name).parents}]
    assert not stray, "files that should not be there"
    assert [path.name for path in project.parent.iterdir()] == ["project"], "something landed outside the project"
    if row.check is not None:
        row.check(out + err)


@pytest.mark.parametrize("row", api.ROWS, ids=ids(api.ROWS))
def test_call(row: Call) -> None:
    if row.says is None:
        row.call()
        return
    with pytest.raises(row.error) as error:
        row.call()
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for fragment in row.says:
        assert fragment in message
