"""The partition table of a disk for sectors of 4,096 bytes: read right, or refused."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.host.guest_volumes import Volume, sector_size, volumes_of
from tests.corpus.disk import BIG_SECTOR, MIB, Disk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="disk")
def fixture_disk(tmp_path: Path) -> Disk:
    """Four partitions; the file systems are no more than their magic numbers."""
    disk = Disk(tmp_path / "disk.raw", {"EFI-SYSTEM": 2, "boot": 3, "root": 4}, sector=BIG_SECTOR)
    with disk.path.open("r+b") as file:
        file.seek(disk.partitions["boot"].offset + 1024 + 56)
        file.write(b"\x53\xef")
        file.seek(disk.partitions["root"].offset)
        file.write(b"XFSB")
    return disk


def test_volumes(disk: Disk) -> None:
    """Number, place and kind of each file system; what is none is left out."""
    assert sector_size(disk.path) == 4096
    expected = [Volume(3, 4 * MIB, 3 * MIB, "ext"), Volume(4, 7 * MIB, 4 * MIB, "xfs")]
    assert volumes_of(disk.path) == expected


def test_every_damaged_byte_is_refused(disk: Disk) -> None:
    """Both checksums count: a bit that is wrong in the header or in the entries is an error of ours."""
    good = disk.path.read_bytes()
    places = [BIG_SECTOR + at for at in (8, 12, 16, 20, 24, 40, 72, 80, 84, 88)]
    places += [2 * BIG_SECTOR + at for at in (0, 16, 32, 40, 128, 511)]
    for place in places:
        with disk.path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([good[place] ^ 0x40]))
        with pytest.raises(HostileInput, match="sectors of 4096 bytes"):
            volumes_of(disk.path)
        disk.path.write_bytes(good)


def test_noise_is_refused(disk: Disk) -> None:
    """Whatever stands behind the signature, and however short the file is, nothing else happens."""
    chance = random.Random(1)
    for length in (8, 92, 1000, 4096, 20_000):
        noise = b"EFI PART" + chance.randbytes(length)
        disk.path.write_bytes(bytes(BIG_SECTOR) + noise + bytes(-len(noise) % 512))
        with pytest.raises(HostileInput):
            volumes_of(disk.path)


def test_a_partition_beyond_the_end(disk: Disk) -> None:
    """A disk that was cut short is refused, though its table is whole."""
    with disk.path.open("r+b") as file:
        file.truncate(9 * MIB)
    with pytest.raises(HostileInput, match="lies outside of the file's"):
        volumes_of(disk.path)
