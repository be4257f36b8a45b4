"""Block devices that images are written to: a whole disk that nobody uses, or nothing.

inspect, check, confirmation, misfit    what it is, and what a user is told (block_inspection)
open_for_writing                        a DeviceSink, which takes bytes at their places (block_sink)
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import RehydratorError, UsageError
from rehydrator.host import uninterrupted
from rehydrator.host.block_inspection import (
    BEGINNING,
    Device,
    check,
    confirmation,
    inspect,
    misfit,
)
from rehydrator.host.block_sink import STEP, DeviceSink, Run, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "BEGINNING",
    "STEP",
    "Device",
    "DeviceSink",
    "Run",
    "Written",
    "check",
    "confirmation",
    "inspect",
    "misfit",
    "open_for_writing",
]

# udev looks at every device that changed, and holds its lock meanwhile.
_PATIENCE: Final = 10.0
_ANOTHER: Final = "nothing was written: it is another disk than a moment ago; look again, and start anew"


@contextmanager
def open_for_writing(
    device: Device,
    size: int,
    *,
    discard: bool = True,
    patience: float = _PATIENCE,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[DeviceSink]:
    """The device, open for an image of `size` bytes and for nobody else. Its old contents are lost
    from here on. Where the block is left without commit(), its beginning and its end are zeros.
    `discard` gives what is zero in the image back to the device, if it can do so; `progress` gets the
    bytes that were cleared then, each time: some disks are not faster at that than at writing.
    `patience` is how many seconds another program may have the device locked.

    Raises:
        UsageError: it must not be written to, or it is another device than the one inspected.
        LimitExceeded: it is smaller than the image.
        RehydratorError: it cannot be opened, or does not keep what is written.
    """
    if size <= 0:
        raise UsageError(f"{device}: an image of {size} bytes is none")
    now = inspect(device.path)
    check(now, size)
    if (now.number, now.sequence, now.size) != (device.number, device.sequence, device.size):
        raise UsageError(f"{device}: {_ANOTHER}")
    descriptor = _opened(now, patience)
    try:
        sink = DeviceSink(now, descriptor, size)
        try:
            sink.clear(discard=discard, progress=progress)
            yield sink
        finally:
            with uninterrupted():
                sink.close()
    finally:
        os.close(descriptor)


def _opened(device: Device, patience: float) -> int:
    """A descriptor of the device, exclusively: the kernel refuses one that is mounted, swapped to or
    held, in whatever namespace (open(2), O_EXCL without O_CREAT), and mounts none while it is open."""
    try:
        descriptor = os.open(device.node, os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise _not_opened(device, error) from None
    try:
        _compare(device, descriptor)
        _lock(device, descriptor, patience)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _compare(device: Device, descriptor: int) -> None:
    """Refuse a descriptor of something else than was looked at."""
    status = os.fstat(descriptor)
    number = (os.major(status.st_rdev), os.minor(status.st_rdev))
    size = os.lseek(descriptor, 0, os.SEEK_END) // device.sector * device.sector
    if not stat.S_ISBLK(status.st_mode) or (number, size) != (device.number, device.size):
        raise UsageError(f"{device}: {_ANOTHER}")


def _not_opened(device: Device, error: OSError) -> RehydratorError:
    if error.errno == errno.EBUSY:
        return UsageError(
            f"{device}: nothing was written: something else uses it (a mount of another container, a RAID, "
            "a virtual machine); lsblk and lsof tell what"
        )
    ways = {
        errno.EACCES: "; writing to disks takes root: sudo",
        errno.EPERM: "; in a container, pass it on with --device",
        errno.EROFS: "; it is read-only: look for a switch at the card or stick",
        errno.ENOMEDIUM: "; insert a medium",
    }
    return RehydratorError(f"opening {device}: {error.strerror}{ways.get(error.errno or 0, '')}")


def _lock(device: Device, descriptor: int, patience: float) -> None:
    """A device that is locked is left alone by udev (systemd.io/BLOCK_DEVICE_LOCKING)."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{device}: nothing was written: another program has locked it; lslocks tells which"
                ) from None
            time.sleep(0.1)
        else:
            return
