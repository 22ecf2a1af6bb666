"""``import randbp`` takes PyTorch and opt_einsum, little time beside theirs, and changes nothing of the process."""

import subprocess
import sys

SCRIPT = """
import os, signal, sys, threading, warnings
import torch, opt_einsum
def process():
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    hooks = sys.excepthook, sys.getprofile(), sys.gettrace(), torch.get_default_dtype(), torch.get_num_threads()
    state = list(torch.get_rng_state()), threading.active_count(), list(warnings.filters)
    return dict(os.environ), signals, hooks, state
state = process()
before = set(sys.modules)
import randbp, randbp.tn, randbp.estimators, randbp.diagnostics
new = set(sys.modules) - before
others = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
assert process() == state
print(*sorted(others))
print(*sorted(name for name in new if name.split(".")[:2] in (["torch", "_dynamo"], ["torch", "_inductor"])))
"""


def test_nothing_else_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    others, compilers = done.stdout.split("\n")[:2]
    assert others.split() == ["randbp"]
    assert compilers == ""  # Dynamo alone takes more than a second
