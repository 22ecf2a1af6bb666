"""One exact pass on file: what each layer was called with, the gradient of its output, and who holds its input."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..diagnostics.objective import Objective


@dataclass
class Call:
    """One call of a layer.

    Args:
        arguments: Detached.
        keywords: Detached.
        autocast: Device type and precision, if the call was under autocast.
        output_grad: Gradient of the loss with respect to what it returned; ``None`` if the loss does not depend on it.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None
    output_grad: Tensor | None = None

    def repeat(self, module: nn.Module) -> Tensor:
        """What the module returns now, without its hooks."""
        with ExitStack() as stack:
            if self.autocast is not None:
                device, dtype = self.autocast
                stack.enter_context(torch.autocast(device, dtype=dtype))
            output: Tensor = module.forward(*self.arguments, **self.keywords)
        return output


@dataclass
class Record:
    """The calls of each layer, and for each storage held for backward its bytes and the names of its holders."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    holders: dict[int, tuple[int, set[str]]] = field(default_factory=dict)

    def shared(self, name: str) -> tuple[int, tuple[str, ...]]:
        """Of the bytes that a layer holds those that others hold, too, and who these are."""
        found = [(size, owners - {name}) for size, owners in self.holders.values() if name in owners]
        others = sorted({other or "the model" for _, owners in found for other in owners})
        return sum(size for size, owners in found if owners), tuple(others)


def record(model: nn.Module, objective: Objective, batch: Any, layers: dict[str, nn.Module]) -> Record:
    """Run a forward and a backward pass of a batch and note what the layers see.

    Args:
        model: Its modules' names say who holds what.
        objective: Loss of a batch.
        batch: The batch.
        layers: The layers to note, by name.
    """
    result = Record()
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    kept_alive: list[Any] = []  # so that no identity is used twice
    stack = [""]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if id(storage) not in own:
                kept_alive.append(storage)
                result.holders.setdefault(id(storage), (storage.nbytes(), set()))[1].add(stack[-1])
        return tensor

    with _hooks(model, layers, result, stack), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective(batch)
    weights = [p for module in layers.values() for p in module.parameters() if p.requires_grad]
    if weights:
        torch.autograd.grad(loss, weights, allow_unused=True)
    for name, calls in result.calls.items():
        result.calls[name] = [call for call in calls if call.output_grad is not None]
    return result


@contextmanager
def _hooks(model: nn.Module, layers: dict[str, nn.Module], result: Record, stack: list[str]) -> Iterator[None]:
    """Let modules say where the pass is, and layers what they get."""
    names = {module: name for name, module in layers.items()}

    def enter(name: str, module: nn.Module, arguments: Any) -> None:
        stack.append(name)

    def leave(module: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        stack.pop()
        if module not in names or not isinstance(output, Tensor) or not output.requires_grad:
            return
        call = Call(_detached(arguments), _detached(keywords), _autocast(output))
        result.calls.setdefault(names[module], []).append(call)
        output.register_hook(partial(setattr, call, "output_grad"))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return tuple(_detached(item) for item in value) if isinstance(value, tuple) else value


def _autocast(output: Tensor) -> tuple[str, torch.dtype] | None:
    device = output.device.type
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
