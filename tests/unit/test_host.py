"""Programs, run to their end through pipes with limits."""

from __future__ import annotations

import time

import pytest

from rehydrator import host
from rehydrator.core.errors import LimitExceeded, RehydratorError
from rehydrator.host import pipes


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
