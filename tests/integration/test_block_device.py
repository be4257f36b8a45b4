"""Real block devices: loop devices, which are made, written to, broken in the middle, and detached."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import LimitExceeded, RehydratorError, UsageError
from rehydrator.engine import Zeros
from rehydrator.host.block_device import check, confirmation, inspect, misfit, open_for_writing
from rehydrator.host.block_inspection import loops_on
from tests.conftest import NAME
from tests.guest_disks import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.host.block_device import DeviceSink
    from tests.conftest import Made, User

ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20
OLD = b"\xee"
TABLE = "label: gpt\nfirst-lba: 2048\nstart=2048, size=4096, name=one\nstart=6144, name=two\n"


class Loops:
    """Loop devices, detached at the end whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Path] = []

    def attach(self, file: Path, *options: str) -> Path:
        node = Path(run("losetup", "-f", "--show", *options, file).strip())
        self._made.append(node)
        return node

    def disk(self, size: int, *options: str, name: str = "disk", old: bytes = OLD) -> tuple[Path, Path]:
        """A device of `size` bytes that are `old`, and the file behind it."""
        file = self.folder / name
        file.write_bytes(old * size)
        return self.attach(file, *options), file

    def detach(self) -> None:
        for node in self._made:
            subprocess.run(["losetup", "-d", node], check=False, capture_output=True)
        gone_by = time.monotonic() + 10
        while str(self.folder) in run("losetup", "-a"):
            assert time.monotonic() < gone_by, run("losetup", "-a")
            time.sleep(0.1)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    made = Loops(tmp_path)
    try:
        yield made
    finally:
        made.detach()


@contextmanager
def mounted(*arguments: object) -> Iterator[Path]:
    """Something mounted; the last argument is where."""
    place = Path(str(arguments[-1]))
    place.mkdir(exist_ok=True)
    run("mount", *arguments)
    try:
        yield place
    finally:
        run("umount", place)


def add_partitions(node: Path) -> list[str]:
    """The partitions of its table, for kernels that know no tables, too."""
    if not Path(f"{node}p1").exists():
        run("partx", "-a", node)
    return [f"{node.name}p1", f"{node.name}p2"]


def room_of(file: Path) -> int:
    """The bytes that a file takes on its disk, once all of it is there."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return file.stat().st_blocks * 512


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def gpt_image(folder: Path, size: int = 8 * MIB, sector: int = 512) -> bytes:
    """A disk with two partitions and something in them."""
    file = folder / "image"
    file.write_bytes(noise(size))
    with file.open("r+b") as disk:
        disk.write(bytes(MIB))
        disk.seek(size - MIB)
        disk.write(bytes(MIB))
    run("sfdisk", "-q", file, input=TABLE.encode())
    return file.read_bytes()


def has_table(file: Path) -> bool:
    """Whether anybody finds a partition table: sfdisk looks at the beginning, and says where only
    the copy at the end is left."""
    done = subprocess.run(["sfdisk", "-l", file], capture_output=True, check=True)
    return b"Disklabel" in done.stdout or b"GPT" in done.stderr


def test_an_image_is_written(loops: Loops, tmp_path: Path) -> None:
    """Several threads write rows of pieces in any order, with runs of zeros between; the device has
    the image at the end."""
    image = gpt_image(tmp_path)
    image = image[: 3 * MIB] + bytes(2 * MIB) + image[5 * MIB :]
    node, file = loops.disk(12 * MIB, "--partscan")
    found = inspect(node)
    assert (found.size, found.sector, found.transport, found.whole) == (12 * MIB, 512, "loop", True)
    assert (found.model, found.why_not, found.partitions) == (str(file), [], [])
    places = [*range(0, 3 * MIB, 100_000), *range(5 * MIB, 8 * MIB, 700_001)]
    ends = dict(zip(places, [*places[1:], 8 * MIB], strict=True))
    ends[places[places.index(5 * MIB) - 1]] = 3 * MIB
    rows = [(start, [memoryview(image)[start:end]]) for start, end in ends.items()]
    random.Random(4).shuffle(rows)
    with open_for_writing(found, len(image)) as sink:
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(sink.write, *row) for row in rows]
            waiting.append(pool.submit(sink.write, 3 * MIB, [Zeros(2 * MIB)]))
            for each in waiting:
                each.result()
        assert not has_table(file)
        sink.verify(hashlib.sha256(image).hexdigest())
        written = sink.commit()
        sink.verify(hashlib.sha256(image).hexdigest())
    assert written.notes(found) == []
    assert file.read_bytes() == image + OLD * 3 * MIB + bytes(MIB)


def test_the_kernel_forgets_old_partitions(loops: Loops, tmp_path: Path) -> None:
    """A user is shown the partitions that are there; when the image is written, and when it is not,
    the kernel has read the table anew."""
    (tmp_path / "disk").write_bytes(gpt_image(tmp_path))
    node = loops.attach(tmp_path / "disk", "--partscan")
    added = add_partitions(node)
    found = inspect(node)
    assert found.partitions == added
    assert f"2 partitions ({', '.join(added)}); everything on it is lost." in confirmation(found)[0]
    with open_for_writing(found, 512) as sink:
        sink.write(0, [memoryview(noise(512))])
        assert sink.commit().table_read
    assert inspect(node).partitions == []
    (tmp_path / "disk").write_bytes(gpt_image(tmp_path))
    add_partitions(node)
    with open_for_writing(inspect(node), 512):
        pass
    assert inspect(node).partitions == []


def test_nobody_finds_an_unfinished_system(loops: Loops, tmp_path: Path) -> None:
    """While an image is written, and where it is left before commit(), neither its own partition
    table nor that of the system before it can be found at either end."""
    image = gpt_image(tmp_path)
    node, file = loops.disk(8 * MIB)
    file.write_bytes(image)
    assert has_table(file)
    with open_for_writing(inspect(node), len(image)) as sink:
        sink.write(0, [memoryview(image)])
        assert not has_table(file)
    assert not has_table(file)
    assert file.read_bytes() == bytes(MIB) + image[MIB:-MIB] + bytes(MIB)


def test_the_table_of_the_old_system_is_gone(loops: Loops, tmp_path: Path) -> None:
    """On a larger disk than the image the old table's copy at the end is gone, too."""
    node, file = loops.disk(20 * MIB)
    file.write_bytes(gpt_image(tmp_path, 20 * MIB))
    with open_for_writing(inspect(node), 4 * MIB):
        assert not has_table(file)
    assert not has_table(file)


@pytest.mark.parametrize("discard", [True, False])
def test_zeros_are_given_back(loops: Loops, tmp_path: Path, discard: bool) -> None:
    """Zeros of the image take no room behind the device, unless that is not wanted; zeros they are
    in both cases."""
    node, file = loops.disk(24 * MIB)
    with open_for_writing(inspect(node), 24 * MIB, discard=discard) as sink:
        sink.write(0, [memoryview(noise(MIB)), Zeros(22 * MIB), memoryview(noise(MIB))])
        sink.commit()
    assert file.read_bytes() == noise(MIB) + bytes(22 * MIB) + noise(MIB)
    assert (room_of(file) < 4 * MIB) == discard


def test_sectors_of_four_kib(loops: Loops, tmp_path: Path) -> None:
    """A disk with large sectors is written to in whole ones, the last one filled with zeros; that the
    image will not boot from it is said before."""
    image = gpt_image(tmp_path, 5 * MIB)[:-512]
    node, file = loops.disk(6 * MIB, "--sector-size", "4096")
    found = inspect(node)
    assert found.sector == 4096
    assert "will not boot" in misfit(found, image[:8192])
    with open_for_writing(found, len(image)) as sink:
        for start in range(0, len(image), 77_777):
            sink.write(start, [memoryview(image)[start : start + 77_777]])
        written = sink.commit()
        sink.verify(hashlib.sha256(image).hexdigest())
    assert written.notes(found) == [f"{node}: 512 zero bytes follow the image, up to the end of its sector"]
    assert file.read_bytes() == image + bytes(512) + bytes(MIB)


def test_by_another_name(loops: Loops, tmp_path: Path) -> None:
    """A symlink, as those in /dev/disk/by-id, is as good; the user sees both names."""
    node, _ = loops.disk(2 * MIB)
    link = tmp_path / "by-id"
    link.symlink_to(node)
    found = inspect(link)
    disk = f"2.0 MiB (2097152 bytes) {tmp_path}/disk, loop, no partitions"
    assert confirmation(found)[0].startswith(f"{link} ({node}): {disk}")
    with open_for_writing(found, 512) as sink:
        sink.write(0, [memoryview(noise(512))])
        sink.commit()


# --- refused, and untouched


def refused(node: Path) -> str:
    """What is said to somebody who wants to write there."""
    found = inspect(node)
    with pytest.raises(UsageError) as error, open_for_writing(found, 512, patience=0.3):
        pytest.fail("it was opened")
    assert error.value.exit_code == 2
    return str(error.value)


def test_a_partition_is_refused(loops: Loops, tmp_path: Path) -> None:
    """A partition is not a disk; the disk is named."""
    (tmp_path / "disk").write_bytes(gpt_image(tmp_path))
    node = loops.attach(tmp_path / "disk", "--partscan")
    add_partitions(node)
    part = f"{node}p2"
    assert refused(Path(part)) == (
        f"{part}: nothing was written: it is partition 2 of {node}; name the whole disk"
    )


def test_a_mounted_disk_is_refused(loops: Loops, tmp_path: Path) -> None:
    """A disk is refused while it or one of its partitions is mounted, in this namespace or, by the
    kernel alone, in another."""
    (tmp_path / "disk").write_bytes(gpt_image(tmp_path))
    node = loops.attach(tmp_path / "disk", "--partscan")
    add_partitions(node)
    part = f"{node}p1"
    run("mkfs.ext4", "-q", part)
    before = (tmp_path / "disk").read_bytes()
    with mounted("-o", "ro,noload", part, tmp_path / "a b"):
        assert refused(node) == (
            f"{node}: nothing was written: {node.name}p1 is mounted at {tmp_path}/a b; umount it first"
        )
    assert (tmp_path / "disk").read_bytes() == before
    (tmp_path / "other").mkdir()
    script = f"mount -o ro,noload {part} {tmp_path}/other && echo ready && read x"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as elsewhere:
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == b"ready\n"
        assert inspect(node).why_not == []
        assert "nothing was written: something else uses it" in refused(node)
        elsewhere.communicate(b"\n", 30)
    assert (tmp_path / "disk").read_bytes() == before


def test_a_disk_of_swap_is_refused(loops: Loops) -> None:
    """A disk that memory is swapped to is refused."""
    node, _ = loops.disk(4 * MIB, old=b"\0")
    run("mkswap", node)
    run("swapon", node)
    try:
        assert refused(node) == f"{node}: nothing was written: {node.name} is used as swap; swapoff it first"
    finally:
        run("swapoff", node)


def test_a_disk_below_a_loop_device_is_refused(loops: Loops) -> None:
    """A loop device that stands on a disk keeps it, though the kernel would let it go."""
    node, _ = loops.disk(2 * MIB)
    above = loops.attach(node)
    assert refused(node) == (
        f"{node}: nothing was written: {node.name} is held by {above.name}; losetup -d it first"
    )
    run("losetup", "-d", above)
    assert inspect(node).why_not == []


def test_what_others_hold_is_refused(loops: Loops) -> None:
    """A device that another program has for itself, or has locked, is refused; a second rehydrate
    to the same device, too."""
    node, file = loops.disk(4 * MIB)
    with open_for_writing(inspect(node), 2 * MIB) as sink:
        assert "nothing was written: something else uses it" in refused(node)
        sink.write(0, [Zeros(2 * MIB)])
        sink.commit()
    assert file.read_bytes()[2 * MIB : 3 * MIB] == OLD * MIB
    with subprocess.Popen(
        ["flock", node, "sh", "-c", "echo ready; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert "nothing was written: another program has locked it" in refused(node)
        other.communicate(b"\n", 30)
    check(inspect(node), 4 * MIB)


def test_a_read_only_disk_is_refused(loops: Loops) -> None:
    """A write-protected disk is refused."""
    node, _ = loops.disk(MIB, "--read-only")
    assert "it is read-only" in refused(node)


def test_no_medium(loops: Loops) -> None:
    """A drive without a medium is refused: a loop device without a file is like one."""
    node, _ = loops.disk(MIB)
    run("losetup", "-d", node)
    assert "has no medium" in refused(node)


def test_a_small_disk_is_refused(loops: Loops) -> None:
    """A disk of one byte less than the image is untouched."""
    node, file = loops.disk(4 * MIB)
    with pytest.raises(LimitExceeded) as error, open_for_writing(inspect(node), 4 * MIB + 1):
        pytest.fail("it was opened")
    assert str(error.value) == (
        f"{node}: it has 4.0 MiB (4194304 bytes), and the image needs 4.0 MiB (4194305 bytes); "
        "name a larger disk"
    )
    assert file.read_bytes() == OLD * 4 * MIB


def test_another_disk_in_the_same_place(loops: Loops, tmp_path: Path) -> None:
    """A stick that was changed for another between question and answer is not written to."""
    node, _ = loops.disk(2 * MIB)
    asked = inspect(node)
    run("losetup", "-d", node)
    (tmp_path / "second").write_bytes(OLD * 2 * MIB)
    run("losetup", node, tmp_path / "second")
    with (
        pytest.raises(UsageError, match="it is another disk than a moment ago"),
        open_for_writing(asked, 2 * MIB),
    ):
        pytest.fail("it was opened")
    assert (tmp_path / "second").read_bytes() == OLD * 2 * MIB


# --- broken in the middle


def fill(sink: DeviceSink) -> None:
    for start in range(0, sink.size, MIB):
        sink.write(start, [memoryview(noise(MIB))])


def test_a_full_device(loops: Loops, tmp_path: Path) -> None:
    """A device with less room behind it than it says fails at a place, with exit code 1, and its
    beginning is zeros."""
    with mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "small") as small:
        with (small / "disk").open("wb") as file:
            file.truncate(32 * MIB)
        node = loops.attach(small / "disk")
        try:
            with open_for_writing(inspect(node), 32 * MIB) as sink, pytest.raises(RehydratorError) as error:
                fill(sink)
            assert error.value.exit_code == 1
            assert str(error.value).startswith(f"{node}: writing at byte ")
            assert (small / "disk").read_bytes()[:MIB] == bytes(MIB)
        finally:
            loops.detach()


def test_a_device_that_shrinks(loops: Loops) -> None:
    """A device that becomes smaller in the middle fails where it ends now."""
    node, file = loops.disk(16 * MIB)
    with open_for_writing(inspect(node), 16 * MIB) as sink:
        sink.write(0, [memoryview(noise(4 * MIB))])
        os.truncate(file, 6 * MIB)
        run("losetup", "-c", node)
        with pytest.raises(RehydratorError) as error:
            sink.write(4 * MIB, [memoryview(noise(12 * MIB))])
    assert str(error.value) == (
        f"{node}: writing at byte {6 * MIB}: No space left on device; "
        f"it, or what is behind it, has room for fewer bytes than the {16 * MIB} that it says"
    )
    assert error.value.exit_code == 1
    assert file.read_bytes() == bytes(MIB) + noise(4 * MIB)[MIB:] + noise(12 * MIB)[: 2 * MIB]


def test_a_device_that_cannot_be_read_back(loops: Loops) -> None:
    """Bytes that are gone behind the device's back are found when it is read back, and what is left
    has zeros at its beginning."""
    node, file = loops.disk(8 * MIB)
    with open_for_writing(inspect(node), 8 * MIB) as sink:
        sink.write(0, [memoryview(noise(8 * MIB))])
        sink.commit()
        os.truncate(file, 4 * MIB)
        with pytest.raises(RehydratorError) as error:
            sink.verify(hashlib.sha256(noise(8 * MIB)).hexdigest())
    assert error.value.exit_code == 1
    assert str(error.value).startswith(f"{node}: reading at byte {4 * MIB}: ")
    assert file.read_bytes()[:MIB] == bytes(MIB)


WRITER = """
import sys, time
from pathlib import Path
from rehydrator.host import block_device
node = block_device.inspect(Path(sys.argv[1]))
with block_device.open_for_writing(node, 8 << 20) as sink:
    sink.write(0, [memoryview(b"x" * (6 << 20))])
    print("ready", flush=True)
    # Short, because a signal that comes just before a sleep is not noticed until its end.
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_is_stopped_leaves_no_system(loops: Loops, number: int) -> None:
    """Ctrl-C, and even a kill, in the middle: both ends are zeros, and the device is free again."""
    node, file = loops.disk(8 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, node], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(number)
        writer.wait(30)
    assert file.read_bytes() == bytes(MIB) + b"x" * 5 * MIB + bytes(2 * MIB)
    with open_for_writing(inspect(node), 512):
        pass


# --- files below loop devices


def test_loops_on_a_file(loops: Loops, tmp_path: Path) -> None:
    """The loop devices that stand on a file are found by any name of it, and no others."""
    node, file = loops.disk(MIB)
    other, second = loops.disk(MIB, name="second")
    third = loops.attach(file)
    (tmp_path / "link").symlink_to(file)
    assert loops_on(file.stat()) == loops_on((tmp_path / "link").stat()) == sorted([node, third])
    file.rename(tmp_path / "renamed")
    assert loops_on((tmp_path / "renamed").stat()) == sorted([node, third])
    assert loops_on(second.stat()) == [other]
    (tmp_path / "free").write_bytes(b"x")
    assert loops_on((tmp_path / "free").stat()) == []


@pytest.mark.parametrize("how", ["by its name", "by its number"])
def test_loops_on_a_file_in_one_way(loops: Loops, tmp_path: Path, how: str) -> None:
    """Either will do: the nodes may be missing (a container), and the name may be of another place."""
    node, file = loops.disk(MIB)
    sysfs = tmp_path / "sys" / "block" / node.name / "loop"
    sysfs.mkdir(parents=True)
    (sysfs / "backing_file").write_text(f"{file if how == 'by its name' else '/elsewhere/disk'}\n")
    devices = tmp_path if how == "by its name" else Path("/dev")
    assert loops_on(file.stat(), tmp_path / "sys", devices) == [devices / node.name]


def test_a_file_below_a_loop_device_in_place(user: User, made: Made, loops: Loops) -> None:
    """It is a disk of this machine, and is not changed below it."""
    name = NAME.format("metal", "raw")
    (out := user.home / "out").mkdir()
    old = out / "old.raw"
    old.write_bytes(made.images[name].read_bytes()[:-1] + b"x")
    node, before = loops.attach(old), hashlib.sha256(old.read_bytes()).hexdigest()
    ask = ["rehydrate", "out", "--file", name, "--in-place", "out/old.raw", "--bundle", made.reference]
    ran = user.run(*ask, code=2)
    assert ran.err == f"rehydrator: --in-place out/old.raw: {node} stands on it; losetup -d {node} first\n"
    assert hashlib.sha256(old.read_bytes()).hexdigest() == before
    run("losetup", "-d", node)


# --- as a user does it


@pytest.mark.parametrize("sparse", [True, False])
def test_rehydrate_onto_a_disk(user: User, made: Made, loops: Loops, sparse: bool) -> None:
    """The image is on the disk, bit for bit, and the user is told what was on it before. Its zeros
    take no room, but with --no-sparse."""
    image = made.images[NAME.format("metal", "raw")].read_bytes()
    node, file = loops.disk(len(image) + 4 * MIB)
    more = [] if sparse else ["--no-sparse"]
    ran = user.run("rehydrate", node, "--disk", "metal", "--yes", *more, "--bundle", made.reference)
    assert "loop, no partitions; everything on it is lost." in ran.err
    assert f"written to {node}, sha256 verified" in ran.err
    assert file.read_bytes() == image + OLD * 3 * MIB + bytes(MIB)
    assert (room_of(file) < len(image)) == sparse


def test_nobody_to_ask(user: User, made: Made, loops: Loops) -> None:
    """Without a terminal and without --yes nothing is written; nor to a disk that is too small."""
    size = made.images[NAME.format("metal", "raw")].stat().st_size
    node, file = loops.disk(size)
    ran = user.run("rehydrate", node, "--disk", "metal", "--bundle", made.reference, code=2)
    assert "nobody is there to ask; --yes agrees" in ran.err
    assert file.read_bytes() == OLD * size
    small, file = loops.disk(size - 512, name="small")
    ran = user.run("rehydrate", small, "--disk", "metal", "--yes", "--bundle", made.reference, code=9)
    assert re.search(
        rf"it has [\d.]+ MiB \({size - 512} bytes\), and the image needs [\d.]+ MiB \({size} bytes\); "
        "name a larger disk",
        ran.err,
    )
    assert file.read_bytes() == OLD * (size - 512)


@pytest.mark.parametrize(("answer", "code"), [(b"yes\n", 0), (b"y\n", 1), (b"\x04", 1)])
def test_somebody_is_asked(user: User, made: Made, loops: Loops, answer: bytes, code: int) -> None:
    """On a terminal the disk is written to when the answer is yes, and nothing else will do."""
    image = made.images[NAME.format("metal", "raw")].read_bytes()
    node, file = loops.disk(len(image))
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer)
        ran = subprocess.run(
            user.command("rehydrate", node, "--disk", "metal", "--bundle", made.reference),
            stdin=theirs,
            capture_output=True,
            check=False,
            env=user.environment(),
            timeout=120,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Type yes to write it: " in ran.stderr
    assert ran.returncode == code
    assert file.read_bytes() == (OLD * len(image) if code else image)


def test_a_bad_bundle(user: User, made: Made, loops: Loops, tmp_path: Path) -> None:
    """A bundle that is damaged where the image begins is noticed before the disk is touched."""
    size = made.images[NAME.format("metal", "raw")].stat().st_size
    node, file = loops.disk(size)
    reference = made.copy(tmp_path / "copy")
    largest = max((tmp_path / "copy" / "blobs" / "sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    with largest.open("r+b") as blob:
        blob.seek(largest.stat().st_size * 3 // 4)
        blob.write(noise(64))
    user.run("rehydrate", node, "--disk", "metal", "--yes", "--bundle", reference, code=5)
    assert file.read_bytes() == OLD * size


def test_an_image_for_other_sectors(user: User, made: Made, loops: Loops) -> None:
    """Who takes metal4k for a disk with sectors of 512 bytes is warned."""
    node, _ = loops.disk(MIB)
    name = NAME.format("metal4k", "raw")
    ran = user.run("rehydrate", node, "--file", name, "--yes", "--bundle", made.reference)
    assert "warning: the image is made for sectors of 4096 bytes" in ran.err
