"""A thread without the caller's modes (autocast, tracing, saved-tensor hooks)."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

import torch

T = TypeVar("T")


def without_modes(work: Callable[[], T]) -> T:
    """Run ``work`` in such a thread, without grad mode; return its result or raise its error."""
    results: list[T] = []
    failures: list[Exception] = []

    @torch.no_grad()
    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
