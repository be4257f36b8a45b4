"""Block devices: what is refused and why, what a user is told, and bytes at their places. The
devices here are files, and what sysfs says of them lies in directories; the real ones are in
tests/integration/test_block_device.py."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError, UsageError
from rehydrator.engine import Zeros
from rehydrator.host.block_device import (
    STEP,
    Device,
    DeviceSink,
    Written,
    check,
    confirmation,
    inspect,
    misfit,
    open_for_writing,
)
from rehydrator.host.block_inspection import described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rehydrator.engine import Piece

KIB, MIB = 1 << 10, 1 << 20
OLD = b"\xee"
USB = "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb"


class Fake(NamedTuple):
    """A sysfs and a procfs."""

    sysfs: Path
    proc: Path

    def disk(self, place: str, number: str, facts: Mapping[str, object]) -> Path:
        """A disk or a partition: its place below /sys and what its files say."""
        folder = self.sysfs / place
        for name, text in {"size": 2048, "ro": 0, "dev": number, **facts}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{text}\n")
        link = self.sysfs / "dev" / "block" / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        return folder

    def stick(self, **facts: object) -> Path:
        """A stick of 64 GB with two partitions."""
        vendor, model = {"device/vendor": "SanDisk "}, {"device/model": "Ultra   "}
        queue = {"queue/logical_block_size": 512, "queue/zoned": "none"}
        folder = self.disk(
            USB, "8:16", {"size": 125_000_000, "diskseq": 7, **vendor, **model, **queue, **facts}
        )
        for number in (2, 1):
            self.disk(f"{USB}/sdb{number}", f"8:{16 + number}", {"partition": number})
        return folder

    def look(self, minor: int = 16, major: int = 8, node: str = "/dev/sdb") -> Device:
        return described(Path(node), Path(node), os.makedev(major, minor), self.sysfs, self.proc)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    made = Fake(tmp_path / "sys", tmp_path / "proc")
    made.sysfs.mkdir()
    (made.proc / "self").mkdir(parents=True)
    (made.proc / "self" / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/nothing rw\n")
    (made.proc / "swaps").write_text("Filename\t\t\tType\n")
    return made


def device(**facts: Any) -> Device:
    """A device that nothing speaks against."""
    known = {"path": Path("/dev/sdb"), "size": 64 * 10**9, "sector": 512, "model": "SanDisk Ultra"}
    plain = {"transport": "usb", "whole": True, "why_not": [], "node": Path("/dev/sdb")}
    return Device(**{**known, **plain, **facts})


# --- what it is


def test_a_whole_disk(fake: Fake) -> None:
    """A stick that nobody uses: everything that a user is shown, and nothing against it."""
    fake.stick()
    assert fake.look() == Device(
        Path("/dev/sdb"),
        64_000_000_000,
        512,
        "SanDisk Ultra",
        "usb",
        whole=True,
        why_not=[],
        node=Path("/dev/sdb"),
        number=(8, 16),
        partitions=["sdb1", "sdb2"],
        sequence="7",
    )


def test_a_partition(fake: Fake) -> None:
    """A partition is refused, and the disk to name instead is in the message; sector and model are
    those of its disk."""
    fake.stick()
    found = fake.look(18, node="/dev/sdb2")
    assert (found.whole, found.sector, found.model) == (False, 512, "SanDisk Ultra")
    assert found.why_not == ["it is partition 2 of /dev/sdb; name the whole disk"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"ro": 1}, "it is read-only; look for a switch at the card or stick, or blockdev --setrw"),
        ({"size": 0}, "it has no medium (0 bytes); insert one"),
        (
            {"queue/zoned": "host-managed"},
            "its zones must be written in order (host-managed); name another disk",
        ),
        (
            {"queue/logical_block_size": 520},
            "it has sectors of 520 bytes, which is no power of two up to 65536",
        ),
    ],
)
def test_what_speaks_against_a_disk(fake: Fake, facts: dict[str, object], why: str) -> None:
    """A disk that cannot be written to says why, and what to do."""
    fake.stick(**facts)
    assert fake.look().why_not == [why]


def test_mounts(fake: Fake) -> None:
    """Mounts of the disk and of its partitions count, whatever the place is called; a number that
    only begins like theirs does not."""
    fake.stick()
    lines = (
        "30 22 8:17 / /media/a\\040b rw shared:1 - vfat /dev/none rw",
        "31 22 8:16 / /mnt rw - ext4 /dev/none rw",
        "32 22 8:170 / /other rw - ext4 /dev/none rw",
        "33 22 8:18",
        "",
    )
    (fake.proc / "self" / "mountinfo").write_text("\n".join(lines))
    assert fake.look().why_not == [
        "sdb1 is mounted at /media/a b; umount it first",
        "sdb is mounted at /mnt; umount it first",
    ]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (
            {"dm/name": "vg-root", "dm/uuid": "LVM-abc"},
            "sdb2 is held by vg-root; vgchange -an its volume group first",
        ),
        (
            {"dm/name": "home", "dm/uuid": "CRYPT-LUKS2-abc"},
            "sdb2 is held by home; cryptsetup close it first",
        ),
        ({"dm/name": "mpatha", "dm/uuid": "mpath-abc"}, "sdb2 is held by mpatha; dmsetup remove it first"),
        ({"md/level": "raid1"}, "sdb2 is held by the RAID dm-0; mdadm --stop it first"),
        ({}, "sdb2 is held by dm-0; dmsetup remove it first"),
    ],
)
def test_holders(fake: Fake, files: dict[str, object], why: str) -> None:
    """What stands on a partition is named, and how it lets go."""
    folder = fake.stick()
    (folder / "sdb2" / "holders" / "dm-0").mkdir(parents=True)
    fake.disk("class/block/dm-0", "252:0", files)
    assert fake.look().why_not == [why]


@pytest.mark.parametrize(
    ("place", "number", "facts", "shown"),
    [
        (
            "devices/pci0/0/nvme/nvme0/nvme0n1",
            (259, 0),
            {"device/model": "Samsung SSD 990"},
            "Samsung SSD 990, nvme",
        ),
        (
            "devices/pci0/ata3/host2/block/sda",
            (8, 0),
            {"device/vendor": "ATA", "device/model": "WDC"},
            "WDC, sata",
        ),
        ("devices/pci0/virtio1/block/vda", (254, 0), {"device/vendor": "0x1af4"}, "virtio"),
        ("devices/platform/mmc_host/mmc0/block/mmcblk0", (179, 0), {"device/name": "SC64G"}, "SC64G, mmc"),
        ("devices/virtual/block/loop7", (7, 7), {"loop/backing_file": "/x y"}, "/x y, loop"),
        (
            "devices/virtual/block/dm-3",
            (252, 3),
            {"dm/name": "vg-lv", "dm/uuid": "LVM-x"},
            "vg-lv, device mapper",
        ),
        ("devices/virtual/block/md127", (9, 127), {"md/level": "raid1"}, "raid"),
        ("devices/virtual/block/zram0", (253, 0), {}, "virtual"),
        ("devices/elsewhere/block/abc", (240, 0), {}, ""),
    ],
)
def test_models(
    fake: Fake, place: str, number: tuple[int, int], facts: dict[str, object], shown: str
) -> None:
    """Model and transport of every kind of disk; loop, device mapper and RAID are whole disks."""
    fake.disk(place, f"{number[0]}:{number[1]}", {"queue/logical_block_size": 512, **facts})
    found = fake.look(number[1], number[0])
    assert (found.whole, found.why_not) == (True, [])
    assert ", ".join(text for text in (found.model, found.transport) if text) == shown


def test_a_partition_of_device_mapper(fake: Fake) -> None:
    """What kpartx made is a partition, though the kernel calls it a disk."""
    fake.disk(
        "devices/virtual/block/dm-4", "252:4", {"dm/uuid": "part1-mpath-x", "queue/logical_block_size": 512}
    )
    found = fake.look(4, 252)
    assert (found.whole, found.why_not) == (
        False,
        ["it is a partition that kpartx made; name the whole disk"],
    )


def test_without_sysfs(fake: Fake) -> None:
    """Where nothing tells a disk from a partition, it is refused."""
    found = fake.look()
    folder = fake.sysfs / "dev" / "block" / "8:16"
    why = f"{folder} is missing, so that a disk cannot be told from a partition; mount sysfs there"
    assert (found.whole, found.why_not) == (False, [why])


def test_a_hostile_name(fake: Fake) -> None:
    """What the maker of a stick wrote into it cannot reach the terminal as control codes."""
    fake.stick(
        **{"device/model": "\x1b]0;owned\x07\n\x1b[2J" + "9" * 5000, "size": "9" * 5000, "diskseq": "x"}
    )
    found = fake.look()
    assert all(character.isprintable() for character in "".join(confirmation(found)))
    assert len(found.model) == 200


@pytest.mark.parametrize(
    ("name", "kind"),
    [("/dev/null", "a character device"), ("/dev", "a directory"), (__file__, "a regular file")],
)
def test_what_is_no_block_device(name: str, kind: str) -> None:
    """Anything else is refused by its kind."""
    found = inspect(Path(name))
    assert found.why_not == [f"it is {kind}, not a block device; lsblk lists the disks that are there"]
    with pytest.raises(UsageError), open_for_writing(found, 1):
        pytest.fail("it was opened")


@pytest.mark.parametrize("name", ["/dev/no-such-disk", "/dev/null/x", "/dev/\0", "/" + "x" * 5000])
def test_nothing_there(name: str) -> None:
    """A name of nothing is the user's mistake, and says how to find the right one."""
    with pytest.raises(UsageError, match="lsblk lists the disks"):
        inspect(Path(name))


def test_all_reasons_at_once() -> None:
    """A refusal names every reason; one that is only too small is a limit."""
    with pytest.raises(UsageError) as refused:
        check(device(why_not=["a; do b", "c; do d"]), 1)
    assert str(refused.value) == "/dev/sdb: nothing was written: a; do b; c; do d"
    with pytest.raises(
        LimitExceeded, match="it has 1000 bytes, and the image needs 1001 bytes; name a larger disk"
    ):
        check(device(size=1000), 1001)
    check(device(size=1000), 1000)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            {},
            "/dev/sdb: 59.6 GiB (64000000000 bytes) SanDisk Ultra, usb, no partitions; everything on it",
        ),
        (
            {"partitions": ["sdb1"], "size": 1_500_301_910_016},
            "/dev/sdb: 1.4 TiB (1500301910016 bytes) SanDisk Ultra, usb, 1 partition (sdb1)",
        ),
        (
            {"model": "", "transport": "", "size": 999_999_999},
            "/dev/sdb: 953.7 MiB (999999999 bytes) no partitions; everything",
        ),
        (
            {"partitions": list("abcdef")},
            "/dev/sdb: 59.6 GiB (64000000000 bytes) SanDisk Ultra, usb, 6 partitions (a, b, c, d, …)",
        ),
        (
            {"path": Path("/dev/disk/by-id/x")},
            "/dev/disk/by-id/x (/dev/sdb): 59.6 GiB (64000000000 bytes) SanDisk Ultra",
        ),
        ({"size": 512}, "/dev/sdb: 512 bytes SanDisk"),
    ],
)
def test_confirmation(facts: dict[str, object], line: str) -> None:
    """A user is asked with size, name, place and partitions of the disk, and with warnings."""
    lines = confirmation(device(**facts), ["beware"])
    assert lines[0].startswith(line)
    assert lines[1:] == ["warning: beware", "Type yes to write it:"]


def beginning(**at: bytes) -> bytes:
    """The first bytes of an image, with words at places."""
    made = bytearray(8192)
    for place, word in at.items():
        made[int(place[1:]) : int(place[1:]) + len(word)] = word
    return bytes(made)


@pytest.mark.parametrize(
    ("image", "sector", "said"),
    [
        (beginning(_512=b"EFI PART", _510=b"\x55\xaa"), 512, ""),
        (beginning(_512=b"EFI PART", _510=b"\x55\xaa"), 4096, "the image is made for sectors of 512 bytes"),
        (beginning(_4096=b"EFI PART", _510=b"\x55\xaa"), 4096, ""),
        (beginning(_4096=b"EFI PART"), 512, "the image is made for sectors of 4096 bytes"),
        (beginning(_510=b"\x55\xaa"), 512, ""),
        (beginning(_510=b"\x55\xaa"), 4096, "the image has a partition table that counts in sectors"),
        (beginning(), 4096, ""),
        (b"", 4096, ""),
    ],
)
def test_sectors_that_do_not_fit(image: bytes, sector: int, said: str) -> None:
    """An image for sectors of another size than the disk's will not boot, and that is said."""
    warning = misfit(device(sector=sector), image)
    assert warning[: len(said)] == said
    assert bool(warning) == bool(said)


# --- bytes at their places


@contextmanager
def sink_on(
    folder: Path, size: int, disk: int = 0, sector: int = 512, kind: type[DeviceSink] = DeviceSink
) -> Iterator[tuple[DeviceSink, Path]]:
    """A sink on a file in place of a device, full of old bytes."""
    path = folder / "disk"
    path.write_bytes(OLD * (disk or -(-size // sector) * sector))
    descriptor = os.open(path, os.O_RDWR)
    sink = kind(device(size=path.stat().st_size, sector=sector, node=path, path=path), descriptor, size)
    try:
        yield sink, path
    finally:
        sink.close()
        os.close(descriptor)


def image_of(pieces: list[Piece]) -> bytes:
    return b"".join(bytes(piece.length) if isinstance(piece, Zeros) else bytes(piece) for piece in pieces)


def cut(pieces: list[Piece], seed: int) -> list[tuple[int, list[Piece]]]:
    """Pieces in rows of some each, in any order, with their places."""
    rows: list[tuple[int, list[Piece]]] = []
    row: list[Piece] = []
    chance, offset, start = random.Random(seed), 0, 0
    for piece in pieces:
        row.append(piece)
        offset += piece.length if isinstance(piece, Zeros) else len(piece)
        if chance.random() < 0.4:
            rows.append((start, row))
            row, start = [], offset
    rows.append((start, row))
    chance.shuffle(rows)
    return rows


def data(length: int, seed: int = 1) -> memoryview:
    return memoryview(random.Random(seed).randbytes(length))


lengths = st.one_of(
    st.integers(1, 700),
    st.sampled_from([512, 4096, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1]),
    st.integers(1, 3 * MIB // 2),
)
drawn = st.lists(st.tuples(st.booleans(), lengths), min_size=1, max_size=8)


class Strict(DeviceSink):
    """A device that takes what O_DIRECT takes: whole sectors, from aligned memory."""

    def _to_device(self, offset: int, view: memoryview) -> None:
        assert offset % self.device.sector == len(view) % self.device.sector == 0
        assert not view or ctypes.addressof(ctypes.c_char.from_buffer(view)) % 512 == 0
        super()._to_device(offset, view)

    def _read_into(self, offset: int, view: memoryview) -> None:
        assert offset % self.device.sector == len(view) % self.device.sector == 0
        assert not view or ctypes.addressof(ctypes.c_char.from_buffer(view)) % 512 == 0
        super()._read_into(offset, view)


@settings(max_examples=40, deadline=None)
@given(
    drawn=drawn,
    seed=st.integers(0, 999),
    sector=st.sampled_from([512, 4096, 65536]),
    discard=st.booleans(),
    more=st.integers(0, 600),
)
def test_any_pieces_by_any_threads(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[bool, int]],
    seed: int,
    sector: int,
    discard: bool,
    more: int,
) -> None:
    """Whatever the pieces, their order and the threads: the disk is the image, zeros up to the end
    of its sector, what was there before, and zeros at its end."""
    pieces: list[Piece] = [Zeros(n) if empty else data(n, seed + n) for empty, n in drawn]
    image = image_of(pieces)
    padded = -(-len(image) // sector) * sector
    disk = padded + more // 16 * 65536
    folder = tmp_path_factory.mktemp("sink")
    with sink_on(folder, len(image), disk, sector, Strict) as (sink, path):
        sink.clear(discard=discard)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda row: sink.write(*row), cut(pieces, seed)))
        sink.verify(hashlib.sha256(image).hexdigest())
        assert sink.commit().padding == padded - len(image)
        sink.verify(hashlib.sha256(image).hexdigest())
        assert sink.read(len(image) // 3, len(image) // 2) == image[len(image) // 3 :][: len(image) // 2]
        untouched = max(0, disk - padded - STEP)
        assert (
            hashlib.sha256(path.read_bytes()).digest()
            == hashlib.sha256(
                image + bytes(padded - len(image)) + OLD * untouched + bytes(disk - padded - untouched)
            ).digest()
        )
    path.unlink()


@pytest.mark.parametrize("discard", [False, True])
def test_nothing_to_boot_before_the_end(tmp_path: Path, discard: bool) -> None:
    """The first and the last MiB of the image are zeros until commit(), and stay so without it."""
    whole = data(5 * MIB)
    with sink_on(tmp_path, 5 * MIB, 9 * MIB) as (sink, path):
        sink.clear(discard=discard)
        sink.write(0, [whole])
        sink.verify(hashlib.sha256(whole).hexdigest())
        found = path.read_bytes()
    assert found == path.read_bytes()
    assert found == bytes(MIB) + whole[MIB:-MIB] + bytes(MIB) + OLD * 3 * MIB + bytes(MIB)


class Lying(DeviceSink):
    """A device that says it made a hole, and did not."""

    def _punch(self, offset: int, length: int) -> bool:
        return True


class LyingLater(DeviceSink):
    """A device that keeps its word at the beginning alone."""

    def _punch(self, offset: int, length: int) -> bool:
        return super()._punch(offset, length) if not offset else True


class Unable(DeviceSink):
    """A device without holes."""

    def _punch(self, offset: int, length: int) -> bool:
        return False


@pytest.mark.parametrize("kind", [Lying, LyingLater, Unable])
def test_a_device_that_gives_no_zeros(tmp_path: Path, kind: type[DeviceSink]) -> None:
    """Zeros are written where holes are none, and nothing of the old bytes is left."""
    with sink_on(tmp_path, 20 * MIB, kind=kind) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [data(100), Zeros(20 * MIB - 200), data(100)])
        sink.commit()
        assert path.read_bytes() == bytes(data(100)) + bytes(20 * MIB - 200) + bytes(data(100))


def test_holes_are_holes(tmp_path: Path) -> None:
    """Zeros take no room on what can have holes, but what is held back."""
    with sink_on(tmp_path, 20 * MIB) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [Zeros(20 * MIB)])
        sink.commit()
        assert path.read_bytes() == bytes(20 * MIB)
        assert path.stat().st_blocks * 512 <= 2 * MIB + 64 * KIB


class Interrupted(DeviceSink):
    """A user presses Ctrl-C while the disk is being tried out."""

    def _punch(self, offset: int, length: int) -> bool:
        raise KeyboardInterrupt


def test_interrupted_at_the_very_beginning(tmp_path: Path) -> None:
    """Nothing of the trial, nor of the old system, is left at the ends."""
    with sink_on(tmp_path, 3 * MIB, 6 * MIB, kind=Interrupted) as (sink, path):
        with pytest.raises(KeyboardInterrupt):
            sink.clear(discard=True)
        assert path.read_bytes()[:MIB] != bytes(MIB)
    assert path.read_bytes() == bytes(MIB) + OLD * MIB + bytes(MIB) + OLD * 2 * MIB + bytes(MIB)


class Forgetful(DeviceSink):
    """A device that loses what is written to its beginning."""

    def _to_device(self, offset: int, view: memoryview) -> None:
        if offset:
            super()._to_device(offset, view)


def test_a_device_that_keeps_nothing(tmp_path: Path) -> None:
    """A stick that takes bytes and keeps the old ones is noticed before anything is written."""
    with (
        sink_on(tmp_path, 3 * MIB, kind=Forgetful) as (sink, _),
        pytest.raises(
            RehydratorError, match="zeros were written at byte 0, and others are there; it is broken"
        ),
    ):
        sink.clear(discard=False)


class Stuck(DeviceSink):
    """A device whose first bytes cannot be changed any more once they are zeros."""

    def _show(self) -> None:
        self.stuck = True
        super()._show()

    def _to_device(self, offset: int, view: memoryview) -> None:
        if offset or not hasattr(self, "stuck"):
            super()._to_device(offset, view)


def test_a_device_that_stops_to_keep_anything(tmp_path: Path) -> None:
    """What commit() writes is compared; where it is not there, the end is zeros again."""
    with sink_on(tmp_path, 3 * MIB, kind=Stuck) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [data(3 * MIB)])
        with pytest.raises(RehydratorError, match="other bytes than were written are at byte 0"):
            sink.commit()
    found = path.read_bytes()
    assert (found[:8192], found[-MIB:]) == (bytes(8192), bytes(MIB))


@pytest.mark.parametrize("first", [True, False])
def test_other_bytes_are_read_back(tmp_path: Path, first: bool) -> None:
    """A byte that changed on the device is found, before commit() and after it; the device is then
    left with zeros at its ends, and cannot be finished."""
    whole = data(4 * MIB)
    with sink_on(tmp_path, 4 * MIB) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [whole])
        if not first:
            sink.commit()
        with path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(bytes([whole[2 * MIB] ^ 1]))
        with pytest.raises(DigestMismatch, match="is read back, and"):
            sink.verify(hashlib.sha256(whole).hexdigest())
        with pytest.raises(RehydratorError, match="not finished"):
            sink.commit()
    found = path.read_bytes()
    assert (found[:MIB], found[-MIB:]) == (bytes(MIB), bytes(MIB))


class Impatient(DeviceSink):
    """A user presses Ctrl-C in the last moment, when everything is written."""

    def _reread(self) -> bool:
        if not self._closed:
            raise KeyboardInterrupt
        return super()._reread()


def test_interrupted_in_the_last_moment(tmp_path: Path) -> None:
    """Whatever ends without success has zeros at its ends, though the image was complete."""
    with sink_on(tmp_path, 3 * MIB, kind=Impatient) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [data(3 * MIB)])
        with pytest.raises(KeyboardInterrupt):
            sink.commit()
        assert path.read_bytes() == bytes(data(3 * MIB))
    assert path.read_bytes() == bytes(MIB) + data(3 * MIB)[MIB:-MIB] + bytes(MIB)


def test_progress_of_clearing(tmp_path: Path) -> None:
    """Clearing says how far it is: all between the two ends."""
    cleared: list[int] = []
    with sink_on(tmp_path, 6 * MIB) as (sink, _):
        sink.clear(discard=True, progress=cleared.append)
    assert sum(cleared) == 4 * MIB


def test_what_is_missing(tmp_path: Path) -> None:
    """An image of which bytes are missing is not finished, nor is one twice."""
    with sink_on(tmp_path, 3 * MIB) as (sink, path):
        sink.clear(discard=True)
        sink.write(1, [data(3 * MIB - 1)])
        with pytest.raises(RehydratorError, match="3145727 of 3145728 bytes were written; not finished"):
            sink.commit()
        assert path.read_bytes()[:MIB] == bytes(MIB)
        sink.write(0, [data(1)])
        sink.commit()
        with pytest.raises(RehydratorError, match="not finished"):
            sink.commit()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (3 * MIB, 1), (0, 3 * MIB + 1), (1 << 70, 1)])
def test_bytes_beyond_the_image(tmp_path: Path, offset: int, length: int) -> None:
    """Bytes outside of the image are refused, written or read, and leave nothing behind."""
    with sink_on(tmp_path, 3 * MIB, 6 * MIB) as (sink, path):
        before = path.read_bytes()
        with pytest.raises(RehydratorError, match="lie beyond the image's 3145728"):
            sink.write(offset, [Zeros(length)])
        with pytest.raises(RehydratorError, match="lie beyond the image's 3145728"):
            sink.read(offset, length)
        assert path.read_bytes() == before


class Slow(DeviceSink):
    """A device on which a write waits until it is told to go on."""

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def _to_device(self, offset: int, view: memoryview) -> None:
        if offset == STEP:
            self.begun.set()
            assert self.go_on.wait(60)
        super()._to_device(offset, view)


def write_on(sink: DeviceSink) -> None:
    while True:
        sink.write(0, [data(1)])


def test_the_end_waits_for_writers(tmp_path: Path) -> None:
    """close() returns when nobody writes any more, so that no thread meets the descriptor of another
    file; who comes later is told so."""
    with ThreadPoolExecutor(2) as pool, sink_on(tmp_path, 3 * MIB, kind=Slow) as (sink, _):
        assert isinstance(sink, Slow)
        late = pool.submit(sink.write, STEP, [data(MIB)])
        assert sink.begun.wait(60)
        closing = pool.submit(sink.close)
        assert not closing.done()
        with pytest.raises(RehydratorError, match="written to no longer"):
            write_on(sink)
        assert not closing.done()
        sink.go_on.set()
        closing.result(60)
        assert late.done()


def test_an_image_of_one_byte(tmp_path: Path) -> None:
    """The smallest image is held back whole."""
    with sink_on(tmp_path, 1) as (sink, path):
        sink.clear(discard=True)
        sink.write(0, [memoryview(b"x")])
        assert path.read_bytes() == bytes(512)
        written = sink.commit()
        assert written.padding == 511
        assert path.read_bytes() == b"x" + bytes(511)


def test_an_image_of_nothing() -> None:
    """An image without bytes is refused."""
    with pytest.raises(UsageError, match="an image of 0 bytes is none"), open_for_writing(device(), 0):
        pytest.fail("it was opened")


def test_notes() -> None:
    """What a user should know of a finished device: padding, and a kernel that knows old partitions."""
    assert Written(0, table_read=True).notes(device()) == []
    assert Written(12, table_read=False).notes(device()) == [
        "/dev/sdb: 12 zero bytes follow the image, up to the end of its sector",
        "/dev/sdb: the kernel has not read its new partition table; unplug it, or: partprobe",
    ]
