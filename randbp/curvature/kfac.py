"""K-FAC: gradient descent with gradients divided by Kronecker-factored curvature."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import runs_pytorchs_forward
from .arguments import check_number, positive
from .averages import KEYS, Reduction, finite, follow, forget, invert, over_processes, processes, scales_of, update
from .chosen import DELIBERATE, candidates, left_by_calls, left_by_parameters, shared_parameters, summary
from .factor_hooks import Statistics
from .layer_factors import Approximation, check_approximation
from .places import NOT_HELD
from .precondition import preconditioned


class KFAC(torch.optim.Optimizer):
    """Momentum SGD whose gradients of convolutions, transposed convolutions and linear layers are preconditioned.

    The gradient ``G`` of a layer's weight and bias, a matrix per group, becomes ``Γ⁻¹ G A⁻¹`` with the factors of
    :func:`~randbp.curvature.input_factor` and :func:`~randbp.curvature.output_grad_factor`: about the inverse of the
    layer's empirical Fisher matrix times the gradient. Every other parameter takes a step of SGD with momentum::

        optimizer = KFAC(model, lr=0.05)
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # factors are gathered here
            optimizer.step()

    Factors are gathered in every ``factor_every``-th step, in one pass over each layer's input and output gradient,
    neither of which is held any longer than by the layer itself. Running averages of factors are inverted in every
    ``inverse_every``-th step. A new network changes fast, so both are also done in steps 0, 1, 2, 4, 8 and so on before
    that. Factors that are not finite are skipped. If a step has several backward passes, factors include the examples
    of all of them. Under ``torch.distributed`` they are averaged over the processes, as gradients are.

    Factors belong to gradients. The statistics of a backward pass count if its gradient is still in the weight's
    ``grad`` when the step is taken. They are dropped when anybody sets the gradient to ``None`` or zero, and passes
    that do not add to ``grad`` (``torch.autograd.grad``) do not count. If a ``GradScaler`` takes the step, its scale is
    divided out. If a layer is called several times in a forward pass, each call counts as further examples.

    Factors follow layers. A layer that runs PyTorch's own forward pass is observed as a whole. A layer with another
    forward pass (of a subclass, or assigned to the module) is observed through its calls of ``F.conv*``,
    ``F.conv_transpose*``, ``F.linear`` or ``torch.addmm`` whose weight is one of its parameters, perhaps transposed or
    in another data type. Plain steps are taken by weights that are computed in other ways (masked, standardised,
    parametrised), by those that are frozen, complex, shared or not among the optimiser's parameters, by layers in
    ``eval()`` mode, and where a factor would have more than ``largest`` rows; :attr:`left_plain` and one warning name
    them. All this is checked in every step, so layers may be pruned, frozen, thawed, moved or given other parameters at
    any time. The model is not changed except for hooks, which :meth:`remove` removes.

    With ``torch.compile``, factors are gathered outside of graphs. The graph of a model that was compiled and run
    before does not gather them until ``torch.compiler.reset()`` is called; a warning says so. Parameters that are
    sharded by ``fully_shard`` are supported; each process then holds all factors.

    Args:
        model: The network.
        lr: Learning rate.
        momentum: Momentum of the steps, in ``[0, 1)``.
        weight_decay: Factor of the parameter in the term that is added to the preconditioned gradient.
        damping: ``λ`` added to the curvature, see :func:`~randbp.curvature.damped_inverses`. Large values approach SGD
            with the learning rate ``lr / λ``.
        decay: Decay of the running averages of factors, in ``[0, 1)``.
        approximation: Approximation of weight sharing: ``"reduce"`` (cheap) or ``"expand"``.
        factor_every: Steps from one update of the factors to the next.
        inverse_every: Steps from one update of the inverses to the next.
        kl_clip: Bound of ``lr² Σ ⟨direction, gradient⟩`` over preconditioned layers, an estimate of the change of the
            network's output distribution; longer steps are shortened. ``None`` for no bound.
        reduction: The reduction of the loss: ``"mean"`` over examples, ``"sum"``, or ``"tokens"`` for a mean over
            all tokens (positions, pixels) of the batch that the loss does not ignore. With ``g_n`` an example's part in
            the gradient, the curvature is ``M Σ_n g_n g_nᵀ`` where the loss is a mean of ``M`` terms, and without ``M``
            for a sum: so ``"mean"`` makes that of a loss over tokens too small by their number per example. Tokens are
            counted where the loss enters the layers: positions of the output with a gradient that is not zero, in the
            layer that the backward pass reaches first.
        layers: Names or globs of the layers to precondition; ``None`` for all possible ones.
        largest: Largest number of rows of a factor; layers with larger factors take plain steps.
        params: Parameters or groups of them, as PyTorch's optimisers take them; ``None`` for all of the model's. A
            group may have its own ``lr``, ``momentum``, ``weight_decay`` and ``damping``.

    Raises:
        ValueError: If an argument is out of range, or ``layers`` matches none.

    Source: J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015;
    J. Ba, R. Grosse, J. Martens, Distributed second-order optimization using Kronecker-factored approximations, 2017
    (the bound on steps).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> optimizer = KFAC(model, lr=0.1)
        >>> nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 2).backward()
        >>> optimizer.step()
        >>> sorted(optimizer.layers)
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-2,
        decay: float = 0.95,
        approximation: Approximation = "reduce",
        factor_every: int = 10,
        inverse_every: int = 100,
        kl_clip: float | None = 1e-3,
        reduction: Reduction = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int = 8192,
        params: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={model!r:.60}: expected an nn.Module")
        check_approximation(approximation)
        if not isinstance(reduction, str) or reduction not in ("mean", "sum", "tokens"):
            raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'sum' or 'tokens'")
        check_number("decay", decay, 0, 1)
        if kl_clip is not None:
            check_number("kl_clip", kl_clip, 0, exclude_low=True)
        self.reduction, self.decay, self.kl_clip = reduction, float(decay), kl_clip
        self.factor_every = positive("factor_every", factor_every)
        self.inverse_every = positive("inverse_every", inverse_every)
        self._largest = positive("largest", largest)
        self._modules, self._left = candidates(model, layers)
        if params is not None and not (isinstance(params, Iterable) and getattr(params, "shape", None) != ()):
            raise ValueError(
                f"params={params!r:.60}: expected parameters or groups of them, as PyTorch's optimisers take"
            )
        self._model, self._shared = model, shared_parameters(model)
        given = [each for each in model.parameters() if each.requires_grad] if params is None else list(params)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping, "steps": 0}
        self._told: dict[str, str] = {}
        self._by_calls: dict[str, str] = {}
        self._statistics = Statistics(self._modules, approximation, self._largest, reduction == "tokens")
        try:
            super().__init__(given, defaults)
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
        largest = f"with at most largest={self._largest} rows"
        reasons = sorted(set(self.left_plain.values()))
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise ValueError(f"model: {model} has no convolution or linear layer {largest}{why}")

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
        check_number("lr", group["lr"], 0)
        check_number("momentum", group["momentum"], 0, 1)
        check_number("weight_decay", group["weight_decay"], 0)
        check_number("damping", group["damping"], 0, exclude_low=True)
        super().add_param_group(param_group)
        self._look()

    def __getstate__(self) -> Any:
        raise TypeError("KFAC: copies and pickles would lose the hooks on the model; save state_dict() instead")

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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the preconditioned gradient.

        Args:
            closure: Computes the loss and its gradients again, if given.

        Returns:
            What the closure returns, if given.

        Warns:
            UserWarning: Once of each layer and reason, if layers are left to plain steps for another reason than that
                they are frozen, not called, or were not held from the start.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._statistics.active:
            self._shared = shared_parameters(self._model)
        groups = self._look()
        if self._statistics.active:
            self._average()
        if _due(self.steps, self.inverse_every):
            for weight in self._weights().values():
                invert(self.state.get(weight, {}), groups[weight]["damping"])
        places = [self._statistics.places[key] for key in self._weights()]
        rates = {parameter: group["lr"] for parameter, group in groups.items()}
        directions, length = preconditioned(places, self.state, rates, self.kl_clip)
        for parameter, group in groups.items():
            if parameter.grad is None:
                continue
            direction = directions.get(parameter)
            update = parameter.grad if direction is None else (direction * length).to(parameter.dtype)
            if group["weight_decay"]:
                update = update.add(parameter, alpha=group["weight_decay"])
            if group["momentum"]:
                update = self._moved(parameter).mul_(group["momentum"]).add_(update)
            parameter.add_(update, alpha=-group["lr"])
        for group in self.param_groups:
            group["steps"] += 1
        self._statistics.active = _due(self.steps, self.factor_every)
        self._tell()
        return loss

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
                if key in KEYS:
                    self.state[parameter][key] = value.to(parameter.device, copy=True)
        self._statistics.active = _due(self.steps, self.factor_every)
        self._statistics.drop()

    def _look(self) -> dict[Tensor, dict[str, Any]]:
        """Look up the layers' current parameters, and return the group of each parameter of the optimiser."""
        groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        self._statistics.held = groups
        own: list[Tensor] = []
        for place in self._statistics.places.values():
            own += place.look(groups)
            place.left = left_by_parameters(place, groups, self._shared, self._largest)
        for parameter in [each for each in self.state if isinstance(each, Tensor) and each not in groups]:
            del self.state[parameter]
        forget(self.state, own)
        return groups

    def _weights(self) -> dict[str, nn.Parameter]:
        """The weights that are preconditioned at present, by key."""
        places = self._statistics.places.items()
        return {key: place.parameter for key, place in places if place.parameter is not None and not place.left}

    def _moved(self, parameter: Tensor) -> Tensor:
        """The momentum of a parameter, moved to the parameter's device and precision."""
        state = self.state[parameter]
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.shape != parameter.shape:
            buffer = state["momentum_buffer"] = torch.zeros_like(parameter)
        elif buffer.dtype != parameter.dtype or buffer.device != parameter.device:
            buffer = state["momentum_buffer"] = buffer.to(parameter.device, parameter.dtype)
        moved: Tensor = buffer
        return moved

    def _average(self) -> None:
        """Update the running averages with the factors of the last backward passes, where these are finite."""
        taken, weights, places = self._statistics.take(), self._weights(), self._statistics.places
        taken = {key: seen for key, seen in taken.items() if key in weights}
        scales = scales_of(taken, self.reduction)
        if processes() > 1:
            shapes = {
                key: places[key].shape(weights[key], places[key].added_bias is not None)
                for key in weights
                if places[key].form is not None
            }
            agreed = all(runs_pytorchs_forward(module) for module in self._modules.values())
            first = next(iter(weights.values()), None)
            if first is None:
                return
            like = torch.empty((), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
            taken = over_processes(taken, scales, shapes, like, agreed)
            scales = dict.fromkeys(taken, (1.0, 1.0))
        for key, seen in finite(taken, scales).items():
            state = self.state[weights[key]]
            follow(state, weights[key])
            update(state, seen, scales[key], self.decay)
        known = [places[key] for key, weight in weights.items() if "updates" in self.state.get(weight, {})]
        self._by_calls = left_by_calls(self._modules, self._statistics, known)
        self._statistics.called.clear()

    def _tell(self) -> None:
        """Warn once about layers that take plain steps."""
        left = {name: why for name, why in self.left_plain.items() if why not in DELIBERATE}
        new = {name: why for name, why in left.items() if self._told.get(name) != why}
        if new and not self._statistics.removed and not (processes() > 1 and torch.distributed.get_rank()):
            warnings.warn(summary(new), stacklevel=5)
        self._told |= new


def _due(steps: int, every: int) -> bool:
    """Whether an update is due in a step: at multiples of an interval, and at powers of two before the first one."""
    return steps % every == 0 or (steps < every and steps & (steps - 1) == 0)
