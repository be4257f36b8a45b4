"""The only door to programs of this machine.

Programs are found by absolute path, run without a shell in the C locale, and limited in
time; what they say on stderr ends up in the error. What runs is known here, so that an
interrupt can end it, whichever thread started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

from rehydrator.core.errors import Interrupted, LimitExceeded, RehydratorError, ToolMissing
from rehydrator.core.interrupts import INTERRUPTS
from rehydrator.host.pipes import KEPT_STDERR, Talk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

_T = TypeVar("_T")

# Program -> the Debian package that has it, where the names differ.
PACKAGES: Final = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fallocate": "util-linux",
    "gpg": "gnupg",
    "mount": "mount",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "sfdisk": "fdisk",
    "umount": "mount",
    "unshare": "util-linux",
    "xz": "xz-utils",
}

# Seconds that an interrupt may wait for a thread's end.
_MOMENT: Final = 0.1

_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended; `said` is the end of its stderr, fit for a message."""

    status: int
    stdout: bytes
    said: str


def find(program: str) -> str:
    """The absolute path of a program.

    Raises:
        ToolMissing: it is not installed; names the Debian package.
    """
    search = os.pathsep.join(part for part in os.get_exec_path() if part.startswith("/"))
    found = shutil.which(program, path=f"{search}{os.pathsep}{_SYSTEM_PATH}")
    if found is None:
        package = PACKAGES.get(program, program)
        raise ToolMissing(f"{program} is not installed (on Debian: apt-get install {package})")
    return found


def run(
    argv: Sequence[str],
    timeout: float,
    cwd: Path | None = None,
    stdin: bytes | BinaryIO = b"",
    *,
    stdout: BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
    show: bool = False,
) -> Result:
    """Run a program to its end, at most `timeout` seconds, and return how it went. `stdout` is
    the file that its output goes to, `env` what its environment has more than ours. With `show`
    its stderr is ours (a program of ours that draws its progress), and nothing of it is kept.

    Raises:
        ToolMissing: it is not installed.
        Interrupted: stop_all() ended it.
        LimitExceeded: it says more than 256 MiB (it was killed).
        RehydratorError: it did not end in time (it was killed).
    """
    given = stdin if isinstance(stdin, bytes) else None
    with started(
        argv,
        cwd=cwd,
        stdin=subprocess.PIPE if given is not None else stdin,
        stdout=stdout or subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        env=env,
    ) as program:
        talk = Talk(program, given or b"")
        try:
            talk.to_the_end(timeout)
        except subprocess.TimeoutExpired:
            raise RehydratorError(f"{argv[0]}: did not end within {timeout:g} seconds") from None
        except LimitExceeded as error:
            raise LimitExceeded(f"{argv[0]}: {error}") from None
    return Result(program.returncode, bytes(talk.said), printable(bytes(talk.complained)))


_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_stopped = threading.Event()


@contextmanager
def started(
    argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A running program, which is killed when the block is left before it ended; `options` are
    subprocess.Popen's.

    Raises:
        ToolMissing: it is not installed.
        Interrupted: stop_all() was called.
    """
    program = find(argv[0])
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    running = None
    try:
        # An interrupt within Popen() would leave a program behind that nobody knows.
        with uninterrupted(), _lock:
            if _stopped.is_set():
                raise Interrupted("interrupted")
            running = subprocess.Popen([program, *argv[1:]], env=environment, **options)
            _running.add(running)
        yield running
    finally:
        if running is not None:
            with uninterrupted():
                _end(running)
                with _lock:
                    _running.discard(running)
    if _stopped.is_set():
        raise Interrupted("interrupted")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back for a moment: what is cut short there leaves something behind. They only
    ever interrupt the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    kept = {number: signal.signal(number, lambda got, _: held.append(got)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for arrived in held:
            signal.raise_signal(arrived)


def as_they_end(futures: Iterable[Future[_T]]) -> Iterator[_T]:
    """Results of threads, as they come. An interrupt is raised between two looks at them, never
    within one, and within a moment.

    Both were seen to hang for ever. An exception that a signal raises within threading.Condition
    leaves its lock taken, and the thread that wants to say that it ended waits for it. And a
    signal that arrives just before the main thread sleeps is not noticed until something wakes it.
    """
    from concurrent.futures import FIRST_COMPLETED, wait

    waiting = set(futures)
    while waiting:
        with uninterrupted():
            done, waiting = wait(waiting, _MOMENT, FIRST_COMPLETED)
            results = [future.result() for future in done]
        yield from results


def _end(program: subprocess.Popen[bytes]) -> None:
    if program.poll() is None:
        program.kill()
    program.wait()
    for pipe in (program.stdin, program.stdout, program.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def stop_all() -> None:
    """End every program that runs, and start none from now on: the user interrupted us. Threads
    that wait for one get Interrupted.
    """
    with _lock:
        _stopped.set()
        for program in _running:
            program.kill()


def stopped() -> bool:
    """Whether stop_all() was called: what fails from then on was interrupted."""
    return _stopped.is_set()


def printable(stderr: bytes) -> str:
    """The end of what a program said, fit for a message."""
    text = stderr[-KEPT_STDERR:].decode(errors="replace").strip()
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_arena() -> None:
    """Let all threads allocate from one arena, where the C library can be told so.

    glibc gives each thread an arena of its own, and frames of 16 MiB that one thread frees
    stay with it. Measured, openstack of the os release: 415 to 458 MB of memory without,
    231 to 263 MB with one arena, and half the system time.
    """
    import ctypes

    arena_max = -8
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(arena_max, 1)
