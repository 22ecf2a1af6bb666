"""An estimator where it is faster than the exact VJP, by measurement, and the exact VJP elsewhere."""

from dataclasses import dataclass, field
from statistics import median
from threading import Lock
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..tn import LayerSpec
from .aside import aside
from .base import Estimator, Vjp
from .description import Description
from .draw import Draw
from .exact import Exact
from .planned import Planned
from .wrapping import Wrapping

ROUNDS = (3, 15)  # least and most readings of each
GAIN = 0.95  # of the exact VJP's time, at most which is worth a change
SECONDS = 0.1  # for all readings of a layer, unless the least number takes longer


class Race(NamedTuple):
    """Seconds of one VJP of one layer, drawing and storing included.

    Of the exact one it is the least reading, for other work on the machine only adds. The time of some kernels differs
    from call to call, though; what shall take their place must be faster in the least and in the middle readings, so
    the worse of both ratios counts.
    """

    exact: float
    planned: float
    estimated: float

    @property
    def first(self) -> Literal["exact", "planned", "estimated"]:
        """The fastest, if it is worth a change; of equals the most exact one."""
        if min(self.planned, self.estimated) > GAIN * self.exact:
            return "exact"
        return "planned" if self.planned <= self.estimated else "estimated"


@dataclass(frozen=True)
class IfFaster(Wrapping, Estimator):
    """An estimator in the layers where it is faster than the exact VJP, and the exact VJP in all others.

    Whether sampling saves time depends on the layer and the machine: products of many channels shrink with the keep
    rate, but gathering a few entries of a small layer can take longer than its exact VJP, be it PyTorch's kernel or
    a contraction of :mod:`randbp.tn` (equal up to rounding, and several times as fast for some layers). Each VJP of
    each layer is timed when it runs for the first time: all ways in turn, on tensors of the layer's sizes, for
    about a tenth of a second, in which memory for one more input and output is taken. The fastest one then serves
    all layers of these sizes, data type and device until the process ends; what gains less than a twentieth of the
    time stays exact. As times vary, another process may decide otherwise; for a fixed choice give layers their
    estimators by name, e.g. with :func:`randbp.autotune`.

    A layer that stays exact holds its whole input. :meth:`describe` speaks of the estimator.

    Args:
        estimator: What is used where it is faster.

    Raises:
        ValueError: If ``estimator`` is not an estimator, or one of this class.

    Example:
        >>> from randbp import Spatial
        >>> IfFaster(Spatial(keep=0.25)).keep
        0.25
    """

    keep: float = field(default=1.0, init=False, repr=False, compare=False)
    estimator: Estimator

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator) or isinstance(self.estimator, IfFaster):
            raise ValueError(f"IfFaster: estimator={self.estimator!r}, expected an estimator, e.g. Spatial(keep=0.25)")
        object.__setattr__(self, "keep", self.estimator.keep)

    @property
    def exact(self) -> bool:
        """Whether the estimator within is."""
        return self.estimator.exact

    def check_serves(self, vjp: Vjp) -> None:
        """Raise ``ValueError`` if the estimator within cannot stand in for a VJP."""
        self.estimator.check_serves(vjp)

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Estimator:
        """The estimator within, or one that is exact; the one within on a device without data, where nothing runs."""
        if self.exact:
            return Exact()
        if device.type == "meta":
            return self.estimator
        first = self.race(vjp, spec, dtype, device).first
        return _EXACT.get(first, self.estimator)

    def race(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Race:
        """The measurement that decides; it is made once and remembered."""
        key = (self.estimator, vjp, spec, dtype, device)
        with _LOCK:
            found = _RACES.get(key)
            if found is None:
                found = _RACES[key] = aside(lambda: _race(self.estimator, vjp, spec, dtype, device))
        return found

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


_EXACT: dict[str, Estimator] = {"exact": Exact(), "planned": Planned()}
_RACES: dict[tuple[Any, ...], Race] = {}
_LOCK = Lock()


def _race(estimator: Estimator, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Race:
    output_grad = torch.ones(spec.output_shape, dtype=dtype, device=device)
    other = torch.ones(spec.input_shape if vjp == "weight_vjp" else spec.weight_shape, dtype=dtype, device=device)

    def run(contender: Estimator, draw: Draw) -> None:
        if vjp == "weight_vjp":
            contender.weight_vjp(contender.sketch(other, spec, draw), output_grad, spec, draw)
        else:
            contender.input_vjp(output_grad, other, spec, draw)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    contenders = (*_EXACT.values(), estimator)
    for contender in contenders:  # plans, tables and the kernels' own choices are made in the first call
        run(contender, Draw(0))
    readings: tuple[list[float], ...] = [], [], []
    while len(readings[0]) < ROUNDS[0] or (len(readings[0]) < ROUNDS[1] and sum(map(sum, readings)) < SECONDS):
        for contender, times in zip(contenders, readings, strict=True):
            started = perf_counter()
            run(contender, Draw(len(times)))
            times.append(perf_counter() - started)
    least, middle = [min(times) for times in readings], [median(times) for times in readings]
    worse = [max(low / least[0], mid / middle[0]) for low, mid in zip(least[1:], middle[1:], strict=True)]
    return Race(least[0], *(least[0] * ratio for ratio in worse))
