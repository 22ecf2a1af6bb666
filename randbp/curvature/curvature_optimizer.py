"""What all second-order optimisers have in common: they see a network's curvature, and precondition its gradients."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers import runs_pytorchs_forward
from ..text.near_words import nearest
from .arguments import check_number, positive
from .averages import Reduction, Scales, finite, follow, forget, scales_of
from .chosen import DELIBERATE, candidates, left_by_calls, left_by_parameters, shared_parameters, summary
from .factor_hooks import Statistics
from .gathering import Means, Seen
from .method import Method
from .places import NOT_HELD
from .precondition import Directions, preconditioned
from .processes import Peers, processes
from .second_pass import means_of, terms_of
from .sharding import is_sharded
from .spreading import Task, run_spread


class CurvatureOptimizer(torch.optim.Optimizer):
    """An optimiser that observes layers of a model with hooks, and divides gradients by curvature with a method.

    Gathering, layers that are left plain, processes and scaled losses are described in
    :class:`~randbp.curvature.KFAC`. Subclasses write ``step``.

    Args:
        model: The network.
        method: What is kept of curvature, and how gradients are divided by it.
        defaults: Numbers of the parameter groups, ``damping`` among them.
        factor_every: Steps from one update of the method's averages to the next.
        inverse_every: Steps from one refreshing of what gradients are multiplied by to the next, of costly methods.
        kl_clip: Bound of ``lr² Σ ⟨direction, gradient⟩``; ``None`` for no bound.
        reduction: The reduction of the loss: ``"mean"``, ``"sum"`` or ``"tokens"``.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; ``None`` for no bound.
        params: Parameters or groups of them; ``None`` for all of the model's.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.
    """

    ranges: ClassVar[dict[str, dict[str, Any]]] = {"damping": {"low": 0, "exclude_low": True}}
    """Arguments of :func:`check_number` for the numbers of a group."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        defaults: dict[str, Any],
        *,
        factor_every: int,
        inverse_every: int,
        kl_clip: float | None,
        reduction: Reduction,
        layers: str | Iterable[str] | None,
        largest: int | None,
        params: Iterable[Any] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={model!r:.60}: expected an nn.Module")
        if not isinstance(method, Method):
            raise ValueError(f"method={method!r:.60}: expected a method such as KroneckerInverse()")
        if not isinstance(reduction, str) or reduction not in ("mean", "sum", "tokens"):
            meant = nearest(reduction, ("mean", "sum", "tokens"))
            raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'sum' or 'tokens'{meant}")
        if kl_clip is not None:
            check_number("kl_clip", kl_clip, 0, exclude_low=True)
        self.method, self.reduction, self.kl_clip = method, reduction, kl_clip
        self.factor_every = positive("factor_every", factor_every)
        every = positive("inverse_every", inverse_every)
        self.inverse_every = every if method.costly else self.factor_every
        self._largest = inf if largest is None else positive("largest", largest)
        self._modules, self._left = candidates(model, layers)
        if params is not None and not (isinstance(params, Iterable) and getattr(params, "shape", None) != ()):
            raise ValueError(
                f"params={params!r:.60}: expected parameters or groups of them, as PyTorch's optimisers take"
            )
        self._model, self._shared = model, shared_parameters(model)
        given = [each for each in model.parameters() if each.requires_grad] if params is None else list(params)
        self._told: dict[str, str] = {}
        self._by_calls: dict[str, str] = {}
        self._before: dict[str, Means] = {}
        self._terms: dict[str, int] = {}
        self._statistics = Statistics(self._modules, method, self._largest, reduction == "tokens")
        try:
            super().__init__(given, {**defaults, "steps": 0})
            self._check_layers(type(model).__name__, everything=params is None)
            self._told = {name: why for name, why in self.left_plain.items() if why == NOT_HELD}
        except BaseException:
            self._statistics.remove()
            raise

    def _check_layers(self, model: str, everything: bool) -> None:
        """Raise ``ValueError`` if there is nothing to precondition."""
        if self.layers:
            return
        if not everything and NOT_HELD in self.left_plain.values():
            raise ValueError("params: hold the weight of no layer to precondition; expected at least one")
        largest = "" if self._largest == inf else f" with at most largest={self._largest} rows"
        reasons = sorted(set(self.left_plain.values()))
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise ValueError(f"model: {model} has no convolution or linear layer{largest}{why}")

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that are preconditioned at present, by name."""
        left = self.left_plain
        return {name: module for name, module in self._modules.items() if name not in left}

    @property
    def left_plain(self) -> dict[str, str]:
        """Reasons, by name, why other layers take plain steps at present.

        Some reasons show only in the first step: a layer was not called, or it has another forward pass than PyTorch's
        in which no call of ``F.conv*``, ``F.conv_transpose*``, ``F.linear`` or ``torch.addmm`` has one of its
        parameters as the weight. A layer with several such calls is named if one of them takes plain steps.

        Example:
            >>> from randbp.curvature import KFAC
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
            >>> KFAC(model).left_plain
            {'1': 'its weight is computed from parameters (by a mask, a norm or the like), not one of them'}
        """
        by_parameters = {each.layer: each.left for each in self._statistics.places.values() if each.left}
        return self._left | self._by_calls | by_parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in PyTorch's optimisers.

        Raises:
            ValueError: If one of the group's numbers is out of its range.
        """
        group = {**self.defaults, **param_group}
        for name, allowed in self.ranges.items():
            check_number(name, group[name], **allowed)
        super().add_param_group(param_group)
        self._look()

    def __getstate__(self) -> Any:
        name = type(self).__name__
        raise TypeError(f"{name}: copies and pickles would lose the hooks on the model; save state_dict() instead")

    def remove(self) -> None:
        """Remove the hooks from the model; statistics gathered so far stay in use."""
        self._statistics.remove()

    @property
    def steps(self) -> int:
        """Number of steps taken so far."""
        taken: int = self.param_groups[0]["steps"]
        return taken

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients and the statistics that came with them."""
        super().zero_grad(set_to_none)
        self._statistics.drop()

    def state_dict(self) -> dict[str, Any]:
        """The state, as in PyTorch's optimisers, without that of parameters that are no longer held."""
        self._look()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of another optimiser of the same model; drop statistics since the last step."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for key, value in self.defaults.items():  # of another optimiser's
                group.setdefault(key, value)
        # PyTorch rounds what it loads to the parameters' data type, which may be of 16 bits.
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        here = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, here, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if key in self.method.keys:
                    self.state[parameter][key] = value.to(parameter.device, copy=True)
        self._prepare()
        self._statistics.drop()

    def _directions(self) -> tuple[dict[Tensor, dict[str, Any]], Directions, Tensor | float]:
        """Learn from the last backward passes.

        Returns:
            The group of each parameter, directions of those that are preconditioned, and the factor that scales these.
        """
        if self._statistics.active:
            self._shared = shared_parameters(self._model)
        groups = self._look()
        taken, scales = self._average() if self._statistics.active else ({}, {})
        weights = self._weights()
        if self._statistics.refreshes:
            self._refresh(weights, groups)
        if self.method.pairs and self._statistics.active:
            self._correct(weights, taken, scales)
        places = [self._statistics.places[key] for key in weights]
        rates = {parameter: group.get("lr", 1.0) for parameter, group in groups.items()}
        return groups, *preconditioned(self.method, places, self.state, rates, self.kl_clip)

    def _finish(self, closure: Callable[[], Any] | None) -> None:
        """End a step, perhaps with a second look at the batch."""
        if closure is not None and self._before:
            self._compare(closure)
        self._before = {}
        for group in self.param_groups:
            group["steps"] += 1
        self._prepare()
        self._tell()

    def _compare(self, closure: Callable[[], Any]) -> None:
        """Let the method compare the batch with the old parameters and with the new ones."""
        self._statistics.only_means = True
        try:
            evaluated(closure)
        finally:
            self._statistics.only_means = False
        groups, weights = self._look(), self._weights()
        for key, after in self._means(weights, self._taken(weights)[0]).items():
            if key in self._before and weights[key] in self.state:
                state, damping = self.state[weights[key]], groups[weights[key]]["damping"]
                self.method.compare(state, self._before[key], after, damping)
        self._statistics.called.clear()

    def _means(self, weights: Mapping[str, Tensor], taken: Mapping[str, Seen]) -> dict[str, Means]:
        """Means over all processes of what the last backward pass has seen."""
        return means_of(taken, self._terms, self._peers(weights) if processes() > 1 and weights else None)

    def _prepare(self) -> None:
        """Let hooks know what the next step is to do."""
        self._statistics.active = _due(self.steps, self.factor_every)
        self._statistics.refreshes = _due(self.steps, self.inverse_every)

    def _look(self) -> dict[Tensor, dict[str, Any]]:
        """Look up the layers' current parameters, and return the group of each parameter of the optimiser."""
        groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        self._statistics.held, self._statistics.states = groups, self.state
        own: list[Tensor] = []
        for place in self._statistics.places.values():
            own += place.look(groups)
            place.left = left_by_parameters(place, groups, self._shared, self._largest)
        for parameter in [each for each in self.state if isinstance(each, Tensor) and each not in groups]:
            del self.state[parameter]
        forget(self.state, (*self.method.keys, *self.method.numbers), own)
        return groups

    def _weights(self) -> dict[str, nn.Parameter]:
        """The weights that are preconditioned at present, by key."""
        places = self._statistics.places.items()
        return {key: place.parameter for key, place in places if place.parameter is not None and not place.left}

    def _average(self) -> tuple[dict[str, Seen], Scales]:
        """Let the method have what the last backward passes have seen, where it is finite.

        Returns:
            What this process has seen of the same weights, and its scales.
        """
        weights, places = self._weights(), self._statistics.places
        taken, scales = self._taken(weights)
        if self.method.second_pass:
            self._terms = terms_of(taken, self.reduction)
            self._before = self._means(weights, taken)
        known, theirs = self._together(weights, taken, scales)
        for key, seen in known.items():
            state = self.state[weights[key]]
            follow(state, self.method.keys, weights[key])
            self.method.update(state, seen, theirs[key])
        seen_once = [places[key] for key, weight in weights.items() if "updates" in self.state.get(weight, {})]
        self._by_calls = left_by_calls(self._modules, self._statistics, seen_once)
        self._statistics.called.clear()
        return {key: seen for key, seen in taken.items() if key in known}, scales

    def _taken(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, Seen], Scales]:
        """What this process has seen, and its scales."""
        taken = {key: seen for key, seen in self._statistics.take().items() if key in weights}
        return taken, scales_of(taken, self.reduction)

    def _together(
        self, weights: Mapping[str, Tensor], taken: dict[str, Seen], scales: Scales
    ) -> tuple[dict[str, Seen], Scales]:
        """What all processes have seen, and its scales, where it is finite."""
        if processes() > 1 and weights:
            taken = self.method.over_processes(taken, scales, self._peers(weights))
            scales = dict.fromkeys(taken, (1.0, 1.0))
        return finite(taken, scales), scales

    def _peers(self, weights: Mapping[str, Tensor]) -> Peers:
        """The other processes."""
        shapes = {}
        for key, weight in weights.items():
            place = self._statistics.places[key]
            if place.form is not None:
                shapes[key] = place.shape(weight, place.added_bias is not None)
        agreed = all(runs_pytorchs_forward(module) for module in self._modules.values())
        first = next(iter(weights.values()))
        like = torch.empty((), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
        return Peers(shapes, like, agreed)

    def _refresh(self, weights: Mapping[str, Tensor], groups: Mapping[Tensor, dict[str, Any]]) -> None:
        """Refresh the states of weights, each in one process, those of sharded weights in all."""
        spread = {}
        for key, weight in weights.items():
            place, state = self._statistics.places[key], self.state.get(weight)
            if state is None:
                continue
            refresh = partial(self.method.refresh, state, groups[weight]["damping"])
            if not self.method.costly or is_sharded(weight) or place.form is None:
                refresh()
            else:
                number, outer, inner = place.shape(weight, place.added_bias is not None)
                spread[key] = Task(state, refresh, number * (outer**3 + inner**3), weight.device)
        run_spread(spread)

    def _correct(self, weights: Mapping[str, Tensor], taken: Mapping[str, Seen], scales: Scales) -> None:
        """Let the method have means of squares of per-example gradients."""
        parts = {}
        for key, seen in taken.items():
            self.method.observe(self.state[weights[key]], seen)
            if seen.squares is not None and not seen.pairs:
                parts[key] = [seen.squares * scales[key][1]]
        if processes() > 1 and weights:
            parts = self._peers(weights).means(parts, lambda shape: [shape])
        for key, (squares,) in parts.items():
            self.method.correct(self.state[weights[key]], squares)

    def _tell(self) -> None:
        """Warn once about layers that take plain steps."""
        left = {name: why for name, why in self.left_plain.items() if why not in DELIBERATE}
        new = {name: why for name, why in left.items() if self._told.get(name) != why}
        if new and not self._statistics.removed and not (processes() > 1 and torch.distributed.get_rank()):
            warnings.warn(summary(type(self).__name__, new), stacklevel=6)
        self._told |= new


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of a closure that computes gradients; ``None`` without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _due(steps: int, every: int) -> bool:
    """Whether an update is due in a step: at multiples of an interval, and at powers of two before the first one."""
    return steps % every == 0 or (steps < every and steps & (steps - 1) == 0)
