"""An estimator that computes the exact VJPs and notes the norms of the rows that could be drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import LayerSpec
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from .base import Estimator, Vjp
from .drawn_rows import patch_sums
from .importance import row_squares


class RowNorms(NamedTuple):
    """Squared norms of the rows of one VJP in one call of a layer."""

    layer: int  # number of the layer
    vjp: Vjp
    grad: Tensor  # ‖g_r‖², [R]
    met: Tensor | None  # ‖x_r‖², [R], of the patches that the rows meet; none for an input VJP
    spec: LayerSpec


_numbers = count()
_notes: dict[int, list[RowNorms]] = {}  # by number of the observation: compiled graphs pass numbers, not lists


@dataclass(frozen=True)
class Observed(Estimator):
    """The exact VJPs of a layer, which note the norms of rows for :func:`observed`.

    Args:
        observation: The number that :func:`observed` gives.
        layer: A number of the layer, which comes back in the notes.
        unit: What a row is: ``"positions"`` or ``"examples"``, as for :class:`randbp.Importance`.

    Example:
        >>> Observed(0, 3).exact  # it is, but is not to be replaced by PyTorch's
        False
    """

    keep: float = field(default=1.0, init=False, repr=False)
    observation: int
    layer: int
    unit: Literal["positions", "examples"] = "positions"
    exact = False
    holds_input = True

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The input itself."""
        return (input,)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_W = Σ_{n i o} X Π V_Y``."""
        examples = self.unit == "examples"
        met = row_squares(held[0], examples)
        self._note("weight_vjp", output_grad, (met if examples else patch_sums(met, spec)).flatten(), spec)
        return native_weight_vjp(held[0], output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_X = Σ_{d o k} W Π V_Y``."""
        self._note("input_vjp", output_grad, None, spec)
        return native_input_vjp(output_grad, weight, spec)

    def _note(self, vjp: Vjp, output_grad: Tensor, met: Tensor | None, spec: LayerSpec) -> None:
        notes = _notes.get(self.observation)
        if notes is not None:
            squares = row_squares(output_grad, self.unit == "examples").flatten()
            notes.append(RowNorms(self.layer, vjp, squares, met, spec))


@contextmanager
def observed() -> Iterator[tuple[int, list[RowNorms]]]:
    """Give a number for :class:`Observed`, and the list of what is noted within the block, in the order of backward."""
    number = next(_numbers)
    _notes[number] = []
    try:
        yield number, _notes[number]
    finally:
        del _notes[number]
