"""Fused operations: each is one operator of PyTorch that a reference, numba or Triton serves, with the same bits."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

Backend = Literal["auto", "reference", "numba", "triton"]
"""What may serve an operation; ``"auto"`` is numba on a processor and Triton on a GPU, where they are installed."""

OPERATORS: dict[str, "Operator"] = {}
"""All fused operations by name."""

_INSTALL = {"numba": "pip install 'randbp[cpu]'", "triton": "it comes with PyTorch's CUDA builds"}

_LIBRARY = torch.library.Library("randbp", "FRAGMENT")


_CONTEXTS: list[tuple[object, Backend]] = []
"""Contexts of :func:`use` of all threads, since autograd runs backward passes in its own; the last one holds."""

LOST_THREADS: list[bool] = []
"""Not empty in a process forked from one in which numba's threads ran: they are gone, and cannot start again."""


class Operator:
    """A fused operation, registered as ``torch.ops.randbp.<name>``.

    The reference serves all devices. The modules ``<module>_numba`` and ``<module>_triton``, named after it,
    may have functions of the same name and arguments; they are imported when the operation first runs where they serve.

    Args:
        reference: The operation in plain PyTorch; its annotations are the operator's schema.
        fake: Shapes and dtypes of the results, for tensors without data.
    """

    def __init__(self, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name, self.reference = reference.__name__, reference
        self._version = partial(_version, reference.__module__, self.name)
        # (Not by torch.library.custom_op, whose operators import the compiler when they first run.)
        _LIBRARY.define(self.name + torch.library.infer_schema(reference, mutates_args=()))
        _LIBRARY.impl(self.name, reference, "CompositeExplicitAutograd")
        _LIBRARY.impl(self.name, self._on_cpu, "CPU")
        _LIBRARY.impl(self.name, self._on_cuda, "CUDA")
        torch.library.register_fake(f"randbp::{self.name}", fake, lib=_LIBRARY)
        self._operator = getattr(torch.ops.randbp, self.name).default
        self.__doc__, self.__name__ = reference.__doc__, self.name
        OPERATORS[self.name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operation."""
        return self._operator(*args, **kwargs)

    def backend(self, device: str) -> str:
        """What serves this operation on ``"cpu"`` or ``"cuda"`` now."""
        wanted: str = _forced()
        if wanted == "auto":
            wanted = "triton" if device == "cuda" else "numba"
            if LOST_THREADS if wanted == "numba" else not torch.cuda.is_available():
                return "reference"
        if wanted == "reference" or (wanted == "numba" and device == "cuda") or self._version(wanted) is None:
            return "reference"
        return wanted

    def _on_cpu(self, *args: Any, **kwargs: Any) -> Any:
        backend = self.backend("cpu")
        if backend == "reference":
            if _forced() == "auto" and not is_installed("numba"):
                _warn(f"rounding would be 10 to 50 times faster with numba: {_INSTALL['numba']}")
            return self.reference(*args, **kwargs)
        if backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(f"{self.name}: kernels='triton' needs tensors on a GPU, or TRITON_INTERPRET=1")
        version = self._version(backend)
        assert version is not None
        return version(*args, **kwargs)

    def _on_cuda(self, *args: Any, **kwargs: Any) -> Any:
        version = self._version("triton") if self.backend("cuda") == "triton" else None
        return (version or self.reference)(*args, **kwargs)


def fused(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate the reference of a fused operation: see :class:`Operator`."""
    return lambda reference: Operator(reference, fake)


@cache
def is_installed(package: str) -> bool:
    """Whether a package is there."""
    try:
        return find_spec(package) is not None
    except ValueError:  # something stands in its place, such as ``sys.modules[package] = None``
        return False


@cache
def _version(module: str, name: str, backend: str) -> Callable[..., Any] | None:
    """The version of a backend, if there is one and what it needs is installed."""
    if not is_installed(backend) or find_spec(f"{module}_{backend}") is None:
        return None
    try:
        version: Callable[..., Any] = getattr(import_module(f"{module}_{backend}"), name)
    except ImportError as error:
        _warn(f"{backend} cannot be imported ({error}); plain PyTorch takes its place")
        return None
    return version


@cache
def _warn(line: str) -> None:
    """Say something once."""
    warnings.warn(f"randbp: {line}", RuntimeWarning, stacklevel=2)


def backends() -> dict[str, dict[str, str]]:
    """Which backend serves each fused operation, by kind of device.

    Example:
        >>> with use("reference"):
        ...     backends()["encode"]
        {'cpu': 'reference', 'cuda': 'reference'}
    """
    return {
        name: {device: operator.backend(device) for device in ("cpu", "cuda")} for name, operator in OPERATORS.items()
    }


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Let one backend serve all fused operations that it has a version of, in all threads, while the context lasts.

    Args:
        backend: ``"reference"`` (plain PyTorch), ``"numba"``, ``"triton"`` (on tensors of the processor only in
            Triton's interpreter: set ``TRITON_INTERPRET=1`` before Python starts) or ``"auto"``.

    Raises:
        ValueError: If there is no such backend, or it is not installed.

    Example:
        >>> with use("fortran"):
        ...     pass
        Traceback (most recent call last):
        ValueError: kernels='fortran': expected 'auto', 'reference', 'numba' or 'triton'
    """
    if backend not in get_args(Backend):
        raise ValueError(f"kernels={backend!r}: expected 'auto', 'reference', 'numba' or 'triton'")
    if backend in _INSTALL and not is_installed(backend):
        raise ValueError(f"kernels={backend!r}: {backend} is not installed ({_INSTALL[backend]})")
    context = object(), backend
    _CONTEXTS.append(context)
    try:
        yield
    finally:
        _CONTEXTS.remove(context)


def _forced() -> Backend:
    """What the context that began last asks for."""
    contexts = _CONTEXTS[-1:]
    return contexts[0][1] if contexts else "auto"
