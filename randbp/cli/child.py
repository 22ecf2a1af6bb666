"""Child processes that end when their parent ends, for whatever reason, together with all that they have started.

:func:`start` starts this file as a script, as the leader of a process group, in which it starts the command. When the
command ends, it ends the same way. When the parent's pipe ends, the parent is gone, and the whole group is killed.
Should this process itself be killed alone, Linux kills the command. To start fast it imports Python's modules alone.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, NoReturn

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str], lifeline: int, environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a command that ends when this process ends, which alone has the ``lifeline``'s writing end."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(lifeline), *command],
        pass_fds=[lifeline],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit code of a command, which leaves nothing running if it failed; ``None`` while it runs."""
    # The number of the group cannot be another one's before the process has been waited for.
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    if found.si_code != os.CLD_EXITED or found.si_status != 0:
        _kill(process.pid)
    return process.wait()


def stop(processes: "Sequence[subprocess.Popen[bytes]]", number: signal.Signals, patience: float) -> None:
    """Send a signal to commands, wait for them to end, and kill those that do not."""
    for process in processes:
        send(process, number)
    deadline = time.monotonic() + patience
    while (left := [it for it in processes if it.returncode is None and ended(it) is None]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    for process in left:
        _kill(process.pid)
        process.wait()


def send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal to all of a command's processes, if it is still running."""
    if process.returncode is None:
        os.killpg(process.pid, number)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in it
        os.killpg(group, signal.SIGKILL)


def main(lifeline: int, command: Sequence[str]) -> NoReturn:
    """Run a command, and exit as it exits."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the command gets it as well, and decides

    def end_with_me() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def end_with_parent() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    try:
        # There is no other thread yet, so that the child may call a function before it becomes the command.
        process = subprocess.Popen(command, preexec_fn=end_with_me if sys.platform == "linux" else None)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    threading.Thread(target=end_with_parent, daemon=True).start()
    code = process.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
