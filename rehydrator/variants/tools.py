"""What the steps from a disk to a file share: programs that must succeed, files that appear
whole or not at all, digests of files with holes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rehydrator import host
from rehydrator.core.errors import HostileInput, Interrupted, LimitExceeded, RehydratorError
from rehydrator.core.reader import data_spans
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

# Options that programs take from the environment, and the time zone of what they write.
_PLAIN: Final = {
    **dict.fromkeys(("GZIP", "TAR_OPTIONS", "XZ_DEFAULTS", "XZ_OPT", "ZIP", "ZIPOPT"), ""),
    "TZ": "UTC",
}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS: Final = tuple(os.strerror(number) for number in sorted(_FULL))
_LITTLE_SPACE: Final = 1 << 20
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def run(
    argv: Sequence[str],
    timeout: float,
    target: Path,
    cwd: Path | None = None,
    stdout: BinaryIO | None = None,
) -> None:
    """Run a program that writes `target`, at most `timeout` seconds; it must succeed.

    Raises:
        LimitExceeded: the disk is full.
        RehydratorError: it failed, crashed or did not end in time; what it said is in there.
        ToolMissing: it is not installed.
    """
    result = host.run(argv, timeout, cwd, stdout=stdout, env=_PLAIN)
    if result.status:
        raise _failure(argv[0], result, target)


def measure_output(argv: Sequence[str], timeout: float, source: Path) -> Measured:
    """Size and digest of what a program that reads `source` writes to its stdout, at most
    `timeout` seconds; it must succeed.

    Raises:
        RehydratorError: it failed, crashed or did not end in time; what it said is in there.
        ToolMissing: it is not installed.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, ThreadPoolExecutor(1) as reader:  # noqa: PTH123 - no path
        found = reader.submit(_measure_stream, pipe)
        with open(writing, "wb") as out:  # noqa: PTH123 - no path
            result = host.run(argv, timeout, stdout=out, env=_PLAIN)
        measured = found.result()
    if result.status:
        raise RehydratorError(f"{source.name}: {argv[0]} {how_it_ended(result.status)}: {result.said}")
    return measured


def _measure_stream(stream: BinaryIO) -> Measured:
    state, size = hashlib.sha256(), 0
    while piece := stream.read(_BLOCK):
        state.update(piece)
        size += len(piece)
    return Measured(size, state.hexdigest())


def how_it_ended(status: int) -> str:
    """An exit status in words; negative ones are signals, as subprocess has them."""
    if status >= 0:
        return f"ended with {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _failure(program: str, result: host.Result, target: Path) -> RehydratorError:
    """Why a program failed. Measured: qemu-img 7.2 dies of an assertion, without a word of the
    reason, when a streamOptimized VMDK fills the disk; so the place itself is asked, too."""
    said = f"{program} {how_it_ended(result.status)}: {result.said or 'it said nothing'}"
    if any(words in result.said for words in _FULL_WORDS) or _is_full(target.parent):
        return full(target, said)
    return RehydratorError(f"{target.name}: {said}")


def _is_full(directory: Path) -> bool:
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _LITTLE_SPACE


def full(target: Path, why: str) -> LimitExceeded:
    """The error of a disk without space for `target`."""
    place = target.parent
    for each in target.parents:
        if each.name.startswith(_PREFIX):
            place = each.parent
    return LimitExceeded(f"{target.name}: no space in {place}: {why}; free some, or name another place")


_PREFIX: Final = ".rehydrator-"


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A directory beside `target` that is gone at the end, with all that is still in it.

    Raises:
        LimitExceeded: the disk is full.
        RehydratorError: another error of the system.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=target.parent) as made:
            yield Path(made)
    except OSError as error:
        raise from_system(error, target) from None


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Where to write what becomes `target` when the block ends without an error: a path of the
    same name, which some formats keep inside, in a directory of its own.

    Raises:
        LimitExceeded: the disk is full.
        RehydratorError: another error of the system.
    """
    with workplace(target) as directory:
        path = directory / target.name
        yield path
        path.replace(target)


def from_system(error: OSError, target: Path) -> RehydratorError:
    """An error of the system while `target` was written."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return full(target, said)
    return RehydratorError(f"{error.filename or target}: {said}")


def measure(path: Path) -> Measured:
    """Size and digest of a file; holes are hashed without being read.

    Raises:
        HostileInput: not a regular file.
    """
    file = FileReader(path)
    try:
        state, here = hashlib.sha256(), 0
        for offset, length in [*data_spans(file), (file.size, 0)]:
            _zeros(state, offset - here)
            for at in range(offset, offset + length, _BLOCK):
                _go_on()
                state.update(file.pread(at, min(_BLOCK, offset + length - at)))
            here = offset + length
        return Measured(file.size, state.hexdigest())
    finally:
        file.close()


def _zeros(state: hashlib._Hash, count: int) -> None:
    zeros = memoryview(bytes(_BLOCK))
    for at in range(0, count, _BLOCK):
        _go_on()
        state.update(zeros[: min(_BLOCK, count - at)])


def _go_on() -> None:
    """Hashing a disk takes minutes, and an interrupt must not wait for it."""
    if host.stopped():
        raise Interrupted("interrupted")


def absolute(path: Path) -> Path:
    """An existing regular file by its absolute path, for programs that run elsewhere.

    Raises:
        HostileInput: not a regular file.
        RehydratorError: missing, or not to be reached.
    """
    try:
        found = path.resolve(strict=True)
    except OSError as error:
        raise RehydratorError(f"{path}: {error.strerror}") from None
    except RuntimeError:  # before Python 3.13: a loop of links
        raise RehydratorError(f"{path}: a loop of symbolic links") from None
    if not found.is_file():
        raise HostileInput(f"{path}: not a regular file")
    return found
