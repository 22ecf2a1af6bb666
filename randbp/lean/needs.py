"""What a function's derivative needs, who serves that, and how much it takes."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .lean_call import Call, Level

Version = Callable[..., Any]
"""A lean version takes the :class:`.lean_call.Call`, then the arguments under the names that the function gives them.
It may return ``NotImplemented`` to let PyTorch's function run."""


@dataclass(frozen=True)
class Held:
    """What suffices for a derivative.

    Attributes:
        bits: Per entry of the floating tensors that PyTorch holds; where entries are rounded, with ``bits=4``. ``None``
            if the arguments decide.
        why: The reason, for reports.
        index: Bytes per 64-bit index that PyTorch holds; ``None`` for all eight.
        mask: Whether a byte of a mask may be a bit.
    """

    bits: float | None
    why: str
    index: int | None = None
    mask: bool = False

    def nbytes(self, tensors: Iterable[tuple[torch.dtype, int]]) -> int | None:
        """Bytes that suffice in place of tensors of these dtypes and numbers of entries.

        Example:
            >>> SIDE.nbytes([(torch.float32, 800)])
            100
        """
        if self.bits is None:
            return None
        total = 0
        for dtype, entries in tensors:
            if dtype.is_floating_point:
                total += min(entries * dtype.itemsize, ceil(entries * self.bits / 8))
            elif dtype == torch.bool and self.mask:
                total += ceil(entries / 8)
            else:
                total += entries * (self.index if dtype == torch.int64 and self.index else dtype.itemsize)
        return total


SIDE = Held(1, "one bit per entry says on which side of the kink it was")
ORDER = Held(2, "two bits per entry say how it compares")
PLACES = Held(0, "indices need no more than the smallest integers that can hold them", index=2)
MOVES = Held(0, "the gradient needs indices and masks, not the entries", mask=True)
SHAPE = Held(0, "the gradient needs the shape of the input, not its entries")
MASK = Held(1, "one bit per entry of the mask says which was chosen", mask=True)
DROPPED = Held(1, "one bit per entry says whether it was dropped")
WINDOW = Held(0, "a byte per output says where in its window the maximum was; the input is not needed", index=1)
ROUNDED = Held(4, "4 bits per entry, stochastically rounded, give an unbiased gradient")
SLOPE = Held(4, "4 bits per entry of the derivative, stochastically rounded, give an unbiased gradient")
SLOPES = Held(4, "4 bits per entry of each derivative, stochastically rounded, give an unbiased gradient")
POLES = Held(5, "5 bits per entry of each derivative, with small relative errors, give an unbiased gradient")
LAYER = Held(None, "an estimator such as Spatial(keep=1/8) holds that share of the input")
INSIDE = Held(None, "lean=True rounds what the functions that it calls hold")


class Need(Protocol):
    """What a derivative needs; :meth:`serve` runs a call and holds just that."""

    @property
    def held(self) -> Held:
        """What suffices."""

    @property
    def signature(self) -> Version | None:
        """A function whose parameters, behind one named ``call``, are those that are served; ``None`` for any."""

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the call; ``NotImplemented`` lets PyTorch's function run."""


@dataclass(frozen=True)
class Own:
    """A need that a function of its own serves."""

    signature: Version
    held: Held

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the version."""
        return self.signature(call, *args, **kwargs)


@dataclass(frozen=True)
class Sample:
    """How tests call a function.

    Attributes:
        span: Where the entries of the tensors lie.
        tensors: Number of tensors before the other arguments.
        options: The other arguments.
    """

    span: tuple[float, float] = (-3.0, 3.0)
    tensors: int = 1
    options: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Functions that are served in one way.

    Attributes:
        names: Names, separated by blanks: ``exp`` stands for ``torch.exp``, ``Tensor.exp``, ``torch.special.exp`` and
            ``F.exp``, as far as these exist, and for ``exp_``, unless another rule names that; ``F.pad`` for one
            function.
        need: What the derivative needs.
        level: ``"exact"`` if the gradient is PyTorch's bit for bit, at least where rounding is not allowed.
        sample: How tests call it; ``None`` if that is written in the tests.
    """

    names: str
    need: Need
    level: Level = "rounded"
    sample: Sample | None = None

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether all arguments are served; PyTorch's functions accept some under NumPy's names, too."""
        signature = self.need.signature
        return signature is None or _binds(signature, len(args), tuple(kwargs))


SPACES = {"torch": torch, "Tensor": Tensor, "special": torch.special, "F": F, "linalg": torch.linalg}


def functions_of(name: str) -> dict[Callable[..., Any], str]:
    """The functions that a name of a rule stands for, and their own names.

    Example:
        >>> sorted(functions_of("hypot").values()), list(functions_of("F.pad").values())
        (['hypot', 'hypot', 'hypot_'], ['pad'])
    """
    space, _, last = name.rpartition(".")
    names = [last] if space or last.endswith("_") else [last, f"{last}_"]
    spaces = [SPACES[space]] if space else [SPACES[each] for each in ("torch", "Tensor", "special", "F")]
    return {getattr(where, each): each for each in names for where in spaces if callable(getattr(where, each, None))}


def table(rules: Iterable[Rule]) -> dict[Callable[..., Any], Rule]:
    """The rule of each function.

    Raises:
        ValueError: If a name stands for no function, or a function has two rules.
    """
    found: dict[Callable[..., Any], Rule] = {}
    implied: dict[Callable[..., Any], Rule] = {}
    for rule in rules:
        for name in rule.names.split():
            functions = functions_of(name)
            if not functions:
                raise ValueError(f"names={name!r}: expected the name of a function of PyTorch")
            for function, own in functions.items():
                where = found if own == name.rpartition(".")[2] else implied
                if where.get(function, rule) is not rule:
                    raise ValueError(f"names={name!r}: a rule for {where[function].names!r} has that function already")
                where[function] = rule
    return found | {function: rule for function, rule in implied.items() if function not in found}


@cache
def _binds(version: Version, positional: int, named: tuple[str, ...]) -> bool:
    """Whether so many arguments by position and those by name, behind one named ``call``, can be bound."""
    signature = inspect.signature(version)
    call = (None,) if "call" in signature.parameters else ()
    try:
        signature.bind(*call, *(None,) * positional, **dict.fromkeys(named))
    except TypeError:
        return False
    return True
