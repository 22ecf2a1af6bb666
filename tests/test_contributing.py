"""The recipes of CONTRIBUTING.md work; what it and the architecture page name is there, and parts are in that order."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import randbp
from randbp.diagnostics import memory_report
from randbp.estimators import Draw
from randbp.functional import conv_spec
from randbp.kernels.operator import is_installed
from randbp.lean.needs import table
from randbp.lean.rules import RULES
from tests.estimators.test_unbiased import assert_unbiased
from tests.import_graph import import_graph, upward
from tests.lean.same import lean
from tests.lean.test_rounded import is_unbiased
from tests.test_imports_order import FLOORS

ROOT = Path(__file__).parents[1]


def recipe(title: str) -> list[str]:
    """The code of a recipe of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text.split(f"\n### {title}\n")[1].split("\n### ")[0], re.DOTALL)


@pytest.mark.parametrize(("number", "name"), enumerate(["Prominent", "Window"]))
def test_the_estimators_are_unbiased_and_hold_their_share(number: int, name: str) -> None:
    made: dict[str, Any] = {"__name__": "recipe"}
    code = recipe("An estimator")[number]
    assert len(code.splitlines()) < 40
    exec(code, made)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, 5, 4, generator=generator, dtype=torch.float64)
    spec = conv_spec(x, torch.empty(3, 2, 3, 2), 2, 1, 1, 1)
    output_grad = torch.rand(spec.output_shape, generator=generator, dtype=torch.float64)
    estimator = made[name](keep=0.5)
    held = estimator.describe(spec, torch.float64).held_bytes
    assert held == sum(tensor.nbytes for tensor in estimator.sketch(x, spec, Draw(0))) <= x.nbytes / 2
    draws = [estimator.weight_vjp(estimator.sketch(x, spec, Draw(s)), output_grad, spec, Draw(s)) for s in range(400)]
    assert_unbiased(torch.stack(draws), randbp.Exact().weight_vjp((x,), output_grad, spec, Draw(0)))


def test_the_lean_rule_is_a_row_that_holds_bits_and_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.celu_(x * 1)

    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = memory_report(lean(function, True, 4), x).held_bytes
    made: dict[str, Any] = {}
    exec(recipe("A lean rule")[0], made)
    for served, rule in table([made["ROW"]]).items():
        assert served not in RULES
        monkeypatch.setitem(RULES, served, rule)
    assert memory_report(lean(function, True, 4), x).held_bytes < before / 4
    is_unbiased(function, (x,), bits=2, draws=100)


def test_the_page_of_lean_functions_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs/write_lean.py"))["page"]
    assert (ROOT / "docs/lean.md").read_text(encoding="utf-8") == page()


KERNEL = """
import torch
from halve import halve
from randbp.kernels import use
from randbp.kernels.operator import is_installed
x = torch.randn(100_001)
for backend in ("reference", "numba"):
    if is_installed(backend) or backend == "reference":
        with use(backend):
            assert halve.backend("cpu") == backend and torch.equal(halve(x), x / 2)
            print(backend)
"""


def test_the_kernel_is_found_and_gives_the_same_bits(tmp_path: Path) -> None:
    for name, code in zip(("halve.py", "halve_numba.py"), recipe("A kernel"), strict=True):
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "check.py").write_text(KERNEL, encoding="utf-8")
    # In a process of its own, for operators stay registered.
    done = subprocess.run([sys.executable, "check.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reference", "numba"] if is_installed("numba") else ["reference"]


NEW = re.compile(r"window|prominent|halve")
"""Files that the recipes would make."""


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_the_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {
        name for name in re.findall(r"`(\.?[\w./]+)`", text) if "/" in name or name.endswith((".md", ".py", ".txt"))
    }
    folders = [ROOT, ROOT / "randbp", ROOT / "tests", ROOT / "tests/kernels"]
    assert len(named) >= 20
    missing = {name for name in named if not any((folder / name).exists() for folder in folders)}
    assert not {name for name in missing if not NEW.search(name)}
    linked = re.findall(r"\]\(([\w./]+)\)", text)
    assert all(((ROOT / page).parent / name).exists() for name in linked)


def test_commands_that_the_page_names_are_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"make ([a-z ]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(named) >= 8 and {target for line in named for target in line.split()} <= targets
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    run = re.findall(r"^make (?:--\S+ )*([a-z ]+)$", ci, re.MULTILINE)
    assert {target for line in run for target in line.split()} == {"setup", "lint", "core", "test", "triton"}


def test_parts_import_only_what_stands_below_them_in_the_picture() -> None:
    floors = runpy.run_path(str(ROOT / "docs/draw_architecture.py"))["FLOORS"]
    order = [name for floor in floors for name, _, _ in floor][::-1]
    assert {*order, "_moved"} == {part for floor in FLOORS for part in floor}
    assert list(upward(import_graph(), [("_moved",), *[(part,) for part in order]])) == []


def test_the_version_is_the_same_everywhere() -> None:
    assert randbp.__version__ in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "randbp.__version__"}
    assert metadata.version("randbp") == randbp.__version__


def test_the_oldest_pytorch_is_the_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [name.split(">=")[1] for name in project["dependencies"] if name.startswith("torch")]
    assert f"OLDEST ?= torch=={bound}.0+cpu\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


PARTS = ["_torch", "autograd", "codecs", "curvature", "diagnostics", "estimators", "functional", "kernels", "layers"]
PARTS += ["lean", "randomize", "tn", "tune"]
"""The core: what needs torch and opt_einsum alone."""


@pytest.mark.parametrize(("subset", "more"), [("core", []), ("quick", ["callbacks", "cli", "report"])])
def test_a_subset_has_tests_of_each_part(subset: str, more: list[str]) -> None:
    lines = (ROOT / f"tests/{subset}.txt").read_text(encoding="utf-8").split()
    assert all((ROOT / line.partition("::")[0]).exists() for line in lines)
    for part in PARTS + more:
        assert f"randbp/{part}" in lines or any(line.startswith(f"tests/{part}/") for line in lines), part


def test_files_whose_examples_need_a_package_are_there() -> None:
    needed = runpy.run_path(str(ROOT / "conftest.py"))["NEEDED"]
    assert needed and all(list(ROOT.glob(pattern)) for patterns in needed.values() for pattern in patterns)
