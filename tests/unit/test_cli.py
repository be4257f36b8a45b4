"""Verbs, exit codes and messages: what the command line makes of errors."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest

import rehydrator.cli as package
from rehydrator.cli import VERBS, cli, main, printable
from rehydrator.cli.common import Progress, human, reference_of, scratch, table
from rehydrator.core import errors
from rehydrator.core.errors import RehydratorError, UsageError, worst_exit_code
from rehydrator.host import uninterrupted

if TYPE_CHECKING:
    from pathlib import Path


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(package.cli, "main", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RehydratorError("x"), 1),
        (UsageError("x"), 2),
        (errors.NotInBundle("x"), 4),
        (errors.DigestMismatch("x"), 5),
        (errors.SignatureMissing("x"), 6),
        (errors.SignatureWrong("x"), 7),
        (errors.Unexplained("x"), 8),
        (errors.LimitExceeded("x"), 9),
        (errors.ToolMissing("x"), 10),
        (errors.RegistryError("x"), 11),
        (errors.NetworkError("x"), 12),
        (OSError(errno.ENOSPC, "x"), 9),
        (OSError(errno.EDQUOT, "x"), 9),
        (OSError(errno.EFBIG, "x"), 9),
        (OSError(errno.EACCES, "x", "file"), 1),
        (MemoryError(), 9),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("x"), 2),
        (click.FileError("x", "y"), 1),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    as_json: bool,
) -> None:
    """Each error owns its exit code; with --json it is one document on stderr."""
    failing(monkeypatch, error)
    assert main(["list", "--json"] if as_json else ["list"]) == code
    out, said = capsys.readouterr()
    assert out == ""
    if as_json:
        assert json.loads(said)["code"] == code
    else:
        assert said.strip()


def test_hostile_text_is_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be printed is escaped on stderr: escapes, direction marks, half characters."""
    failing(monkeypatch, RehydratorError("a\x1b[2Jb\u202ec\udcffd\x00"))
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "rehydrator: a\\x1b[2Jb\\u202ec\\udcffd\\x00\n"
    assert printable("é\n\N{SNOWMAN} ") == "é\n\N{SNOWMAN} "


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 0),
        ([0, 0], 0),
        ([4], 4),
        ([130], 130),
        ([1, 0], 3),
        ([9, 4, 0], 3),
        ([8, 0, 5, 9], 5),
        ([0, 7], 7),
    ],
)
def test_worst_exit_code(codes: list[int], expected: int) -> None:
    """One artifact: its own; several: 3, or the lowest of 5 to 8."""
    assert worst_exit_code(codes) == expected


def test_every_verb_is_imported_late_and_found() -> None:
    """The table of verbs is what help lists, and each has a command of its name."""
    context = click.Context(cli)
    assert cli.list_commands(context) == sorted(VERBS)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        assert command.name == verb
        assert command.help
    assert cli.get_command(context, "nothing") is None


def test_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The option, the argument, the environment, the container's own bundle; never two at once."""
    monkeypatch.setattr("rehydrator.cli.common.IN_CONTAINER", tmp_path)
    monkeypatch.setenv("REHYDRATOR_BUNDLE", "oci:environment")
    assert str(reference_of("oci:option")) == "oci:option"
    assert str(reference_of(None, "oci:argument:t")) == "oci:argument:t"
    assert str(reference_of(None, None)) == "oci:environment"
    monkeypatch.delenv("REHYDRATOR_BUNDLE")
    with pytest.raises(UsageError, match="--bundle"):
        reference_of(None)
    with pytest.raises(UsageError, match="give one"):
        reference_of("oci:a", "oci:a")
    (tmp_path / "bundle.json").touch()
    assert str(reference_of(None)) == f"dir:{tmp_path}"


def test_scratch_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a writable place has a name for one, and no error before it is needed."""

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert str(scratch(None)) == "/tmp"
    assert scratch(tmp_path) == tmp_path


def test_human() -> None:
    """Sizes for people."""
    given = (0, 1023, 1024, 1536, 5 << 20, 3 << 30, 7 << 40, 1 << 60)
    assert [human(size) for size in given] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 GiB", "7.0 TiB", "1048576.0 TiB"),
    ]


def test_table() -> None:
    """Columns are aligned, numbers to the right, nothing behind the last word."""
    assert table([["A", "SIZE"], ["long", "1"], ["x", "100"]], {1}) == "A     SIZE\nlong     1\nx      100"


def test_signals_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal amid cleaning up waits for its end, and is not lost."""
    done = []

    def work(*_: object, **__: object) -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned")
        done.append("not reached")

    monkeypatch.setattr(package.cli, "main", work)
    assert main(["list"]) == 130
    assert done == ["cleaned"]


def test_an_interrupt_in_a_destructor_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops exceptions of destructors; Ctrl-C still ends the program."""

    class Fragile:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work(*_: object, **__: object) -> None:
        Fragile()
        time.sleep(5)

    monkeypatch.setattr(package.cli, "main", work)
    assert main(["list"]) == 130


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress into a file, on a dumb terminal, or where stderr is closed."""
    for stream, term in ((io.StringIO(), "xterm"), (Terminal(), "dumb"), (None, "xterm")):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", term)
        progress = Progress("x", 10)
        progress.advance(5)
        progress.clear()
        assert stream is None or stream.getvalue() == ""
