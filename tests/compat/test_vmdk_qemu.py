"""VMDK against qemu-img: it reads what our generator writes, and we explain what it writes."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.ops import Copy, Encode
from rehydrator.core.reader import BytesReader
from rehydrator.formats import vmdk
from rehydrator.formats.explanation import FILE
from tests.suites.explained import check_explanation
from tests.vmdk_images import QEMU, SPARSE, VMWARE, disk, stored_grains, write, zlib_level

if TYPE_CHECKING:
    from pathlib import Path

GUEST = disk(6 << 20, seed=8)
SIZES = {"whole grains": len(GUEST), "part of a grain": len(GUEST) - 7 * 512}
# The options with which CoreOS makes its aws and vmware images, its virtualbox image, and plain ones.
COMPRESSED = ["adapter_type=lsilogic,subformat=streamOptimized,compat6", "subformat=streamOptimized"]
DIALECTS = {
    "in place": QEMU,
    "whole last grain": replace(QEMU, short_last=False),
    "footer": VMWARE,
    "footer, level 9, zeroed grains": replace(VMWARE, encode=zlib_level(9), zeroed=True),
    "small grains": replace(VMWARE, grain=16),
    "sparse": SPARSE,
    "sparse, zeroed grains": replace(SPARSE, zeroed=True, version=2),
}


def converted(guest: bytes, options: str, folder: Path) -> bytes:
    """The guest as VMDK by qemu-img."""
    raw, image = folder / "disk.raw", folder / "disk.vmdk"
    raw.write_bytes(guest)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, image)
    return image.read_bytes()


def qemu_img(*arguments: object) -> None:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def nonzero_unexplained(ops: object, file: bytes) -> int:
    spans = [op for op in ops if isinstance(op, Copy) and op.space == FILE]  # type: ignore[attr-defined]
    return sum(len(file[op.offset : op.offset + op.length].replace(b"\0", b"")) for op in spans)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", COMPRESSED)
def test_every_grain_of_qemu_is_encoded(options: str, size: str, tmp_path: Path) -> None:
    """All grains by zlib level 6, in one Encode (two where the disk ends inside of a grain);
    besides zeros, only header and descriptor are unexplained."""
    guest = GUEST[: SIZES[size]]
    file = converted(guest, options, tmp_path)
    explanation = vmdk.explain(BytesReader(file))
    check_explanation(explanation, BytesReader(file), guest)
    count = len(stored_grains(guest, QEMU))
    assert explanation.facts["grains encoded"] == f"{count} of {count}"
    assert {dict(rule.params)["level"] for rule in explanation.rules.encodes} == {6}
    assert sum(isinstance(op, Encode) for op in explanation.ops) <= 2
    assert len(explanation.ops) < 12
    assert nonzero_unexplained(explanation.ops, file) < 1024


@pytest.mark.parametrize("size", SIZES)
def test_sparse_extents_of_qemu(size: str, tmp_path: Path) -> None:
    """Grains as they are."""
    guest = GUEST[: SIZES[size]]
    file = converted(guest, "subformat=monolithicSparse", tmp_path)
    explanation = vmdk.explain(BytesReader(file))
    check_explanation(explanation, BytesReader(file), guest)
    assert nonzero_unexplained(explanation.ops, file) < 1024


def test_a_large_empty_disk(tmp_path: Path) -> None:
    """100 GiB with a little data at both ends: sizes and ops stay small."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    with raw.open("wb") as stream:
        stream.write(GUEST[: 1 << 20])
        stream.truncate(100 << 30)
        stream.seek((100 << 30) - 65536)
        stream.write(b"end" * 100)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image)
    file = image.read_bytes()
    explanation = vmdk.explain(BytesReader(file))
    check_explanation(explanation, BytesReader(file))
    assert (explanation.guest.size, len(explanation.ops) < 20) == (100 << 30, True)
    assert explanation.guest.pread((100 << 30) - 65536, 6) == b"endend"
    assert len(explanation.sizes) < 100


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize("name", DIALECTS)
def test_qemu_reads_what_the_generator_writes(name: str, order: str, size: str, tmp_path: Path) -> None:
    """The generator's files are real VMDK files: qemu-img converts them to the same guest."""
    guest, dialect = GUEST[: SIZES[size]], DIALECTS[name]
    grains = stored_grains(guest, dialect)
    if order == "shuffled":
        random.Random(3).shuffle(grains)
    image, raw = tmp_path / "disk.vmdk", tmp_path / "disk.raw"
    image.write_bytes(write(guest, dialect, grains))
    qemu_img("convert", "-f", "vmdk", "-O", "raw", image, raw)
    assert raw.read_bytes() == guest
