"""An image at hand, most often an older one, turned into an output where it lies. What it has right
already is neither read from the bundle nor written."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from rehydrator.bundle.making import FileSource, Making, make_side_by_side, making, views
from rehydrator.bundle.rehydrate import FileSink, explain_os_error, is_made_in_order, make_ordered, publish
from rehydrator.core.errors import Interrupted, RehydratorError, UsageError
from rehydrator.engine import Zeros
from rehydrator.store.holes import punch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options
    from rehydrator.engine import Piece

# What a file is called that is no longer the old image, and not yet the new one.
BAD = ".bad"


def update(
    bundle: Bundle,
    output: Output,
    old: Path,
    directory: Path,
    options: Options,
    progress: Callable[[int], object],
) -> int:
    """Turn the file `old` into `directory`'s file of an output; the bytes of it that were right
    already. Until all is verified its name ends in ".bad".

    Raises:
        UsageError: `old` is no file that can be one, or something is in the way.
        RehydratorError: it failed, and what is left is called ".bad"; it can be given as `old` again.
    """
    target = directory / output.form.name
    bad = directory / (output.form.name + BAD)
    each = making(bundle, output)
    _check(old, target, bad, options)
    descriptor = _opened(old)
    try:
        publish(old, bad, overwrite=True)
        return _replace(bundle, each, descriptor, bad, target, options, progress)
    finally:
        os.close(descriptor)


def _check(old: Path, target: Path, bad: Path, options: Options) -> None:
    status = old.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"--in-place {old}: not a regular file")
    if status.st_nlink > 1:
        raise UsageError(f"--in-place {old}: has another name, too (a hard link), which would change with it")
    if status.st_dev != target.parent.stat().st_dev:
        raise UsageError(f"--in-place {old}: lies on another file system than {target.parent}")
    for there in (target, bad):
        if not os.path.lexists(there) or os.path.samestat(there.lstat(), status):
            continue
        if stat.S_ISDIR(there.lstat().st_mode):
            raise UsageError(f"{there} is a directory; move it away")
        if not options.overwrite:
            raise UsageError(f"{there} exists and is another file; --overwrite replaces it")


def _opened(old: Path) -> int:
    """The file to be changed, which nobody else uses; before it loses its name."""
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


def _replace(
    bundle: Bundle,
    each: Making,
    descriptor: int,
    bad: Path,
    target: Path,
    options: Options,
    progress: Callable[[int], object],
) -> int:
    try:
        right = _update(bundle, each, descriptor, options, progress)
        publish(bad, target, overwrite=options.overwrite)
        # Without `overwrite` it got its new name beside the old one.
        bad.unlink(missing_ok=True)
    except (RehydratorError, OSError, KeyboardInterrupt) as error:
        words = _in_words(error, bad)
        if not bad.exists():
            raise words from None
        raise type(words)(
            f"{words}; {bad} is neither the old image nor the new one: give it to --in-place again"
        ) from None
    return right


def _in_words(error: RehydratorError | OSError | KeyboardInterrupt, bad: Path) -> RehydratorError:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    return explain_os_error(error, bad) if isinstance(error, OSError) else error


def _update(
    bundle: Bundle, each: Making, descriptor: int, options: Options, progress: Callable[[int], object]
) -> int:
    size, sparse = each.output.form.size, options.is_sparse(each.output)
    os.ftruncate(descriptor, size)
    if size and not sparse:
        os.posix_fallocate(descriptor, 0, size)
    there = [Making(each.output, FileSource(descriptor), [segment]) for segment in each.segments]
    make_side_by_side(there, options.workers, lambda _: None)
    right = sum(part.segments[0].length for part in there if part.error is None)
    progress(right)
    sink = _UpdatedSink(descriptor, size, sparse)
    wrong = [part.segments[0] for part in there if part.error is not None]
    _make(bundle, replace(each, segments=wrong, sink=sink), options, progress)
    sink.finish(each.output.artifact)
    return right


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
    """A file in which zeros have to be written, or made holes."""

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Write pieces that follow each other from `offset` on; from any thread."""
        if not self.sparse:
            super().write(offset, pieces)
            return
        for piece in pieces:
            length = piece.length if isinstance(piece, Zeros) else len(piece)
            if not isinstance(piece, Zeros) or not punch(self.descriptor, offset, length):
                self.flush(views(piece), offset)
            offset += length
