"""Programs as filters: bytes go in while what the program makes of them comes out, within limits.

One thread does both, through pipes that never block, so that an error of whoever gives the bytes
is an error of the filter, closing the filter ends the program, and nothing is left to wait for.
The pipes hold 1 MiB each way where the kernel allows it: a program at 30 MB/s works on for 30 ms
while we are busy with something else.
"""

from __future__ import annotations

import fcntl
import os
import resource
import selectors
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import Interrupted, RehydratorError
from rehydrator.host import printable, started, stopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

STALL: Final = 600.0
"""Seconds for which a program may neither take nor give a byte; time that those who give it bytes
or take its own need is not counted."""

MEMORY: Final = 512 << 20
"""Bytes of address space of a filter."""

NO_OPTIONS: Final = dict.fromkeys(
    ("GZIP", "PIGZ", "ZIP", "ZIPOPT", "XZ_OPT", "XZ_DEFAULTS", "BZIP", "BZIP2"), ""
)
"""Variables that hold options of compressors: empty, so that only the arguments count."""

_PIPE = 1 << 20
_PIECE = 64 << 10
_KEPT_STDERR = 1000


def run_filter(argv: Sequence[str], chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What a program makes of `chunks`, in pieces of 64 KiB to 1 MiB (the last may be smaller).

    The chunks are taken as the program takes them. It writes no files, has 512 MiB of memory, and
    is ended when the iterator is closed or `chunks` raises. It is not limited in what it writes:
    whoever takes that knows when it is too much, and closes the iterator.

    Raises:
        ToolMissing: it is not installed; names the Debian package.
        Interrupted: stop_all() ended it.
        RehydratorError: it failed, did not take all of its input, or stood still for ten minutes;
            the end of what it said on stderr is in the message.
    """
    pipe = subprocess.PIPE
    with started(argv, NO_OPTIONS, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/") as program:
        _limit(program.pid)
        flow = _Flow(program, argv[0], chunks)
        yield from flow.pieces()
        flow.finish()


def _limit(pid: int) -> None:
    """No memory beyond `MEMORY`, no files, no core dump. A sandbox that forbids to set limits
    has its own, and a program that ended needs none."""
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            resource.prlimit(pid, what, (most, most))


class _Flow:
    """Bytes on their way into a program and out of it."""

    def __init__(self, program: subprocess.Popen[bytes], name: str, chunks: Iterable[bytes]) -> None:
        self._program, self._name, self._chunks = program, name, iter(chunks)
        self._left = memoryview(b"")
        self._complained = bytearray()
        self._refused = False

    def pieces(self) -> Iterator[bytes]:
        """What the program writes, until it closes its stdout."""
        held = bytearray()
        with selectors.DefaultSelector() as waiting:
            self._open(waiting)
            while waiting.get_map():
                for pipe in self._ready(waiting):
                    if not self._serve(pipe, held):
                        waiting.unregister(pipe)
                        pipe.close()
                if len(held) >= _PIECE:
                    yield bytes(held)
                    held.clear()
        if held:
            yield bytes(held)

    def finish(self) -> None:
        """Wait for the end of a program that closed its pipes.

        Raises:
            Interrupted, RehydratorError: as run_filter.
        """
        try:
            status = self._program.wait(STALL)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not end within {STALL:g} seconds") from None
        if stopped():
            raise Interrupted("interrupted")
        if status:
            raise self._error(
                f"ended by signal {-status}" if status < 0 else f"failed with exit code {status}"
            )
        if self._refused:
            raise self._error("ended before it had taken all of its input")

    def _open(self, waiting: selectors.BaseSelector) -> None:
        program = self._program
        for pipe in (program.stdin, program.stdout, program.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            with suppress(OSError):  # the user has that many pipes already
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
            event = selectors.EVENT_WRITE if pipe is program.stdin else selectors.EVENT_READ
            waiting.register(pipe, event)

    def _ready(self, waiting: selectors.BaseSelector) -> list[BinaryIO]:
        """The pipes that can be served now.

        Raises:
            RehydratorError: none could for ten minutes, or the program ended and none ever will.
        """
        deadline = time.monotonic() + STALL
        while not (ready := waiting.select(1.0)):
            if self._program.poll() is not None:
                raise self._error("ended, and left something running that holds its pipes")
            if time.monotonic() > deadline:
                raise self._error(f"stood still for {STALL:g} seconds")
        return [key.fileobj for key, _ in ready]  # type: ignore[misc]

    def _serve(self, pipe: BinaryIO, held: bytearray) -> bool:
        """Whether there will be more for this pipe."""
        if pipe is self._program.stdin:
            return self._feed(pipe)
        data = os.read(pipe.fileno(), _PIPE)
        if pipe is self._program.stdout:
            held += data
        else:
            self._complained += data
            del self._complained[:-_KEPT_STDERR]
        return bool(data)

    def _feed(self, pipe: BinaryIO) -> bool:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._left = memoryview(chunk)
        try:
            self._left = self._left[os.write(pipe.fileno(), self._left) :]
        except BrokenPipeError:
            self._refused = True
            return False
        return True

    def _error(self, what: str) -> RehydratorError:
        said = printable(bytes(self._complained))
        return RehydratorError(f"{self._name}: {what}{': ' if said else ''}{said}")
