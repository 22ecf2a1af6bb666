"""A choice between an estimator and the exact VJP, by measured time."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..tn import LayerSpec
from .base import Estimator, Vjp, Wrapping, within
from .description import Description
from .exact import Exact
from .planned import Planned
from .race import GAIN, race
from .sizes import BySize


class Race(NamedTuple):
    """Seconds of one VJP of one layer, drawing and storing included, as :func:`.race.race` reads them.

    ``exact`` is the time of what serves where the estimator does not; ``planned`` is infinite if that is not exact, or
    if the plan is PyTorch's own kernel.
    """

    exact: float
    planned: float
    estimated: float

    @property
    def first(self) -> Literal["exact", "planned", "estimated"]:
        """The fastest contender, if the gain is worth it; of equally fast ones the most exact."""
        if min(self.planned, self.estimated) > GAIN * self.exact:
            return "exact"
        return "planned" if self.planned <= self.estimated else "estimated"


@dataclass(frozen=True)
class IfFaster(Wrapping, Estimator):
    """Use an estimator in the layers where it is faster, and the exact VJP in all others.

    Whether sampling saves time depends on the layer and the machine. Each VJP of each layer is timed when it first
    runs, on tensors of the layer's sizes: the estimator, PyTorch's kernel, and a contraction of :mod:`randbp.tn`, which
    is equal up to rounding and several times as fast for some layers. Each runs two or three times if the difference is
    clear or a run takes long, and at most ten times otherwise. The first step of a network then takes as long as two to
    five others, and needs memory for one more output; the first step ever on a machine takes about half a minute more
    if numba compiles kernels. The fastest contender serves all layers of these sizes, data type and device until the
    process ends, and batches that are smaller by a factor of up to four; a VJP stays exact if the gain is less than a
    twentieth of its time. If PyTorch's own backward pass, including the bias, takes no longer than the chosen VJPs, the
    layer uses it, with PyTorch's bits (except in compiled graphs, where each VJP is chosen separately). As times vary,
    another process may choose differently; for a fixed choice, give layers their estimators by name, for example with
    :func:`randbp.autotune`.

    A layer that stays exact holds its whole input. Around a :class:`randbp.Precision` of an estimator that holds less,
    the choice is between narrow products and that estimator alone, and both hold the same: four bits per entry in
    ``IfFaster(Precision(estimator=Rounding(4)))``. :meth:`describe` describes the wrapped estimator.

    Args:
        estimator: The estimator to use where it is faster.

    Raises:
        ValueError: If ``estimator`` is not an estimator, or one of this class.

    Example:
        >>> from randbp import Spatial
        >>> IfFaster(Spatial(keep=0.25)).keep
        0.25
    """

    keep: float = field(default=1.0, init=False, repr=False, compare=False)
    estimator: Estimator
    exact, fallback = within("exact"), within("fallback")

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator) or isinstance(self.estimator, IfFaster):
            raise ValueError(f"IfFaster: estimator={self.estimator!r}, expected an estimator, e.g. Spatial(keep=0.25)")
        object.__setattr__(self, "keep", self.estimator.keep)

    def check_serves(self, vjp: Vjp) -> None:
        """Raise ``ValueError`` if the wrapped estimator cannot stand in for a VJP."""
        self.estimator.check_serves(vjp)

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Estimator:
        """The wrapped estimator or a faster one; always the wrapped one on the meta device, where nothing runs."""
        chosen = self.estimator.for_layer(vjp, spec, dtype, device)
        fallback = self.fallback or Exact()
        if chosen.exact or chosen == fallback:
            return fallback
        if device.type == "meta":
            return chosen
        return {"exact": fallback, "planned": Planned()}.get(self.race(vjp, spec, dtype, device).first, chosen)

    def race(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Race:
        """The measurement that decides. It is made once and remembered, and serves somewhat smaller batches, too."""
        return _RACES.get(
            (self.estimator, vjp, dtype, device), spec, lambda: _race(self.estimator, vjp, spec, dtype, device)
        )

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """As the chosen one's."""
        return self.for_layer("weight_vjp", spec, input.dtype, input.device).sketch(input, spec, draw)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """As the chosen one's."""
        chosen = self.for_layer("weight_vjp", spec, output_grad.dtype, output_grad.device)
        return chosen.weight_vjp(held, output_grad, spec, draw)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """As the chosen one's."""
        chosen = self.for_layer("input_vjp", spec, output_grad.dtype, output_grad.device)
        return chosen.input_vjp(output_grad, weight, spec, draw)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        return self.estimator.describe(spec, dtype)


_RACES: BySize[Race] = BySize()


_AT_HAND: ContextVar[tuple[Tensor, ...]] = ContextVar("at hand", default=())


@contextmanager
def at_hand(*tensors: Tensor) -> Iterator[None]:
    """Races within the context run on these tensors (a layer's input and weight) where they fit, and make no others.

    Weights can be larger than all else in a step.
    """
    before = _AT_HAND.set(tensors)
    try:
        yield
    finally:
        _AT_HAND.reset(before)


def _operand(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    for tensor in _AT_HAND.get():
        if (tensor.shape, tensor.dtype, tensor.device) == (shape, dtype, device) and tensor.is_contiguous():
            return tensor.detach()
    return torch.ones(shape, dtype=dtype, device=device)


def _race(estimator: Estimator, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Race:
    output_grad = torch.ones(spec.output_shape, dtype=dtype, device=device)
    other = _operand(spec.input_shape if vjp == "weight_vjp" else spec.weight_shape, dtype, device)

    def run(contender: Estimator) -> None:
        draw = Draw(0)
        if vjp == "weight_vjp":
            contender.weight_vjp(contender.sketch(other, spec, draw), output_grad, spec, draw)
        else:
            contender.input_vjp(output_grad, other, spec, draw)

    planned = Planned().for_layer(vjp, spec, dtype, device)
    others = [estimator.fallback] if estimator.fallback else [Exact(), *([] if planned.exact else [planned])]
    exact, ratios = race([partial(run, contender) for contender in (*others, estimator)], device)
    return Race(exact, exact * ratios[1] if len(others) > 1 else inf, exact * ratios[-1])
