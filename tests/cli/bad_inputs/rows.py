"""What a row of the tables is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """A command that is run in the small project of ``project/``, and what is right.

    Args:
        id: The input in short.
        argv: Command and options.
        code: The exit code: 2 for what cannot be used, 1 for a run that failed, 0 for what is accepted.
        says: What the one line on stderr must contain; of an accepted command all that it prints.
        files: Files to lay into the project, by their path in it.
        prepare: Lays what is not a plain file: folders of runs, for one. It is called in the project.
        leaves: Globs of what may be new in the project afterwards; nothing else may, and nothing there may change.
        lines: Lines on stderr, ``None`` if any number is right (a sweep names each failed run); by default one if the
            command fails, and any number if it is accepted.
        check: What else must hold afterwards; it is called in the project's folder with all that was printed.
    """

    id: str
    argv: tuple[str, ...]
    code: int = 2
    says: tuple[str, ...] = ()
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    leaves: tuple[str, ...] = ()
    lines: int | None = -1
    check: Callable[[str], None] | None = None

    @property
    def expected_lines(self) -> int | None:
        """Lines on stderr."""
        return self.lines if self.lines != -1 else 1 if self.code else None


@dataclass(frozen=True)
class Call:
    """A call of the Python API, and what is right.

    Args:
        id: The input in short.
        call: Makes the call. If it is accepted, it checks the result by itself.
        says: What the message must contain; ``None`` if the call is accepted.
        error: The exception's class.
    """

    id: str
    call: Callable[[], object]
    says: tuple[str, ...] | None
    error: type[Exception] = ValueError
