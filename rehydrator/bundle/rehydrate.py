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

from rehydrator.codecs import streams
from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError
from rehydrator.engine import Zeros, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact, Form, Manifest, Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.core.ops import StreamRule
    from rehydrator.engine import Piece

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


def produce(
    bundle: Bundle, output: Output, sink: Sink | None, jobs: int, progress: Callable[[int], object]
) -> None:
    """Make an output, give it to `sink`, and check its digest.

    The last block is held back until the digest matched: what a pipe got of a bad image is cut
    short, so that whoever reads it (tar, for one) sees an unexpected end.

    Raises:
        DigestMismatch: what was made is not what was published.
    """
    reader = bundle.open_form(output.artifact, output.form)
    state = hashlib.sha256()
    held: list[Piece] = []
    # Four blocks come from one frame, and all but one of their workers wait for it; so there
    # are twice as many workers as `jobs`, for the next frame to be decoded meanwhile.
    workers = min(2 * jobs, _MAX_WORKERS)
    end_streams = reader.machine.streams_ahead(reader.space, encoding(bundle, [output], jobs).at_once)
    try:
        with _writer(sink) as write:
            for pieces in blocks(reader.machine, reader.space, 0, reader.size, workers):
                write(held)
                for piece in pieces:
                    _hash(state, piece)
                progress(sum(_length(piece) for piece in pieces))
                held = pieces
            _check_digest(output, state.hexdigest())
            write(held)
    except BaseException:
        end_streams()
        if sink is not None:  # what is only checked is made beside others, which read those streams
            reader.machine.streams.stop()
        raise
    finally:
        end_streams()


def _check_digest(output: Output, made: str) -> None:
    if made != output.form.sha256:
        raise DigestMismatch(
            f"{output.form.name}: made bytes of SHA-256 {made}, but {output.form.sha256} was published"
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the stream encoders of some outputs need: the largest encoder's memory in bytes
    (0: none runs), how many run at once, and their names."""

    memory: int
    at_once: int
    names: tuple[str, ...]


def encoding(bundle: Bundle, outputs: Sequence[Output], jobs: int) -> Encoding:
    """How the streams of some outputs will be encoded: as many at once as there are `jobs`,
    and as fit into three quarters of the memory that is available."""
    manifest = bundle.manifest
    spaces = {each for output in outputs for each in manifest.reach(output.form.space or 0)}
    rules = {manifest.rules.streams[number] for each in spaces for number in manifest.streams_of(each)}
    most = max((_memory(manifest, rule) for rule in rules), default=0)
    fitting = available_memory() * 3 // 4 // most if most else jobs
    names = sorted({streams.described(rule.codec, dict(rule.params)) for rule in rules})
    return Encoding(most, max(1, min(jobs, fitting)), tuple(names))


def _memory(manifest: Manifest, rule: StreamRule) -> int:
    """What an encoder takes at most: no stream has more plain bytes than the space they are in."""
    return streams.memory(rule.codec, dict(rule.params), manifest.spaces[rule.input].size)


def available_memory() -> int:
    """Bytes that programs may still take on this machine, or in this container."""
    total, limit, used, cached = (_first_number(file, word) for file, word in _MEMORY_FACTS)
    # Pages of files that were read count as used until somebody needs the room.
    left = max(limit - max(used - cached, 0), 1) if limit else 0
    return min((each for each in (total, left) if each), default=1 << 60)


_MEMORY_FACTS = (
    ("/proc/meminfo", "MemAvailable:"),
    ("/sys/fs/cgroup/memory.max", ""),
    ("/sys/fs/cgroup/memory.current", ""),
    ("/sys/fs/cgroup/memory.stat", "inactive_file "),
)


def _first_number(file: str, word: str) -> int:
    """The number behind `word` in a file of the kernel, in bytes; 0 where there is none."""
    try:
        with open(file, encoding="ascii") as facts:  # noqa: PTH123 - pathlib is not worth its import here
            line = next((line for line in facts if line.startswith(word)), "")
    except (OSError, ValueError):
        return 0
    parts = line.removeprefix(word).split()
    if not parts or not parts[0].isdigit():
        return 0
    return int(parts[0]) * (1024 if parts[1:] == ["kB"] else 1)


def to_directory(
    bundle: Bundle,
    output: Output,
    directory: Path,
    options: Options,
    progress: Callable[[int], object] = lambda _: None,
) -> bool:
    """Write an output into `directory`; False where it was there already, with its digest.

    Raises:
        DigestMismatch: what was made is wrong; nothing has the final name.
        LimitExceeded: not enough space.
        RehydratorError: another file is in the way and `overwrite` is not set.
    """
    target = directory / output.form.name
    if os.path.lexists(target):
        if _is_done(target, output.form):
            return False
        if not options.overwrite:
            raise RehydratorError(f"{target} exists and is another file; --overwrite replaces it")
    _check_space(directory, output, options)
    with _temporary(directory, output.form.name) as (descriptor, temporary):
        sparse = output.sparse if options.sparse is None else options.sparse
        try:
            sink = FileSink(descriptor, output.form.size, sparse)
            produce(bundle, output, sink, options.jobs, progress)
            sink.finish(output.artifact)
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
    outputs: list[Output],
    descriptor: int,
    jobs: int,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """One output as its bytes; several as a pax tar, whose end marker comes only when every
    member had its digest.

    Raises:
        DigestMismatch: bytes that were written already are wrong.
    """
    sink = PipeSink(descriptor)
    try:
        if len(outputs) == 1:
            produce(bundle, outputs[0], sink, jobs, progress)
            return
        for output in outputs:
            sink.write([memoryview(_tar_header(output))])
            produce(bundle, output, sink, jobs, progress)
            sink.write([Zeros(-output.form.size % 512)])
        sink.write([Zeros(1024)])
    except BrokenPipeError:
        raise RehydratorError("standard output was closed by its reader before the end") from None


def explain_os_error(error: OSError, target: Path) -> RehydratorError:
    """An error of the file system as one of ours: what, where, and what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"writing {target}: {error.strerror}; free some space, or choose another DEST")
    return RehydratorError(f"{error.filename or target}: {error.strerror}")


def _tar_header(output: Output) -> bytes:
    import tarfile

    member = tarfile.TarInfo(output.form.name)
    member.size, member.mtime, member.mode = output.form.size, output.artifact.mtime, output.artifact.mode
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


def _is_done(target: Path, form: Form) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != form.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == form.sha256


def _check_space(directory: Path, output: Output, options: Options) -> None:
    sparse = output.sparse if options.sparse is None else options.sparse
    needed = output.form.data if sparse else output.form.size
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise explain_os_error(error, directory) from error
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise LimitExceeded(
            f"{directory}: {output.form.name} needs {needed} bytes and {free} are free; "
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
