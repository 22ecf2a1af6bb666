"""Passes through a model that add up the Kronecker factors of its layers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from .._torch.hooks import without_autocast
from ..layers import runs_pytorchs_forward
from ..tn import LayerSpec
from .autograd_graph import Graph
from .chosen import NO_CALL, candidates, left_by_parameters, shared_parameters
from .kronecker import KroneckerProduct, Layout
from .layer_factors import Approximation
from .layer_hooks import LayerHooks, channels_second, extends, precise, source_of
from .layer_sums import input_sums, output_grad_sums
from .loss_hessian import LossDerivatives
from .method import Method
from .moments import Moment
from .places import COMPUTED, Place
from .recursive_factors import chain, mean_hessians, output_grad_factor_of

CurvatureKind = Literal["empirical", "mc", "type-2", "recursive", "forward-only"]

NOT_CALLED = "it was not called"
NO_GRADIENT = "the output does not depend on it"


@dataclass(frozen=True, eq=False)
class ModelFactors(Mapping[str, KroneckerProduct]):
    """The curvature of each layer of a model, by the layer's name.

    A layer with a forward pass of its own may have several weights; all but the one named ``weight`` have entries
    ``"layer.weight_name"``.

    Attributes:
        products: The entries.
        parameters: Names of the weight and of the bias of each entry in the model; ``None`` for no bias.
        left: Reasons, by name, why other layers have none.
    """

    products: Mapping[str, KroneckerProduct]
    parameters: Mapping[str, tuple[str, str | None]]
    left: Mapping[str, str]

    def __getitem__(self, name: str) -> KroneckerProduct:
        return self.products[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.products)

    def __len__(self) -> int:
        return len(self.products)


@dataclass
class _Sums:
    """Sums over examples for one weight, and whether its bias is part of it."""

    bias: bool
    input: Moment = field(default_factory=Moment)
    output_grad: Moment = field(default_factory=Moment)
    examples: int = 0


class FactorPasses(LayerHooks):
    """Forward and backward passes of a model, in which both factors of its layers are added up.

    A call counts once its output has a gradient, so what checkpointing repeats does not; without backward passes it
    counts at once.

    Args:
        model: The model.
        layers: Names or globs of the layers; ``None`` for all.
        kind: See :func:`~randbp.curvature.factors`.
        approximation: ``"reduce"`` or ``"expand"``.
        samples: Number of columns per example for ``"mc"``.
        seed: Their seed.

    Raises:
        ValueError: If ``layers`` match none, or the kind is not defined for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Iterable[str] | None,
        kind: CurvatureKind,
        approximation: Approximation,
        samples: int,
        seed: int,
    ) -> None:
        self._model, self._kind, self._method = model, kind, Method(approximation)
        self._samples, self._seed = samples, seed
        self._parts = chain(model) if kind == "recursive" else []
        self._modules, self._never = candidates(model, layers)
        self._sums: dict[str, _Sums] = {}
        self._edges: list[GradientEdge] = []
        self._terms, self._is_mean, self._running = 0.0, False, False
        self._generator: torch.Generator | None = None
        super().__init__(self._modules, set(model.parameters()))

    def counts(self, module: nn.Module) -> bool:
        """Whether this is a call in :meth:`forward`, or in a recomputation that a backward pass starts."""
        return self._running and torch.is_grad_enabled()

    def watch(
        self, place: Place, weight: Tensor, bias: Tensor | None, spec: LayerSpec, input: Tensor, output: Tensor
    ) -> None:
        """Make the input's part of the sums, and let the output's gradient add it together with its own."""
        extended, form, method, shape = extends(place, bias), place.form, self._method, output.shape
        place.gathering.watch(weight)  # so that another call is recognised that reads the weight in another order
        with torch.no_grad(), without_autocast(output):
            parts = [input_sums(spec, precise(input), method, extended)]
        key = next(key for key, each in self.places.items() if each is place)
        sums = self._sums.setdefault(key, _Sums(extended))

        def add_input() -> None:
            if parts:  # or else this is not the first backward pass
                parts.pop().into(sums.input)
                sums.examples += spec.batch_size

        def note(output_grad: Tensor) -> None:
            with torch.no_grad(), without_autocast(output_grad):
                add_input()
                grad = channels_second(form, spec, output_grad.reshape(shape))
                output_grad_sums(spec, grad, method).into(sums.output_grad)

        if not self._goes_back:
            add_input()
            return
        source = source_of(output)
        source.register_hook(note)
        self._edges.append(get_gradient_edge(source))

    @property
    def _goes_back(self) -> bool:
        return self._kind not in ("forward-only", "recursive")

    def forward(self, inputs: Any) -> Any:
        """Run the model. Where there is no backward pass, its graph holds no tensors."""
        self._edges, self._running = [], True
        try:
            with torch.enable_grad(), nullcontext() if self._goes_back else saved_tensors_hooks(_nothing, _nothing):
                if isinstance(inputs, Mapping):
                    return self._model(**inputs)
                return self._model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        finally:
            self._running = False

    def backward(self, inputs: Any, output: Tensor, loss: LossDerivatives) -> None:
        """Add the sums of output gradients, from those of the loss with respect to the model's output."""
        if loss.hessian is None and self._kind != "empirical":
            raise ValueError(
                f"loss: a function, whose Hessian is not known for kind={self._kind!r}: expected nn.CrossEntropyLoss, "
                "nn.MSELoss or nn.BCEWithLogitsLoss"
            )
        self._terms += float(loss.terms)
        self._is_mean = loss.reduction == "mean"
        if self._kind == "recursive":
            self._recurse(inputs, loss)
            return
        if output.grad_fn is None:
            raise ValueError(f"model: {type(self._model).__name__}: expected parameters that require gradients")
        graph = Graph(output.grad_fn)
        if graph.hidden:
            raise ValueError(
                "model: calls torch.utils.checkpoint with use_reentrant=True, expected use_reentrant=False"
            )
        ends = graph.without_any_below({edge.node for edge in self._edges} & graph.edges.keys())
        wanted = [edge for edge in self._edges if edge.node in ends]
        for column in self._columns(loss, output.device) if wanted else ():
            torch.autograd.grad(output, wanted, column.to(output), retain_graph=self._kind != "empirical")

    def _columns(self, loss: LossDerivatives, device: torch.device) -> Iterable[Tensor]:
        if loss.hessian is None or self._kind == "empirical":
            return [loss.gradients]
        if self._kind == "type-2":
            return loss.hessian.columns()
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return loss.hessian.sampled(self._samples, self._generator)

    def _recurse(self, inputs: Any, loss: LossDerivatives) -> None:
        assert loss.hessian is not None
        if not isinstance(inputs, Tensor):
            raise ValueError("data: inputs are no tensor, expected one for kind='recursive'")
        modules = dict(self._parts)
        for name, mean, output in mean_hessians(self._parts, inputs, loss.hessian):
            if name in self._sums:
                factor = output_grad_factor_of(modules[name], mean, output, self._method.approximation)
                self._sums[name].output_grad.add_matrix(factor * len(output))

    def result(self) -> ModelFactors:
        """The factors of all layers that were seen.

        Raises:
            ValueError: If there are none, or all terms of a mean are ignored.
        """
        if self._is_mean and not self._terms:
            raise ValueError("data: all labels are ignored, expected some that count")
        scale = 1 / self._terms if self._is_mean else 1.0
        left, products, parameters = dict(self._never), {}, {}
        shared = shared_parameters(self._model)
        for name, module in self._modules.items():
            places = {key: place for key, place in self.places.items() if place.layer == name}
            trouble = self.trouble.get(name, "")
            if trouble and not (trouble == COMPUTED and runs_pytorchs_forward(module)):  # that is told by parameters
                left[name] = trouble
                continue
            if not places:
                left[name] = NO_CALL if name in self.called else NOT_CALLED
            for key, place in places.items():
                if why := left_by_parameters(place, self.held, shared, inf) or self._unseen(key, name):
                    left[key] = why
                    continue
                products[key] = self._product(place, self._sums[key], scale)
                parameters[key] = _names(place, self._sums[key].bias)
        if not products:
            reasons = f" ({'; '.join(sorted(set(left.values())))})" if left else ""
            raise ValueError(f"model: {type(self._model).__name__} has no layer with curvature to be found{reasons}")
        return ModelFactors(products, parameters, left)

    def _unseen(self, key: str, layer: str) -> str:
        sums = self._sums.get(key)
        if sums is not None and sums.examples:
            return ""
        return NO_GRADIENT if layer in self.called else NOT_CALLED

    def _product(self, place: Place, sums: _Sums, scale: float) -> KroneckerProduct:
        weight = place.parameter
        assert weight is not None and place.form is not None
        like = torch.empty_strided(weight.shape, weight.stride(), device="meta")
        layout = Layout(place.form, like, sums.bias, place.view)
        input_factor = sums.input.factor(1 / sums.examples)
        if self._kind == "forward-only":
            groups, outer, _ = layout.shape
            made = input_factor.held[0]
            one = torch.eye(outer, dtype=made.dtype, device=made.device)
            return KroneckerProduct(input_factor, one.expand(groups, -1, -1), layout)
        return KroneckerProduct(input_factor, sums.output_grad.factor(scale), layout)


def _names(place: Place, bias: bool) -> tuple[str, str | None]:
    """Names in the model of a weight and of the bias that goes with it."""
    weight, other = (f"{place.layer}.{name}".removeprefix(".") for name in (place.weight, place.bias))
    return weight, other if bias else None


def _nothing(_: Any) -> Any:
    """Stands for a tensor that no backward pass will ask for."""
