"""Which backend serves an operation, and what happens where one is missing."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from randbp import kernels
from randbp.kernels.operator import OPERATORS, Operator

WITHOUT = """
import sys, warnings
sys.modules["numba"] = None
import torch, randbp
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GELU())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with randbp.randomize(model, weight_vjp=randbp.Rounding(4), lean=True):
        for _ in range(2):
            model(torch.randn(8, 3, 24, 24)).square().mean().backward()
print(*(str(each.message) for each in caught if "randbp" in str(each.message)), sep="\\n")
print({served["cpu"] for served in randbp.kernels.backends().values()})
print(sorted({name.partition(".")[0] for name in sys.modules} & {"numba", "llvmlite", "triton"}))
print("torch._dynamo" in sys.modules)
"""


def test_without_numba_the_reference_serves_and_one_line_says_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    line, served, imported, compiler = done.stdout.splitlines()
    assert line == "randbp: rounding would be 10 to 50 times faster with numba: pip install 'randbp[cpu]'"
    assert (served, imported, compiler) == ("{'reference'}", "['numba']", "False")


def test_each_operation_has_a_version_of_numba() -> None:
    assert {name: served["cpu"] for name, served in kernels.backends().items()} == dict.fromkeys(OPERATORS, "numba")


def test_each_operation_has_a_version_of_triton() -> None:
    """Whether or not Triton is installed: by the text of its file.

    Draws of a few thousand terms take PyTorch's own operations on a GPU, too.
    """

    def has_one(operator: Operator) -> bool:
        file = find_spec(f"{operator.reference.__module__}_triton")
        return file is not None and f"\ndef {operator.name}(" in Path(str(file.origin)).read_text()

    assert [name for name, operator in OPERATORS.items() if not has_one(operator)] == ["systematic_rows"]


def test_one_backend_serves_while_the_context_lasts() -> None:
    with kernels.use("reference"):
        assert {served["cpu"] for served in kernels.backends().values()} == {"reference"}
        with kernels.use("numba"):
            assert kernels.backends()["encode"] == {"cpu": "numba", "cuda": "reference"}
        assert kernels.backends()["encode"]["cpu"] == "reference"
    assert kernels.backends()["encode"]["cpu"] == "numba"


def test_a_failure_inside_gives_the_choice_back() -> None:
    with pytest.raises(KeyError), kernels.use("reference"):
        raise KeyError
    assert kernels.backends()["encode"]["cpu"] == "numba"


def test_contexts_of_several_threads_may_end_in_any_order() -> None:
    first, second = kernels.use("reference"), kernels.use("numba")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kernels.backends()["encode"]["cpu"] == "numba"
    second.__exit__(None, None, None)
    with kernels.use("reference"):
        assert kernels.backends()["encode"]["cpu"] == "reference"
    assert kernels.backends()["encode"]["cpu"] == "numba"


def test_the_number_of_threads_of_pytorch_stays() -> None:
    script = (
        "import torch; torch.set_num_threads(1); from randbp.kernels import encode;"
        "encode(torch.randn(4, 100000), 0, 0, 4, 256, False); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_forked_child_does_without_numbas_threads() -> None:
    script = (
        "import os, torch; from randbp import kernels; x = torch.randn(4, 100000);"
        "made = kernels.encode(x, 0, 0, 4, 256, False);"
        "child = os.fork();"
        "same = torch.equal(kernels.encode(x[:1, :300], 0, 0, 4, 256, False)[1], made[1][:1, :2][:, :2]) "
        "if not child else None;"
        "os._exit(kernels.backends()['encode']['cpu'] != 'reference') if not child else None;"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), kernels.backends()['encode']['cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "numba"]


def test_all_threads_may_encode_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = torch.randn(4, 2**15)
    expected = kernels.encode(x, 3, 0, 4, 256, True)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: kernels.encode(x, 3, 0, 4, 256, True), range(16)):
            assert all(map(torch.equal, made, expected))
