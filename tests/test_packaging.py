"""The wheel has the package alone, and works from an empty folder; the sdist has all that the tests need."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = (
    "from setuptools import build_meta; [build(r'{}') for build in (build_meta.build_sdist, build_meta.build_wheel)]"
)
AWAY = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "wandb", "results", "*.nb[ic]"
)
RUN = """
import randbp
print(randbp.__file__)
with randbp.kernels.use("reference"):  # nothing is compiled
    exec({!r})
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist, built without a network from a copy of the sources."""
    made = tmp_path_factory.mktemp("dist")
    source = shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "randbp", ignore=AWAY)
    subprocess.run([sys.executable, "-c", BUILD.format(made)], cwd=source, check=True, capture_output=True)
    return made


def sources(folder: str) -> set[str]:
    """The Python files of a folder of this checkout."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}


def test_wheel_has_the_package_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    package = {name for name in names if ".dist-info/" not in name}
    assert package == sources("randbp") | {"randbp/py.typed", "randbp/report/style.css"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(fields.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    core = {line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert core == {line.replace(" ", "") for line in project["dependencies"]}
    assert fields["Requires-Python"] == project["requires-python"] and "Typing :: Typed" in fields.get_all("Classifier")
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_has_what_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = set().union(*(sources(folder) for folder in ("randbp", "tests", "experiments", "bench", "examples")))
    pages = {
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "conftest.py",
        "tests/core.txt",
        "docs/start.md",
        "configs/digits.yaml",
    }
    assert wanted | pages <= names


def test_readme_runs_from_the_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    shutil.unpack_archive(wheel, installed, "zip")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    command = [sys.executable, "-c", RUN.format(code)]
    done = subprocess.run(
        command, cwd=empty, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed) and not list(empty.iterdir())
