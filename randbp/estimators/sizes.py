"""Results of measurements of layers, shared by batches of similar size."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from threading import Lock
from typing import Generic, TypeVar

from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec, LinearSpec

T = TypeVar("T")

SHARED = 4  # largest ratio of two batch sizes that share a result


class BySize(Generic[T]):
    """One result for each layer, which smaller batches take from larger ones.

    So the last batch of an epoch is not measured again, nor are sequences of another length. A batch takes the result
    of the smallest larger size, up to four times its own, and keeps it. In a linear layer, rows count instead of
    examples. Threads may share an object: one measures, and the others wait.

    Example:
        >>> from randbp import tn
        >>> known: BySize[str] = BySize()
        >>> [known.get("", tn.ConvSpec((n, 3, 8), 4, 3), lambda: f"of {n}") for n in (128, 32, 31, 256, 100)]
        ['of 128', 'of 128', 'of 31', 'of 256', 'of 128']
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, LayerSpec], T] = {}
        self._found_out: dict[tuple[Hashable, LayerSpec], dict[int, T]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, spec: LayerSpec, find_out: Callable[[], T]) -> T:
        """The result for a layer and whatever distinguishes it from others; ``find_out`` makes one if there is none."""
        if (key, spec) not in self._known:
            with self._lock:
                if (key, spec) not in self._known:
                    self._known[key, spec] = self._of_larger(key, spec, find_out)
        return self._known[key, spec]

    def _of_larger(self, key: Hashable, spec: LayerSpec, find_out: Callable[[], T]) -> T:
        one, size = replace_batch(spec, 1), spec.batch_size
        if isinstance(one, LinearSpec):
            one, size = replace(one, input_shape=(*one.input_shape[:2], 1)), size * spec.input_shape[2]
        sizes = self._found_out.setdefault((key, one), {})
        larger = [known for known in sizes if size <= known <= SHARED * size]
        if not larger:
            sizes[size] = find_out()
        return sizes[min(larger, default=size)]
