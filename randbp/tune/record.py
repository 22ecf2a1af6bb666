"""A record of one exact pass: the arguments of each layer, the gradient of its output, and who holds its input."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..diagnostics.objective import Objective
from ..diagnostics.running_module import running_module
from ..diagnostics.saved_tensors import held_for_backward
from ..randomize.layers import forward_without_hooks


@dataclass
class Call:
    """One call of a layer."""

    arguments: tuple[Any, ...]  # detached, as are the keywords
    keywords: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None  # device type and precision
    output_grads: list[Tensor | None] = field(default_factory=list)  # None where the loss does not depend on the output

    def repeat(self, module: nn.Module) -> list[Tensor]:
        """Call the module again without its hooks, and return the differentiable tensors of its result."""
        with nullcontext() if self.autocast is None else torch.autocast(*self.autocast):
            return _differentiable(forward_without_hooks(module, *self.arguments, **self.keywords))

    def gradients(self, module: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the loss with respect to the module's weights, as far as they come from this call."""
        pairs = zip(self.repeat(module), self.output_grads, strict=True)
        outputs, grads = zip(*((output, grad) for output, grad in pairs if grad is not None), strict=True)
        return list(torch.autograd.grad(outputs, weights, grads, allow_unused=True, materialize_grads=True))


@dataclass
class Record:
    """The calls of each layer, and for each storage held for backward its bytes and the names of its holders."""

    calls: dict[str, list[Call]]
    holders: list[tuple[int, set[str]]]

    def shared(self, name: str) -> tuple[int, tuple[str, ...]]:
        """The bytes held by a layer that others hold as well, and the names of these."""
        found = [(size, owners - {name}) for size, owners in self.holders if name in owners]
        others = sorted({other or "the model" for _, owners in found for other in owners})
        return sum(size for size, owners in found if owners), tuple(others)


def record(model: nn.Module, objective: Objective, batch: Any, layers: dict[str, nn.Module]) -> Record:
    """Run a forward and a backward pass of a batch, and record the calls of some layers, and who holds what."""
    calls: dict[str, list[Call]] = {}

    def note(name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        outputs = _differentiable(output)
        if not outputs:
            return
        arguments, keywords = tree_map_only(Tensor, Tensor.detach, (arguments, keywords))
        device = outputs[0].device.type
        autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        call = Call(arguments, keywords, autocast, [None] * len(outputs))
        calls.setdefault(name, []).append(call)
        for number, tensor in enumerate(outputs):
            tensor.register_hook(partial(call.output_grads.__setitem__, number))

    with (
        ExitStack() as hooks,
        running_module(model) as running,
        held_for_backward([*model.parameters(), *model.buffers()], lambda: running() or "") as held,
    ):
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(partial(note, name), with_kwargs=True).remove)
        loss = objective(batch)
    owners = held.holders().values()
    holders = [(next(iter(saved.values())).untyped_storage().nbytes(), set(saved)) for saved in owners]
    weights = [p for module in layers.values() for p in module.parameters() if p.requires_grad]
    if weights:
        torch.autograd.grad(loss, weights, allow_unused=True)
    for found in calls.values():
        found[:] = [call for call in found if any(grad is not None for grad in call.output_grads)]
    return Record(calls, holders)


def _differentiable(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
