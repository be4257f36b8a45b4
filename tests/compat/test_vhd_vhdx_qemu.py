"""What qemu-img writes as VHD and VHDX is explained, and what the tests make is what qemu reads."""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.ops import Copy
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_vhdx, explain
from rehydrator.formats.explanation import FILE
from rehydrator.store.files import FileReader
from tests import vhd_images, vhdx_images
from tests.suites.explained import check_explanation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Explanation

MIB = 1 << 20
SIZE = 21 * MIB + 512 * 7


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of odd size with a boot sector, data here and there, and its last sector in use."""
    dice = random.Random(17)
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as out:
        out.truncate(SIZE)
        out.write(bytes(510) + b"\x55\xaa")
        for at in (1 * MIB, 5 * MIB + 1024, 9 * MIB, 10 * MIB, 14 * MIB - 512, 20 * MIB):
            out.seek(at)
            out.write(dice.randbytes(dice.randrange(600_000)))
        out.seek(SIZE - 512)
        out.write(dice.randbytes(512))
    return path


def convert(source: Path, target: Path, *arguments: str) -> Path:
    subprocess.run(["qemu-img", "convert", *arguments, str(source), str(target)], check=True)
    return target


def literal_bytes(explanation: Explanation, file: Reader) -> int:
    """Unexplained bytes in sectors that are not zero; the builder finds the zeros."""
    spans = [(op.offset, op.length) for op in explanation.ops if isinstance(op, Copy) and op.space == FILE]
    pieces = (file.pread(at, min(512, a + n - at)) for a, n in spans for at in range(a, a + n, 512))
    return sum(len(piece) for piece in pieces if any(piece))


def sectors(spans: Iterable[tuple[int, int]]) -> set[int]:
    """The numbers of the sectors in some spans."""
    return {n for start, length in spans for n in range(start // 512, (start + length) // 512)}


@pytest.mark.parametrize(
    ("arguments", "format_name", "most"),
    [
        ("-O vpc -o subformat=fixed,force_size", "vhd", 512),
        ("-O vpc -o subformat=fixed", "vhd", 512),
        ("-O vpc -o force_size", "vhd", 4096),
        ("-O vpc", "vhd", 4096),
        ("-O vhdx", "vhdx", 32 << 10),
        ("-O vhdx -o block_size=1M", "vhdx", 32 << 10),
        ("-O vhdx -o block_size=2M,log_size=4M", "vhdx", 32 << 10),
        ("-O vhdx -o block_size=32M", "vhdx", 32 << 10),
        ("-O vhdx -o subformat=fixed", "vhdx", 32 << 10),
        ("-O vhdx -o subformat=fixed,block_size=1M", "vhdx", 32 << 10),
    ],
)
def test_converted_disk(raw: Path, tmp_path: Path, arguments: str, format_name: str, most: int) -> None:
    """The guest is the disk that went in; few bytes that are not zero are unexplained."""
    path = convert(raw, tmp_path / "image", "-f", "raw", *arguments.split())
    with closing(FileReader(path)) as file:
        explained = explain(file)
        assert explained.format == format_name
        guest = raw.read_bytes().ljust(explained.guest.size, b"\0")
        check_explanation(explained, file, guest)
        assert explained.guest.size - SIZE < MIB  # the nearest cylinders, heads and sectors
        assert literal_bytes(explained, file) <= most
        data = sum(length for _, length in explained.guest.data_spans())
        assert data <= SIZE // 2


@pytest.mark.parametrize("arguments", ["-O vpc", "-O vhdx -o block_size=1M"])
def test_spans_lie_in_what_qemu_maps(raw: Path, tmp_path: Path, arguments: str) -> None:
    """Our data spans name no sector that qemu-img map does not call data."""
    path = convert(raw, tmp_path / "image", "-f", "raw", *arguments.split())
    command = ["qemu-img", "map", "-f", arguments.split()[1], "--output=json", str(path)]
    mapped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    theirs = sectors((entry["start"], entry["length"]) for entry in mapped if entry["data"])
    with closing(FileReader(path)) as file:
        ours = sectors(explain(file).guest.data_spans())
    assert ours
    assert ours <= theirs


def test_100_gib_cost_what_they_hold(tmp_path: Path) -> None:
    """Fixed and dynamic disks of 100 GiB with 64 KiB of data."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as out:
        out.truncate(100 << 30)
        out.write(b"x" * 510 + b"\x55\xaa")
        out.seek(77 << 30)
        out.write(b"y" * 65536)
    for arguments in ("-O vpc -o subformat=fixed,force_size", "-O vpc -o force_size", "-O vhdx"):
        made = convert(path, tmp_path / "image", "-f", "raw", *arguments.split())
        with closing(FileReader(made)) as file:
            explained = explain(file)
            assert explained.guest.size == 100 << 30
            assert sum(length for _, length in explained.guest.data_spans()) <= 64 * MIB
            assert explained.guest.pread((77 << 30) - 1, 65538) == b"\0" + b"y" * 65536 + b"\0"
            assert len(explained.ops) < 200
        made.unlink()


@pytest.mark.parametrize("seed", [1, 2])
def test_qemu_reads_the_shuffled_disks_that_the_tests_make(tmp_path: Path, seed: int) -> None:
    """The generators bless no habit of ours: qemu-img sees the same guest in their files."""
    dice = random.Random(seed)
    guest = b"".join(dice.randbytes(MIB) if k % 3 else bytes(MIB) for k in range(8))
    images = {
        "vpc": vhd_images.dynamic(guest, 65536, seed=seed, bitmap=bytes, spare=5, gap=512),
        "vhdx": vhdx_images.vhdx(guest, c_vhdx.MIB, seed=seed, empty=c_vhdx.UNMAPPED),
    }
    for name, image in images.items():
        path = tmp_path / name
        path.write_bytes(image)
        back = convert(path, tmp_path / "raw", "-f", name, "-O", "raw")
        assert back.read_bytes() == guest
        check_explanation(explain(BytesReader(image)), BytesReader(image), guest)
