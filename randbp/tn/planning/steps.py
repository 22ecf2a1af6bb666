"""Steps of a contraction as search and kernels see them: sets of legs, what is joined, and what that costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch

from . import machine
from .relations import Problem, Relation, Windows

NATIVE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Target:
    """What a plan is made for.

    Args:
        dtype: Data type of the operands.
        device: Their device.
        native: Whether PyTorch's convolutions may serve, which they do for floating-point types.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    native: bool = True

    @cached_property
    def precise(self) -> bool:
        """Whether sums may be rounded in between to the data type."""
        return self.dtype not in (torch.float16, torch.bfloat16)

    @cached_property
    def fast_products(self) -> bool:
        """Whether matrix products are fast beside native weight gradients of few channels."""
        return self.native and self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True)
class Cost:
    """Cost of one step of a contraction.

    Args:
        multiplications: Multiply-adds.
        moved: Elements read and written, indexed ones counted with their weight.
        size: Elements of the result.
    """

    multiplications: int
    moved: float
    size: int

    @property
    def time(self) -> float:
        """Estimated time in units of a multiply-add."""
        cpu = machine.cpu
        return self.multiplications + cpu.stream * self.moved + (cpu.launch if self.size else 0)


class Roles(NamedTuple):
    """Legs of a relation as sets: of each role in its patterns (all determined ones as ``i``), and free ones."""

    i: int
    o: int
    k: int
    free: int
    all: int

    def held(self, legs: int) -> str | None:
        """The one role of which some legs hold everything, where they hold nothing of the others."""
        own = legs & self.all
        return "i" if own == self.i != 0 else "o" if own == self.o != 0 else "k" if own == self.k != 0 else None


NONE = Roles(0, 0, 0, 0, 0)


class Legs:
    """Sets of a problem's legs as bits of a number, for the search is a hot loop; and what the plan is made for."""

    def __init__(self, problem: Problem, target: Target) -> None:
        self.target = target
        self._bits = {leg: 1 << index for index, leg in enumerate(problem.sizes)}
        self._sizes = list(problem.sizes.values())
        self.volume, self.roles = cache(self._volume), cache(self._roles)
        # Legs of the operands' last dimensions, by the operands' legs.
        self._innermost = {self.encode(t.legs): self.encode(t.axes[-1].legs) for t in problem.tensors if t.axes}

    def encode(self, legs: Iterable[str]) -> int:
        """The set of some legs."""
        mask = 0
        for leg in legs:
            mask |= self._bits[leg]
        return mask

    def names(self, mask: int) -> frozenset[str]:
        """The legs of a set."""
        return frozenset(leg for leg, bit in self._bits.items() if bit & mask)

    def _volume(self, mask: int) -> int:
        """Number of index tuples of a set of legs."""
        low = mask & -mask
        return self.volume(mask ^ low) * self._sizes[low.bit_length() - 1] if mask else 1

    def _roles(self, relation: Relation) -> Roles:
        """The relation's legs by role."""
        parts = [relation.determined, (), ()]
        if isinstance(relation, Windows):
            parts = [tuple(getattr(p, role) for p in relation.patterns) for role in "iok"]
        return Roles(*map(self.encode, (*parts, relation.free, relation.legs)))

    def innermost(self, tensor: int, default: int) -> int:
        """Legs of the last dimension of the operand with these legs; the default for what is no operand."""
        return self._innermost.get(tensor, default)


class Join:
    """One step: a product of two tensors, a relation on one tensor, or a relation between two tensors.

    Args:
        legs: Sets of legs.
        tensors: Legs of one or two tensors.
        relation: The relation, if any.
        out: Legs of the result.
        windows: The patterns that made windows of one tensor in both halves of a Gram matrix, the left one's names.

    Attributes:
        roles: The relation's legs by role.
        sides: Roles of the left and the right tensor in a convolution; ``None`` if no native kernel fits.
        size: Elements of the result.
        touched: Elements of the tensors and the result.
    """

    def __init__(
        self, legs: Legs, tensors: tuple[int, ...], relation: Relation | None, out: int, windows: Windows | None = None
    ) -> None:
        self.legs, self.tensors, self.relation, self.out, self.windows = legs, tensors, relation, out, windows
        self.volume = legs.volume
        self.roles = NONE if relation is None else legs.roles(relation)
        self.size = legs.volume(out)
        self.touched = legs.volume(tensors[0]) + (legs.volume(tensors[1]) if len(tensors) == 2 else 0) + self.size
        between = len(tensors) == 2 and isinstance(relation, Windows) and legs.target.native
        self.sides = self._sides(*tensors) if between else None

    def _sides(self, left: int, right: int) -> tuple[str, str] | None:
        roles = self.roles
        found = roles.held(left), roles.held(right)
        if found[0] is None or found[1] is None or found[0] == found[1]:
            return None
        given = getattr(roles, found[0]) | getattr(roles, found[1])
        if self.out & given or roles.all & ~given & ~self.out:
            return None
        if (left ^ right) & ~roles.all & ~self.out:
            return None  # a leg of one tensor alone that is summed: sum it first
        return found[0], found[1]
