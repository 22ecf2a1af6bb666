"""Bytes held for the backward pass of a model, by holder."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..randomize.left_exact import left_exact_of
from .live_storages import Allocation, LiveStorages
from .memory_rows import MemoryReport, Row
from .needs import least_bytes
from .objective import check_batch
from .saved_tensors import _strided_parts
from .step_peak import StepPeak

_OUTSIDE = "(outside the model)"
_FUNCTION_NAMES = {value: name for name, value in vars(F).items() if callable(value) and not name.startswith("_")}


def memory_report(
    model: nn.Module, *inputs: Any, loss: Callable[[Any], Tensor] | None = None, **keywords: Any
) -> MemoryReport:
    """Run a forward and a backward pass, and report the bytes held in between, their holders, and which were needed.

    The report counts every storage that the forward pass allocated and that is still alive at its end, when the program
    itself holds only the loss: tensors that autograd saved, and those on a ``ctx``, in a closure or in packed form.
    Parameters, buffers, gradients and inputs do not count. The report names the module and operation that saved a
    storage or, if autograd does not know of it, those that allocated it.

    The model runs in its present mode; call ``train()`` before if you mean training. Its buffers, gradients and
    PyTorch's random state are restored afterwards. If anything is still alive after the backward pass, the model runs
    once more: caches are filled by then, so storages that survive the second run are kept by the model.

    Args:
        model: Any module.
        inputs: Positional arguments of the model.
        loss: Function of the output that returns a scalar; by default the sum of all differentiable outputs.
        keywords: Keyword arguments of the model, except ``model`` and ``loss``; a batch that is a dictionary of them
            is given as ``memory_report(model, **batch)``.

    Returns:
        See :class:`MemoryReport`.

    Raises:
        ValueError: If no argument can be an input, or if the loss is not a scalar or does not depend on anything that
            requires a gradient.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, kernel_size=3), nn.ReLU())
        >>> report = memory_report(model, torch.zeros(4, 3, 34, 34))
        >>> report.held_bytes == 4 * 8 * 32 * 32 * 4
        True
        >>> print(report)  # doctest: +ELLIPSIS
        held for backward: 128.0 KiB, peak of a step: ...
        module  operation       held      alone  enough   why
        1       relu       128.0 KiB  128.0 KiB  4.0 KiB  one bit per entry says on which side of the kink it was
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r}: expected a torch.nn.Module")
    if loss is not None and not callable(loss):
        raise ValueError(f"loss={loss!r}: expected a function of the output, or None")
    if inputs or keywords:
        check_batch("inputs", inputs[0] if len(inputs) == 1 and not keywords else (*inputs, *keywords.values()))
    device = next((t.device for t in [*model.parameters(), *_tensors((inputs, keywords))]), torch.device("cpu"))
    report = _measured(model, inputs, keywords, loss, device)
    # Caches that were filled on the way outlive the backward pass, too, but do not grow again.
    return _measured(model, inputs, keywords, loss, device) if report.kept_bytes else report


def _measured(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
    loss: Callable[[Any], Tensor] | None,
    device: torch.device,
) -> MemoryReport:
    watch = _Watch(model)
    with _restored(model, device), StepPeak(device, model.parameters()) as peak, watch:
        value = _loss(model(*inputs, **keywords), loss)
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError("model: no output requires a gradient, so nothing is held for a backward pass")
        if value.numel() != 1:
            raise ValueError(f"loss: returned shape {tuple(value.shape)}, expected a scalar tensor")
        held = watch.held(value)
        value.backward()
        del value
    kept = [(allocation, holders) for allocation, holders in held if allocation.reference() is not None]
    still = {id(allocation) for allocation, holders in kept if not holders}
    held = [(allocation, holders) for allocation, holders in held if id(allocation) not in still]
    return MemoryReport(
        held_bytes=sum(allocation.bytes for allocation, _ in held),
        peak_bytes=peak.bytes,
        rows=_rows(held),
        kept_bytes=sum(allocation.bytes for allocation, _ in kept),
        peak_source=peak.source,
        left_exact=left_exact_of(model),
    )


class _Watch:
    """Follows which module and function is running, what it allocates, and who saves that."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: list[str] = []
        self._functions = _Functions()
        self._live = LiveStorages(origin=lambda: _Place(self.module, self._functions.name))
        self._saved: dict[int, list[tuple[_Place, torch.dtype, int]]] = {}
        self._stack = ExitStack()

    @property
    def module(self) -> str:
        return self._modules[-1] if self._modules else _OUTSIDE

    def __enter__(self) -> "_Watch":
        for name, module in self._model.named_modules():
            label = name or type(module).__name__
            self._hook(module.register_forward_pre_hook(lambda *_, label=label: self._modules.append(label)))
            self._hook(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)
        for context in (self._live, self._functions, hooks):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def held(self, loss: Tensor) -> "list[tuple[Allocation, list[tuple[_Place, torch.dtype, int]]]]":
        """The live storages other than the loss, and who saved them."""
        root = id(loss.untyped_storage())
        found = []
        for key, allocation in self._live.keyed().items():
            holders = self._saved.get(key, [])
            if key != root or holders:
                found.append((allocation, holders))
        return found

    def _hook(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _leave(self) -> None:
        if self._modules:
            self._modules.pop()

    def _pack(self, tensor: Tensor) -> "_Held":
        function = self._functions.name or _custom_function(sys._getframe(1))
        place = _Place(self.module, function)
        for part in _strided_parts(tensor):
            if self._live.find(part.untyped_storage()) is not None:
                self._saved.setdefault(id(part.untyped_storage()), []).append((place, part.dtype, part.numel()))
        return _Held(tensor.detach())


@dataclass(frozen=True)
class _Place:
    module: str
    operation: str | None


@dataclass
class _Held:
    """A saved tensor, detached: a graph that held its own output through a hook would be a reference cycle."""

    tensor: Tensor


class _Functions(TorchFunctionMode):
    """Follows which function of PyTorch is being called, by its public name."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.name
        try:
            self.name = before or _FUNCTION_NAMES.get(func) or getattr(func, "__name__", str(func))
        except TypeError:  # not hashable
            self.name = before or str(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before


def _custom_function(frame: Any) -> str:
    """Name of the ``torch.autograd.Function`` whose ``apply`` saves a tensor."""
    function = frame.f_locals.get("cls")
    return function.__name__.lstrip("_") if isinstance(function, type) else "(unknown)"


def _loss(output: Any, loss: Callable[[Any], Tensor] | None) -> Any:
    if loss is not None:
        return loss(output)
    parts = [t for t in _tensors(output) if t.requires_grad and t.is_floating_point()]
    return sum(part.sum() for part in parts) if parts else None


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, gradients and random state at the end of the block."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad


def _rows(held: "list[tuple[Allocation, list[tuple[_Place, torch.dtype, int]]]]") -> list[Row]:
    """One row per module and operation."""
    groups: dict[_Place, list[tuple[int, list[_Place], torch.dtype, int, bool]]] = {}
    for allocation, holders in held:
        places = list(dict.fromkeys(place for place, _, _ in holders))
        if not holders:
            origin = allocation.origin
            place = _Place(origin.module, origin.operation or allocation.operation)
            groups.setdefault(place, []).append((allocation.bytes, [place], torch.uint8, allocation.bytes, True))
        for place in places:
            dtype, entries = next((d, n) for p, d, n in holders if p == place)
            groups.setdefault(place, []).append((allocation.bytes, places, dtype, entries, False))
    rows = [_row(place, parts) for place, parts in groups.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _row(place: _Place, parts: list[tuple[int, list[_Place], torch.dtype, int, bool]]) -> Row:
    total = sum(size for size, *_ in parts)
    alone = sum(size for size, places, *_ in parts if len(places) == 1)
    others = dict.fromkeys(f"{p.module} {p.operation}" for _, places, *_ in parts for p in places if p != place)
    operation = place.operation or "(unknown)"
    hidden = any(part[4] for part in parts)
    least, why = least_bytes(operation, [(dtype, entries) for *_, dtype, entries, _ in parts])
    if why and place.module == _OUTSIDE:
        why += "; outside of modules, lean mode serves it in `with handle.lean():`"
    if hidden:
        why = "held outside autograd's saved tensors: on a ctx, in a closure or packed"
        least = None
    return Row(place.module, operation, total, alone, least, why, tuple(others), hidden)
