"""However a sweep is ended, its runs end with it, and another goes on with them as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from tests.cli import kill_fit, kill_sweep

EPOCHS = 25  # enough of them are left when the first one has been seen


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep file and a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("killed")
    code, _, _, text = kill_fit.run(root, "whole", "--seed_everything=3", f"--trainer.max_epochs={EPOCHS}")
    assert code == 0, text
    kill_sweep.write_sweep(root, seeds=(3,), epochs=EPOCHS)
    return root


@pytest.mark.parametrize(("way", "code"), [("alone", -signal.SIGKILL), ("group", -signal.SIGKILL)])
def test_a_killed_sweep_goes_on_as_if_undisturbed(root: Path, way: str, code: int) -> None:
    folder = root / "runs" / way / "run"

    def has_begun(seconds: float) -> bool:
        return (folder / "checkpoints/last.ckpt").exists() or seconds > 600

    assert kill_sweep.run(root, way, way=way, until=has_begun)[0] == code
    code, _, _, text = kill_sweep.run(root, way, "--resume")  # at once
    assert code == 0, text
    assert "run: goes on after its last complete epoch" in text and "FAILED" not in text
    assert not kill_fit.difference(folder, root / "runs/g/whole")
