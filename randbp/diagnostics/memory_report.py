"""Bytes held for the backward pass of a model, by holder."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .._torch.restored import preserved
from .._torch.storages import tensors_in
from ..lean.rules import BY_NAME
from ..randomize.left_exact import left_exact_of
from .live_storages import Allocation, LiveStorages
from .memory_rows import MemoryReport, Row
from .objective import check_batch
from .running_module import running_module
from .saved_tensors import held_for_backward
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
    return report_of(model, lambda: _loss(model(*inputs, **keywords), loss), (inputs, keywords))


def report_of(model: nn.Module, objective: Callable[[], Any], inputs: Any) -> MemoryReport:
    """:func:`memory_report` of a function that runs a model on some inputs and returns the loss."""
    report = _measured(model, objective, inputs)
    # Caches that were filled on the way outlive the backward pass, too, but do not grow again.
    return _measured(model, objective, inputs) if report.kept_bytes else report


class _Place(NamedTuple):
    module: str
    operation: str | None


_Held = tuple[Allocation, dict[_Place, tuple[torch.dtype, int]]]
"""A storage, and for each place in which a tensor in it was saved that one's dtype and number of entries."""


def _measured(model: nn.Module, objective: Callable[[], Any], inputs: Any) -> MemoryReport:
    device = next((t.device for t in (*model.parameters(), *tensors_in(inputs))), torch.device("cpu"))
    functions = _Functions()

    def place(operation: str | None = None) -> _Place:
        name = module()
        return _Place(_OUTSIDE if name is None else name or type(model).__name__, functions.name or operation)

    def saver() -> _Place:
        return place(None if functions.name else _custom_function(sys._getframe(2)))

    with (
        preserved(model, train=False, inputs=inputs),
        StepPeak(device, model.parameters()) as peak,
        running_module(model) as module,
        LiveStorages(place) as live,
        held_for_backward(origin=saver) as saved,
    ):
        for parameter in model.parameters():
            parameter.grad = None
        with functions:
            value = objective()
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError("model: no output requires a gradient, so nothing is held for a backward pass")
        if value.numel() != 1:
            raise ValueError(f"loss: returned shape {tuple(value.shape)}, expected a scalar tensor")
        places, root = saved.holders(), id(value.untyped_storage())
        held: list[_Held] = []
        for allocation in live.allocations:
            key = id(allocation.reference())
            if key != root or key in places:
                held.append((allocation, {at: (t.dtype, t.numel()) for at, t in places.get(key, {}).items()}))
        del places
        value.backward()
        del value
    kept = [one for one in held if one[0].reference() is not None]
    held = [one for one in held if one[1] or one not in kept]
    return MemoryReport(
        held_bytes=sum(allocation.bytes for allocation, _ in held),
        peak_bytes=peak.bytes,
        rows=_rows(held),
        kept_bytes=sum(allocation.bytes for allocation, _ in kept),
        peak_source=peak.source,
        left_exact=left_exact_of(model),
    )


class _Functions(TorchFunctionMode):
    """Follows which function of PyTorch is being called, by its public name."""

    name: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.name
        self.name = before or _FUNCTION_NAMES.get(func) or getattr(func, "__name__", str(func))
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
    parts = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad and t.is_floating_point()]
    return sum(part.sum() for part in parts) if parts else None


def _rows(held: list[_Held]) -> list[Row]:
    """One row per module and operation."""
    groups: dict[_Place, list[_Held]] = {}
    for allocation, savers in held:
        origin: _Place = allocation.origin
        for place in savers or [origin._replace(operation=origin.operation or allocation.operation)]:
            groups.setdefault(place, []).append((allocation, savers))
    return sorted((_row(*group) for group in groups.items()), key=lambda row: -row.bytes)


def _row(place: _Place, held: list[_Held]) -> Row:
    operation = place.operation or "(unknown)"
    hidden, rule = any(not savers for _, savers in held), BY_NAME.get(operation)
    least, why = None, ""
    if hidden:
        why = "held outside autograd's saved tensors: on a ctx, in a closure or packed"
    elif rule is not None and (need := rule.need.held) is not None:
        lean = "; outside of modules, lean mode serves it in `with handle.lean():`"
        least, why = need.nbytes(savers[place] for _, savers in held), need.why
        why += lean if why and place.module == _OUTSIDE else ""
    return Row(
        module=place.module,
        operation=operation,
        bytes=sum(allocation.bytes for allocation, _ in held),
        alone=sum(allocation.bytes for allocation, savers in held if len(savers) <= 1),
        least=least,
        why=why,
        shared_with=tuple(dict.fromkeys(f"{p.module} {p.operation}" for _, found in held for p in found if p != place)),
        hidden=hidden,
    )
