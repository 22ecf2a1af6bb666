"""Measurements of candidates, layer by layer, on the inputs and output gradients of real batches."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from math import isfinite, nan
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._torch.restored import preserved
from ..diagnostics.objective import Objective
from ..diagnostics.saved_tensors import held_for_backward
from ..diagnostics.timing import interleave, seconds_per_call
from ..estimators import Estimator, Exact
from ..layers import weights
from ..randomize import Layers, randomize
from ..randomize.layers import Clock, is_randomized, layer_state
from ..randomize.left_exact import NO_CALL, summary
from ..randomize.override import overridden
from .options import LayerOptions, Measured, Option
from .record import Call, Record, record

NOT_TRAINED = "not called, or the loss depends on no trainable weight of it"


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    candidates: Sequence[Estimator],
    layers: Layers = None,
    draws: int = 4,
    rounds: int = 3,
    seed: int = 0,
) -> Measured:
    """Measure error, bytes and seconds of every candidate in every layer, except those that refuse the layer.

    One exact pass per batch records each layer's inputs and output gradients, on which the layer then runs alone. Bytes
    and seconds are those of the first batch; these are medians of forward and weight VJP, less the forward pass.
    """
    for name, number, least in (("draws", draws, 2), ("rounds", rounds, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name}={number!r}: expected an integer >= {least}")
    for estimator in candidates:
        if not isinstance(estimator, Estimator):
            raise ValueError(f"candidates: {estimator!r}, expected estimators such as Spatial(keep=0.25)")
        estimator.check_serves("weight_vjp")
    found: dict[str, _Layer] = {}
    with (
        preserved(model) as rewind,
        torch.inference_mode(False),
        torch.enable_grad(),
        randomize(model, Exact(), Exact(), layers, seed) as handle,
    ):
        modules = {name: module for name, module in model.named_modules() if is_randomized(module)}
        for number, batch in enumerate(batches):
            rewind()
            notes = record(model, objective, batch, modules)
            for name, calls in notes.calls.items():
                if not calls or not any(weight.requires_grad for weight in weights(modules[name])):
                    continue
                layer = found.setdefault(name, _Layer(name, modules[name]))
                layer.draw(calls, candidates, draws, seed, number)
                if not layer.held:
                    layer.weigh(calls, notes, rounds)
        exact = handle.left_exact
        for name, module in modules.items():
            if name not in found:
                exact[name] = NOT_TRAINED
            elif not layer_state(module).seen.served:
                exact[name] = NO_CALL
                del found[name]
    if not found:
        raise ValueError(
            "model: the loss depends on no randomisable layer with a trainable weight"
            + (f"; {summary(exact, 0)}" if exact else "")
        )
    for estimator in candidates:
        refusals = [layer.refused.get(estimator) for layer in found.values()]
        if all(refusals):
            raise ValueError(f"candidates: {estimator} refuses all layers: {refusals[0]}")
    measured = Measured(found[name].options() for name in modules if name in found)
    measured.left_exact = exact
    return measured


class _Layer:
    """The measurements of a layer so far."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module: Any = module
        self.norm_squares: list[float] = []
        self.errors: dict[Estimator, list[float]] = {}
        self.refused: dict[Estimator, Exception] = {}
        self.held: dict[Estimator, int] = {}
        self.seconds: dict[Estimator, float] = {}
        self.shared: tuple[int, tuple[str, ...]] = (0, ())

    def draw(self, calls: list[Call], candidates: Iterable[Estimator], draws: int, seed: int, batch: int) -> None:
        """Measure squared errors ``‖ĝ - g‖²`` of each candidate on a batch."""
        exact = self._gradient(calls, Exact(), Clock(seed))
        squares = {}
        for estimator in candidates:
            clock, drawn = Clock(seed), []
            try:
                for number in range(draws):
                    clock.set(number, batch, 0)
                    difference = self._gradient(calls, estimator, clock).sub_(exact)
                    drawn.append(difference.double().square().sum())
            except (ValueError, NotImplementedError) as error:
                self.refused[estimator] = error
                continue
            squares[estimator] = torch.stack(drawn)
        self.norm_squares.append(exact.double().square().sum().item())  # waits for the device, all being under way
        if not isfinite(self.norm_squares[-1]):
            raise ValueError(f"loss: the gradient of layer {self.name!r} is not finite, expected finite numbers")
        for estimator, values in squares.items():
            if values.isfinite().all():
                self.errors.setdefault(estimator, []).extend(values.tolist())
            else:
                self.refused[estimator] = ValueError("its estimate of the gradient is not finite")

    def weigh(self, calls: list[Call], notes: Record, rounds: int) -> None:
        """Measure bytes and seconds of each candidate that is left."""
        self.shared = notes.shared(self.name)
        contenders: dict[Estimator | None, Callable[[], Any]] = {None: partial(self._forward, calls)}
        for estimator in (Exact(), *self.errors):
            with self._as(estimator, Clock(0)), held_for_backward(exclude=self.module.parameters()) as held:
                outputs = [call.repeat(self.module) for call in calls]
            self.held[estimator] = held.bytes
            del outputs
            contenders[estimator] = partial(self._gradient, calls, estimator, Clock(0))
        self.seconds = dict.fromkeys(self.held, nan)
        if rounds:
            read = partial(seconds_per_call, device=next(self.module.parameters()).device)
            times = {name: median(found) for name, found in interleave(contenders, read, (rounds, rounds)).items()}
            self.seconds = {estimator: max(0.0, times[estimator] - times[None]) for estimator in self.held}

    def options(self) -> LayerOptions:
        """The result, with means over batches."""

        exact, *candidates = (
            Option(it, fmean(errors), self.held[it], self.seconds[it], stdev(errors) / len(errors) ** 0.5)
            for it, errors in ((Exact(), [0.0, 0.0]), *self.errors.items())
            if it not in self.refused
        )
        return LayerOptions(self.name, fmean(self.norm_squares), exact, tuple(candidates), *self.shared)

    def _gradient(self, calls: list[Call], estimator: Estimator, clock: Clock) -> Tensor:
        """Gradient of the layer's (effective) weights, concatenated and summed over its calls."""
        with self._as(estimator, clock), parametrize.cached():
            trained = [weight for weight in weights(self.module) if weight.requires_grad]
            columns = zip(*(call.gradients(self.module, trained) for call in calls), strict=True)
            sums = [reduce(torch.add, column) for column in columns]
        return sums[0] if len(sums) == 1 else torch.cat([total.flatten() for total in sums])

    def _forward(self, calls: list[Call]) -> None:
        with self._as(Exact(), Clock(0)), torch.no_grad():
            for call in calls:
                call.repeat(self.module)

    def _as(self, estimator: Estimator, clock: Clock) -> Any:
        return overridden([self.module], clock, weight_vjp=estimator)
