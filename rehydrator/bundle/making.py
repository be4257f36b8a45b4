"""Making outputs. Nothing counts as done before its digest matched.

side by side   segments between chaining values, each made, hashed, checked and written at its
               place by one worker; for what can be written anywhere. Segments of several outputs
               that are made of the same frames are made one after the other.
in order       blocks made ahead and hashed by workers, and given to one writer; for pipes, and
               for what encoders make from its beginning.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from rehydrator.bundle import chain
from rehydrator.codecs import sha256
from rehydrator.core.errors import DigestMismatch, RehydratorError
from rehydrator.engine import BLOCK, SpaceReader, Zeros, turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rehydrator.bundle.chain import Segment, SegmentHash
    from rehydrator.bundle.manifest import Form, Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.engine import Piece

# Smaller pieces of zeros stay in the processor's cache while they are hashed.
_ZEROS = memoryview(bytes(256 << 10))

# Blocks that wait for their writer, zeros among them.
_BLOCKS_AHEAD = 256

# Threads that make an output in order, on however many cores. Its bytes ahead, 48 MiB at most (see
# Options.ahead), are 12 blocks with data; the others hash zeros, of several segments at once. What is
# made side by side has as many threads as it is given.
_MAX_THREADS = 64

# Threads for each that is at work: two to four blocks come from one frame, and all but one wait for it.
# Were all at work where none waits, they would decode each other's frames out of the cache: measured, aws'
# VMDK, two cores, frames of 16 MiB: 326 of them instead of 85, of 53 that there are; 30 s of processor
# time instead of 24.
_THREADS = 4

# How soon an interrupt is noticed at the latest: one that arrives just before the main thread
# sleeps wakes nobody.
_MOMENT = 0.1

_T = TypeVar("_T")


class Source(Protocol):
    """What the bytes come from."""

    def pieces(self, offset: int, length: int) -> Iterator[Piece]: ...


class FileSource:
    """A file that is there already, as what a Making is made of."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Its bytes; what is cut short fails its digest."""
        yield memoryview(os.pread(self._descriptor, length, offset))


class PlacedSink(Protocol):
    """Takes the pieces of one output at their places, from several threads."""

    def write(self, offset: int, pieces: Sequence[Piece]) -> None: ...


@dataclass
class Making:
    """An output on its way. `finish` is called once, by the worker that has checked the last of it;
    `error` is why it failed, if it did."""

    output: Output
    source: Source
    segments: list[Segment]
    sink: PlacedSink | None = None
    finish: Callable[[], None] = lambda: None
    error: RehydratorError | OSError | None = None
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.left = len(self.segments)


def making(
    bundle: Bundle, output: Output, sink: PlacedSink | None = None, finish: Callable[[], None] = lambda: None
) -> Making:
    """Open an output to be made.

    Raises:
        RehydratorError: the bundle cannot give it back here.
    """
    reader = bundle.open_form(output.artifact, output.form)
    return Making(output, reader, segments_of(bundle, output.form), sink, finish)


def segments_of(bundle: Bundle, form: Form) -> list[Segment]:
    """The parts of a form that can be checked each; the whole, where none can be here."""
    boundaries = bundle.boundaries(form) if sha256.is_available() else ()
    return chain.segments(boundaries, form.size)


# --- side by side --------------------------------------------------------------------------------


class _Runs:
    """Tasks in order, handed out so that each worker goes through a row of them; who has none left
    takes the second half of the longest row. Neighbours share frames: two workers on neighbours
    would wait for each other's."""

    def __init__(self, count: int, workers: int) -> None:
        self._rows = [[count * k // workers, count * (k + 1) // workers] for k in range(workers)]
        self._lock = threading.Lock()

    def next(self, worker: int) -> int | None:
        """The number of this worker's next task; None at the end."""
        with self._lock:
            mine = self._rows[worker]
            if mine[0] == mine[1]:
                other = max(self._rows, key=lambda row: row[1] - row[0])
                middle = (other[0] + other[1]) // 2
                mine[:], other[1] = [middle, other[1]], middle
            if mine[0] == mine[1]:
                return None
            mine[0] += 1
            return mine[0] - 1


def make_side_by_side(makings: Sequence[Making], workers: int, progress: Callable[[int], object]) -> None:
    """Make several outputs; each has its `error` at the end."""
    tasks = [(each, segment) for each in makings for segment in each.segments]
    if len(makings) > 1:
        tasks.sort(key=lambda task: _home(task[0].source, task[1].offset))
    workers = max(1, min(workers, len(tasks)))
    runs, stop = _Runs(len(tasks), workers), threading.Event()

    def work(worker: int) -> None:
        while not stop.is_set() and (number := runs.next(worker)) is not None:
            _attempt(*tasks[number], stop, progress)

    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = {pool.submit(work, worker) for worker in range(workers)}
            while waiting:
                done, waiting = wait(waiting, _MOMENT, FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:
            stop.set()


def _home(source: Source, offset: int) -> tuple[int, int]:
    if not isinstance(source, SpaceReader):
        return 0, offset
    try:
        return source.machine.home(source.space, offset)
    except (RehydratorError, OSError):
        # It fails again, and alone, when it is made.
        return 0, offset


def _attempt(
    each: Making, segment: Segment, stop: threading.Event, progress: Callable[[int], object]
) -> None:
    """Make a segment, and with the last one finish the output."""
    try:
        if each.error is None:
            _make(each, segment, stop, progress)
        with each.lock:
            each.left -= 1
            is_last = not each.left
        if is_last and each.error is None and not stop.is_set():
            each.finish()
    except (RehydratorError, OSError) as error:
        each.error = each.error or error


def _make(each: Making, segment: Segment, stop: threading.Event, progress: Callable[[int], object]) -> None:
    check, end = chain.SegmentHash(segment), segment.offset + segment.length
    for at in range(segment.offset, end, BLOCK):
        if stop.is_set() or each.error is not None:
            return
        length = min(BLOCK, end - at)
        pieces = list(each.source.pieces(at, length))
        hash_pieces(check, pieces)
        if each.sink is not None:
            each.sink.write(at, pieces)
        progress(length)
    _check(each.output, segment, check)


def _check(output: Output, segment: Segment, check: SegmentHash) -> None:
    form = output.form
    made = check.finish(form.sha256)
    if not made:
        return
    if not segment.behind:
        raise DigestMismatch(f"{form.name}: made bytes of SHA-256 {made}, but {form.sha256} was published")
    raise DigestMismatch(
        f"{form.name}: the bytes {segment.offset}+{segment.length} that were made are not those of the file "
        f"with SHA-256 {form.sha256} that was published"
    )


# --- in order ------------------------------------------------------------------------------------


@dataclass
class _Block:
    """A block: where it is; its pieces, once they are made, and the bytes of memory that they take;
    and that they are hashed."""

    offset: int
    length: int
    line: _Line
    number: int
    held: int
    made: Future[list[Piece]] = field(default_factory=Future)
    hashed: Future[None] = field(default_factory=Future)


class _Line:
    """The blocks of a segment, hashed in order by whichever worker brings the next one."""

    def __init__(self, output: Output, segment: Segment, count: int) -> None:
        self._output, self._segment, self._count = output, segment, count
        self._check = chain.SegmentHash(segment)
        self._next, self._busy = 0, False
        self._waiting: dict[int, _Block] = {}
        self._lock = threading.Lock()

    def add(self, block: _Block) -> None:
        """A block was made."""
        with self._lock:
            self._waiting[block.number] = block
        while (following := self._take()) is not None:
            try:
                self._hash(following)
            except BaseException as error:  # noqa: BLE001 - who waits for it raises it
                following.hashed.set_exception(error)
            with self._lock:
                self._busy = False

    def _take(self) -> _Block | None:
        with self._lock:
            if self._busy or self._next not in self._waiting:
                return None
            self._busy = True
            self._next += 1
            return self._waiting.pop(self._next - 1)

    def _hash(self, block: _Block) -> None:
        hash_pieces(self._check, block.made.result())
        if block.number == self._count - 1:
            _check(self._output, self._segment, self._check)
        block.hashed.set_result(None)


def make_in_order(
    each: Making,
    write: Callable[[int, list[Piece]], object],
    workers: int,
    ahead: int,
    progress: Callable[[int], object],
    *,
    encoded: bool = False,
) -> None:
    """Make an output and give it to `write` in order, by `workers` threads at once, those not counted
    that wait for each other's frames. Blocks of at most `ahead` bytes wait. `encoded`: blocks wait for
    encoders, which are fed from what other blocks may be making; then all threads are at work.

    The last block is held back until all was checked: what a pipe got of a bad image is cut short,
    so that whoever reads it (tar, for one) sees an unexpected end.

    Raises:
        DigestMismatch: what was made is not what was published.
    """
    blocks, waiting = _blocks(each), deque[_Block]()
    threads = min(_THREADS * max(1, workers) + 1, _MAX_THREADS)
    pool, turns = ThreadPoolExecutor(threads), threading.Semaphore(threads if encoded else max(1, workers))
    try:
        following = next(blocks, None)
        while following is not None or waiting:
            held = sum(block.held for block in waiting)
            while following is not None and len(waiting) < _BLOCKS_AHEAD and (held < ahead or not waiting):
                waiting.append(following)
                pool.submit(_run, each.source, following, turns)
                held, following = held + following.length, next(blocks, None)
            block = waiting.popleft()
            pieces = patiently(block.made)
            if following is not None or waiting:
                write(block.offset, pieces)
                patiently(block.hashed)
            else:
                patiently(block.hashed)
                write(block.offset, pieces)
            progress(block.length)
    except BaseException:
        # One that is being made may wait for minutes, for a stream that only our caller can end.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def patiently(future: Future[_T]) -> _T:
    """A result, with a look at signals in between."""
    while True:
        try:
            return future.result(_MOMENT)
        except TimeoutError:
            if future.done():
                return future.result()


def _blocks(each: Making) -> Iterator[_Block]:
    for segment in each.segments:
        places = range(segment.offset, segment.offset + segment.length, BLOCK) or range(1)
        line = _Line(each.output, segment, len(places))
        for number, at in enumerate(places):
            length = min(BLOCK, segment.offset + segment.length - at)
            yield _Block(at, length, line, number, length)


def _run(source: Source, block: _Block, turns: threading.Semaphore) -> None:
    with turn(turns):
        try:
            pieces = list(source.pieces(block.offset, block.length))
        except BaseException as error:  # noqa: BLE001 - who waits for it raises it
            block.made.set_exception(error)
            return
        block.held = sum(len(piece) for piece in pieces if not isinstance(piece, Zeros))
        block.made.set_result(pieces)
        block.line.add(block)


# --- pieces --------------------------------------------------------------------------------------


def hash_pieces(check: SegmentHash, pieces: Sequence[Piece]) -> None:
    """Hash pieces, zeros among them."""
    for piece in pieces:
        for view in views(piece):
            check.update(view)


def views(piece: Piece) -> list[memoryview]:
    """A piece as bytes in memory."""
    if not isinstance(piece, Zeros):
        return [piece]
    whole, rest = divmod(piece.length, len(_ZEROS))
    return [_ZEROS] * whole + ([_ZEROS[:rest]] if rest else [])
