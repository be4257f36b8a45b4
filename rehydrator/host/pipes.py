"""Talking to a program through pipes, with limits on what it says."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import time
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import LimitExceeded

if TYPE_CHECKING:
    from typing import BinaryIO

# What anybody of ours reads from a program in one piece; tables of directories are the largest.
MAX_OUTPUT: Final = 256 << 20
KEPT_STDERR: Final = 4000
_CHUNK: Final = 64 << 10


class Talk:
    """What is said to a program and by it: stdout whole, up to a limit, and the end of stderr."""

    def __init__(self, program: subprocess.Popen[bytes], given: bytes) -> None:
        self._program, self._left = program, memoryview(given)
        self.said, self.complained = bytearray(), bytearray()

    def to_the_end(self, timeout: float) -> None:
        """Until the program ended.

        Raises:
            LimitExceeded: it says more than anybody wants to hear.
            subprocess.TimeoutExpired: it did not end within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as waiting:
            for pipe, event in self._pipes():
                waiting.register(pipe, event)
            while waiting.get_map():
                ready = waiting.select(min(1.0, self._rest(deadline)))
                if not ready and self._program.poll() is not None:
                    break  # it ended, and what it left running holds its pipes
                for key, _ in ready:
                    if not self._served(key.fileobj):  # type: ignore[arg-type]
                        waiting.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
        self._program.wait(self._rest(deadline))

    def _pipes(self) -> list[tuple[BinaryIO, int]]:
        program = self._program
        ends = [
            (program.stdin, selectors.EVENT_WRITE),
            (program.stdout, selectors.EVENT_READ),
            (program.stderr, selectors.EVENT_READ),
        ]
        return [(pipe, event) for pipe, event in ends if pipe is not None]  # type: ignore[misc]

    def _rest(self, deadline: float) -> float:
        rest = deadline - time.monotonic()
        if rest <= 0:
            raise subprocess.TimeoutExpired(self._program.args, 0)
        return rest

    def _served(self, pipe: BinaryIO) -> bool:
        """Whether there will be more for this pipe."""
        if pipe is self._program.stdin:
            return self._feed(pipe)
        data = os.read(pipe.fileno(), _CHUNK)
        if pipe is self._program.stdout:
            self.said += data
            if len(self.said) > MAX_OUTPUT:
                raise LimitExceeded(f"says more than {MAX_OUTPUT} bytes")
        else:
            self.complained += data
            del self.complained[:-KEPT_STDERR]
        return bool(data)

    def _feed(self, pipe: BinaryIO) -> bool:
        try:
            # A pipe that is writable takes this much without blocking.
            taken = os.write(pipe.fileno(), self._left[: select.PIPE_BUF]) if self._left else 0
        except BrokenPipeError:
            return False
        self._left = self._left[taken:]
        return bool(self._left)
