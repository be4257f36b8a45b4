"""Giving images back: workers make blocks ahead, the caller's thread hashes them in order,
one more writes them. Nothing counts as done before its digest matched.

A file is written beside its target under a temporary name and takes its final name last.
A pipe gets the bytes in order, without a copy of the image anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError
from rehydrator.engine import Zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact
    from rehydrator.bundle.reader import Bundle
    from rehydrator.engine import Machine, Piece

BLOCK = 4 << 20
_AHEAD = 3
_MAX_WORKERS = 24
_ZEROS = memoryview(bytes(1 << 20))
_MAX_IOV = 1000
_TEMPORARY = ".rehydrator-"


@dataclass(frozen=True, slots=True)
class Options:
    """`sparse` None means: as the original file was. `jobs` counts threads that make blocks."""

    jobs: int = 1
    overwrite: bool = False
    sparse: bool | None = None


class Sink(Protocol):
    """Takes the pieces of one output, in order."""

    def write(self, pieces: list[Piece]) -> None: ...


def blocks(machine: Machine, space: int, jobs: int) -> Iterator[list[Piece]]:
    """The pieces of a space, block by block, in order; few blocks are made at once and few
    more wait, so that memory does not grow with the image.

    Four blocks come from one frame, and all but one of their workers wait for it; so there
    are twice as many workers as `jobs`, for the next frame to be decoded meanwhile.
    """
    workers = min(2 * jobs, _MAX_WORKERS)
    size = machine.space(space).size
    waiting: deque[Future[list[Piece]]] = deque()
    offsets = iter(range(0, size, BLOCK))

    def make(offset: int) -> list[Piece]:
        return list(machine.pieces(space, offset, min(BLOCK, size - offset)))

    with ThreadPoolExecutor(workers) as pool:
        try:
            for offset in offsets:
                waiting.append(pool.submit(make, offset))
                if len(waiting) > workers + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def produce(
    bundle: Bundle, artifact: Artifact, sink: Sink | None, jobs: int, progress: Callable[[int], object]
) -> None:
    """Make the artifact's image form, give it to `sink`, and check its digest.

    The last block is held back until the digest matched: what a pipe got of a bad image is cut
    short, so that whoever reads it (tar, for one) sees an unexpected end.

    Raises:
        DigestMismatch: what was made is not what was published.
    """
    reader = bundle.reader(artifact)
    state = hashlib.sha256()
    held: list[Piece] = []
    with _writer(sink) as write:
        for pieces in blocks(reader.machine, reader.space, jobs):
            write(held)
            for piece in pieces:
                _hash(state, piece)
            progress(sum(_length(piece) for piece in pieces))
            held = pieces
        _check_digest(artifact, state.hexdigest())
        write(held)


def _check_digest(artifact: Artifact, made: str) -> None:
    if made != artifact.image.sha256:
        raise DigestMismatch(
            f"{artifact.image.name}: made bytes of SHA-256 {made}, but {artifact.image.sha256} was published"
        )


def to_directory(
    bundle: Bundle,
    artifact: Artifact,
    directory: Path,
    options: Options,
    progress: Callable[[int], object] = lambda _: None,
) -> bool:
    """Write the artifact into `directory`; False where it was there already, with its digest.

    Raises:
        DigestMismatch: what was made is wrong; nothing has the final name.
        LimitExceeded: not enough space.
        RehydratorError: another file is in the way and `overwrite` is not set.
    """
    target = directory / artifact.image.name
    if os.path.lexists(target):
        if _is_done(target, artifact):
            return False
        if not options.overwrite:
            raise RehydratorError(f"{target} exists and is another file; --overwrite replaces it")
    _check_space(directory, artifact, options)
    with _temporary(directory, artifact.image.name) as (descriptor, temporary):
        sparse = artifact.sparse if options.sparse is None else options.sparse
        try:
            sink = FileSink(descriptor, artifact.image.size, sparse)
            produce(bundle, artifact, sink, options.jobs, progress)
            sink.finish(artifact)
        except OSError as error:
            raise explain_os_error(error, target) from error
        _publish(temporary, target, options.overwrite)
    return True


class FileSink:
    """Writes pieces at their place in a file; runs of zeros stay holes where `sparse`."""

    def __init__(self, descriptor: int, size: int, sparse: bool) -> None:
        self._descriptor, self._size, self._sparse = descriptor, size, sparse
        self._offset = 0

    def write(self, pieces: list[Piece]) -> None:
        run: list[memoryview] = []
        start = self._offset
        for piece in pieces:
            if isinstance(piece, Zeros) and self._sparse:
                self._flush(run, start)
                run, start = [], self._offset + piece.length
            else:
                run += _views(piece)
            self._offset += _length(piece)
            if len(run) >= _MAX_IOV:
                self._flush(run, start)
                run, start = [], self._offset
        self._flush(run, start)

    def finish(self, artifact: Artifact) -> None:
        """Size, mode and time as recorded, and all of it on the disk."""
        os.ftruncate(self._descriptor, self._size)
        os.fchmod(self._descriptor, artifact.mode)
        os.utime(self._descriptor, (artifact.mtime, artifact.mtime))
        os.fsync(self._descriptor)

    def _flush(self, run: list[memoryview], start: int) -> None:
        while run:
            written = os.pwritev(self._descriptor, run[:_MAX_IOV], start)
            start += written
            run = _after(run, written)


class PipeSink:
    """Writes pieces to a descriptor that cannot seek."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, pieces: list[Piece]) -> None:
        run = [view for piece in pieces for view in _views(piece)]
        while run:
            run = _after(run, os.writev(self._descriptor, run[:_MAX_IOV]))


def to_pipe(
    bundle: Bundle,
    artifacts: list[Artifact],
    descriptor: int,
    jobs: int,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """One artifact as its bytes; several as a pax tar, whose end marker comes only when every
    member had its digest.

    Raises:
        DigestMismatch: bytes that were written already are wrong.
    """
    sink = PipeSink(descriptor)
    try:
        if len(artifacts) == 1:
            produce(bundle, artifacts[0], sink, jobs, progress)
            return
        for artifact in artifacts:
            sink.write([memoryview(_tar_header(artifact))])
            produce(bundle, artifact, sink, jobs, progress)
            sink.write([Zeros(-artifact.image.size % 512)])
        sink.write([Zeros(1024)])
    except BrokenPipeError:
        raise RehydratorError("standard output was closed by its reader before the end") from None


def explain_os_error(error: OSError, target: Path) -> RehydratorError:
    """An error of the file system as one of ours: what, where, and what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"writing {target}: {error.strerror}; free some space, or choose another DEST")
    return RehydratorError(f"{error.filename or target}: {error.strerror}")


def _tar_header(artifact: Artifact) -> bytes:
    import tarfile

    member = tarfile.TarInfo(artifact.image.name)
    member.size, member.mtime, member.mode = artifact.image.size, artifact.mtime, artifact.mode
    return member.tobuf(tarfile.PAX_FORMAT)


def _hash(state: hashlib._Hash, piece: Piece) -> None:
    if not isinstance(piece, Zeros):
        state.update(piece)
        return
    for view in _views(piece):
        state.update(view)


def _views(piece: Piece) -> list[memoryview]:
    if not isinstance(piece, Zeros):
        return [piece]
    whole, rest = divmod(piece.length, len(_ZEROS))
    return [_ZEROS] * whole + ([_ZEROS[:rest]] if rest else [])


def _length(piece: Piece) -> int:
    return piece.length if isinstance(piece, Zeros) else len(piece)


def _after(run: list[memoryview], written: int) -> list[memoryview]:
    """What is left of `run` behind its first `written` bytes."""
    for index, view in enumerate(run):
        if written < len(view):
            return [view[written:], *run[index + 1 :]]
        written -= len(view)
    return []


@contextmanager
def _writer(sink: Sink | None) -> Iterator[Callable[[list[Piece]], None]]:
    """Runs the sink in a thread of its own, one block ahead of which the caller may be."""
    if sink is None:
        yield lambda _: None
        return
    waiting: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(1)

    def write(pieces: list[Piece]) -> None:
        waiting.append(pool.submit(sink.write, pieces))
        if len(waiting) > 1:
            waiting.popleft().result()

    patient = True
    try:
        yield write
        while waiting:
            waiting.popleft().result()
    except KeyboardInterrupt:
        # A pipe whose reader sleeps would hold Ctrl-C up for ever; a file's block is soon written.
        patient = not isinstance(sink, PipeSink)
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=not patient)


def _is_done(target: Path, artifact: Artifact) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != artifact.image.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == artifact.image.sha256


def _check_space(directory: Path, artifact: Artifact, options: Options) -> None:
    sparse = artifact.sparse if options.sparse is None else options.sparse
    needed = artifact.image.data if sparse else artifact.image.size
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise explain_os_error(error, directory) from error
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise LimitExceeded(
            f"{directory}: {artifact.image.name} needs {needed} bytes and {free} are free; "
            "free some space, or choose another DEST"
        )


@contextmanager
def _temporary(directory: Path, name: str) -> Iterator[tuple[int, Path]]:
    """A new file beside the target, gone at the end unless it was published."""
    try:
        # 50 letters are at most 200 bytes; a file system takes names of 255.
        descriptor, path = tempfile.mkstemp(prefix=f"{_TEMPORARY}{name[:50]}.", dir=directory)
    except OSError as error:
        raise explain_os_error(error, directory) from error
    from pathlib import Path

    temporary = Path(path)
    try:
        yield descriptor, temporary
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            temporary.unlink()


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite` never over another file."""
    try:
        if overwrite:
            temporary.replace(target)
        else:
            _rename_new(temporary, target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    with suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename_new(temporary: Path, target: Path) -> None:
    """link() refuses an existing name; file systems without links get a checked rename."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise RehydratorError(f"{target} appeared while it was made; --overwrite replaces it") from None
    except OSError:
        if os.path.lexists(target):
            raise
        temporary.rename(target)
