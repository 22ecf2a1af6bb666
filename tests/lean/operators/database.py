"""The entries of PyTorch's database that have to do with functions with a lean rule.

``op_db`` and ``module_db`` ship with PyTorch: for each function sample inputs, its other names (method, in place,
aliases) and inputs that it must refuse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.opinfo.core import OpInfo

from randbp.lean.rules import RULES

from .outcome import quiet
from .sample import Sample

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64)


@dataclass(frozen=True)
class Entry:
    """A function with a lean rule, by one of its names, and the entry of the database that has its samples."""

    label: str
    function: Callable[..., Any]
    info: OpInfo

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        """The sample inputs of the database."""
        with quiet():
            floating = dtype.is_floating_point or dtype.is_complex
            for each in self.info.sample_inputs("cpu", dtype, requires_grad=floating):
                finish = each.output_process_fn_grad
                yield Sample((each.input, *each.args), dict(each.kwargs), finish)

    def errors(self) -> Iterator[Sample]:
        """What the function must refuse."""
        if self.info.error_inputs_func is None:
            return
        with quiet():
            for each in self.info.error_inputs("cpu"):
                sample = each.sample_input
                yield Sample((sample.input, *sample.args), dict(sample.kwargs)).changed(_wanting_gradient)

    def dtypes(self) -> list[torch.dtype]:
        """Those that it knows, of :data:`DTYPES`."""
        known = self.info.supported_dtypes("cpu")
        return [dtype for dtype in DTYPES if dtype in known]


def _wanting_gradient(x: Tensor) -> Tensor:
    wants = (x.is_floating_point() or x.is_complex()) and x.layout is torch.strided and x.device.type == "cpu"
    return x.detach().requires_grad_() if wants else x


_OPERATORS = {"truediv": "div", "rtruediv": "div", "rdiv": "div", "itruediv": "div", "idiv": "div"}


def _base(function: Any) -> str:
    """The name under which the database has a function: without space, underscores and the ``i`` of ``__iadd__``."""
    name = getattr(function, "__name__", "")
    if name.startswith("__"):
        name = name.strip("_")
        name = _OPERATORS.get(name, name)
        return {"imul": "mul", "ipow": "pow", "setitem": "index_put", "mod": "remainder"}.get(name, name)
    return name.removesuffix("_").removesuffix("_with_indices")


@cache
def entries() -> list[Entry]:
    """All of the database that has to do with functions with a rule; those that it has none for are not in it."""
    found: dict[tuple[Any, int], Entry] = {}

    def note(label: str, function: Any, info: OpInfo) -> None:
        found.setdefault((function, id(info)), Entry(label, function, info))

    by_name: dict[str, list[OpInfo]] = {}
    for info in op_db:
        for name in {info.name, *(alias.name for alias in info.aliases)}:
            by_name.setdefault(name.rpartition(".")[2].strip("_"), []).append(info)
        for alias in (info, *info.aliases):
            for function in (alias.op, alias.method_variant, alias.inplace_variant):
                if _has_rule(function):
                    note(_label(function, info), function, info)
        for function in (info.operator_variant, info.inplace_operator_variant):
            if _has_rule(function):
                note(_label(function, info), function, info)
    for function in RULES:
        for info in by_name.get(_base(function), []):
            if not any(other is function for other, _ in found):
                note(_label(function, info), function, info)
            if not _has_rule(info.op):  # a wrapper of it
                note(_label(info.op, info), info.op, info)
    return list(found.values())


def _has_rule(function: Any) -> bool:
    try:
        return function in RULES
    except TypeError:
        return False


def _label(function: Any, info: OpInfo) -> str:
    return f"{info.full_name} as {getattr(function, '__qualname__', function)}"


def missing() -> list[Any]:
    """Functions with a rule that no entry of the database calls."""
    known = {entry.function for entry in entries()}
    return [function for function in RULES if function not in known]


def modules(dtype: torch.dtype, first_only: bool) -> Iterator[tuple[str, nn.Module, Sample]]:
    """Modules of PyTorch, and inputs for them."""
    for info in module_db:
        if dtype not in info.dtypes:
            continue
        with quiet():
            inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
            for number, each in enumerate(inputs):
                if each.forward_input is None or (first_only and number):
                    continue
                torch.default_generator.manual_seed(number)
                given = each.constructor_input
                try:
                    module = info.module_cls(*given.args, **{"device": "cpu", "dtype": dtype, **given.kwargs})
                except TypeError:
                    module = info.module_cls(*given.args, **given.kwargs).to(dtype)
                yield f"{info.name} {number}", module, Sample(each.forward_input.args, dict(each.forward_input.kwargs))
