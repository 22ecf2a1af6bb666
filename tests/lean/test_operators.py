"""PyTorch's own operator and module database: a sample of it here, all of it by ``make nightly``."""

import subprocess
import sys
from pathlib import Path


def test_functions_of_the_operator_database_are_pytorchs() -> None:
    command = [sys.executable, "-m", "tests.lean.operators", "--quick", "--part=1/8"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.splitlines()[-3].split()[0]) > 400  # comparisons
    assert int(result.stdout.splitlines()[-2].split()[-3]) > 70  # rules that stepped in
