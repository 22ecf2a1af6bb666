"""A straight-line program of tensor kernels over registers; equal instructions are computed once."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Kernel = Callable[..., Tensor]


class Program:
    """Instructions in order, each ``register = kernel(*registers)``.

    Kernels are made by factories with static arguments (shapes, dimensions), so an instruction that repeats
    an earlier one (the two halves of a Gram matrix) is found and shares its register.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.count = inputs
        self.result = 0
        self._known: dict[tuple[Any, ...], int] = {}
        self._code: list[tuple[Kernel, tuple[int, ...], int]] = []
        self._compiled: list[tuple[Kernel, tuple[int, ...], int, tuple[int, ...]]] = []
        self._alone: tuple[Kernel, tuple[int, ...]] | None = None

    def emit(self, factory: Callable[..., Kernel], registers: tuple[int, ...], *static: Any) -> int:
        """Append ``factory(*static)`` applied to registers; returns the register of the result."""
        key = (factory, registers, static)
        register = self._known.get(key)
        if register is None:
            register = self._known[key] = self.count
            self.count += 1
            self._code.append((factory(*static), registers, register))
        return register

    def finish(self, result: int) -> None:
        """Fix the result, drop instructions that nothing needs, and note where each register dies."""
        self.result = result
        needed = {result}
        kept = []
        for entry in reversed(self._code):
            if entry[2] in needed:
                needed.update(entry[1])
                kept.append(entry)
        seen = {result}
        compiled = []
        for kernel, registers, target in kept:
            dead = tuple(set(registers) - seen)
            seen.update(registers)
            compiled.append((kernel, registers, target, dead))
        self._compiled = compiled[::-1]
        self._alone = compiled[0][:2] if len(compiled) == 1 else None
        self._code, self._known = [], {}

    def __len__(self) -> int:
        return len(self._compiled)

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Execute on input tensors."""
        if self._alone is not None:
            kernel, arguments = self._alone
            return kernel(*[tensors[index] for index in arguments])
        registers: list[Any] = [*tensors, *(None,) * (self.count - self.inputs)]
        for kernel, arguments, target, dead in self._compiled:
            registers[target] = kernel(*[registers[index] for index in arguments])
            for index in dead:
                registers[index] = None
        return registers[self.result]
