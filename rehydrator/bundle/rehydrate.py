"""Giving images back: to files, and to a pipe.

A file is written beside its target under a temporary name and takes its final name last.
A pipe gets the bytes in order, without a copy of the image anywhere.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rehydrator.bundle.making import (
    FileSource,
    Making,
    make_in_order,
    make_side_by_side,
    making,
    patiently,
    segments_of,
    views,
)
from rehydrator.bundle.memory import BASE, WORKER, available_memory, cache_size, default_memory
from rehydrator.bundle.shared import Sharing
from rehydrator.codecs import streams
from rehydrator.core.errors import Interrupted, LimitExceeded, RehydratorError
from rehydrator.engine import SpaceReader, Zeros
from rehydrator.store import writeback
from rehydrator.store.clone import block_of
from rehydrator.store.holes import allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact, Manifest, Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.shared import Sharer
    from rehydrator.core.ops import StreamRule
    from rehydrator.engine import Piece

# Blocks that wait for the writer of a pipe, in bytes.
_AHEAD = 48 << 20

# Files that are written at the same time.
_MOST_OPEN = 128

# Files that encoders make at the same time.
_MOST_IN_ORDER = 4

# What is smaller is made by one thread as well.
_SMALL = 16 << 20

# What is larger leaves the page cache as soon as it is on the disk. Measured in a virtual machine whose
# host must find the memory first: openstack's qcow2 (674 MiB) in 1.2 s instead of 1.8 to 2.8.
_LARGE = 64 << 20

_MAX_IOV = 1000
_TEMPORARY = ".rehydrator-"


@dataclass(frozen=True, slots=True)
class Options:
    """`sparse` None means: as the original file was. `jobs` counts threads that make blocks, as long
    as `memory` (bytes) is enough for them. `cache`: whether what was written stays in the page cache;
    None: what is small does, and what shares its blocks with other files."""

    jobs: int = 1
    overwrite: bool = False
    sparse: bool | None = None
    memory: int = 0
    cache: bool | None = None

    @property
    def workers(self) -> int:
        """Threads, of which each has frames of its own."""
        return max(1, min(self.jobs, self._left // WORKER))

    @property
    def ahead(self) -> int:
        """Bytes of blocks that wait for their writer."""
        return max(0, min(_AHEAD, self._left // 2))

    @property
    def _left(self) -> int:
        """Memory beside the program itself and the frames that it keeps."""
        memory = self.memory or default_memory(self.jobs)
        return memory - BASE - cache_size(memory)

    def is_sparse(self, output: Output) -> bool:
        """Whether zeros become holes."""
        return output.sparse if self.sparse is None else self.sparse

    def is_cached(self, output: Output) -> bool:
        """Whether a file that shares no blocks stays in the page cache."""
        return output.form.size < _LARGE if self.cache is None else self.cache


def check(
    bundle: Bundle,
    output: Output,
    jobs: int,
    progress: Callable[[int], object],
    *,
    others: int = 0,
    memory: int = 0,
) -> None:
    """Make an output, and compare its digest. `others` are checked beside it, or will be. `memory`: see
    Options.

    Raises:
        DigestMismatch: what is made is not what was published.
    """
    each, others = making(bundle, output), max(others, 1)
    make_ordered(bundle, each, lambda *_: None, jobs, progress, others=others, memory=memory)


def check_side_by_side(
    bundle: Bundle, outputs: Sequence[Output], options: Options, progress: Callable[[int], object]
) -> list[RehydratorError | None]:
    """The same for several, in one pass over what they are made of; what was wrong with each.

    Raises:
        OSError: the bundle cannot be read.
    """
    found: dict[int, RehydratorError | None] = {}
    makings = {}
    for number, output in enumerate(outputs):
        try:
            makings[number] = making(bundle, output)
        except RehydratorError as error:
            found[number] = error
    make_side_by_side(list(makings.values()), options.workers, progress)
    for number, each in makings.items():
        if isinstance(each.error, OSError):
            raise each.error
        found[number] = each.error
    return [found[number] for number in range(len(outputs))]


def make_ordered(
    bundle: Bundle,
    each: Making,
    write: Callable[[int, list[Piece]], object],
    jobs: int,
    progress: Callable[[int], object],
    *,
    others: int = 0,
    memory: int = 0,
) -> None:
    """Make an output in order, and give it to `write`; the streams that it needs are encoded ahead.
    `others` are made beside it: they may read the same streams, and have their part of the blocks that
    wait. `memory`: see Options.

    Raises:
        DigestMismatch: what was made is not what was published.
    """
    machine, options, end_streams = bundle.machine, Options(jobs, memory=memory), _nothing
    encoded = has_streams(bundle, each.output)
    if encoded:
        at_once = max(1, encoding(bundle, [each.output], jobs).at_once // (1 + others))
        end_streams = machine.streams_ahead(each.output.form.space or 0, at_once)
    try:
        ahead = options.ahead // (1 + others)
        make_in_order(each, write, options.workers, ahead, progress, encoded=encoded)
    except BaseException:
        end_streams()
        if not others:
            machine.streams.stop()
        raise
    finally:
        end_streams()


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


def to_directory(
    bundle: Bundle,
    outputs: Sequence[Output],
    directory: Path,
    options: Options,
    progress: Callable[[int], object],
    ended: Callable[[Output, str | RehydratorError], object],
) -> None:
    """Write outputs into `directory`, those that need no encoder in one pass over what they are made
    of. `ended` is told of each, from any thread, that it is "written", or "present" already with its
    digest, or why it failed:

    DigestMismatch: what was made is wrong; nothing has the final name.
    LimitExceeded: not enough space.
    RehydratorError: another file is in the way and `overwrite` is not set.
    """
    for at in range(0, len(outputs), _MOST_OPEN):
        with ExitStack() as stack:
            together = outputs[at : at + _MOST_OPEN]
            sharing = _sharing(bundle.manifest, together, directory, options)
            if sharing:
                stack.callback(sharing.close)
            begun = _Begun(bundle, directory, options, ended, stack, sharing)
            for output in together:
                begun.begin(output, progress)
            begun.make(progress)


def _sharing(
    manifest: Manifest, outputs: Sequence[Output], directory: Path, options: Options
) -> Sharing | None:
    """What files of one run share their blocks by, if they can. What left the page cache would be
    read from the disk to be compared."""
    if len(outputs) < 2 or options.cache is False:
        return None
    block = block_of(directory)
    if not block:
        return None
    files = {each.form.space for each in outputs}
    made_of = Counter(space for each in outputs for space in manifest.reach(each.form.space or 0))
    common = {space for space, count in made_of.items() if 2 * count > len(outputs)}
    return Sharing(block, common - files, directory)


class _Begun:
    """Files that are being made at the same time."""

    def __init__(
        self,
        bundle: Bundle,
        directory: Path,
        options: Options,
        ended: Callable[[Output, str | RehydratorError], object],
        stack: ExitStack,
        sharing: Sharing | None,
    ) -> None:
        self._bundle, self._directory, self._options = bundle, directory, options
        self._ended, self._stack, self._sharing = ended, stack, sharing
        self._reserved = 0
        self._side_by_side: list[Making] = []
        self._in_order: list[Making] = []

    def begin(self, output: Output, progress: Callable[[int], object]) -> None:
        """Open the file of an output, unless it is there, or something is in the way."""
        try:
            if not self._is_present(output, progress):
                self._begin(output)
        except RehydratorError as error:
            self._ended(output, error)
        except OSError as error:
            self._ended(output, explain_os_error(error, self._directory / output.form.name))

    def make(self, progress: Callable[[int], object]) -> None:
        """Make them all. What encoders make, mostly one thread for one file, is made meanwhile."""
        stop = threading.Event()
        pool = ThreadPoolExecutor(max(1, min(self._options.jobs, _MOST_IN_ORDER)))
        try:
            ordered = [pool.submit(self._one_in_order, each, progress, stop) for each in self._in_order]
            make_side_by_side(self._side_by_side, self._options.workers, progress)
            for future in ordered:
                patiently(future)
        except BaseException:
            stop.set()
            self._bundle.machine.streams.stop()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
        for each in self._side_by_side + self._in_order:
            if isinstance(each.error, OSError):
                self._ended(
                    each.output, explain_os_error(each.error, self._directory / each.output.form.name)
                )
            elif each.error is not None:
                self._ended(each.output, each.error)

    def _one_in_order(self, each: Making, progress: Callable[[int], object], stop: threading.Event) -> None:
        assert each.sink is not None
        if stop.is_set():
            return
        others = min(len(self._in_order), self._options.jobs, _MOST_IN_ORDER) - 1

        def go_on(length: int) -> None:
            if stop.is_set():
                raise Interrupted("interrupted")
            progress(length)

        try:
            options = self._options
            make_ordered(
                self._bundle, each, each.sink.write, options.jobs, go_on, others=others, memory=options.memory
            )
            if not stop.is_set():
                each.finish()
        except (RehydratorError, OSError) as error:
            each.error = error

    def _is_present(self, output: Output, progress: Callable[[int], object]) -> bool:
        target = self._directory / output.form.name
        if not os.path.lexists(target):
            return False
        if is_there(self._bundle, output, target, self._options):
            progress(output.form.size)
            self._ended(output, "present")
            return True
        if not self._options.overwrite:
            raise RehydratorError(f"{target} exists and is another file; --overwrite replaces it")
        return False

    def _begin(self, output: Output) -> None:
        opened = making(self._bundle, output)
        sparse = self._options.is_sparse(output)
        self._reserve(output, sparse)
        target = self._directory / output.form.name
        descriptor, temporary = self._stack.enter_context(_temporary(self._directory, output.form.name))
        sharer = self._sharer(opened, descriptor)
        if not sparse and not sharer:
            allocate(descriptor, output.form.size)
        cached = bool(sharer) or self._options.is_cached(output)
        sink = FileSink(descriptor, output.form.size, sparse, cached=cached, sharer=sharer)

        def finish() -> None:
            sink.finish(output.artifact)
            publish(temporary, target, overwrite=self._options.overwrite)
            self._ended(output, "written")

        each = replace(opened, sink=sink, finish=finish)
        chosen = self._in_order if is_made_in_order(self._bundle, each) else self._side_by_side
        chosen.append(each)

    def _sharer(self, each: Making, descriptor: int) -> Sharer | None:
        if self._sharing is None or not isinstance(each.source, SpaceReader):
            return None
        return self._sharing.sharer(descriptor, each.source)

    def _reserve(self, output: Output, sparse: bool) -> None:
        needed = output.form.data if sparse else output.form.size
        status = os.statvfs(self._directory)
        free = max(status.f_bavail * status.f_frsize - self._reserved, 0)
        if free < needed:
            raise LimitExceeded(
                f"{self._directory}: {output.form.name} needs {needed} bytes and {free} are free; "
                "free some space, or choose another DEST"
            )
        self._reserved += needed


def is_made_in_order(bundle: Bundle, each: Making) -> bool:
    """Whether an output is made from its beginning: encoders' streams, and large files whose parts
    cannot be checked each."""
    return has_streams(bundle, each.output) or (len(each.segments) == 1 and each.output.form.size > _SMALL)


def has_streams(bundle: Bundle, output: Output) -> bool:
    """Whether something of an output is encoded in order."""
    manifest = bundle.manifest
    return any(manifest.streams_of(number) for number in manifest.reach(output.form.space or 0))


def _nothing() -> None:
    """End what was not begun."""


class FileSink:
    """Writes pieces at their places in a file; runs of zeros stay holes where `sparse`. What other
    files have already comes from them, with a `sharer`."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        sparse: bool,
        *,
        cached: bool = True,
        sharer: Sharer | None = None,
    ) -> None:
        self.descriptor, self._size, self.sparse = descriptor, size, sparse
        self._sharer = sharer
        self._dropped = None if cached else writeback.Dropped(descriptor)

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Write pieces that follow each other from `offset` on; from any thread."""
        run: list[memoryview] = []
        start = here = offset
        for piece in pieces:
            if isinstance(piece, Zeros) and self.sparse:
                self.flush(run, start)
                run, start = [], here + piece.length
            else:
                run += views(piece)
            here += _length(piece)
            if len(run) >= _MAX_IOV:
                self.flush(run, start)
                run, start = [], here
        self.flush(run, start)
        writeback.begin(self.descriptor, offset, here - offset)
        if self._dropped:
            self._dropped.add(offset, here - offset)

    def finish(self, artifact: Artifact) -> None:
        """Size, mode and time as recorded, and all of it on the disk."""
        if self._sharer:
            self._sharer.withdraw()
        os.ftruncate(self.descriptor, self._size)
        os.fchmod(self.descriptor, artifact.mode)
        os.utime(self.descriptor, (artifact.mtime, artifact.mtime))
        os.fsync(self.descriptor)
        if self._dropped:
            self._dropped.finish()

    def flush(self, run: list[memoryview], start: int) -> None:
        """Write some bytes that follow each other."""
        if self._sharer:
            self._sharer.write(run, start, self._put)
        else:
            self._put(run, start)

    def _put(self, run: list[memoryview], start: int) -> None:
        while run:
            written = os.pwritev(self.descriptor, run[:_MAX_IOV], start)
            start += written
            run = _after(run, written)


class PipeSink:
    """Writes pieces to a descriptor that cannot seek."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write pieces, all of them."""
        run = [view for piece in pieces for view in views(piece)]
        while run:
            run = _after(run, self._put(run[:_MAX_IOV]))

    def _put(self, run: list[memoryview]) -> int:
        try:
            return os.writev(self._descriptor, run)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _explain_pipe_error(error) from error


def to_pipe(
    bundle: Bundle,
    outputs: list[Output],
    descriptor: int,
    jobs: int,
    progress: Callable[[int], object] = lambda _: None,
    memory: int = 0,
) -> None:
    """One output as its bytes; several as a pax tar, whose end marker comes only when every
    member had its digest. `memory`: see Options.

    Raises:
        DigestMismatch: bytes that were written already are wrong.
    """
    sink = PipeSink(descriptor)

    def make(output: Output) -> None:
        each = making(bundle, output)
        make_ordered(bundle, each, lambda _, pieces: sink.write(pieces), jobs, progress, memory=memory)

    try:
        if len(outputs) == 1:
            make(outputs[0])
            return
        for output in outputs:
            sink.write([memoryview(_tar_header(output))])
            make(output)
            sink.write([Zeros(-output.form.size % 512)])
        sink.write([Zeros(1024)])
    except BrokenPipeError:
        raise RehydratorError("standard output was closed by its reader before the end") from None


def explain_os_error(error: OSError, target: Path) -> RehydratorError:
    """An error of the file system as one of ours: what, where, and what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"writing {target}: {error.strerror}; free some space, or choose another DEST")
    return RehydratorError(f"{error.filename or target}: {error.strerror}")


def _explain_pipe_error(error: OSError) -> RehydratorError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(
            f"standard output: {error.strerror}; free some space where it goes, or redirect it elsewhere"
        )
    return RehydratorError(f"standard output: {error.strerror}")


def _tar_header(output: Output) -> bytes:
    import tarfile

    member = tarfile.TarInfo(output.form.name)
    member.size, member.mtime, member.mode = output.form.size, output.artifact.mtime, output.artifact.mode
    return member.tobuf(tarfile.PAX_FORMAT)


def _length(piece: Piece) -> int:
    return piece.length if isinstance(piece, Zeros) else len(piece)


def _after(run: list[memoryview], written: int) -> list[memoryview]:
    """What is left of `run` behind its first `written` bytes."""
    for index, view in enumerate(run):
        if written < len(view):
            return [view[written:], *run[index + 1 :]]
        written -= len(view)
    return []


def is_there(bundle: Bundle, output: Output, target: Path, options: Options) -> bool:
    """Whether a file is there already, with its digest."""
    if target.is_symlink() or not target.is_file() or target.stat().st_size != output.form.size:
        return False
    with target.open("rb") as file:
        there = Making(output, FileSource(file.fileno()), segments_of(bundle, output.form))
        make_side_by_side([there], options.workers, lambda _: None)
    return there.error is None


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


def publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
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
