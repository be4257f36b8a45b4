"""The program, as `rehydrator` and as `python -m rehydrator`."""

import os
from typing import NoReturn

from rehydrator.core.interrupts import take_interrupts

_INTERRUPTED = 130


def program() -> NoReturn:
    """Run the command line; a signal before it is even imported ends in silence, too."""
    take_interrupts(lambda *_: os._exit(_INTERRUPTED))
    from rehydrator import cli

    cli.program()


if __name__ == "__main__":
    program()
