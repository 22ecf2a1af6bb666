"""The scripts in ``examples/`` run from an empty folder, without a warning of ours, and are short."""

import runpy
import warnings
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    with matplotlib.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.filterwarnings("error", module="randbp")
        made = runpy.run_path(str(path))
    assert capsys.readouterr().out.strip() and made["__doc__"].count("===") >= 1


def test_there_are_six() -> None:
    assert len(EXAMPLES) == 6
