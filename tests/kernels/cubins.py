"""Compile all of Triton's kernels for GPUs that are not here: ``python -m tests.kernels.cubins``.

For each kernel and the dtypes of its arguments, as the table of cases launches it, a line says how many registers a
thread takes, the bytes that it spills to memory, the shared memory of a program, and the size of the machine code. It
fails if one cannot be compiled, or contains arithmetic that is not correctly rounded and so would not give the same
bits as a processor's.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import randbp  # noqa: F401
from randbp.kernels import use
from randbp.kernels.operator import OPERATORS
from tests.kernels.cases import Case, cases

INEXACT = re.compile(
    r"\b(?:fma\.rn|div\.(?:full|approx)|r?sqrt\.approx|rcp\.approx|ex2|lg2|sin|cos|tanh)\.[a-z0-9.]*|\.ftz"
)
"""Instructions of which the result differs from what IEEE says, or that round once where two operations round twice."""

FUSED = {"_scaled": {"fma.rn.f32"}}
"""Those that a kernel is to use: the reference's multiplication and addition are rounded once there."""

POINTERS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """A kernel, and what its arguments are: types, and values of those that are compiled in."""

    kernel: JITFunction
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """Launches of the same key are compiled once: of numbers that are compiled in one is enough."""
        flags = tuple((name, value) for name, value in self.constants.items() if isinstance(value, bool | str))
        return self.kernel.__name__, tuple(kind for kind in self.types.values() if kind.startswith("*")), flags

    def __str__(self) -> str:
        types = ", ".join(kind.removeprefix("*") for kind in self.types.values() if kind.startswith("*"))
        rest = ", ".join(
            f"{name}={value}"
            for name, value in self.constants.items()
            if name.isupper() and not isinstance(value, float)
        )
        return f"{self.kernel.__name__.removeprefix('_')}({types}; {rest})"


def launches(operators: Collection[str]) -> list[Launch]:
    """One of each kernel of some operations and the dtypes of its arguments."""
    found: dict[tuple[Any, ...], Launch] = {}

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = {parameter.name for parameter in kernel.params}
        types, constants = {}, {name: value for name, value in kwargs.items() if name in names}
        given = iter(args)
        for parameter in kernel.params:
            if parameter.name in constants:
                types[parameter.name] = "constexpr"
                continue
            value = next(given)
            if isinstance(value, Tensor):
                types[parameter.name] = f"*{POINTERS[value.dtype]}"
            elif value == 1 and not parameter.do_not_specialize:
                types[parameter.name], constants[parameter.name] = "constexpr", 1
            else:
                types[parameter.name] = parameter.annotation_type or "i32"
        options = {name: value for name, value in kwargs.items() if name not in names}
        launch = Launch(kernel, types, constants, options)
        found.setdefault(launch.key, launch)

    with mock.patch.object(JITFunction, "run", run):
        for case in sorted(cases(), key=_unusual):
            with use("triton"):
                there = OPERATORS[case.operator].backend("cpu") == "triton"
            if there and case.operator in operators:
                version(case.operator)(*case.arguments())
    return list(found.values())


def _unusual(case: Case) -> int:
    return (case.setting.get("block", 256) != 256) + (case.setting.get("bits", 4) != 4)


def version(operator: str) -> Callable[..., Any]:
    """Triton's version of an operation, on whatever device its arguments are."""
    found = OPERATORS[operator]._version("triton")
    assert found is not None
    return found


def compiled(number: int, capability: int) -> tuple[bool, str]:
    """Whether a launch was compiled, and what is to be said of it."""
    launch = LAUNCHES[number]
    names = list(launch.types)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in launch.types.items() if kind[0] == "*"}
    try:
        result = triton.compile(
            ASTSource(launch.kernel, launch.types, launch.constants, aligned),
            target=GPUTarget("cuda", capability, 32),
            options=launch.options,
        )
    except Exception as error:
        return False, f"sm_{capability} {launch}: {type(error).__name__}: {error}"
    ptx, cubin = result.asm["ptx"], result.asm["cubin"]
    inexact = sorted(set(INEXACT.findall(ptx)) - FUSED.get(launch.kernel.__name__, set()))
    registers, spills = usage(ptx, capability)
    return not inexact, (
        f"sm_{capability} {registers:>9} {spills:>6} {result.metadata.shared:>6} {len(cubin):>6}  {launch}"
        + (f": not correctly rounded: {', '.join(inexact)}" if inexact else "")
    )


def usage(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills to memory and loads again, as ptxas tells them."""
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source, code = os.path.join(folder, "kernel.ptx"), os.path.join(folder, "kernel.cubin")
        with open(source, "w") as file:
            file.write(ptx)
        told = subprocess.run(
            [get_ptxas(capability).path, "-v", "--fmad=false", f"--gpu-name={target[1]}", source, "-o", code],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers, spills = re.search(r"Used (\d+) registers", told), re.findall(r"(\d+) bytes spill", told)
    assert registers is not None
    return int(registers[1]), sum(map(int, spills))


LAUNCHES: list[Launch] = []


def main() -> int:
    """Compile everything; 1 if something cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, action="append", help="of a GPU (80 and 90)")
    parser.add_argument("operators", nargs="*", default=list(OPERATORS), help="of which kernels are compiled")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    LAUNCHES.extend(launches(asked.operators))
    work = [(number, capability) for number in range(len(LAUNCHES)) for capability in asked.capability or [80, 90]]
    print(f"{'GPU':5} {'registers':>9} {'spills':>6} {'shared':>6} {'code':>6}  kernel (bytes)")
    failed = 0
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as processes:
        for good, line in processes.map(compiled, *zip(*work, strict=True)):
            print(line, flush=True)
            failed += not good
    print(f"{len(work)} compiled, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
