"""The bytes of one image on their way to a block device, from any number of threads.

What is on a device in the meantime:

              0        1 MiB                              size-1 MiB    size          end
              | zeros  |  image, as it comes              | zeros       |  untouched | zeros (1 MiB) |
    commit(): | image  |                                  | image       |

The beginning and the end of the image are held back in memory until commit(): there lie boot code
and both copies of a GPT (UEFI 2.10, 5.3.2), so that nothing takes half a system for a whole one.
What other tables and RAIDs keep at the end of the device goes with its old contents.

Bytes go past the page cache (O_DIRECT). An error has its place then, nothing is left to be written
behind a progress bar that says 100 %, and reading back reads the device. Measured on a loop device,
256 MiB by two threads, fsync included: 0.12 to 0.18 s, through the page cache 0.31 to 0.73 s.

Zeros are given back to the device first, all at once, by FALLOC_FL_PUNCH_HOLE: it is the one way of
discarding that promises zeros (kernel block/fops.c, commit 25f4c41415e5). BLKDISCARD promises none,
and since Linux 4.12 the kernel no longer says which devices give them. One hole took 2 to 4 ms
on a loop device, whatever its size up to 4 MiB, so that a call for each run of zeros would cost
more than it saves. A device that cannot do it, or that was seen to lie, gets zeros written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rehydrator.core.errors import DigestMismatch, RehydratorError
from rehydrator.host import uninterrupted
from rehydrator.host.block_inspection import is_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rehydrator.host.block_inspection import Device

# How much is held back at either end, and how much is written at once: smaller writes were slower
# (256 KiB: three quarters of the speed), larger ones no faster. A multiple of every sector size.
STEP: Final = 1 << 20
# What is written last of all: boot code and the header of a GPT, for sectors of up to 4,096 bytes.
_FIRST: Final = 8 << 10
# Zeros of fewer bytes are written with their neighbours.
_WORTH_A_GAP: Final = 64 << 10
# Each piece of a large clearing can be interrupted behind it.
_CLEARED_AT_ONCE: Final = 256 << 20
_SAMPLES: Final = 64

_KEEP_SIZE_AND_PUNCH: Final = 0x01 | 0x02  # linux/falloc.h
# linux/fs.h, _IO(0x12, n); "no direction" has a bit of its own on some processors.
_NO_DIRECTION: Final = 0x20000000 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 0
_BLKRRPART: Final = _NO_DIRECTION | 0x125F
_BLKFLSBUF: Final = _NO_DIRECTION | 0x1261

_ZEROS: Final = mmap.mmap(-1, STEP)
_GONE: Final = {errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM}


class Run(Protocol):
    """A run of zero bytes."""

    @property
    def length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Written:
    """How a finished device is: zeros behind the image up to the end of its last sector, and whether
    the kernel has read the new partition table."""

    padding: int
    table_read: bool

    def notes(self, device: Device) -> list[str]:
        """What of that a user should know."""
        said = []
        if self.padding:
            said.append(f"{device}: {self.padding} zero bytes follow the image, up to the end of its sector")
        if not self.table_read:
            said.append(
                f"{device}: the kernel has not read its new partition table; unplug it, or: partprobe"
            )
        return said


class DeviceSink:
    """Takes the bytes of one image at their places, from any number of threads."""

    def __init__(self, device: Device, descriptor: int, size: int) -> None:
        self.device, self.size = device, size
        self._descriptor, self._sector = descriptor, device.sector
        self._padded = _up(size, device.sector)
        first = min(STEP, self._padded)
        last = max(first, self._padded - STEP)
        # Where the bytes between them lie, which need not wait.
        self._middle = range(first, last)
        self._held = [(0, bytearray(first)), (last, bytearray(self._padded - last))]
        self._buffers = threading.local()
        self._edges = threading.Lock()
        self._changed = threading.Condition()
        # Threads that read or write.
        self._running: set[int] = set()
        self._taken = 0
        self._zeroed = self._closed = self._failed = self._dirty = self._committed = False

    # --- what is there before anything is written

    def clear(self, *, discard: bool, progress: Callable[[int], object] = lambda _: None) -> None:
        """Zeros at the beginning and at the end, and where the device can, everywhere between."""
        self._dirty = True
        self._blank()
        if discard and len(self._middle):
            self._zeroed = self._punches() and self._punch_all(progress)
            self._blank()
        for offset, length in self._blanks():
            if not self._is_zero(offset, length):
                raise RehydratorError(
                    f"{self.device}: zeros were written at byte {offset}, and others are there; it is broken"
                )

    def _blanks(self) -> list[tuple[int, int]]:
        """Where nothing may be found by anybody: both ends of the image, and the end of the device."""
        end = max(self._padded, (self.device.size - STEP) // self._sector * self._sector)
        spans = [(offset, len(held)) for offset, held in self._held] + [(end, self.device.size - end)]
        return [(offset, length) for offset, length in spans if length]

    def _blank(self) -> None:
        for offset, length in self._blanks():
            self._to_device(offset, memoryview(_ZEROS)[:length])
        self._flush()
        self._dirty = False

    def _punches(self) -> bool:
        """Whether a hole at the beginning is zeros afterwards, where something else was before."""
        length = len(self._held[0][1])
        buffer = self._buffer()
        buffer[:length] = b"\xa5" * length
        self._dirty = True
        self._to_device(0, buffer[:length])
        self._flush()
        return self._punch(0, length) and self._is_zero(0, length)

    def _punch_all(self, progress: Callable[[int], object]) -> bool:
        """A hole between the ends; a few places of it are looked at."""
        for offset in range(self._middle.start, self._middle.stop, _CLEARED_AT_ONCE):
            length = min(_CLEARED_AT_ONCE, self._middle.stop - offset)
            if not self._punch(offset, length):
                return False
            progress(length)
        block = min(max(self._sector, mmap.PAGESIZE), len(self._middle))
        distance = _up(max(len(self._middle) // _SAMPLES, block), self._sector)
        places = [*range(self._middle.start, self._middle.stop - block, distance), self._middle.stop - block]
        return all(self._is_zero(place, block) for place in places)

    def _punch(self, offset: int, length: int) -> bool:
        """Whether the device took it; one that does not is written to, and shows there what it lacks."""
        library = ctypes.CDLL(None)
        fallocate = getattr(library, "fallocate64", None) or library.fallocate
        place, extent = ctypes.c_int64(offset), ctypes.c_int64(length)
        return bool(fallocate(self._descriptor, _KEEP_SIZE_AND_PUNCH, place, extent) == 0)

    # --- the image

    def write(self, offset: int, pieces: Sequence[memoryview | Run]) -> None:
        """Bytes of the image from `offset`. Each byte is given once.

        Raises:
            RehydratorError: the device failed, is gone, or has fewer bytes than it said.
        """
        with self._working():
            taken = 0
            for piece in pieces:
                length = len(piece) if isinstance(piece, memoryview) else piece.length
                if offset < 0 or offset + taken + length > self.size:
                    raise RehydratorError(
                        f"{self.device}: bytes from {offset} lie beyond the image's {self.size}"
                    )
                taken += length
            stage = _Stage(self._buffer(), self._sector, self._flushed)
            for piece in pieces:
                offset = self._place(stage, offset, piece)
            stage.flush()
            with self._changed:
                self._taken += taken

    def _place(self, stage: _Stage, offset: int, piece: memoryview | Run) -> int:
        """A piece, split where its bytes go to different places; where it ends."""
        length = len(piece) if isinstance(piece, memoryview) else piece.length
        end = offset + length
        for start, held in self._held:
            low, high = max(offset, start), min(end, start + len(held))
            if low < high:
                view = (
                    piece[low - offset : high - offset]
                    if isinstance(piece, memoryview)
                    else bytes(high - low)
                )
                held[low - start : high - start] = view
        low, high = max(offset, self._middle.start), min(end, self._middle.stop)
        if low < high and isinstance(piece, memoryview):
            stage.add(low, piece[low - offset : high - offset])
        elif low < high:
            self._zeros(stage, low, high)
        return end

    def _zeros(self, stage: _Stage, start: int, end: int) -> None:
        low, high = _up(start, self._sector), end // self._sector * self._sector
        if high - low < _WORTH_A_GAP:
            _fill(stage, start, end)
            return
        _fill(stage, start, low)
        stage.flush()
        if not self._zeroed:
            for offset in range(low, high, STEP):
                self._check_open()
                self._to_device(offset, memoryview(_ZEROS)[: min(STEP, high - offset)])
        _fill(stage, high, end)

    def _flushed(self, offset: int, view: memoryview) -> None:
        """Bytes of a stage to the device; sectors that it has in part are joined with what is there,
        one at a time, since the rest of them may come from another thread."""
        low, high = _up(offset, self._sector), (offset + len(view)) // self._sector * self._sector
        if low < high:
            self._to_device(low, view[low - offset : high - offset])
        low, high = min(low, offset + len(view)), max(high, offset)
        for start, end in ((offset, low), (max(low, high), offset + len(view))):
            if start < end:
                self._join(start, bytes(view[start - offset : end - offset]))

    def _join(self, offset: int, data: bytes) -> None:
        start = offset // self._sector * self._sector
        with self._edges, mmap.mmap(-1, self._sector) as block, memoryview(block) as view:
            self._read_into(start, view)
            view[offset - start : offset - start + len(data)] = data
            self._to_device(start, view)

    # --- the end

    def commit(self) -> Written:
        """Write what was held back, the first bytes last, once all the rest is on the device.

        Raises:
            RehydratorError: bytes of the image are missing, or the device failed.
        """
        with self._changed:
            complete = self._taken == self.size and not (self._failed or self._running or self._committed)
        if not complete:
            raise RehydratorError(
                f"{self.device}: {self._taken} of {self.size} bytes were written; not finished"
            )
        try:
            with self._working():
                self._flush()
                with uninterrupted():
                    self._show()
            return Written(self._padded - self.size, self._reread())
        except BaseException:
            # Whoever sees this fail, or interrupts it, shall find zeros.
            self._committed = False
            raise

    def _show(self) -> None:
        """Both ends onto the device, and back for comparison."""
        self._dirty = True
        (_, head), (last, tail) = self._held
        first = min(max(_FIRST, self._sector), len(head))
        for offset, view in ((last, tail), (first, head[first:]), (0, head[:first])):
            buffer = self._buffer()
            buffer[: len(view)] = view
            self._to_device(offset, buffer[: len(view)])
            if offset != last:
                self._flush()
        for offset, held in self._held:
            if self._from_device(offset, len(held)) != held:
                raise RehydratorError(
                    f"{self.device}: other bytes than were written are at byte {offset}; it is broken"
                )
        self._committed = True

    def verify(self, sha256: str, progress: Callable[[int], object] = lambda _: None) -> None:
        """Read the image back from the device, past the page cache, and check its digest. Before
        commit() what is held back is taken from memory; afterwards a device with other bytes gets
        zeros at its ends again.

        Raises:
            DigestMismatch: the device has other bytes.
            RehydratorError: it cannot be read.
        """
        try:
            self._verify(sha256, progress)
        except BaseException:
            self._failed, self._committed = True, False
            raise

    def _verify(self, sha256: str, progress: Callable[[int], object]) -> None:
        state = hashlib.sha256()
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.read, 0, min(STEP, self.size))
            for offset in range(0, self.size, STEP):
                data = ahead.result()
                following = offset + STEP
                ahead = pool.submit(self.read, following, max(0, min(STEP, self.size - following)))
                state.update(data)
                progress(len(data))
        if state.hexdigest() != sha256:
            raise DigestMismatch(
                f"{self.device}: SHA-256 {state.hexdigest()} is read back, and {sha256} was written; "
                "it is broken, or smaller than it says"
            )

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image as they are on the device, or held back.

        Raises:
            RehydratorError: they cannot be read.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RehydratorError(
                f"{self.device}: bytes {offset}+{length} lie beyond the image's {self.size}"
            )
        with self._working():
            made = bytearray(length)
            self._copy_middle(offset, made)
            for start, held in self._held:
                low, high = max(offset, start), min(offset + length, start + len(held))
                if low < high:
                    shown = self._from_device(start, len(held)) if self._committed else held
                    made[low - offset : high - offset] = shown[low - start : high - start]
            return bytes(made)

    def _copy_middle(self, offset: int, made: bytearray) -> None:
        low = max(offset, self._middle.start)
        high = min(offset + len(made), self._middle.stop)
        while low < high:
            start = low // self._sector * self._sector
            length = min(STEP, _up(high, self._sector) - start)
            end = min(high, start + length)
            block = self._from_device(start, length)
            made[low - offset : end - offset] = block[low - start : end - start]
            low = end

    def close(self) -> None:
        """Nobody writes any more; without commit() both ends are zeros."""
        with self._changed:
            self._closed = True
            # An interrupt may have kept this thread from signing off.
            self._running.discard(threading.get_ident())
            self._changed.wait_for(lambda: not self._running)
        if not self._committed:
            with suppress(RehydratorError):
                if self._dirty:
                    self._blank()
            self._reread()

    # --- the device

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One that reads or writes; close() waits for it."""
        try:
            with self._changed:
                self._check_open()
                self._running.add(threading.get_ident())
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            with self._changed:
                self._running.discard(threading.get_ident())
                self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise RehydratorError(f"{self.device}: it is written to no longer")

    def _buffer(self) -> memoryview:
        """Memory of this thread, at a place that O_DIRECT takes (open(2))."""
        held = getattr(self._buffers, "held", None)
        if held is None:
            held = self._buffers.held = mmap.mmap(-1, STEP)
        return memoryview(held)

    def _to_device(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                done = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                raise self._explained(f"writing at byte {offset}", error) from None
            if not done:
                raise self._explained(f"writing at byte {offset}", OSError(errno.ENOSPC, "it ends there"))
            offset, view = offset + done, view[done:]

    def _read_into(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                done = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise self._explained(f"reading at byte {offset}", error) from None
            if not done:
                raise self._explained(f"reading at byte {offset}", OSError(errno.ENOSPC, "it ends there"))
            offset, view = offset + done, view[done:]

    def _from_device(self, offset: int, length: int) -> bytes:
        buffer = self._buffer()[:length]
        self._read_into(offset, buffer)
        return bytes(buffer)

    def _is_zero(self, offset: int, length: int) -> bool:
        return self._from_device(offset, length) == bytes(length)

    def _flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._explained("flushing what was written", error) from None

    def _reread(self) -> bool:
        """Whether the kernel has read the partition table; it cannot while udev has a partition open.
        A loop device that was set up without --partscan has none that could be read (EINVAL)."""
        for delay in (0.0, 0.1, 0.3, 0.6):
            time.sleep(delay)
            try:
                fcntl.ioctl(self._descriptor, _BLKFLSBUF)
                fcntl.ioctl(self._descriptor, _BLKRRPART)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return error.errno == errno.EINVAL
            else:
                return True
        return False

    def _explained(self, doing: str, error: OSError) -> RehydratorError:
        """What, where, and what to do. Both ends of the image are zeros, and stay so."""
        # A disk that was unplugged fails as broken ones do (EIO), and sysfs no longer has it.
        if error.errno in _GONE or not is_there(self.device):
            way = "it is gone; plug it in again, and start anew"
        elif error.errno == errno.ENOSPC:
            way = (
                f"it, or what is behind it, has room for fewer bytes than the {self.device.size} that it says"
            )
        else:
            way = "it is broken or badly plugged in; the kernel's log (dmesg) has more"
        return RehydratorError(f"{self.device}: {doing}: {error.strerror}; {way}")


class _Stage:
    """Bytes in a row on their way to the device: a step of it at a time, at the same place in a
    buffer as on the device, so that sectors lie where O_DIRECT takes them."""

    def __init__(self, buffer: memoryview, sector: int, to_device: Callable[[int, memoryview], None]) -> None:
        self._buffer, self._to_device = buffer, to_device
        self._start = self._end = 0

    def add(self, offset: int, view: memoryview) -> None:
        if offset != self._end:
            self.flush()
            self._start = self._end = offset
        while view:
            at = self._end % STEP
            part = view[: STEP - at]
            self._buffer[at : at + len(part)] = part
            self._end, view = self._end + len(part), view[len(part) :]
            if self._end % STEP == 0:
                self.flush()

    def flush(self) -> None:
        """What there is, to the device."""
        start, self._start = self._start, self._end
        if start < self._end:
            at = start % STEP
            self._to_device(start, self._buffer[at : at + self._end - start])


def _fill(stage: _Stage, start: int, end: int) -> None:
    """Zeros among other bytes; fewer than two times _WORTH_A_GAP."""
    if start < end:
        stage.add(start, memoryview(_ZEROS)[: end - start])


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
