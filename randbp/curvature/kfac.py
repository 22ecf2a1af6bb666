"""K-FAC: gradient descent with gradients divided by Kronecker-factored curvature."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from ..tn.integers import as_integer
from .factors import Approximation, check_approximation
from .inverse import damped_inverses
from .layers import LAYERS, as_matrices, from_matrices, trained_bias
from .statistics import Seen, Statistics

NAMES = ("input", "output_grad")


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

    Factors are gathered in every ``factor_every``-th step, in one pass over each layer's input and output gradient and
    without holding either any longer than the layer does; running averages of them are inverted in every
    ``inverse_every``-th step. While a network is new it changes fast, so before that both are done in the steps 0, 1,
    2, 4, 8 and so on, too. Factors that are not finite are left out. With several backward passes per step they see all
    examples. Under ``torch.distributed`` they are averaged over the processes, as gradients are.

    The model is not changed but for forward hooks; :meth:`remove` takes them off. Layers in ``eval()`` mode, with a
    frozen, complex, parametrised or shared weight are not preconditioned; nor are those with more than ``largest`` rows
    in a factor, and parameters that are added later. Every backward pass through a layer counts, also those that
    gradients of other things than the loss come from. A layer that is called several times in a forward pass sees each
    call as more examples. A loss that is scaled on its way back (``GradScaler``) scales the curvature as well: use
    ``bfloat16``.

    Args:
        model: The network.
        lr: Learning rate.
        momentum: Of the steps, in ``[0, 1)``.
        weight_decay: Times the parameter, added to the preconditioned gradient.
        damping: ``λ`` added to the curvature, see :func:`~randbp.curvature.damped_inverses`. Large values approach SGD
            with the learning rate ``lr / λ``.
        decay: Of the running averages of factors, in ``[0, 1)``.
        approximation: Of weight sharing: ``"reduce"`` (cheap) or ``"expand"``.
        factor_every: Steps from one update of the factors to the next.
        inverse_every: Steps from one update of the inverses to the next.
        kl_clip: Steps are shortened to keep ``lr² Σ ⟨direction, gradient⟩`` over preconditioned layers at most this,
            an estimate of how far the network's output distribution moves; ``None`` for no bound.
        reduction: How the loss joins examples: ``"mean"`` or ``"sum"``.
        layers: Names or globs of the layers to precondition; ``None`` for all that can be.
        largest: Rows of a factor up to which a layer is preconditioned.
        params: Parameters or groups of them, as PyTorch's optimisers take them; ``None`` for all of the model's. A
            group may have its own ``lr``, ``momentum``, ``weight_decay`` and ``damping``.

    Raises:
        ValueError: If an argument is not of these values, or ``layers`` matches none.

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
        reduction: Literal["mean", "sum"] = "mean",
        layers: str | Iterable[str] | None = None,
        largest: int = 8192,
        params: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={model!r:.60}: expected an nn.Module")
        check_approximation(approximation)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'sum'")
        _check_number("decay", decay, 0, 1)
        if kl_clip is not None:
            _check_number("kl_clip", kl_clip, 0, exclude_low=True)
        self.reduction, self.decay, self.kl_clip = reduction, float(decay), kl_clip
        self.factor_every = _positive("factor_every", factor_every)
        self.inverse_every = _positive("inverse_every", inverse_every)
        self.layers = _chosen(model, layers, _positive("largest", largest))
        given = [each for each in model.parameters() if each.requires_grad] if params is None else params
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping, "steps": 0}
        super().__init__(given, defaults)
        held = {parameter for group in self.param_groups for parameter in group["params"]}
        self.layers = {name: module for name, module in self.layers.items() if module.weight in held}
        if not self.layers:
            raise ValueError("params: hold the weight of no layer to precondition; expected at least one")
        self._statistics = Statistics(self.layers, approximation)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as in PyTorch's optimisers; these take steps of SGD.

        Raises:
            ValueError: If one of the group's numbers is out of its range.
        """
        group = {**self.defaults, **param_group}
        _check_number("lr", group["lr"], 0)
        _check_number("momentum", group["momentum"], 0, 1)
        _check_number("weight_decay", group["weight_decay"], 0)
        _check_number("damping", group["damping"], 0, exclude_low=True)
        super().add_param_group(param_group)

    def __getstate__(self) -> Any:
        raise TypeError("KFAC: copies and pickles would lose the hooks on the model; save state_dict() instead")

    def remove(self) -> None:
        """Take the hooks off the model; what was gathered so far stays in use."""
        self._statistics.remove()

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        taken: int = self.param_groups[0]["steps"]
        return taken

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step down the preconditioned gradient.

        Args:
            closure: Computes the loss and its gradients again, if given.

        Returns:
            What the closure returns, if given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._average(self._statistics.take())
        groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        if _due(self.steps, self.inverse_every):
            self._invert(groups)
        directions, length = self._directions(groups)
        for parameter, group in groups.items():
            if parameter.grad is None:
                continue
            direction = directions.get(parameter)
            update = parameter.grad if direction is None else (direction * length).to(parameter.dtype)
            if group["weight_decay"]:
                update = update.add(parameter, alpha=group["weight_decay"])
            if group["momentum"]:
                buffer = self.state[parameter].get("momentum_buffer")
                if buffer is None:
                    buffer = self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                update = buffer.mul_(group["momentum"]).add_(update)
            parameter.add_(update, alpha=-group["lr"])
        for group in self.param_groups:
            group["steps"] += 1
        self._statistics.active = _due(self.steps, self.factor_every)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where another optimiser of the same model was."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for key, value in self.defaults.items():  # of another optimiser's
                group.setdefault(key, value)
        # PyTorch rounds what it loads to the parameters' data type, which may be of 16 bits.
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        here = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, here, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if key.endswith(("_factor", "_inverse")):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)
        self._statistics.active = _due(self.steps, self.factor_every)

    def _average(self, taken: dict[str, Seen]) -> None:
        """Take the factors that the last backward passes saw into the running averages, unless they are not finite."""
        if _processes() > 1:
            if not self._statistics.active:
                return
            taken = self._over_processes(taken)
        if not taken:
            return
        bounds = [
            moment.bound * scale
            for seen in taken.values()
            for moment, scale in zip((seen.input, seen.output_grad), self._scales(seen), strict=True)
        ]
        finite = torch.stack([bound.to(bounds[0].device) for bound in bounds]).isfinite().tolist()
        for number, (name, seen) in enumerate(taken.items()):
            if not (finite[2 * number] and finite[2 * number + 1]):
                continue
            state = self.state[self.layers[name].weight]
            count = state["updates"] = state.get("updates", 0) + 1
            weight = max(1 - self.decay, 1 / count)  # early averages weigh all that was seen alike
            moments = zip(NAMES, (seen.input, seen.output_grad), self._scales(seen), strict=True)
            for key, moment, scale in moments:
                known = state.get(f"{key}_factor")
                if known is not None and known.shape[1] != moment.rows:  # the bias was frozen, or is no longer
                    known = None
                state[f"{key}_factor"] = moment.averaged(known, weight, scale)

    def _scales(self, seen: Seen) -> tuple[float, float]:
        """What the sums are to be multiplied by: a gradient of a mean is an example's own over their number."""
        return 1 / seen.examples, seen.examples if self.reduction == "mean" else 1 / seen.examples

    def _over_processes(self, taken: dict[str, Seen]) -> dict[str, Seen]:
        """The means of the factors over the processes that saw any, in all of which this must be called."""
        parts, counts = [], []
        for name, module in self.layers.items():
            seen = taken.get(name)
            counts.append(float(seen is not None))
            if seen is None:
                groups, outer, inner = as_matrices(module, module.weight, trained_bias(module)).shape
                dtype = torch.promote_types(module.weight.dtype, torch.float32)
                parts += [module.weight.new_zeros(groups, rows, rows, dtype=dtype) for rows in (inner, outer)]
            else:
                for moment, scale in zip((seen.input, seen.output_grad), self._scales(seen), strict=True):
                    parts.append(moment.matrix() * scale)
        flat = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor(counts)])
        torch.distributed.all_reduce(flat)
        *sums, numbers = flat.split([*(part.numel() for part in parts), len(counts)])
        means = {}
        for index, (name, count) in enumerate(zip(self.layers, numbers.tolist(), strict=True)):
            if count:
                means[name] = Seen(examples=1)
                for moment, at in ((means[name].input, 2 * index), (means[name].output_grad, 2 * index + 1)):
                    moment.add_matrix(sums[at].view(parts[at].shape) / count)
        return means

    def _invert(self, groups: dict[Tensor, dict[str, Any]]) -> None:
        for module in self.layers.values():
            state = self.state.get(module.weight, {})
            if "input_factor" in state:
                left, right = (state[f"{key}_factor"] for key in NAMES)
                inverses = damped_inverses(left, right, groups[module.weight]["damping"])
                if all(bool(inverse.isfinite().all()) for inverse in inverses):
                    state |= {f"{key}_inverse": inverse for key, inverse in zip(NAMES, inverses, strict=True)}

    def _directions(self, groups: dict[Tensor, dict[str, Any]]) -> tuple[dict[Tensor, Tensor], Tensor | float]:
        """Preconditioned gradients by parameter, and what they are to be multiplied by."""
        directions: dict[Tensor, Tensor] = {}
        moved: list[Tensor] = []
        for module in self.layers.values():
            weight, bias = module.weight, trained_bias(module)
            state = self.state.get(weight, {})
            if weight.grad is None or "input_inverse" not in state or (bias is not None and bias.grad is None):
                continue
            grad = as_matrices(module, weight.grad, None if bias is None else bias.grad)
            inverse = state["input_inverse"]
            if inverse.shape[1] != grad.shape[2]:  # the bias was frozen, or is no longer, since they were inverted
                continue
            grad = grad.to(inverse.dtype)
            direction = state["output_grad_inverse"] @ grad @ inverse
            moved.append((direction * grad).sum() * groups[weight]["lr"] ** 2)
            for parameter, part in zip((weight, bias), from_matrices(module, direction), strict=True):
                if parameter is not None and part is not None:
                    directions[parameter] = part
        if self.kl_clip is None or not moved:
            return directions, 1.0
        total = torch.stack([each.to(moved[0].device) for each in moved]).sum()
        return directions, (self.kl_clip / total.clamp_min(1e-30)).sqrt().clamp_max(1)


def _chosen(model: nn.Module, layers: str | Iterable[str] | None, largest: int) -> dict[str, Any]:
    """The layers to precondition, by name.

    Raises:
        ValueError: If a pattern matches none, or there is none.
    """
    holders: dict[Tensor, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[parameter] = holders.get(parameter, 0) + 1
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        # The output projection of attention is a linear layer that is never called.
        if not isinstance(module, LAYERS) or isinstance(module, NonDynamicallyQuantizableLinear):
            continue
        weight = module.weight  # read once: a parametrisation makes another one each time
        own = holders.get(weight, 0) == 1 and weight.requires_grad and weight.is_floating_point()
        if own and not isinstance(weight, UninitializedParameter) and weight.numel() and _rows(module) <= largest:
            found[name] = module
    if layers is not None:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in found):
                names = ", ".join(map(repr, list(found)[:8])) + (", …" if len(found) > 8 else "")
                raise ValueError(f"layers={pattern!r}: matches none of the layers {names or '(there are none)'}")
        found = {name: module for name, module in found.items() if any(fnmatchcase(name, p) for p in patterns)}
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no convolution or linear layer with at most largest={largest} rows"
        )
    return found


def _rows(module: Any) -> int:
    """Rows of the larger one of a layer's factors."""
    _, outer, inner = as_matrices(module, module.weight, module.bias).shape
    return max(outer, inner)


def _processes() -> int:
    """Number of processes that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _due(steps: int, every: int) -> bool:
    """Whether something is updated in a step: in every so-many-th, and in the first ones at powers of two."""
    return steps % every == 0 or (steps < every and steps & (steps - 1) == 0)


def _positive(name: str, value: object) -> int:
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")
    return number


def _check_number(name: str, value: object, low: float, below: float | None = None, exclude_low: bool = False) -> None:
    """Raise ``ValueError`` unless ``low <= value < below``; lr may be a tensor, as in PyTorch's optimisers."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    inside = isinstance(number, Real) and not isinstance(number, bool)
    if inside:
        real = float(number)  # type: ignore[arg-type]
        inside = (
            (real > low if exclude_low else real >= low) and (below is None or real < below) and real < float("inf")
        )
    if not inside:
        bounds = f"{'above' if exclude_low else 'from'} {low}" + ("" if below is None else f" and below {below}")
        raise ValueError(f"{name}={value!r}: expected a number {bounds}")
