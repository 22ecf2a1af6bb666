"""A straight-line program of tensor kernels over registers; equal instructions are computed once."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

TensorFunction = Callable[..., Tensor]
"""What an instruction runs."""
Origin = tuple[Callable[..., TensorFunction], tuple[Any, ...]]
"""What makes a kernel: its factory, and the factory's arguments."""
Call = tuple[tuple[int, ...], int, tuple[int, ...]]
"""The registers that a kernel reads, the one that it fills, and those that die."""


class Program:
    """Instructions in order, each ``register = kernel(*registers)``.

    Kernels are made by factories with static arguments (shapes, dimensions), so an instruction that repeats
    an earlier one (the two halves of a Gram matrix) is found and shares its register. Kernels are closures, so copies
    and pickles of a program make them again, with empty caches.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.count = inputs
        self.result = 0
        self._known: dict[tuple[Any, ...], int] = {}
        self._code: list[tuple[Origin, tuple[int, ...], int]] = []
        self._set_up([], [])

    def emit(self, factory: Callable[..., TensorFunction], registers: tuple[int, ...], *static: Any) -> int:
        """Append ``factory(*static)`` applied to registers; returns the register of the result."""
        key = (factory, registers, static)
        register = self._known.get(key)
        if register is None:
            register = self._known[key] = self.count
            self.count += 1
            self._code.append(((factory, static), registers, register))
        return register

    def finish(self, result: int) -> set[int]:
        """Fix the result, drop instructions that nothing needs, and return the registers that are needed."""
        self.result = result
        needed = {result}
        kept = []
        for entry in reversed(self._code):
            if entry[2] in needed:
                needed.update(entry[1])
                kept.append(entry)
        seen = {result}
        origins: list[Origin] = []
        calls: list[Call] = []
        for origin, registers, target in kept:
            dead = tuple(set(registers) - seen)
            seen.update(registers)
            origins.append(origin)
            calls.append((registers, target, dead))
        self._code, self._known = [], {}
        self._set_up(origins[::-1], calls[::-1])
        return needed

    def _set_up(self, origins: list[Origin], calls: list[Call]) -> None:
        self._origins, self._calls = origins, calls
        kernels = [factory(*static) for factory, static in origins]
        self._compiled = [(kernel, *call) for kernel, call in zip(kernels, calls, strict=True)]
        self._alone = self._compiled[0][:2] if len(calls) == 1 else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_compiled", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up(self._origins, self._calls)

    def __len__(self) -> int:
        return len(self._compiled)

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run the program on input tensors."""
        if self._alone is not None:
            kernel, arguments = self._alone
            return kernel(*[tensors[index] for index in arguments])
        registers: list[Any] = [*tensors, *(None,) * (self.count - self.inputs)]
        for kernel, arguments, target, dead in self._compiled:
            registers[target] = kernel(*[registers[index] for index in arguments])
            for index in dead:
                registers[index] = None
        return registers[self.result]
