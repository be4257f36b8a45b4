"""What qemu-img writes is explained, and what the test's generator writes is what qemu reads."""

from __future__ import annotations

import json
import random
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Encode, Offsets
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_qcow2 as c
from rehydrator.formats import explain
from rehydrator.formats.explanation import GUEST
from rehydrator.store.files import FileReader
from tests import qcow2_images as make
from tests.qcow2_images import Recipe
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.formats.explanation import Explanation

CLUSTER = 65536
WORDS = [random.Random(4).randbytes(3 + k % 9) for k in range(3000)]


@cache
def text() -> bytes:
    """2 MiB that compress to some half."""
    return b"".join(random.Random(6).choices(WORDS, k=400_000))[: 2 << 20]


def disk(clusters: int, noise: int = 50, hole: int = 9) -> bytes:
    """Clusters of text, each another; every `noise`-th does not compress, every `hole`-th is empty."""
    dice = random.Random(2)
    blocks = []
    for number in range(clusters):
        at = dice.randrange(len(text()) - CLUSTER)
        block = dice.randbytes(CLUSTER) if number % noise == 20 else text()[at : at + CLUSTER]
        blocks.append(bytes(CLUSTER) if number % hole == 5 else block)
    return b"".join(blocks)


@pytest.fixture(scope="module", name="large")
def _large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MiB."""
    path = tmp_path_factory.mktemp("qcow2") / "large.raw"
    path.write_bytes(disk(800))
    return path


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 MiB and one sector."""
    path = tmp_path_factory.mktemp("qcow2") / "small.raw"
    path.write_bytes(disk(100) + b"end." * 128)
    return path


def qemu_img(*arguments: str | Path) -> str:
    words = ["qemu-img", *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def convert(source: Path, target: Path, *options: str) -> Path:
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, source, target)
    return target


def explained(path: Path, guest: bytes) -> Explanation:
    """The explanation of a file, after the checks that all must pass."""
    file = FileReader(path)
    explanation = explain(file)
    check_explanation(explanation, file, guest)
    return explanation


OPTIONS = {
    "default": [],
    "version 2": ["-o", "compat=0.10"],
    "version 3": ["-o", "compat=1.1"],
    "lazy refcounts": ["-o", "compat=1.1,lazy_refcounts=on"],
    "refcounts of a bit": ["-o", "refcount_bits=1"],
    "refcounts of 64 bits": ["-o", "refcount_bits=64"],
    "small clusters": ["-o", "cluster_size=4096"],
    "large clusters": ["-o", "cluster_size=2M"],
    "preallocated metadata": ["-o", "preallocation=metadata"],
    "preallocated space": ["-o", "preallocation=falloc"],
    "coroutines out of order": ["-W", "-m", "16"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_plain_images_are_explained_to_the_last_pages(name: str, large: Path, tmp_path: Path) -> None:
    """Of a disk of 50 MiB less than 4 KiB are left that no rule gives."""
    path = convert(large, tmp_path / "x.qcow2", *OPTIONS[name])
    assert unexplained_bytes(explained(path, large.read_bytes())) < 4096


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_compressed_images_are_encoded_again(version: str, small: Path, tmp_path: Path) -> None:
    """At least 99 % of the compressed clusters come from zlib with qemu's parameters."""
    path = convert(small, tmp_path / "x.qcow2", "-c", "-o", f"compat={version}")
    explanation = explained(path, small.read_bytes())
    params = (("level", 6), ("memlevel", 9), ("wbits", -12))
    assert [(rule.codec, rule.params) for rule in explanation.rules.encodes] == [("zlib", params)]
    compressed = int(explanation.facts["compressed clusters"])
    stored = memoryview(explanation.sizes).cast("H")
    again = [
        size
        for op in explanation.ops
        if isinstance(op, Encode)
        for size in stored[op.index : op.index + op.count]
        if size
    ]
    assert len(again) >= 0.99 * compressed > 80
    assert len([op for op in explanation.ops if isinstance(op, Offsets)]) >= 1
    assert unexplained_bytes(explanation) < 2 * CLUSTER


def test_zstd_images_are_explained(small: Path, tmp_path: Path) -> None:
    """Compression type zstd: the guest is right; the frames are literals where the library is another."""
    path = convert(small, tmp_path / "x.qcow2", "-c", "-o", "compression_type=zstd")
    assert explained(path, small.read_bytes()).facts["compression"] == "zstd"


@pytest.mark.parametrize("size", ["512", "2M"])
def test_compressed_images_of_other_cluster_sizes(size: str, tmp_path: Path) -> None:
    """The position of the sector count depends on the cluster size."""
    raw = tmp_path / "x.raw"
    raw.write_bytes(disk(40))
    path = convert(raw, tmp_path / "x.qcow2", "-c", "-o", f"cluster_size={size}")
    explanation = explained(path, raw.read_bytes())
    assert sum(op.count for op in explanation.ops if isinstance(op, Encode)) > 0


def test_a_resized_image_is_explained(small: Path, tmp_path: Path) -> None:
    """To 100 GiB, as for a cloud: its L1 table moves, and the new part costs nothing."""
    path = convert(small, tmp_path / "x.qcow2")
    qemu_img("resize", "-q", path, "100G")
    file = FileReader(path)
    explanation = explain(file)
    check_explanation(explanation, file)
    assert explanation.guest.size == 100 << 30
    assert explanation.guest.pread(0, small.stat().st_size) == small.read_bytes()
    assert unexplained_bytes(explanation) < CLUSTER + 4096


def test_an_image_preallocated_for_100_gib_is_small(tmp_path: Path) -> None:
    """As virt-install makes it: 1.6 million mapped clusters without data."""
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,lazy_refcounts=on", path, "100G")
    explanation = explain(FileReader(path))
    assert len(explanation.ops) < 1000
    assert unexplained_bytes(explanation) < 4096
    # qemu-img writes the last sector, so that the file has its size.
    assert sum(length for _, length in explanation.guest.data_spans()) <= CLUSTER


@pytest.mark.parametrize("kind", ["backing", "snapshot", "data_file", "aes"])
def test_images_with_relatives_are_declined(kind: str, small: Path, tmp_path: Path) -> None:
    """Backing files, internal snapshots, external data files and encryption, as qemu-img makes them."""
    path = tmp_path / "x.qcow2"
    if kind == "snapshot":
        qemu_img("snapshot", "-c", "one", convert(small, path))
    elif kind == "backing":
        base = convert(small, tmp_path / "base.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    elif kind == "data_file":
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'x.data'}", path, "1M")
    else:
        secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
        qemu_img("create", "-q", "-f", "qcow2", *secret, path, "1M")
    why = {
        "snapshot": "1 internal",
        "backing": "a backing",
        "data_file": "an external",
        "aes": "encrypted, method 1",
    }
    with pytest.raises(Unexplained, match=why[kind]):
        explain(FileReader(path))


def placed(explanation: Explanation) -> dict[int, int]:
    """File offset by guest offset, for every 512 bytes that are copied from the guest."""
    where: dict[int, int] = {}
    at = 0
    for op in explanation.ops:
        if isinstance(op, Copy) and op.space == GUEST:
            where |= {op.offset + k: at + k for k in range(0, op.length, 512)}
        at += op.length
    return where


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_qemu_reads_shuffled_images_as_we_do(version: int, bits: int, tmp_path: Path) -> None:
    """The generator's images pass qemu-img check, hold the same disk, and have the same map."""
    guest = disk(10)[: 60 << bits]
    recipe = Recipe(version=version, cluster_bits=bits, shuffle=random.Random(bits))
    raw, path = tmp_path / "x.raw", tmp_path / "x.qcow2"
    raw.write_bytes(guest)
    path.write_bytes(make.image(guest, recipe))
    qemu_img("check", path)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)
    spans = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path))
    expected = {
        span["start"] + k: span["offset"] + k
        for span in spans
        if "offset" in span
        for k in range(0, span["length"], 512)
    }
    assert placed(explain(BytesReader(path.read_bytes()))) == expected


@pytest.mark.parametrize("zstd", [False, True])
def test_qemu_reads_shuffled_compressed_images_as_we_do(tmp_path: Path, *, zstd: bool) -> None:
    """Streams at odd bytes, between plain clusters, zero clusters and leaked ones."""
    guest = disk(40)
    holes = [k for k in range(40) if k % 9 == 5]
    recipe = Recipe(
        compressed=[k for k in range(40) if k % 3 and k not in holes],
        encode=make.zstandard if zstd else make.deflate,
        compression_type=c.ZSTD if zstd else c.DEFLATE,
        zero_plain=holes[:2],
        zero_allocated=holes[2:],
        shuffle=random.Random(1),
        odd=77,
    )
    raw, path = tmp_path / "x.raw", tmp_path / "x.qcow2"
    raw.write_bytes(guest)
    path.write_bytes(make.image(guest, recipe))
    qemu_img("check", path)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)
    explained(path, guest)
