"""Signals, as the program takes them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rehydrator import cli, host

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _as_the_program() -> None:
    assert cli.main(["--version"]) == 0


def interrupted_in(file: str, name: str) -> Callable[[], str]:
    """A function of that file and name that gets a signal."""
    names: dict[str, Callable[[], str]] = {}
    text = f"import signal\ndef {name}():\n    signal.raise_signal(signal.SIGTERM)\n    return 'went on'\n"
    exec(compile(text, file, "exec"), names)
    return names[name]


def held_back(*numbers: signal.Signals) -> None:
    with host.uninterrupted():
        for number in numbers:
            signal.raise_signal(number)


def test_an_interrupt_is_raised_where_it_arrives() -> None:
    """At once, and only the first."""
    with pytest.raises(KeyboardInterrupt):
        interrupted_in("/anywhere.py", "__enter__")()
    assert interrupted_in("/anywhere.py", "__enter__")() == "went on"


def test_not_while_a_lock_changes_hands() -> None:
    """What the standard library does with a lock is done to its end, and the interrupt comes then."""
    locking = interrupted_in(threading.__file__, "__enter__")
    assert locking() == "went on"
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(60)
    assert time.monotonic() - started < 30


def test_not_where_signals_are_held_back() -> None:
    """An interrupt that waits for a moment waits on, where signals are held back by then."""
    reached = []

    def work() -> None:
        interrupted_in(threading.__file__, "__exit__")()
        with host.uninterrupted():
            time.sleep(0.2)
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["end"]


def test_waiting_is_interrupted() -> None:
    """The frame in which a thread waits for another is no place to put an interrupt off."""
    with pytest.raises(KeyboardInterrupt):
        interrupted_in(threading.__file__, "wait")()


def test_a_hang_up_ends_in_good_order() -> None:
    """A terminal that is closed interrupts; with nohup it does not, and no other interrupt is lost."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert cli.main(["--version"]) == 0
    signal.raise_signal(signal.SIGHUP)
    held_back(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        held_back(signal.SIGHUP, signal.SIGTERM)


@pytest.mark.parametrize("code", [0, 9, 130])
def test_who_failed_waits_for_no_thread(code: int) -> None:
    """After an error, threads that work and programs that run hold nobody up."""
    text = (
        "import sys, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rehydrator import cli, host\n"
        "seconds = 0 if sys.argv[1] == '0' else 60\n"
        "pool = ThreadPoolExecutor(2)\n"
        "pool.submit(time.sleep, seconds)\n"
        "pool.submit(host.run, ['sleep', str(seconds)], 99)\n"
        "time.sleep(0.5)\n"
        "print('said', end='')\n"
        "cli.main = lambda: int(sys.argv[1])\n"
        "cli.program()\n"
    )
    started = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", text, str(code)], capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, b"said", b"")
    assert time.monotonic() - started < 20
