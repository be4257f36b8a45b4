"""The program, as `rehydrator` and as `python -m rehydrator`."""

import os
import signal
from typing import NoReturn

_INTERRUPTED = 130


def program() -> NoReturn:
    """Run the command line; a signal before it is even imported ends in silence, too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(_INTERRUPTED))
    from rehydrator import cli

    cli.program()


if __name__ == "__main__":
    program()
