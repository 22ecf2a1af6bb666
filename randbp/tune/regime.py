"""Small steps in which lean mode does what it does in large ones."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..estimators import chunks
from ..lean import split_batch


@contextmanager
def as_if_larger(factor: float) -> Iterator[None]:
    """Let lean mode split chains, and restore tensors in parts, as if all tensors were larger by a factor.

    Both are left undone where tensors are small, for speed. The thresholds are the process's own, and so must no other
    model be trained meanwhile.
    """
    before = chunks.LITTLE, split_batch.WORTHWHILE
    chunks.LITTLE, split_batch.WORTHWHILE = (int(threshold / factor) for threshold in before)
    try:
        yield
    finally:
        chunks.LITTLE, split_batch.WORTHWHILE = before
