"""The command line: one file per verb, imported when it is called. Data goes to stdout, talk
to stderr; errors become exit codes and JSON here and nowhere else."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rehydrator import __version__
from rehydrator.core.errors import Interrupted, LimitExceeded, RehydratorError, UsageError
from rehydrator.core.interrupts import take_interrupts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

VERBS = {
    "build": "build",
    "info": "info",
    "keygen": "keygen",
    "list": "listing",
    "nbd": "nbd",
    "print-stream-json": "stream_json",
    "rehydrate": "rehydrate",
    "report": "report",
    "stream": "stream",
    "variants": "variants",
    "verify": "verify",
}

# Where an exception may leave a lock taken for ever, in the standard library.
_LOCKING = ("__enter__", "__exit__", "_acquire_restore", "_release_save")
_LOCKING_MODULES = ("/threading.py", "/concurrent/futures/_base.py")

EXIT_STATUS = """\b
Exit status: 0 done, 1 failure, 2 usage, 3 some artifacts failed, 4 not in this bundle,
5 digest mismatch, 6 signature missing, 7 signature wrong, 8 hostile or malformed input,
9 out of space or limits, 10 a needed program is missing, 11 registry, 12 network,
130 interrupted."""


class Verbs(click.Group):
    """Verbs and their modules below rehydrator.cli, each imported when it is called; each has a
    click command of that name."""

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        module = importlib.import_module(f"rehydrator.cli.{self._modules[cmd_name]}")
        command: click.Command = module.command
        command.epilog = EXIT_STATUS
        return command


@click.group(
    cls=Verbs,
    modules=VERBS,
    epilog=EXIT_STATUS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="rehydrator")
def cli() -> None:
    """Every disk image of a release from one signed container, bit for bit."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    take_interrupts(_interrupted)
    sys.unraisablehook = _unraisable
    as_json = "--json" in (arguments if arguments is not None else sys.argv)
    try:
        return _run(arguments, as_json)
    except Exception:
        # What an interrupt breaks off may raise something else in its place: a class that is
        # being made when a module is imported, for one.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            raise
        return fail(Interrupted("interrupted"), as_json)


def _run(arguments: list[str] | None, as_json: bool) -> int:
    try:
        result = cli.main(arguments, prog_name="rehydrator", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        if as_json:
            return fail(UsageError(error.format_message()), as_json)
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        return fail(RehydratorError(error.format_message()), as_json)
    except (KeyboardInterrupt, click.Abort):
        return fail(Interrupted("interrupted"), as_json)
    except RehydratorError as error:
        return fail(error, as_json)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except (OSError, MemoryError) as error:
        return fail(_from_system(error), as_json)
    return result if isinstance(result, int) else 0


def fail(error: RehydratorError, as_json: bool) -> int:
    """Report an error on stderr; its exit code."""
    if as_json:
        report = {"message_type": "exit_error", "code": error.exit_code, "message": str(error)}
        click.echo(json.dumps(report), err=True)
    else:
        click.echo(f"rehydrator: {printable(str(error))}", err=True)
    return error.exit_code


def program() -> NoReturn:
    """The console script."""
    code = main()
    ended = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # as a server is, with 0
    # All is done: a signal during Python's own end changes nothing any more.
    take_interrupts(signal.SIG_IGN)
    if code or ended:
        # Threads may be in the middle of minutes of encoding; nobody waits for them.
        from rehydrator import host

        host.stop_all()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _from_system(error: OSError | MemoryError) -> RehydratorError:
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if full or isinstance(error, MemoryError):
        return LimitExceeded(f"{describe(error)}; free some, or name another place with --tmpdir")
    return RehydratorError(describe(error))


def describe(error: OSError | MemoryError) -> str:
    """An error of the system in words."""
    if isinstance(error, MemoryError):
        return "out of memory"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def printable(text: str) -> str:
    """Text from outside, fit for a terminal: what cannot be printed is escaped."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text
    )


def _interrupted(number: int, frame: FrameType | None) -> None:
    """The first signal begins the cleaning up, and a second one does not cut it short.

    One that arrives while a lock changes hands waits for a moment: raised there, it leaves the lock
    taken, and a thread that we wait for waits for the lock (one in 150 of those that hit waiting
    for results, measured).
    """
    if frame is not None and _changes_a_lock(frame):
        _once_more(number)
        return
    take_interrupts(signal.SIG_IGN)
    raise KeyboardInterrupt


def _changes_a_lock(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name in _LOCKING and code.co_filename.endswith(_LOCKING_MODULES)


def _once_more(number: int) -> None:
    """Whoever handles the signal by then handles it in a moment."""

    def again(_: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, frame)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised while it collects garbage, and an interrupt would be lost with
    it (one in a hundred, measured); so it is raised once more, in a moment.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _interrupted)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(unraisable)


def _silence_stdout() -> None:
    """What Python still wants to flush at exit has no reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
