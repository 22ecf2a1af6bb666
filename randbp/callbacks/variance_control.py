"""Keep rates that hold the variance that sampling adds to a share of the minibatch's own."""

from collections.abc import Mapping
from math import exp, log
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..estimators import Estimator, Importance
from ..estimators.keep_rate import with_keep_rate
from ..estimators.observed_rows import Observed, observed
from ..randomize.current import VJPS, exchange, put_back, randomized_layers
from ..randomize.layers import Clock, layer_state
from ..tune.rate_allocation import RATES, allocate
from .measuring import Measuring, averaged
from .rate_owners import refuse_second_owner
from .rate_terms import Term, curves, terms_of
from .step_gradients import Gradients, dots, exact_passes, step_gradients

_ADDED, _MINIBATCH = ("added", "along_added"), ("minibatch", "along_minibatch")
_MIDDLE, _EXACT = len(RATES) // 2, RATES.index(1.0)

_MEMORY = 0.7  # share of a smoothed variance that one more measurement leaves
_EARLY_MEMORY = 0.3  # the same within the first interval
_ALONG = 0.95  # the same along the gradient, where a measurement is one squared number
_CORRECTION = 0.5  # the same of what was measured beside what was predicted
_TRIM = 0.2  # of the deviation of the smoothed ratio from the budget that one measurement makes up for
_PATIENCE = 8  # measurements before the ratio along the gradient counts
_EARLY = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of an interval, when measurements come first: noise changes fast then
_LEAST_GAIN = 0.05  # of noise of input VJPs


class VarianceControl(Measuring):
    """Choose the keep rates of ``Importance`` layers such that sampling adds a given share of the minibatch's variance.

    SGD's gradient ``g`` of a minibatch varies around the true one. Sampled VJPs add to that, and if they add little, a
    training goes on as with exact gradients. It begins with rates of 1, since noise hurts most in the first steps.
    Every few batches, and at 1/8, 1/4, 1/2 and 3/4 of the first such interval, this callback measures at the current
    parameters

    - the minibatch's variance ``‖g - g'‖²/2``, unbiased, with ``g'`` the exact gradient of the batch before;
    - the norms of the rows that each layer draws from, in the pass that computes ``g``, from which it proposes rates;
    - the variance that these add, ``mean ‖ĝ - g‖²`` over ``draws`` estimates ``ĝ``, by which it corrects the rates;
    - the variance ``‖ĝ - g‖²`` that the rates so far add;
    - both variances along the gradient's direction ``u = (g + g')/‖g + g'‖``, of which ``g - g'`` is independent if
      gradients are normally distributed: ``⟨g - g', u⟩²/2`` and ``⟨ĝ - g, u⟩²``.

    From the norms follows the variance at each rate, ``V_l(p) = Σ_r (1/π_r(p) - 1) s_r²``
    (:func:`randbp.estimators.sampling_variance.sampling_variances`): in a weight's gradient ``s_r = ‖g_r‖ ‖x_r‖``;
    noise of an input's gradient reaches the weights of all layers below, in proportion to its share of that gradient
    and by a factor that is learnt from the measured errors. The rates minimise the multiply-adds subject to
    ``Σ_l V_l(p_l) = target`` (one Lagrange multiplier; multiples of 1/16, and 1 for exact). The target is the budget
    times the minibatch's variance, corrected by what was measured beside what had been predicted, with smoothing. If
    the ratio along the gradient, smoothed over more measurements, is more than twice the total one, it counts by half.

    Where one rate serves both VJPs of a layer (they then share a sample), it stays one; otherwise each VJP has its own.
    Layers with other estimators are left alone; their variance counts as added. The given estimators are back when
    fitting ends; ``rates`` keeps the last ones. Logged are ``variance/ratio`` (added over minibatch, smoothed),
    ``variance/added``, ``variance/minibatch``, ``variance/along_ratio`` and ``keep_rate/<layer>/<vjp>``.

    A measurement takes ``draws + 3`` forward and backward passes: by default 2 % of exact training, and 16 passes for
    the first interval, so that it is below 3 % of a training of more than 1,600 batches. All ranks decide alike, by the
    mean of what they measure. Losses, random states, BatchNorm's statistics and metrics are changed through the rates
    alone. ``training_step`` runs for measurements too, so it should have no other lasting effects. A compiled model is
    compiled again when rates change, and after a few times PyTorch gives up and runs what rates change without a graph
    (``recompile_limit``).

    Source: Wang, Chen and Zhu, Efficient backpropagation with variance-controlled adaptive sampling, ICLR 2024
    (arXiv:2402.17227), who adapt the rates of linear layers to such a budget step by step.

    Args:
        budget: Variance added by sampling over the minibatch's.
        every: Number of training batches between measurements; by default ``⌈(draws + 3) / 0.02⌉``.
        draws: Number of estimates at the rates that are proposed.
        seed: Determines their samples.

    Attributes:
        rates: The keep rates by layer and VJP: 1 before the first measurement.
        history: The measurements: dictionaries with ``batch``, ``added`` (by the rates until then), ``minibatch``,
            ``along_added`` and ``along_minibatch``.

    Raises:
        ValueError: At construction if an argument is out of range; when training starts if no layer has the estimator
            ``Importance``, another callback chooses rates of the same VJPs, or the module optimises manually.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from randbp import Importance
        >>> from randbp.callbacks import TensorDropout
        >>> dropout = TensorDropout(Importance(keep=0.5), Importance(keep=0.5))
        >>> trainer = Trainer(callbacks=[dropout, VarianceControl(budget=0.05)], logger=False)
    """

    passes = 3

    def __init__(self, budget: float = 0.05, every: int | None = None, draws: int = 1, seed: int = 0) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
            raise ValueError(f"budget={budget!r}: expected a number above 0")
        super().__init__(every, draws, seed)
        self.budget = float(budget)
        self.rates: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, float]] = []
        self._smooth: dict[str, float] = {}
        self._given: list[tuple[nn.Module, dict[str, Estimator]]] = []
        self._terms: list[Term] = []

    def _due(self, batch: int) -> bool:
        return batch > 0 and (batch % self.every == 0 or batch in {int(self.every * part) for part in _EARLY})

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the layers that draw by importance, and give them the rates of a checkpoint."""
        self._given, found = [], {}
        for name, layer in randomized_layers(module).items():
            state = layer_state(layer)
            own = {vjp: getattr(state, vjp) for vjp in VJPS if isinstance(getattr(state, vjp), Importance)}
            if own:
                found[name] = own
                self._given.append((layer, own))
        if not found:
            raise ValueError(
                "VarianceControl: no layer has the estimator Importance, expected one, such as by "
                "TensorDropout(Importance(keep=0.5), Importance(keep=0.5))"
            )
        refuse_second_owner(trainer, self)
        self._terms = terms_of(found)
        if not self.rates:
            self.rates = {name: dict.fromkeys(own, 1.0) for name, own in found.items()}
        self._set(module, self.rates)

    def measure(
        self, trainer: Trainer, module: LightningModule, batch: tuple[Any, int], before: tuple[Any, int]
    ) -> None:
        """Choose rates, measure the variances with these, and choose again by what that has shown."""
        layers, clock = randomized_layers(module), Clock(self.seed)
        with step_gradients(trainer, module, layers, clock, (batch, before)) as gradients:
            with exact_passes(module, layers, clock), observed() as (number, notes):
                other = gradients(*before)
                for index, term in enumerate(self._terms):
                    see = Observed(number, index, unit=term.unit)
                    exchange(layers[term.layer], **dict.fromkeys(term.vjps, see))
                exact = gradients(*batch)
            sums = [a + b for a, b in zip(exact, other, strict=True)]
            length = float(dots(sums, sums).sum().sqrt()) or 1.0
            direction = [each.div_(length) for each in sums]
            noise = _variance([b.sub_(a) for a, b in zip(exact, other, strict=True)], direction) / 2
            seen = averaged(trainer, dict(zip(_MINIBATCH, noise, strict=True)) | curves(self._terms, notes))
            if not _finite(seen):
                return
            clock.set(self._batches, self.draws, trainer.global_rank)
            present = _variance([b - a for a, b in zip(exact, gradients(*batch), strict=True)], direction)
            self._see(seen)
            proposed = self._choose(seen)
            if set(proposed.values()) <= {_EXACT}:  # of which nothing would be learnt
                proposed = dict.fromkeys(proposed, _EXACT - 1)
            self._set(module, self._rates_of(proposed))
            added = torch.zeros_like(noise)
            for draw in range(self.draws):
                clock.set(self._batches, draw, trainer.global_rank)
                differences = [b.sub_(a) for a, b in zip(exact, gradients(*batch), strict=True)]
                added += _variance(differences, direction) / self.draws
        found = averaged(trainer, dict(zip(_ADDED, present, strict=True)) | {"proposed": added[0]})
        if not _finite(found):
            return
        self._learn(seen, found, proposed)
        if not self._early:
            self._trim()
        for name, own in self._rates_of(self._choose(seen)).items():
            self.rates[name].update(own)
        self._set(module, self.rates)

    def publish(self, trainer: Trainer, module: LightningModule) -> None:
        """Log rates and ratios."""
        found = {f"keep_rate/{name}/{vjp}": rate for name, own in self.rates.items() for vjp, rate in own.items()}
        if "added" in self._smooth:
            found |= {f"variance/{name}": self.history[-1][name] for name in ("added", "minibatch")}
            found |= {"variance/ratio": self._ratio("added"), "variance/along_ratio": self._ratio("along_added")}
        for name, value in found.items():
            module.log(name, value, logger=bool(trainer.loggers))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the given estimators back."""
        put_back(self._given)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the given estimators back after a failure."""
        put_back(self._given)

    def state_dict(self) -> dict[str, Any]:
        """Rates, smoothed measurements and their history."""
        own = {"rates": self.rates, "smooth": self._smooth, "history": self.history, "budget": self.budget}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        super().load_state_dict(state_dict)
        self.rates, self._smooth = state_dict["rates"], dict(state_dict["smooth"])
        self.history = list(state_dict["history"])

    @property
    def _early(self) -> bool:
        return self._batches <= self.every

    @property
    def _memory(self) -> float:
        return _EARLY_MEMORY if self._early else _MEMORY

    def _see(self, seen: Mapping[str, Tensor]) -> None:
        """Smooth what is known before anything is sampled: one batch may be an outlier."""
        for name, memory in zip(_MINIBATCH, (self._memory, _ALONG), strict=True):
            self._note(name, float(seen[name]), memory)
        minibatch = self._smooth["minibatch"]
        self._note("log_minibatch", log(max(float(seen["minibatch"]), 1e-6 * minibatch, 1e-300)), self._memory)
        for name in self._seen_terms(seen):
            if (size := _size(seen, name)) > 0:
                self._note(f"log/{name}", log(size), self._memory)

    def _learn(self, seen: Mapping[str, Tensor], found: Mapping[str, Tensor], chosen: Mapping[str, int]) -> None:
        """Compare the variance that was measured at some rates with what had been predicted for them."""
        now = {name: float(each[name]) for each, names in ((found, _ADDED), (seen, _MINIBATCH)) for name in names}
        self.history.append({"batch": self._batches - 1, **now})
        for name, memory in zip(_ADDED, (self._memory, _ALONG), strict=True):
            self._note(name, now[name], memory)
        measured = float(found["proposed"])
        # Noise of input VJPs: what of the weights' errors is not their own, beside what it would be by a plain count.
        own, passed = (
            sum(float(seen[f"{kind}/{name}"][at]) for name, at in chosen.items()) for kind in ("own", "passed")
        )
        if passed > 0:
            self._note("excess", max(0.0, measured - own), self._memory)
            self._note("passed", passed, self._memory)
        predicted = sum(curve[chosen[name]] for name, curve in self._curves(seen).items())
        if predicted > 0 and measured > 0:
            self._note("correction", log(measured / predicted), _CORRECTION)

    def _trim(self) -> None:
        deviation = log(max(self._ratio("added"), 1e-300) / self.budget)
        trim = self._smooth.get("trim", 0.0) - _TRIM * min(1.0, max(-1.0, deviation))
        self._smooth["trim"] = min(2.0, max(-2.0, trim))

    def _choose(self, seen: Mapping[str, Tensor]) -> dict[str, int]:
        """By term the index of its rate."""
        variances = {}
        for name, curve in self._curves(seen).items():
            size = _size(seen, name)
            usual = exp(self._smooth[f"log/{name}"]) / size if size > 0 else 1.0
            variances[name] = [usual * value for value in curve]
        factor = exp(self._smooth.get("trim", 0.0) - self._smooth.get("correction", 0.0)) / self._strictness()
        target = self.budget * exp(self._smooth["log_minibatch"]) * factor
        return allocate({name: seen[f"cost/{name}"].tolist() for name in variances}, variances, target)

    def _curves(self, seen: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """By term the variance that is predicted at each rate."""
        gain = max(_LEAST_GAIN, self._smooth["excess"] / self._smooth["passed"]) if "passed" in self._smooth else 1.0
        return {name: (seen[f"own/{name}"] + gain * seen[f"passed/{name}"]).tolist() for name in self._seen_terms(seen)}

    def _seen_terms(self, seen: Mapping[str, Tensor]) -> list[str]:
        return [term.name for term in self._terms if f"own/{term.name}" in seen]

    def _rates_of(self, chosen: Mapping[str, int]) -> dict[str, dict[str, float]]:
        rates: dict[str, dict[str, float]] = {}
        for term in self._terms:
            if term.name in chosen:
                rates.setdefault(term.layer, {}).update(dict.fromkeys(term.vjps, RATES[chosen[term.name]]))
        return rates

    def _strictness(self) -> float:
        """By how much the budget is cut since noise along the gradient is more than twice what it is in total."""
        if len(self.history) < _PATIENCE:
            return 1.0
        return max(1.0, self._ratio("along_added") / 2 / max(1e-300, self._ratio("added")))

    def _ratio(self, name: str) -> float:
        noise = self._smooth[name.replace("added", "minibatch")]
        return self._smooth[name] / noise if noise > 0 else 0.0

    def _note(self, name: str, value: float, memory: float) -> None:
        """Smooth: all measurements weigh the same at first, later ones count most."""
        count = self._smooth.get(f"{name}/count", 0.0) * memory + 1
        self._smooth[f"{name}/count"] = count
        before = self._smooth.get(name, 0.0)
        self._smooth[name] = before + (value - before) / count

    def _set(self, module: nn.Module, rates: Mapping[str, Mapping[str, float]]) -> None:
        layers = randomized_layers(module)
        for name, own in rates.items():
            if name in layers:
                state = layer_state(layers[name])
                exchange(layers[name], **{v: with_keep_rate(getattr(state, v), rate) for v, rate in own.items()})


def _finite(numbers: Mapping[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in numbers.values())


def _size(seen: Mapping[str, Tensor], name: str) -> float:
    """Of the curves of a term."""
    return float(seen[f"own/{name}"][_MIDDLE] + seen[f"passed/{name}"][_MIDDLE])


def _variance(differences: Gradients, direction: Gradients) -> Tensor:
    """Squared norm, and squared part along a direction of length one, ``[2]``."""
    return torch.stack([dots(differences, differences).sum(), dots(differences, direction).sum().square()])
