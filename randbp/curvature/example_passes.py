"""Backward passes through a whole model that give the gradients of every example, parameter by parameter."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._torch.restored import preserved
from .._torch.storages import tensors_in
from .autograd_graph import Graph
from .batched_data import BatchedData, mapped
from .example_gradients import ExampleGradients, Made, gradients_of, summed
from .loss_hessian import LossDerivatives, LossFunction, LossReduction, loss_derivatives
from .parameter_space import ParameterSpace
from .parameter_uses import Output, Use, record

See = Callable[[str, ExampleGradients], None]


class ExamplePass:
    """One forward pass of a model on a batch, and backward passes from its output.

    The first dimension of the output, and of the input of every layer, must be that of the examples, and the output of
    an example must depend on its own input alone. A backward pass makes no weight gradient of the whole batch.

    Args:
        model: The model, which runs in its current mode.
        inputs: Its input; a tuple of its arguments; or a mapping of its named arguments.

    Attributes:
        output: The model's output ``[N, …]``.
        parameters: The parameters that need gradients, by name.

    Raises:
        ValueError: If the output is not a tensor that depends on parameters; if a batch norm takes its statistics from
            the batch; or if a parameter is used otherwise than in a convolution, linear layer, table or norm, or as a
            factor or summand. The line names these parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> run = ExamplePass(model, torch.ones(4, 3))
        >>> run.backward(torch.ones(4, 1), lambda name, gradients: print(name, gradients.shape))
        2.weight (4, 1, 2)
        2.bias (4, 1)
        0.weight (4, 2, 3)
        0.bias (4, 2)
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        _check_norms(model)
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        two = _examples_of_two(model, inputs)
        found = record(model, inputs)
        if not isinstance(found.output, Tensor) or found.output.grad_fn is None or not found.output.dim():
            raise ValueError(
                f"model: {type(model).__name__} returned {type(found.output).__name__}, "
                "expected a tensor [N, …] that depends on parameters that need gradients"
            )
        self.output = found.output
        self._names = {parameter: name for name, parameter in self.parameters.items()}
        graph = Graph(self.output.grad_fn)
        self._uses: dict[Output, list[Use]] = {}
        for use in found.uses:
            if use.output.edge.node in graph.edges:
                self._uses.setdefault(use.output, []).append(use)
        self._counts = Counter(self._names[use.parameter] for uses in self._uses.values() for use in uses)
        self._check_uses(graph)
        for use, seen in zip(found.uses, two, strict=False):
            if use.output in self._uses and seen != 2:
                raise ValueError(
                    f"model: {self._names[use.parameter]!r} serves {seen} examples of a batch of 2, expected layers "
                    "whose first dimension is the batch; requires_grad_(False) leaves it out"
                )
        recorded = {output.edge.node for output in self._uses}
        ends = graph.without_any_below(recorded)
        self._ends = [output for output in self._uses if output.edge.node in ends]
        self._see: See | None = None
        self._pending: dict[str, list[ExampleGradients]] = {}
        this = weakref.ref(self)
        for output in self._uses:
            if output.edge.node not in ends:
                output.edge.node.register_prehook(_arrival(this, output))

    def backward(self, output_grad: Tensor, see: See) -> None:
        """Call ``see(name, gradients)`` for every parameter, with ``g_n = J_nᵀ v_n`` for the output gradient ``v``.

        The graph is kept, so that further passes may follow.
        """
        self._see, self._pending = see, {}
        try:
            if edges := [end.edge for end in self._ends]:
                grads = torch.autograd.grad(self.output, edges, output_grad.to(self.output), retain_graph=True)
                for end, grad in zip(self._ends, grads, strict=True):
                    self._arrived(end, grad)
        finally:
            self._see, self._pending = None, {}
        for name, parameter in self.parameters.items():
            if not self._counts[name]:  # the output does not depend on it
                zero = torch.zeros((), dtype=torch.promote_types(parameter.dtype, torch.float32))
                see(name, Made(zero.to(parameter.device).expand(len(self.output), *parameter.shape)))

    def _arrived(self, output: Output, grad: Tensor) -> None:
        if self._see is None:
            return
        for use in self._uses[output]:
            name = self._names[use.parameter]
            pending = self._pending.setdefault(name, [])
            pending.append(gradients_of(use, grad))
            if len(pending) == self._counts[name]:
                with torch.no_grad():
                    self._see(name, summed(self._pending.pop(name)))

    def _check_uses(self, graph: Graph) -> None:
        if graph.hidden:
            raise ValueError(
                "model: calls torch.utils.checkpoint with use_reentrant=True, expected use_reentrant=False"
            )
        others = [name for name, each in self.parameters.items() if graph.uses[each] > self._counts[name]]
        if others:
            raise ValueError(
                f"model: no per-example gradients of {_listed(others)}: expected parameters of convolutions, linear "
                "layers, embeddings and norms, factors and summands; requires_grad_(False) leaves others out"
            )
        for uses in self._uses.values():
            for use in uses:
                if use.examples != len(self.output):
                    raise ValueError(
                        f"model: {self._names[use.parameter]!r} serves {use.examples} examples, expected "
                        f"{len(self.output)} as in the output; requires_grad_(False) leaves it out"
                    )


def _arrival(this: "weakref.ref[ExamplePass]", output: Output) -> Callable[[tuple[Tensor | None, ...]], None]:
    def arrived(grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[output.edge.output_nr]
        if (run := this()) is not None and grad is not None:
            run._arrived(output, grad)

    return arrived


def _examples_of_two(model: nn.Module, inputs: Any) -> list[int]:
    """The numbers of examples that uses of parameters see of the first two examples; nothing if these are all.

    Of another number than in the batch itself, since one of its other sizes may equal that.
    """
    if max((len(each) for each in tensors_in(inputs) if each.dim()), default=0) <= 2:
        return []
    first = mapped(inputs, lambda tensor: tensor[:2] if tensor.dim() else tensor)
    with preserved(model, train=False, inputs=inputs), suppress(Exception):  # the model may be made for one size
        return [use.examples for use in record(model, first).uses]
    return []


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"model: {name!r} ({type(module).__name__}) takes its statistics from the batch, "
                "expected model.eval() and running statistics"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def example_passes(
    model: nn.Module, data: Any, loss: LossFunction, reduction: LossReduction | None = None
) -> Iterator[tuple[ExamplePass, LossDerivatives]]:
    """Run a model on every batch, and differentiate the loss with respect to its output.

    Example:
        >>> batch = torch.ones(4, 3), torch.zeros(4, 2)
        >>> [len(run.output) for run, _ in example_passes(nn.Linear(3, 2), [batch, batch], nn.MSELoss())]
        [4, 4]
    """
    for inputs, targets in BatchedData(data).on(ParameterSpace(model).device):
        yield _differentiated(model, inputs, targets, loss, reduction)  # nothing here holds the graph of a batch


def _differentiated(
    model: nn.Module, inputs: Any, targets: Tensor, loss: LossFunction, reduction: LossReduction | None
) -> tuple[ExamplePass, LossDerivatives]:
    run = ExamplePass(model, inputs)
    return run, loss_derivatives(loss, run.output, targets, reduction)


def accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to the sum of this name."""
    sums[name] = sums[name].add_(value) if name in sums else value


def in_order(model: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort by the order of the model's parameters."""
    return {name: found[name] for name, _ in model.named_parameters() if name in found}
