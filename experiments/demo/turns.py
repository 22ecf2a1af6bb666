"""Tasks that take turns."""

import threading
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Generic, TypeVar

Result = TypeVar("Result")
Pause = Callable[[], None]
SETTLING = 0.002  # seconds for the last one's idle threads to fall asleep


class TurnsEnded(BaseException):
    """Raised in a task that shall not go on, because another one has failed."""


def take_turns(tasks: Mapping[str, Callable[[Pause], Result]], seed: int = 0) -> dict[str, Result]:
    """Run tasks of which one at a time is at work, each until its next pause, in a new random order every round.

    Each has a thread of its own, so a task may be anything that calls the function which it is given now and then. What
    is timed between two pauses meets the same machine as the others' steps of that round do.

    Args:
        tasks: Functions of ``pause``, by name.
        seed: Of the order.

    Returns:
        What they return, by name.

    Example:
        >>> order = []
        >>> def count(name):
        ...     def task(pause):
        ...         for step in range(2):
        ...             pause()
        ...             order.append((step, name))
        ...         return name
        ...
        ...     return task
        >>> take_turns({name: count(name) for name in "ab"}), [step for step, _ in order]
        ({'a': 'a', 'b': 'b'}, [0, 0, 1, 1])
    """
    control = threading.Semaphore(0)
    waiting = [_Player(task, control) for task in tasks.values()]
    players, order = dict(zip(tasks, waiting, strict=True)), Random(seed)
    try:
        while waiting:
            order.shuffle(waiting)
            for player in waiting:
                time.sleep(SETTLING)
                player.turn.release()
                control.acquire()
                if player.error is not None:
                    raise player.error
            waiting = [player for player in waiting if player.thread.is_alive() and not player.done]
    finally:
        for player in waiting:
            player.end()
    return {name: player.result for name, player in players.items()}


class _Player(Generic[Result]):
    """A task in its thread, which waits for its first turn."""

    result: Result

    def __init__(self, task: Callable[[Pause], Result], control: threading.Semaphore) -> None:
        self.turn, self.control = threading.Semaphore(0), control
        self.error: BaseException | None = None
        self.done = self._ended = False
        self.thread = threading.Thread(target=self._run, args=(task,), daemon=True)
        self.thread.start()

    def pause(self) -> None:
        """Let the others work; return when it is this one's turn again."""
        self.control.release()
        self._wait()

    def end(self) -> None:
        """See to it that the thread ends, at its next pause at the latest."""
        self._ended = True
        self.turn.release()
        self.thread.join()

    def _wait(self) -> None:
        self.turn.acquire()
        if self._ended:
            raise TurnsEnded

    def _run(self, task: Callable[[Pause], Result]) -> None:
        try:
            self._wait()
            self.result = task(self.pause)
        except TurnsEnded:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self.control.release()
