"""Ctrl-C and SIGTERM end a command with one line, at any moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Raised when the user, or whoever started the command, wants it to end; with the exit code as in a shell."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Terminated(BaseException):
    """SIGTERM as an exception, like KeyboardInterrupt for Ctrl-C."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise :class:`Terminated` at the first SIGTERM, so that it ends what runs as Ctrl-C would."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while what is known is written down
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def reason(error: BaseException | None) -> tuple[str, int] | None:
    """The reason why a command was stopped and the exit code for it; ``None`` for any other exception.

    Lightning turns Ctrl-C into ``sys.exit``; then the exception's context tells.

    Example:
        >>> reason(KeyboardInterrupt()), reason(ValueError())
        (('interrupted', 130), None)
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return "interrupted", 128 + signal.SIGINT
        if isinstance(error, Terminated):
            return "ended by SIGTERM", 128 + signal.SIGTERM
        error = error.__context__ if isinstance(error, SystemExit) else None
    return None
