"""Automatic choice of an estimator for each layer, from measurements."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..diagnostics.objective import check_batch, make_objective
from ..draws.seeds import checked_seed
from ..estimators import Axes, Batch, Estimator, Rounding, Spatial
from ..randomize import Layers
from .assignment import UNTIMED, Assignment, assign
from .measure import measure
from .options import Objective, check_budget

RATES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
CANDIDATES: dict[Objective, tuple[Estimator, ...]] = {
    "memory": (
        *(Rounding(bits) for bits in (8, 6, 5, 4, 3, 2)),
        *(Rounding(4, Spatial(keep)) for keep in RATES),
        *(Spatial(keep) for keep in RATES),
    ),
    "time": (
        *(Spatial(keep) for keep in RATES),
        *(Axes(keep) for keep in RATES),
        *(Batch(keep, center=center) for keep in RATES for center in (False, True)),
    ),
}
"""What is tried in every layer unless told otherwise."""


def autotune(
    model: nn.Module,
    sample_batch: Any,
    budget: float = 0.25,
    *,
    objective: Objective = "memory",
    loss: Callable[..., Tensor] | None = None,
    candidates: Sequence[Estimator] | None = None,
    layers: Layers = None,
    draws: int = 4,
    rounds: int = 3,
    count_shared: bool = True,
    seed: int = 0,
) -> Assignment:
    """Choose an estimator of the weight VJP for each layer: the least gradient variance within a budget.

    Every candidate is tried in every layer on the real inputs and output gradients of a batch. Measured are its
    variance ``E‖ĝ - g‖²`` over ``draws`` draws, the bytes it holds, and its time including drawing and storing. Weight
    gradients of different layers are estimated independently, so their variances add up, and :func:`randbp.tune.assign`
    finds the assignment with the least sum. A layer in which no candidate is worthwhile stays exact.

    The best assignment changes during training: tune a model that has been trained for a while, and tune it again
    later.

    Args:
        model: A plain model, left as it was found (see :func:`randbp.diagnostics.gradient_error`).
        sample_batch: A pair ``(inputs, targets)`` or inputs alone, of the size used in training. Inputs that are a
            dictionary are given to the model as keywords.
        budget: Share, in ``(0, 1]``, of the cost of these layers' exact weight VJPs.
        objective: The cost: bytes held for backward (``"memory"``) or seconds (``"time"``).
        loss: ``loss(output, targets)`` for a pair, else ``loss(output)``, such as ``lambda output: output.loss``. By
            default the cross-entropy of a pair.
        candidates: Estimators to choose from; a layer may always stay exact. By default, for memory: ``Spatial`` at
            keep rates 1/2 to 1/16, 2 to 8 bits of everything, and 4 bits of such samples; for time: ``Spatial``,
            ``Axes`` and ``Batch``.
        layers: The layers to tune, as in :func:`randbp.randomize`; other layers stay exact and do not count in the
            budget.
        draws: Draws per candidate. The variances, unlike the seconds, are a function of ``seed``.
        rounds: Timings per candidate, of which the median counts; 0 skips them if memory is the objective.
        count_shared: Whether a layer's bytes count if something else, such as a ReLU before the layer, holds the same
            tensor and keeps it alive. If false, such layers stay exact, since an estimator would free nothing there; if
            true, the result says how many bytes are freed.
        seed: Seed of the draws.

    Returns:
        A mapping from layers' names to estimators that :func:`randbp.randomize` and
        :class:`randbp.callbacks.TensorDropout` take as ``weight_vjp``. ``print`` shows it as a table,
        ``with_budget(…)`` uses the same measurements for another budget, ``configuration()`` is plain data for YAML.

    Raises:
        ValueError: If an argument is out of range, batch and loss do not fit, or the model is randomised already.
        randbp.tune.UnreachableBudget: A ``ValueError``, if no candidates are cheap enough; it names the least budget.

    Example:
        >>> import torch, randbp
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten())
        >>> batch = torch.randn(8, 3, 12, 12), torch.randint(8 * 64, (8,))
        >>> tuned = randbp.autotune(model, batch, budget=0.25, rounds=0)
        >>> list(tuned), tuned.held_bytes <= 0.25 * tuned.exact_bytes
        (['0', '2'], True)
        >>> handle = randbp.randomize(model, weight_vjp=tuned)
    """
    check_budget(budget, objective)
    if objective == "time" and rounds == 0:
        raise ValueError(UNTIMED)
    if candidates is not None and not isinstance(candidates, Iterable):
        raise ValueError(f"candidates={candidates!r}: expected several estimators, e.g. [Spatial(0.5), Spatial(0.25)]")
    candidates = CANDIDATES[objective] if candidates is None else tuple(candidates)
    objective_of = make_objective(model, loss)
    check_batch("sample_batch", sample_batch)
    measured = measure(
        model, [sample_batch], objective_of, candidates, layers, draws=draws, rounds=rounds, seed=checked_seed(seed)
    )
    return assign(measured, budget, objective, count_shared)
