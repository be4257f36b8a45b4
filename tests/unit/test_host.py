"""Programs, run to their end through pipes with limits, and threads waited for."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rehydrator import host
from rehydrator.core.errors import LimitExceeded, RehydratorError
from rehydrator.host import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_everything_is_passed_on() -> None:
    """More than a pipe holds goes in and comes out unchanged, while it is being said."""
    data = bytes(range(256)) * 4096
    assert host.run(["cat"], 60, stdin=data) == host.Result(0, data, "")


def test_the_end_of_stderr_is_kept() -> None:
    """A program that complains without end costs no memory: its last words are kept."""
    done = host.run(["sh", "-c", "yes complaint | head -c 3000000 >&2; echo last >&2; exit 3"], 60)
    assert (done.status, len(done.said) <= 4000, done.said[-4:]) == (3, True, "last")


def test_a_program_that_says_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, with its name in the error."""
    monkeypatch.setattr(pipes, "MAX_OUTPUT", 1 << 20)
    with pytest.raises(LimitExceeded, match="yes: says more than 1048576 bytes"):
        host.run(["yes"], 60)


def test_a_program_that_does_not_listen() -> None:
    """What it does not read is no error of ours."""
    assert host.run(["true"], 60, stdin=bytes(1 << 20)).status == 0


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&-; sleep 60", "exec <&- >&- 2>&-; sleep 60"])
def test_time_is_up(script: str) -> None:
    """A program that does not end is ended, also when it closed its pipes."""
    started = time.monotonic()
    with pytest.raises(RehydratorError, match="did not end within"):
        host.run(["sh", "-c", script], 0.3)
    assert time.monotonic() - started < 30


def test_what_a_program_left_running() -> None:
    """Whoever holds its pipes longer than it lives is not waited for."""
    started = time.monotonic()
    assert host.run(["sh", "-c", "echo said; sleep 60 & exit 3"], 50) == host.Result(3, b"said\n", "")
    assert time.monotonic() - started < 30


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGTERM is an interrupt, as it is for the program."""

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    yield
    signal.signal(signal.SIGTERM, before)


def test_results_come_as_threads_end() -> None:
    """Not in the order in which they began."""
    first_may_end = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Future[object]] = [
            pool.submit(first_may_end.wait, 60),
            pool.submit(lambda: "second"),
        ]
        ended = host.as_they_end(waiting)
        assert next(ended) == "second"
        first_may_end.set()
        assert list(ended) == [True]


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_that_wakes_nobody() -> None:
    """A signal that does not wake the main thread, as one that comes just before it sleeps, is
    noticed although the thread that is waited for goes on."""
    may_end = threading.Event()

    def work() -> None:
        time.sleep(0.5)  # the main thread sleeps meanwhile
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        may_end.wait(20)

    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            list(host.as_they_end([pool.submit(work)]))
        took = time.monotonic() - started
        may_end.set()
    assert took < 10


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_at_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that arrives when threading.Condition has its lock, and has not said so yet, does not
    leave it taken: the thread can say that it ended."""
    enter: Any = threading.Condition.__enter__

    def interrupted_enter(condition: threading.Condition) -> object:
        entered = enter(condition)
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(threading.Condition, "__enter__", enter)
            signal.raise_signal(signal.SIGTERM)
        return entered

    may_end = threading.Event()
    pool = ThreadPoolExecutor(1)
    waiting = pool.submit(may_end.wait, 60)
    monkeypatch.setattr(threading.Condition, "__enter__", interrupted_enter)
    with pytest.raises(KeyboardInterrupt):
        list(host.as_they_end([waiting]))
    may_end.set()
    pool.shutdown(wait=False)
    assert waiting.result(timeout=20) is True
