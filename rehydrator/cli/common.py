"""What the verbs share: options, opening a bundle, progress."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rehydrator.cli import printable
from rehydrator.core.errors import UsageError
from rehydrator.host import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options
    from rehydrator.engine import Known
    from rehydrator.oci.reference import Reference
    from rehydrator.store.files import Files

# Where the bundle lies inside its own container.
IN_CONTAINER = Path("/bundle")

# Seconds after which a directory that is not locked is nobody's.
_MOMENT = 60

_ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}

bundle_option = click.option(
    "--bundle",
    "bundle_reference",
    metavar="REF",
    help="The bundle: oci:DIR[:TAG], oci-archive:FILE, dir:DIR, docker://HOST/REPO:TAG, "
    "containers-storage:NAME. Default: the container that this runs in.",
)
reference_argument = click.argument("reference", metavar="[REF]", required=False)
key_option = click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PUB",
    help="Refuse a bundle that this public key did not sign.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
tmpdir_option = click.option(
    "--tmpdir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where temporary files go.",
)


def all_cores() -> int:
    """Processors that this process may use; in a container, its share of them."""
    from rehydrator.bundle.cgroup import cpus

    cores = len(os.sched_getaffinity(0))
    return min(cores, cpus() or cores)


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=all_cores,
    show_default="all cores, as many as a container may use",
    help="Threads.",
)


def parse_size(text: str) -> int:
    """Bytes, as podman takes them: 512m, 2g; a number alone is bytes."""
    lower = text.lower().removesuffix("b").removesuffix("i")
    unit = _UNITS.get(lower[-1:], 0)
    number = lower[:-1] if unit else lower
    if not number.isascii() or not number.isdigit():
        raise click.BadParameter(f"{text!r} is no size; write 512m or 2g", param_hint="--memory")
    return int(number) << unit


_UNITS = {"k": 10, "m": 20, "g": 30}

memory_option = click.option(
    "--memory",
    type=parse_size,
    metavar="SIZE",
    help="Memory to use, such as 512m, outside of encoders of published forms; one thread needs 128m. "
    "Default: 300m, and more from five threads on.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Say how digests are checked.")


def engine_options(jobs: int, memory: int | None, *, silent: bool = False, **more: Any) -> Options:
    """How to make images, with --jobs and --memory; says it, unless `silent`, where the user's cannot
    be. `more` are those of Options."""
    from rehydrator.bundle.memory import FLOOR, default_memory
    from rehydrator.bundle.rehydrate import Options

    taken = default_memory(jobs) if memory is None else max(memory, FLOOR)
    options = Options(jobs, memory=taken, **more)
    named = click.get_current_context().get_parameter_source("jobs") is ParameterSource.COMMANDLINE
    if memory is not None and memory < taken and not silent:
        _say(f"--memory is {human(memory)}, and one thread needs {human(taken)}: so much is used")
    if named and options.workers < jobs and not silent:
        much = f"{human(taken)} of memory are enough for {_threads(options.workers)}"
        _say(f"{much}, not for --jobs {jobs}; --memory gives more")
    return options


def say_how(bundle: Bundle, outputs: Sequence[Output], options: Options, *, in_order: bool = False) -> None:
    """Say by how many threads, and how, the digests of some outputs are checked. `in_order`: they are
    made for a pipe."""
    from rehydrator.bundle.making import segments_of
    from rehydrator.bundle.rehydrate import has_streams
    from rehydrator.codecs import sha256

    taken = f"{_threads(options.workers)}, {human(options.memory)} of memory"
    click.echo(f"{taken}; SHA-256 by {sha256.library()}", err=True)
    for output in outputs:
        parts = len(segments_of(bundle, output.form))
        how = f"in {parts} parts, {'as they come, in order' if in_order else 'side by side'}"
        if parts == 1 or has_streams(bundle, output):
            how = "in sequence"
        click.echo(f"{printable(output.form.name)}: hashed {how}", err=True)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _say(message: str) -> None:
    click.echo(f"rehydrator: {message}", err=True)


def host_arch() -> str:
    """This machine's architecture as stream metadata spells it."""
    machine = platform.machine().lower()
    return _ARCH_NAMES.get(machine, machine)


@contextmanager
def opened(
    option: str | None, argument: str | None, key: Path | None, tmpdir: Path | None, memory: int = 0
) -> Iterator[Bundle]:
    """The bundle that the user means, its signature checked where there is a key. `memory`: see
    trusted()."""
    from rehydrator.oci.reference import open_bundle

    with open_bundle(reference_of(option, argument), scratch(tmpdir)) as files:
        yield trusted(files, key, scratch(tmpdir), memory=memory)


def trusted(
    files: Files, key: Path | None, spools: Path, known: Known | None = None, memory: int = 0
) -> Bundle:
    """The bundle in `files`; nothing of it is parsed before a signature fits `key`. What its
    encoders make is kept in `spools`; `known` has what they made already; frames that are kept
    decoded take a part of `memory` (bytes; 0: the default)."""
    from rehydrator.bundle.memory import cache_size
    from rehydrator.bundle.reader import Bundle, read_signatures, read_signed
    from rehydrator.engine import DEFAULT_CACHE

    if key:
        from rehydrator.oci.signature import load_public_key, verify

        verify(read_signed(files), read_signatures(files).values(), load_public_key(key))
    cache = cache_size(memory) if memory else DEFAULT_CACHE
    return Bundle(files, cache, run=run_filter, spools=spools, known=known)


def run_filter(argv: Sequence[str], pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What a program makes of some bytes; its door is opened when it is needed."""
    from rehydrator.host import filters

    return filters.run_filter(argv, pieces)


def scratch(tmpdir: Path | None) -> Path:
    """Where temporary files go, if there are any: most bundles are read where they lie, also
    where nothing can be written (tempfile.gettempdir() fails there).
    """
    if tmpdir:
        return tmpdir
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - only named, never written


def reference_of(option: str | None, argument: str | None = None) -> Reference:
    """The reference that the user gave, or this container's own bundle."""
    from rehydrator.oci.reference import parse

    if option and argument:
        raise UsageError("both REF and --bundle name a bundle; give one")
    named = option or argument or os.environ.get("REHYDRATOR_BUNDLE")
    if named:
        return parse(named)
    if (IN_CONTAINER / "bundle.json").exists():
        return parse(f"dir:{IN_CONTAINER}")
    raise UsageError("name a bundle with --bundle REF (there is none in /bundle)")


@contextmanager
def work_directory(place: Path, what: str) -> Iterator[Path]:
    """A private directory in `place` that is gone at the end, whatever happens. It is locked as
    long as we live: those of runs that were killed are not, and go now."""
    prefix = f".rehydrator-{what}-"
    _remove_abandoned(place, prefix)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Where a file system knows no locks, nobody gets one, and nothing is removed.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work
    finally:
        # Twice: a thread that was not waited for may add a last file to the first round.
        with uninterrupted():
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(place: Path, prefix: str) -> None:
    """Remove our own directories that no process has locked. A new one has no lock for a moment."""
    for path in place.glob(f"{prefix}*"):
        with suppress(OSError), _opened(path) as handle:
            status = os.fstat(handle)
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _MOMENT:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                click.echo(printable(f"{path}: removed; a run that was killed had left it"), err=True)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


class StatusLine:
    """The last line of a terminal, drawn again and again. Silent elsewhere."""

    def __init__(self) -> None:
        # stderr is None where it was closed.
        self.live = bool(sys.stderr and sys.stderr.isatty()) and os.environ.get("TERM") != "dumb"

    def show(self, line: str) -> None:
        """Draw it, cut to the terminal's width."""
        if self.live:
            # A terminal that does not know its width says 0.
            width = max(20, (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1)
            click.echo(f"\r\033[K{line[:width]}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.live:
            click.echo("\r\033[K", nl=False, err=True)


class Progress:
    """One line on a terminal: what, how far, how fast, how long still. Silent elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._started, self._shown = time.monotonic(), 0.0
        self._lock, self._line = threading.Lock(), StatusLine()

    def advance(self, steps: int, detail: str = "") -> None:
        """Some bytes are done; several threads may say so at once."""
        with self._lock:
            self._done += steps
            now = time.monotonic()
            if self._line.live and now - self._shown > 0.1:
                self._shown = now
                self._draw(now - self._started, detail)

    def clear(self) -> None:
        """Take the line away."""
        self._line.clear()

    def _draw(self, seconds: float, detail: str) -> None:
        line = self._title
        if self._total:
            rate = self._done / seconds if seconds else 0.0
            left = f"{max(0, self._total - self._done) / rate:4.0f} s left" if rate else ""
            line += f" {min(1.0, self._done / self._total):4.0%}  {human(rate)}/s  {left}"
        self._line.show(f"{line}  {detail}".rstrip())


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def table(rows: list[list[str]], right: set[int]) -> str:
    """Rows as aligned columns; the first row is the heading, `right` are columns of numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name artifacts."""
    for option in reversed(
        [
            click.option("--disk", "disks", multiple=True, metavar="PLATFORM", help="A platform's disk."),
            click.option("--iso", is_flag=True, help="The live ISO image."),
            click.option("--pxe", is_flag=True, help="Kernel, initramfs and root file system for PXE."),
            click.option("--file", "names", multiple=True, metavar="NAME", help="Any file that list shows."),
            click.option("--all", "every", is_flag=True, help="Everything."),
            click.option("--arch", help="Architecture of the disks (x86_64, aarch64, …)."),
            click.option(
                "--format",
                "formats",
                multiple=True,
                metavar="KEY",
                help="Which one, where a platform has several (qcow2, 4k.raw, …).",
            ),
        ]
    ):
        command = option(command)
    return command
