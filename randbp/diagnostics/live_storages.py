"""Live storages, whoever holds them, followed at PyTorch's dispatcher."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # documented, for all its underscore

from .._torch.storages import parts, storages, tensors_in


@dataclass(frozen=True, eq=False)
class Allocation:
    """One storage that an operation allocated.

    Attributes:
        bytes: Size of the storage when it appeared.
        operation: The ATen operation that returned it first.
        origin: The place in the program, as given to :class:`LiveStorages`.
        reference: Weak reference to the storage; dead once the memory is given back.
    """

    bytes: int
    operation: str
    origin: Any
    reference: "weakref.ref[torch.UntypedStorage]"


class LiveStorages(TorchDispatchMode):
    """Follow every storage that operations allocate while this mode is entered, until it dies.

    A storage counts once, however many tensors and views use it and whoever holds them: autograd's saved tensors, a
    ``ctx``, a closure, a list. What existed before (parameters, inputs) does not count, and neither does scratch memory
    inside a kernel: :class:`randbp.diagnostics.StepPeak` sees that. Backward passes are followed, too.

    Args:
        origin: Called at each allocation; its result is kept as :attr:`Allocation.origin`.

    Attributes:
        bytes: Bytes alive now.
        peak_bytes: Highest number of bytes alive so far.

    Example:
        >>> x = torch.ones(256)
        >>> with LiveStorages() as live:
        ...     y = x * 2
        ...     view, temporary = y[:10], y.exp()
        ...     del temporary
        >>> live.bytes, live.peak_bytes
        (1024, 2048)
        >>> del y, view
        >>> live.bytes
        0
    """

    def __init__(self, origin: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._origin = origin
        self._alive: dict[int, Allocation] = {}

    @property
    def allocations(self) -> list[Allocation]:
        """The allocations that are alive now, oldest first."""
        return list(self._alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record its allocations."""
        result = func(*args, **(kwargs or {}))
        found = [part.untyped_storage() for tensor in tensors_in(result) for part in parts(tensor)]
        new = [storage for storage in found if id(storage) not in self._alive]
        if new:  # an operation may return what it was given: a view, or its first argument
            before = storages(tensors_in((args, kwargs)))
            for storage in new:
                if id(storage) not in before and id(storage) not in self._alive:
                    self._add(storage, func)
        return result

    def _add(self, storage: torch.UntypedStorage, func: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            del self._alive[key]
            self.bytes -= size

        name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else str(func)
        self._alive[key] = Allocation(size, name, self._origin(), weakref.ref(storage, gone))
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
