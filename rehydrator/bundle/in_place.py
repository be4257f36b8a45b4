"""An image at hand, most often an older one, turned into an output where it lies. What it has right
already is neither read from the bundle nor written.

It is compared first, under its own name and untouched; it is called NAME.bad from its first byte
that changes until all of it is right; then it gets NAME.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from rehydrator.bundle.making import Making, make_side_by_side, making, views
from rehydrator.bundle.rehydrate import (
    FileSink,
    explain_os_error,
    is_made_in_order,
    is_there,
    make_ordered,
    publish,
)
from rehydrator.core.errors import Interrupted, LimitExceeded, RehydratorError, UsageError
from rehydrator.engine import Zeros
from rehydrator.store.holes import punch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.bundle.chain import Segment
    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options
    from rehydrator.engine import Piece

# What a file is called that is no longer the old image, and not yet the new one.
BAD = ".bad"


class Update(NamedTuple):
    """What came of the old file, and the bytes of it that were right already; "present": the new
    file was there, and the old one stays as it was."""

    status: Literal["updated", "present"]
    right: int


def update(
    bundle: Bundle,
    output: Output,
    old: Path,
    directory: Path,
    options: Options,
    progress: Callable[[int], object],
    *,
    dry_run: bool = False,
) -> Update:
    """Turn the file `old` into `directory`'s file of an output. From the first byte that changes
    until all is verified its name ends in ".bad". With `dry_run` it is only looked at.

    Raises:
        UsageError: `old` is no file that can be one, nothing in it is of the output (and neither
            `options.overwrite` is set nor is it what such a run left), or something is in the way.
        LimitExceeded: there is no room for what it has not; it is as it was.
        RehydratorError: it failed; the message says whether what is left is called ".bad", which can
            be given as `old` again.
    """
    target = directory / output.form.name
    bad = directory / (output.form.name + BAD)
    each = making(bundle, output)
    _check_old(old, directory)
    if not _is(target, old.lstat()) and is_there(bundle, output, target, options):
        progress(output.form.size)
        return Update("present", 0)
    for there in (target, bad):
        _check_way(old, there, options)
    descriptor = _opened(old)
    try:
        return _Work(bundle, each, descriptor, old, target, bad, options).run(progress, dry_run=dry_run)
    finally:
        os.close(descriptor)


# --- what is looked at before anything is compared -------------------------------------------------


def _check_old(old: Path, directory: Path) -> None:
    status = old.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"--in-place {old}: not a regular file")
    if status.st_nlink > 1:
        raise UsageError(f"--in-place {old}: has another name, too (a hard link), which would change with it")
    # A dry run does not make a directory.
    place = directory if directory.is_dir() else directory.parent
    if status.st_dev != place.stat().st_dev:
        raise UsageError(f"--in-place {old}: lies on another file system than {directory}")


def _check_way(old: Path, there: Path, options: Options) -> None:
    if not os.path.lexists(there) or _is(there, old.lstat()):
        return
    if stat.S_ISDIR(there.lstat().st_mode):
        raise UsageError(f"{there} is a directory; move it away")
    if not options.overwrite:
        raise UsageError(f"{there} exists and is another file; --overwrite replaces it")


def _opened(old: Path) -> int:
    """The file to be changed, which nobody else uses."""
    try:
        descriptor = os.open(old, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise explain_os_error(error, old) from None
    try:
        # What holds the disk of a machine that runs (qemu), or another run of ours, has a lock.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Others: a file system that has no locks.
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            os.close(descriptor)
            raise UsageError(f"--in-place {old}: another program uses it; end that first") from None
    return descriptor


# --- what it has -----------------------------------------------------------------------------------


class _OldSource:
    """An old file as what a Making is made of: cut, or with zeros behind it, as it will be."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.has_data = False

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Its bytes, and zeros. What is cut short meanwhile, too, is found when it is made."""
        data = os.pread(self._descriptor, length, offset)
        self.has_data = self.has_data or data.count(0) < len(data)
        yield memoryview(data)
        if len(data) < length:
            yield Zeros(length - len(data))


class _Comparison:
    """Which parts of an output a file has: `right` are the bytes of those, `wrong` the others;
    `is_of_use` where one that is right has a byte that is not zero."""

    def __init__(self, each: Making, descriptor: int, options: Options) -> None:
        parts = [Making(each.output, _OldSource(descriptor), [segment]) for segment in each.segments]
        make_side_by_side(parts, options.workers, lambda _: None)
        for part in parts:
            if isinstance(part.error, OSError):
                raise part.error
        good = [part for part in parts if part.error is None]
        self.right = sum(part.segments[0].length for part in good)
        self.wrong = [part.segments[0] for part in parts if part.error is not None]
        self.is_of_use = any(isinstance(part.source, _OldSource) and part.source.has_data for part in good)


def _has_data(descriptor: int) -> bool:
    """Whether a file has anything to lose: it is not empty, and more than a hole."""
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno != errno.ENXIO
    return True


# --- how it becomes the new one --------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """An old file, open and nobody else's, on its way to be an output."""

    bundle: Bundle
    each: Making
    descriptor: int
    old: Path
    target: Path
    bad: Path
    options: Options

    def run(self, progress: Callable[[int], object], *, dry_run: bool) -> Update:
        try:
            found = _Comparison(self.each, self.descriptor, self.options)
            self._check_use(found)
            self._check_room(found)
            progress(found.right)
            if not dry_run:
                self._change(found.wrong, progress)
        except (RehydratorError, OSError, KeyboardInterrupt) as error:
            raise self._in_words(error) from None
        return Update("updated", found.right)

    def _check_use(self, found: _Comparison) -> None:
        size = os.fstat(self.descriptor).st_size
        is_it = not found.wrong and size == self.each.output.form.size
        if is_it or found.is_of_use or self.options.overwrite or self._is_bad():
            return
        if _has_data(self.descriptor):
            raise UsageError(
                f"nothing in {self.old} is of {self.each.output.form.name}; rehydrate into a directory, "
                "or say --overwrite"
            )

    def _check_room(self, found: _Comparison) -> None:
        """Blocks that the file has are used again. More may be needed still, where it has some for
        zeros, or shares some with other files."""
        form, sparse = self.each.output.form, self.options.is_sparse(self.each.output)
        missing = (form.data if sparse else form.size) - os.fstat(self.descriptor).st_blocks * 512
        if sparse:
            # Where a file system compresses, its blocks say little.
            missing = min(missing, sum(segment.length for segment in found.wrong))
        status = os.fstatvfs(self.descriptor)
        free = status.f_bavail * status.f_frsize
        if missing > free:
            raise LimitExceeded(
                f"--in-place {self.old}: {form.name} needs {missing} bytes more than it has, and {free} "
                "are free; free some space"
            )

    def _change(self, wrong: list[Segment], progress: Callable[[int], object]) -> None:
        output, sparse = self.each.output, self.options.is_sparse(self.each.output)
        sink = _UpdatedSink(self, sparse)
        if os.fstat(self.descriptor).st_size != output.form.size or not sparse:
            sink.begin()
        _make(self.bundle, replace(self.each, segments=wrong, sink=sink), self.options, progress)
        sink.finish(output.artifact)
        self._publish()

    def begin(self, *, sparse: bool) -> None:
        """It is called bad from now on, and gets its size and room."""
        size = self.each.output.form.size
        if not self._is_bad():
            publish(self.old, self.bad, overwrite=True)
        os.ftruncate(self.descriptor, size)
        if size and not sparse:
            os.posix_fallocate(self.descriptor, 0, size)

    def _publish(self) -> None:
        name = self.bad if self._is_bad() else self.old
        if _is(self.target, os.fstat(self.descriptor)):
            return
        publish(name, self.target, overwrite=self.options.overwrite)
        # Without `overwrite` it got its new name beside the old one.
        name.unlink(missing_ok=True)

    def _is_bad(self) -> bool:
        """Whether it is called so; by this run, or by one before."""
        return _is(self.bad, os.fstat(self.descriptor))

    def _in_words(self, error: RehydratorError | OSError | KeyboardInterrupt) -> RehydratorError:
        is_bad = self._is_bad()
        words = _in_words(error, self.bad if is_bad else self.old)
        if is_bad:
            left = f"{self.bad} is neither the old image nor the new one: give it to --in-place again"
        elif isinstance(words, UsageError) or not _is(self.old, os.fstat(self.descriptor)):
            return words
        else:
            left = f"{self.old} is as it was"
        return type(words)(f"{words}; {left}")


def _is(path: Path, status: os.stat_result) -> bool:
    return os.path.lexists(path) and os.path.samestat(path.lstat(), status)


def _in_words(error: RehydratorError | OSError | KeyboardInterrupt, name: Path) -> RehydratorError:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, RehydratorError):
        return error
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"writing {name}: {error.strerror}; free some space")
    return explain_os_error(error, name)


def _make(bundle: Bundle, each: Making, options: Options, progress: Callable[[int], object]) -> None:
    if not each.segments:
        return
    assert each.sink is not None
    if is_made_in_order(bundle, each):
        make_ordered(bundle, each, each.sink.write, options.jobs, progress, memory=options.memory)
        return
    make_side_by_side([each], options.workers, progress)
    if each.error is not None:
        raise each.error


class _UpdatedSink(FileSink):
    """A file in which zeros have to be written, or made holes; its name changes with its first byte."""

    def __init__(self, work: _Work, sparse: bool) -> None:
        super().__init__(
            work.descriptor,
            work.each.output.form.size,
            sparse,
            cached=work.options.is_cached(work.each.output),
        )
        self._work, self._lock, self._begun = work, threading.Lock(), False

    def begin(self) -> None:
        """Bytes will change from now on; from any thread."""
        with self._lock:
            if not self._begun:
                self._work.begin(sparse=self.sparse)
                self._begun = True

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Write pieces that follow each other from `offset` on; from any thread."""
        self.begin()
        if self.sparse:
            self._make_zero(offset, pieces)
        super().write(offset, pieces)

    def _make_zero(self, offset: int, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            length = piece.length if isinstance(piece, Zeros) else len(piece)
            if isinstance(piece, Zeros) and not punch(self.descriptor, offset, length):
                self.flush(views(piece), offset)
            offset += length
