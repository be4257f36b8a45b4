"""Files of one run on XFS, where equal blocks of files lie on the disk once; on a file system that
cannot, the same files come out."""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.rehydrate import Options, to_directory
from rehydrator.core.ops import Copy, Op, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import ReaderSpace
from rehydrator.store.clone import block_of, clone
from tests.conftest import names_in, sha256
from tests.memory_bundle import Image, MemoryBundle, boundaries_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
DISK = random.Random(7).randbytes(12 * MIB)
COUNT = 6


@contextmanager
def file_system(folder: Path, *options: str) -> Iterator[Path]:
    """A new XFS of 400 MiB, mounted."""
    device, place = folder / "device", folder / "mounted"
    with device.open("wb") as file:
        file.truncate(400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", *options, device], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", device, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def siblings() -> MemoryBundle:
    """Disks of one content, each with 4 KiB of its own, and holes; the last one shifted by a byte."""
    own = [random.Random(number).randbytes(4096) for number in range(COUNT)]
    space = ReaderSpace(BytesReader(DISK + b"".join(own)))
    images = []
    for number in range(COUNT):
        stamp = Copy(4096 if number < COUNT - 1 else 1, 0, len(DISK) + 4096 * number)
        ops: list[Op] = [Copy(4 * MIB, 0, 0), zeros(2 * MIB), stamp, Copy(8 * MIB, 0, 4 * MIB)]
        content = DISK[: 4 * MIB] + bytes(2 * MIB) + own[number][: stamp.length] + DISK[4 * MIB :]
        places = range(MIB, len(content), (number + 1) * MIB)
        images.append(Image(f"{number}.raw", ops, content, boundaries_at(content, places)))
    return MemoryBundle([space], images)


def written(directory: Path, options: Options) -> int:
    """Make all siblings in a directory; the MiB that they take on the disk, rounded up."""
    bundle, results = siblings(), list[object]()
    directory.mkdir()
    os.sync()
    before = os.statvfs(directory)
    to_directory(
        bundle, bundle.images, directory, options, lambda _: None, lambda _, result: results.append(result)
    )
    os.sync()
    after = os.statvfs(directory)
    assert results == ["written"] * COUNT
    assert names_in(directory) == [each.form.name for each in bundle.images]
    assert [sha256(directory / name) for name in names_in(directory)] == [
        each.form.sha256 for each in bundle.images
    ]
    return -(-(before.f_bfree - after.f_bfree) * after.f_frsize // MIB)


@pytest.mark.parametrize("jobs", [1, 2])
def test_siblings_take_the_space_of_one(tmp_path: Path, jobs: int) -> None:
    """Six disks, of which five have their blocks in common: far less than six are written."""
    with file_system(tmp_path) as place:
        assert written(place / "shared", Options(jobs)) < 3 * 12 + 4
        assert written(place / "not", Options(jobs, cache=False)) >= COUNT * 12


def test_a_file_system_without_shared_blocks(tmp_path: Path) -> None:
    """Nothing is said and nothing is lost where blocks cannot be shared."""
    with file_system(tmp_path, "-m", "reflink=0") as place:
        assert block_of(place) == 0
        assert written(place / "out", Options(2)) >= COUNT * 12


def test_a_file_that_is_changed_afterwards(tmp_path: Path) -> None:
    """Files that share blocks stay two files."""
    with file_system(tmp_path) as place:
        written(place / "out", Options(2))
        with (place / "out/0.raw").open("r+b") as file:
            file.write(b"mine" * MIB)
        assert [sha256(place / "out" / each.form.name) for each in siblings().images[1:]] == [
            each.form.sha256 for each in siblings().images[1:]
        ]


def test_clone(tmp_path: Path) -> None:
    """Whole blocks of one file become those of another; what is no block, and what is on another
    file system, is refused."""
    with file_system(tmp_path) as place:
        block = block_of(place)
        (place / "one").write_bytes(DISK[: 4 * block])
        (tmp_path / "other").write_bytes(DISK)
        with (place / "one").open("rb") as one, (place / "two").open("w+b") as two:
            assert clone(one.fileno(), block, two.fileno(), 2 * block, block)
            assert not clone(one.fileno(), 1, two.fileno(), 0, block)
            assert not clone(one.fileno(), 9 * block, two.fileno(), 0, block)
            with (tmp_path / "other").open("rb") as other:
                assert not clone(other.fileno(), 0, two.fileno(), 0, block)
        assert (place / "two").read_bytes() == bytes(2 * block) + DISK[block : 2 * block]


def test_a_file_without_holes_has_its_blocks_in_a_row(tmp_path: Path) -> None:
    """A file that is to have no holes gets its blocks before they are written."""
    with file_system(tmp_path) as place:
        bundle = siblings()
        image = bundle.images[0]
        results: list[object] = []
        to_directory(
            bundle,
            [image],
            place,
            Options(2, sparse=False),
            lambda _: None,
            lambda _, result: results.append(result),
        )
        assert results == ["written"]
        told = subprocess.run(["filefrag", place / "0.raw"], check=True, capture_output=True, text=True)
        assert told.stdout.endswith(": 1 extent found\n")
        assert sha256(place / "0.raw") == image.form.sha256
