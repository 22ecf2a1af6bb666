"""What is found out about a layer once, for batches of one size and for somewhat smaller ones."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from threading import Lock
from typing import Generic, TypeVar

from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec, LinearSpec

T = TypeVar("T")

SHARED = 4  # a batch takes what is known of one that is larger by this factor at most


class BySize(Generic[T]):
    """What is remembered of layers, where a smaller batch takes what is known of a larger one.

    So the last batch of an epoch is no new layer, nor are sequences of another length. Of several larger sizes the
    smallest counts; sizes of more than four times the batch do not, nor do smaller ones: another answer may be right
    for them. What a size has taken it keeps. Of a linear layer, whose rows are all alike, rows count instead of
    examples. May be used by several threads; one finds out, and the others wait.

    Attributes:
        known: What is remembered of each key and layer so far, for who cannot wait.

    Example:
        >>> from randbp import tn
        >>> known: BySize[str] = BySize()
        >>> [known.get("", tn.ConvSpec((n, 3, 8), 4, 3), lambda: f"of {n}") for n in (128, 32, 31, 256, 100)]
        ['of 128', 'of 128', 'of 31', 'of 256', 'of 128']
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Hashable, LayerSpec], T] = {}
        self._found_out: dict[tuple[Hashable, LayerSpec], dict[int, T]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, spec: LayerSpec, find_out: Callable[[], T]) -> T:
        """What is known of a layer, or is found out now.

        Args:
            key: All that tells layers of the same spec from each other.
            spec: The layer's.
            find_out: Tells what shall be remembered.
        """
        with self._lock:
            if (key, spec) not in self.known:
                self.known[key, spec] = self._of_larger(key, spec, find_out)
            return self.known[key, spec]

    def _of_larger(self, key: Hashable, spec: LayerSpec, find_out: Callable[[], T]) -> T:
        one, size = replace_batch(spec, 1), spec.batch_size
        if isinstance(one, LinearSpec):
            one, size = replace(one, input_shape=(*one.input_shape[:2], 1)), size * spec.input_shape[2]
        sizes = self._found_out.setdefault((key, one), {})
        larger = [known for known in sizes if size <= known <= SHARED * size]
        if not larger:
            sizes[size] = find_out()
        return sizes[min(larger, default=size)]
