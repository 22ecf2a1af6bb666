"""``import randbp`` takes PyTorch and opt_einsum, and little time beside PyTorch's own."""

import subprocess
import sys

SCRIPT = """
import sys
import torch, opt_einsum
before = set(sys.modules)
import randbp, randbp.tn, randbp.estimators, randbp.diagnostics
new = set(sys.modules) - before
others = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
print(*sorted(others))
print(*sorted(name for name in new if name.split(".")[:2] in (["torch", "_dynamo"], ["torch", "_inductor"])))
"""


def test_nothing_else_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    others, compilers = done.stdout.split("\n")[:2]
    assert others.split() == ["randbp"]
    assert compilers == ""  # Dynamo alone takes more than a second
