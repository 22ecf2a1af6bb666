"""Keep rates that change during a training."""

from collections.abc import Callable
from math import cos, pi
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ..estimators import Estimator
from ..estimators.keep_rate import has_keep_rate, with_keep_rate
from ..layers.integers import as_integer
from ..randomize.current import VJPS, exchange, put_back, randomized_layers
from ..randomize.layers import layer_state
from ..randomize.selection import checked_layers, matching, shortened
from ..text.near_words import nearest
from .measuring import is_logged
from .rate_owners import refuse_second_owner

Named = Literal["constant", "linear", "cosine", "step", "warm-up"]

CHANGES = 64
"""Times that a rate changes in a training by default: plans of contractions are made anew for each rate."""


class KeepRateSchedule(Callback):
    """Change the keep rates of randomised layers during ``Trainer.fit``.

    The layers are those that :class:`~randbp.callbacks.TensorDropout` or :func:`randbp.randomize` has given estimators
    with a keep rate. With ``t`` the fraction of the training's batches that have been seen, the rate is

    - ``"constant"``: ``start``;
    - ``"linear"``: ``start + (end - start)·t``;
    - ``"cosine"``: ``end + (start - end)·(1 + cos πt)/2``;
    - ``"step"``: ``start`` while ``t < at``, then ``end``;
    - ``"warm-up"``: from ``start`` to ``end`` linearly while ``t < at``, then ``end``;
    - a function of your own: ``schedule(t)``, in ``(0, 1]``; ``start``, ``end`` and ``at`` are not used.

    The noise of estimates costs most late in training, so an ``end`` above ``start`` is the usual choice. Rates do not
    change shapes of parameters or the optimiser. The given estimators are back when fitting ends. A compiled model is
    compiled again at each new rate: choose ``every`` such that there are few.

    Args:
        schedule: Name of a schedule, or a function of the training's fraction in ``[0, 1]``.
        start: Keep rate at the beginning, in ``(0, 1]``; 1 is exact.
        end: Keep rate at the end.
        at: Fraction of the training, in ``(0, 1]``, at which ``"step"`` changes and ``"warm-up"`` ends.
        layers: Names or globs of the layers, or a predicate ``(name, module) -> bool``; ``None`` for all that have a
            keep rate.
        vjp: ``"weight_vjp"`` or ``"input_vjp"`` to change only these; ``None``, the default, for both.
        every: Number of training batches between changes; by default a 64th of the training's batches.

    Raises:
        ValueError: At construction if an argument is out of range; when training starts if no layer has an estimator
            with a keep rate, another callback chooses rates of the same VJPs, or the training has no end; during
            training if an own function returns no keep rate.

    Example:
        >>> schedule = KeepRateSchedule("linear", start=0.25, end=0.75)
        >>> schedule.rate(0.0), schedule.rate(0.5), schedule.rate(1.0)
        (0.25, 0.5, 0.75)
    """

    def __init__(
        self,
        schedule: Named | Callable[[float], float] = "linear",
        start: float = 0.25,
        end: float = 1.0,
        at: float = 0.5,
        layers: str | list[str] | Callable[[str, nn.Module], bool] | None = None,
        vjp: Literal["weight_vjp", "input_vjp"] | None = None,
        every: int | None = None,
    ) -> None:
        if not callable(schedule) and schedule not in get_args(Named):
            known = get_args(Named)
            expected = f"expected one of {', '.join(known)} or a function{nearest(schedule, known)}"
            raise ValueError(f"schedule={schedule!r}: {expected}")
        if vjp is not None and vjp not in VJPS:
            raise ValueError(f"vjp={vjp!r}: expected 'weight_vjp', 'input_vjp' or None{nearest(vjp, VJPS)}")
        number = None if every is None else as_integer(every)
        if every is not None and (number is None or number < 1):
            raise ValueError(f"every={every!r}: expected a number of batches, at least 1, or None")
        self.schedule, self.vjp, self.every = schedule, vjp, number
        self.start, self.end, self.at = (_share(n, v) for n, v in (("start", start), ("end", end), ("at", at)))
        self.layers = checked_layers(layers)
        self._batches = 0
        self._total = 1.0
        self._given: list[tuple[nn.Module, dict[str, Estimator]]] = []

    def rate(self, fraction: float) -> float:
        """The keep rate at a fraction of the training.

        Raises:
            ValueError: If an own function returns something else than a number in ``(0, 1]``.
        """
        if callable(self.schedule):
            return _share(f"schedule({fraction:.4g})", self.schedule(fraction))
        progress = {
            "constant": 0.0,
            "linear": fraction,
            "cosine": (1 - cos(pi * fraction)) / 2,
            "step": float(fraction >= self.at),
            "warm-up": min(1.0, fraction / self.at),
        }[self.schedule]
        return self.start + (self.end - self.start) * progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers and the length of the training."""
        self._total = float(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches
        if self._total in (0, float("inf")) and self.schedule != "constant":
            raise ValueError(
                "KeepRateSchedule: the training has no end, expected a Trainer with max_epochs or max_steps"
            )
        vjps = VJPS if self.vjp is None else (self.vjp,)
        self._given = []
        for name, module in randomized_layers(pl_module).items():
            if not _is_chosen(self.layers, name, module):
                continue
            state = layer_state(module)
            own = {vjp: getattr(state, vjp) for vjp in vjps if has_keep_rate(getattr(state, vjp))}
            if own:
                self._given.append((module, own))
        if not self._given:
            found = shortened([repr(name) for name in randomized_layers(pl_module)])
            raise ValueError(
                f"KeepRateSchedule: layers={self.layers!r}, expected a layer with an estimator that has a keep rate, "
                f"such as Spatial(keep=0.25); randomised layers are {found or 'none'}"
            )
        refuse_second_owner(trainer, self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of this batch."""
        every = self.every or max(1, int(self._total) // CHANGES if self._total < float("inf") else 1)
        since = self._batches // every * every
        self._batches += 1
        rate = self.rate(min(1.0, since / self._total))
        for module, given in self._given:
            exchange(module, **{vjp: with_keep_rate(estimator, rate) for vjp, estimator in given.items()})
        if is_logged(trainer) or since == self._batches - 1:
            pl_module.log("keep_rate", rate, logger=bool(trainer.loggers))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the given estimators back."""
        put_back(self._given)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the given estimators back after a failure."""
        put_back(self._given)

    def state_dict(self) -> dict[str, Any]:
        """The number of batches seen."""
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._batches = state_dict["batches"]

    @property
    def state_key(self) -> str:
        """Name of this callback's state, by its layers and VJPs: several schedules may be in one Trainer."""
        layers = None if callable(self.layers) else self.layers
        return self._generate_state_key(layers=layers, vjp=self.vjp)


def _is_chosen(layers: Any, name: str, module: nn.Module) -> bool:
    if layers is None:
        return True
    if callable(layers):
        return bool(layers(name, module))
    return any(matching([name], pattern) for pattern in ([layers] if isinstance(layers, str) else layers))


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number in (0, 1]")
    return float(value)
