"""What a kernel is: a way to carry out a step, whose cost the search asks for and which the lowering runs."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from ..planning.relations import Lookup, Windows
from ..planning.steps import Cost, Join
from .registers import Builder, Value


class Kind(Enum):
    """What computes a step, for those who choose by it; printed names are for people."""

    PRODUCT = auto()
    RELATION = auto()
    ROWS = auto()
    NATIVE_FORWARD = auto()
    NATIVE_GRADIENT = auto()
    PAIR_SUMS = auto()  # which take channels in any order of memory


@dataclass(frozen=True)
class Lowered:
    """The result of a step and the printed name of what computes it."""

    value: Value
    name: str


class Kernel:
    """A way to carry out a step.

    Attributes:
        name: Printed name.
        kind: What computes the step.
        joins: Number of tensors, and the type of the relation if there is one.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    joins: ClassVar[tuple[int, type[Windows] | type[Lookup] | None]]

    def fits(self, join: Join) -> Any:
        """Whether this is the way to take, by whatever is true and helps `cost` and `emit`."""
        raise NotImplementedError

    def cost(self, join: Join, form: Any) -> Cost:
        """The cost, given what `fits` returned."""
        raise NotImplementedError

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """Append the instructions for the tensors' values."""
        raise NotImplementedError
