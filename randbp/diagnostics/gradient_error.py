"""Errors of a randomised model's gradients, in comparison with the minibatch's own noise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import nan, sqrt
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._torch.restored import preserved
from ..draws.seeds import checked_seed
from ..estimators import Exact
from ..randomize import Estimators, Layers, PresetName, randomize
from ..randomize.layers import Clock, is_randomized, layer_state
from ..randomize.left_exact import left_exact_of
from ..randomize.override import lean_overridden, overridden
from .gradient_rows import GradientError, GradientRow
from .minibatch_noise import BATCH_NORMS, parts_of, squared_differences
from .objective import Objective, batch_size, check_batch, make_objective
from .significance import mean_interval, t_test


def gradient_error(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[..., Tensor] | None = None,
    weight_vjp: Estimators | None = None,
    input_vjp: Estimators | None = None,
    layers: Layers = None,
    preset: PresetName | None = None,
    draws: int = 32,
    micro_batches: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> GradientError:
    """Compare estimated gradients ĝ of one batch with the exact gradient g, layer by layer.

    The error ``‖ĝ - g‖/‖g‖``, the cosine of ĝ and g, and whether ``E ĝ = g`` are measured on ``draws`` independent
    draws. Every pass starts from the same random state, so ``nn.Dropout`` drops the same units in all of them, and
    differences are due to the estimators alone (and to lean mode, if the model is lean).

    **Bias test.** With ``d_r = ĝ_r - g``: a two-sided t-test of ``⟨d_r, g⟩`` over all draws, which sees wrong weights,
    and a one-sided one of ``⟨d_r, u⟩`` over the second half of the draws, with ``u`` the sum of the first half's
    ``d_r``, which sees a bias in any direction. Both are tests of independent numbers whose expectation is zero if ĝ is
    unbiased. The p-value is twice the smaller one (Bonferroni); ``result.bias_p`` adjusts it for the number of layers.
    It is as approximate as a t-test, so do not judge by fewer than 16 draws.

    **Minibatch noise.** The batch of ``B`` examples is split into ``m`` micro-batches of ``b = ⌊B/m⌋`` with gradients
    ``h_1 … h_m``. As examples are independent, ``Var g = b/B · Var h``, and ``b/B`` times the mean over pairs of
    ``‖h_2j - h_2j-1‖²/2`` is an unbiased estimate of ``E‖g - E g‖²``. The result is the root of this over ``‖g‖``. It
    includes the noise of ``nn.Dropout``. The loss must be a mean over the examples. BatchNorm in training mode
    normalises each micro-batch separately, so for such models the noise also includes that of smaller batches'
    statistics; the result notes it.

    The model is restored: parameters and their ``.grad``, buffers, modes, random states, and its estimators.

    Args:
        model: Either a plain model, to which the estimators below are applied for the measurement, or a randomised
            model, whose own estimators are measured. The measurement runs in training mode.
        batch: A pair ``(inputs, targets)``, or inputs alone. Inputs that are a dictionary are given to the model as
            keywords.
        loss: ``loss(output, targets)`` for a pair, else ``loss(output)``, such as ``lambda output: output.loss``. By
            default the cross-entropy of a pair.
        weight_vjp: Estimator of the weights' gradients as in :func:`randbp.randomize`; ``Spatial(keep=0.25)`` for a
            plain model.
        input_vjp: Estimator of the inputs' gradients; exact for a plain model.
        layers: Layers of a plain model, as in :func:`randbp.randomize`.
        preset: Preset for a plain model, as in :func:`randbp.randomize`; other arguments take precedence.
        draws: Number of estimates, at least 4. Each takes one forward and backward pass.
        micro_batches: Number of parts for the minibatch noise, at most one per example; 0 skips it.
        confidence: Confidence level of all intervals, which are Student's intervals of a mean.
        seed: Determines the draws. A layer draws the same here as in a model randomised with this seed.

    Returns:
        Rows per layer and totals; ``str()`` is a table, ``.plot()`` a figure.

    Raises:
        ValueError: If an argument is out of range, batch and loss do not fit, no weight is trainable, or a gradient is
            not finite.

    Example:
        >>> from randbp import Channels
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(5))
        >>> batch = torch.randn(32, 3, 8, 8), torch.arange(32) % 5
        >>> _ = model(batch[0])  # makes the lazy layer's weight
        >>> result = gradient_error(model, batch, weight_vjp=Channels(keep=1 / 3), draws=200)
        >>> bool(abs(result.total.variance.estimate - 2) < 0.5), result.biased()  # 1/p - 1 = 2
        (True, [])
    """
    _check(draws, micro_batches, confidence)
    seed = checked_seed(seed)
    objective = make_objective(model, loss)
    check_batch("batch", batch)
    given = {"weight_vjp": weight_vjp, "input_vjp": input_vjp, "layers": layers, "preset": preset}
    return error_of(model, batch, objective, draws, micro_batches, confidence, seed, given)


def error_of(
    model: nn.Module,
    batch: Any,
    objective: Objective,
    draws: int,
    micro_batches: int,
    confidence: float = 0.95,
    seed: int = 0,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> GradientError:
    """:func:`gradient_error` of a function that runs a model on a batch and returns the loss."""
    clock = Clock(seed)
    with (
        preserved(model) as rewind,
        torch.inference_mode(False),
        torch.enable_grad(),
        _randomized(model, seed, given) as modules,
        overridden(modules.values(), clock),
        lean_overridden(model, clock),
    ):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = _weights(modules, parameters)

        def gradients(part: Any) -> list[Tensor]:
            found = torch.autograd.grad(objective(part), parameters, allow_unused=True, materialize_grads=True)
            return [gradient.detach() for gradient in found]

        with (
            overridden(modules.values(), clock, weight_vjp=Exact(), input_vjp=Exact()),
            lean_overridden(model, clock, paused=True),
        ):
            rewind()
            exact = gradients(batch)
            rewind()
            parts = parts_of(batch, micro_batches)
            noise = squared_differences(gradients, parts) if parts else None

        def estimate(number: int) -> list[Tensor]:
            clock.set(number, 0, 0)
            rewind()
            return gradients(batch)

        drawn = ([e.sub_(g) for e, g in zip(estimate(number), exact, strict=True)] for number in range(draws))
        sums = _summed(exact, drawn, draws // 2)
        for what, squares in (("gradient", sums.exact[None]), ("estimated gradient", sums.squares)):
            for name, indices in weights.items():
                if not squares[:, indices].isfinite().all():
                    raise ValueError(f"loss: the {what} of layer {name!r} is not finite, expected finite numbers")
        estimators = {name: _estimator(modules[name]) for name in weights}
        notes = _notes(model, bool(parts), micro_batches)
        left_exact = left_exact_of(model)
    size = batch_size(batch)
    if noise is not None:
        noise = noise / 2 * (size // len(parts) / size)

    def row(name: str, indices: Sequence[int]) -> GradientRow:
        length = sum(parameters[index].numel() for index in indices)
        square = None if noise is None else noise[:, indices].sum(1)
        return _row(name, estimators.get(name, ""), length, sums.over(indices), square, confidence)

    return GradientError(
        rows=tuple(row(name, indices) for name, indices in weights.items()),
        total=row("all of these", sorted({index for indices in weights.values() for index in indices})),
        model=row("whole model", range(len(parameters))),
        draws=draws,
        batch_size=size,
        micro_batches=len(parts),
        confidence=confidence,
        notes=notes,
        left_exact=left_exact,
    )


def _check(draws: object, micro_batches: object, confidence: object) -> None:
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 4:
        raise ValueError(f"draws={draws!r}: expected an integer >= 4")
    if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches in (1, 2, 3):
        raise ValueError(f"micro_batches={micro_batches!r}: expected 0 or an integer >= 4")
    if isinstance(confidence, bool) or not isinstance(confidence, Real) or not 0 < float(confidence) < 1:
        raise ValueError(f"confidence={confidence!r}: expected a number between 0 and 1, both excluded")


def _estimator(module: nn.Module) -> str:
    state = layer_state(module)
    return str(state.weight_vjp) + ("" if state.input_vjp.exact else f", input VJP {state.input_vjp}")


def _notes(model: nn.Module, measured: bool, wanted: int) -> tuple[str, ...]:
    if not measured:
        return ("the batch is too small to estimate the minibatch noise: 4 examples at least",) if wanted else ()
    if any(isinstance(module, BATCH_NORMS) and module.training for module in model.modules()):
        return ("BatchNorm normalises each micro-batch by itself: the minibatch noise is that of smaller batches, too",)
    return ()


@contextmanager
def _randomized(model: nn.Module, seed: int, given: Mapping[str, Any]) -> Iterator[dict[str, nn.Module]]:
    """The randomised layers: the model's own, or those that are randomised for the duration of the block."""
    given = {name: value for name, value in given.items() if value is not None}
    before = any(is_randomized(module) for module in model.modules())
    for name, value in given.items() if before else ():
        raise ValueError(f"{name}={value}: the model is randomised already, expected None to measure what it has")
    with nullcontext() if before else randomize(model, seed=seed, **given):
        yield {name: module for name, module in model.named_modules() if is_randomized(module)}


def _weights(modules: dict[str, nn.Module], parameters: list[nn.Parameter]) -> dict[str, list[int]]:
    """For each layer, which of the trainable parameters are its weights; layers without one are left out."""
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    weights: dict[str, list[int]] = {}
    for name, module in modules.items():
        found = [numbers[id(p)] for key, p in module.named_parameters() if key != "bias" and id(p) in numbers]
        weights |= {name: found} if found else {}
    if not weights:
        raise ValueError(f"model: no randomised layer has a trainable weight, of {', '.join(modules)}")
    return weights


class _Sums(NamedTuple):
    """Sums over the entries of each parameter, as float64 on the CPU; d = ĝ - g, u the sum of the first half of d."""

    exact: Tensor  # ‖g‖², [P]
    squares: Tensor  # ‖d_r‖², [R, P]
    along: Tensor  # ⟨d_r, g⟩, [R, P]
    held_out: Tensor  # ⟨d_r, u⟩ of the second half of the draws, [R - R/2, P]
    direction: Tensor  # ‖u‖², [P]
    mean: Tensor  # ‖Σ_r d_r‖², [P]
    rounding: Tensor  # relative floating-point error that a gradient may have, [P]

    def over(self, indices: Sequence[int]) -> "_Sums":
        """The same for some parameters together, of whose rounding errors the largest counts."""
        chosen = [each[..., list(indices)] for each in self]
        return _Sums._make([*(each.sum(-1) for each in chosen[:-1]), chosen[-1].amax()])


def _summed(exact: list[Tensor], differences: Iterable[list[Tensor]], half: int) -> _Sums:
    """Reduce ``d_r`` of successive draws, holding one at a time and not waiting for the device before the last one."""
    sums = [torch.zeros_like(g) for g in exact]
    direction: list[Tensor] = []
    squares, along, held_out = [], [], []
    for number, difference in enumerate(differences, start=1):
        squares.append(_dots(difference, difference))
        along.append(_dots(difference, exact))
        if direction:
            held_out.append(_dots(difference, direction))
        for total, entries in zip(sums, difference, strict=True):
            total += entries
        if number == half:
            direction = [total.clone() for total in sums]
    found = (torch.stack(squares), torch.stack(along), torch.stack(held_out), _dots(direction, direction))
    rounding = torch.tensor([_rounding(g) for g in exact], dtype=torch.float64)
    return _Sums._make([each.cpu() for each in (_dots(exact, exact), *found, _dots(sums, sums), rounding)])


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)])


def _rounding(gradient: Tensor) -> float:
    """Relative rounding difference between two exact kernels; under autocast, that of the lower precision."""
    error = 100 * torch.finfo(gradient.dtype).eps
    device = gradient.device.type
    if torch.is_autocast_enabled(device):
        error = max(error, 2 * torch.finfo(torch.get_autocast_dtype(device)).eps)
    return error


def _row(name: str, estimator: str, length: int, sums: _Sums, noise: Tensor | None, confidence: float) -> GradientRow:
    """Make a row of sums over its parameters, and of estimates of ``E‖g - E g‖²``, ``[pairs]``."""
    square, count = sums.exact.item(), len(sums.squares)
    relative = sums.squares / square
    lengths = (square + 2 * sums.along + sums.squares).clamp_min(0).sqrt() * sqrt(square)
    cosines = torch.where(lengths > 0, (square + sums.along) / lengths, 0.0 * lengths)

    def over_norm(square_of: float) -> float:
        return sqrt(max(0.0, square_of) / square) if square else nan

    return GradientRow(
        name=name,
        estimator=estimator,
        parameters=length,
        norm=sqrt(square),
        error=mean_interval(relative.sqrt(), confidence),
        variance=mean_interval(relative, confidence),
        cosine=mean_interval(cosines.clamp(-1, 1), confidence),
        bias=over_norm((sums.mean - sums.squares.sum()).item() / (count * (count - 1))),
        bias_p=_bias_p(sums) if square else 1.0,
        noise=None if noise is None else mean_interval(noise, confidence).map(over_norm),
    )


def _bias_p(sums: _Sums) -> float:
    square, rounding = sums.exact.item(), sums.rounding.item()
    p_values = [t_test(sums.along / square, rounding)]
    if length := sqrt(sums.direction.item() * square):
        p_values.append(t_test(sums.held_out / length, rounding, one_sided=True))
    return min(1.0, 2 * min(p_values))
