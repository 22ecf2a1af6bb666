"""``randbp advise``, and ``randbp fit`` with what it wrote."""

from pathlib import Path

import pytest
import yaml

from randbp.cli.main import main
from tests.cli.test_fit import CONFIG

FAST = ["--config=tiny.yaml", "--rounds=0", "--draws=0"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))


def test_what_is_advised_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *FAST, "--memory=2MiB"]) == 0
    printed = capsys.readouterr().out
    assert "largest batch" in printed and "step time" not in printed  # which was not measured
    assert sorted(path.name for path in Path().iterdir()) == ["advised.yaml", "tiny.yaml"]
    text = Path("advised.yaml").read_text()
    assert all(f"# {line}".rstrip() in text for line in printed.splitlines()[:8])
    assert yaml.safe_load(text) == {"tensor_dropout": {"preset": None}}  # a small batch of small images fits as it is
    Path("advised.yaml").write_text(text.replace("preset: null", "preset: exact"))
    trained = ["--config=tiny.yaml", "--config=advised.yaml", "--trainer.max_epochs=1", "--wandb=disabled"]
    assert main(["fit", *trained]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: --memory"),
        (["--memory=much"], "--memory='much': expected a positive number of bytes"),
        (["--memory=1GiB", "--draws=1"], "--draws=1: expected 0 or an integer >= 4"),
        (["--memory=1GiB", "--output=tiny.yaml"], "--output=tiny.yaml: this file exists"),
    ],
)
def test_errors_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--config=tiny.yaml", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
