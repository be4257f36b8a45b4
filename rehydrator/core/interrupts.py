"""The signals that end a run in good order."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def take_interrupts(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Let `handler` have them from now on. A hang-up that is ignored stays ignored: whoever began
    us with nohup wants that."""
    for number in INTERRUPTS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
