"""The qemu-img, tar and skopeo of Debian sid: what they write is explained, and they read as we do.

The same is shown of this machine's own qemu-img where the other files here do not: its `map` and
`compare` of images that the tests shuffle.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.codecs import CODECS
from rehydrator.core.ops import Copy, Encode
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_qcow2, c_vhdx, explain
from rehydrator.formats.explanation import GUEST
from rehydrator.oci.image import LayerFile, Options, write_image
from rehydrator.oci.reference import open_image, parse, stage
from rehydrator.variants.derivations import load_derivations
from tests import qcow2_images, vhd_images, vhdx_images, vmdk_images
from tests.compat import sid
from tests.suites.explained import check_explanation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from rehydrator.formats.explanation import Explanation

MIB = 1 << 20
SECTOR = 512
# 7 MiB, two of them empty, and a last cluster that is not whole.
DISK = vmdk_images.disk(4 * MIB, seed=5) + bytes(2 * MIB) + vmdk_images.disk(MIB - 7 * SECTOR, seed=6)
DISK = DISK[:510] + b"\x55\xaa" + DISK[512:]
EMPTY = range(4 * MIB // SECTOR, 6 * MIB // SECTOR)  # sectors
# How the platforms' images are made, each way once, and what else people hand out.
PLATFORMS = {
    name: ("-O", each.format, *each.arguments)
    for name, each in load_derivations().items()
    if "x86_64" in each.arches
}
OPTIONS = {" ".join(each): each for each in PLATFORMS.values() if each[1] != "raw"} | {
    "dynamic VHD": ("-O", "vpc", "-o", "force_size"),
    "fixed VHDX": ("-O", "vhdx", "-o", "subformat=fixed"),
    "sparse VMDK": ("-O", "vmdk", "-o", "subformat=monolithicSparse"),
    "qcow2 version 2": ("-c", "-O", "qcow2", "-o", "compat=0.10"),
    "preallocated qcow2": ("-O", "qcow2", "-o", "preallocation=metadata"),
}
NAMES = {"qcow2": "qcow2", "vmdk": "vmdk", "vpc": "vhd", "vhdx": "vhdx"}


@pytest.fixture(name="raw", scope="module")
def _raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sid") / "disk.raw"
    path.write_bytes(DISK)
    subprocess.run(["fallocate", "--dig-holes", path], check=True)
    return path


def test_they_are_newer_tools() -> None:
    """sid's qemu-img is at least of version 11, whatever is installed on the machine."""
    found = re.search(r"version (\d+)\.", sid.run("qemu-img", "--version"))
    assert found
    assert int(found[1]) >= 11


def converted(raw: Path, target: Path, *options: str) -> tuple[bytes, Explanation]:
    """The disk as sid's qemu-img converts it, and the explanation, checked."""
    sid.run("qemu-img", "convert", "-f", "raw", *options, raw, target)
    image = target.read_bytes()
    explanation = explain(BytesReader(image))
    guest = DISK.ljust(explanation.guest.size, b"\0")
    assert len(guest) - len(DISK) < MIB  # VHD without force_size ends with a whole cylinder
    check_explanation(explanation, BytesReader(image), guest)
    return image, explanation


def encoded_units(explanation: Explanation) -> int:
    """Grains or clusters that are encoded again."""
    ops = [op for op in explanation.ops if isinstance(op, Encode)]
    rules, tables = explanation.rules.encodes, explanation.rules.tables
    sizes = explanation.sizes
    units = 0
    for op in ops:
        width = tables[rules[op.rule].table].width
        starts = range(op.index * width, (op.index + op.count) * width, width)
        units += sum(any(sizes[at : at + width]) for at in starts)
    return units


def encoders(explanation: Explanation) -> set[tuple[str, int]]:
    """Codec and level of each encoder in use."""
    return {(rule.codec, dict(rule.params)["level"]) for rule in explanation.rules.encodes}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_sid_writes_is_explained(name: str, raw: Path, tmp_path: Path) -> None:
    """Every format and option of the platforms: the file and the guest come back, and what is in no
    rule is less than 40 KiB of bytes that are not zero."""
    options = OPTIONS[name]
    image, explanation = converted(raw, tmp_path / "image", *options)
    assert explanation.format == NAMES[options[options.index("-O") + 1]]
    assert unexplained(image, explanation) < 40 << 10


def unexplained(image: bytes, explanation: Explanation) -> int:
    """Bytes in no rule that are not zero."""
    kept, at = 0, 0
    for op in explanation.ops:
        if isinstance(op, Copy) and op.space != GUEST:
            kept += len(image[at : at + op.length].replace(b"\0", b""))
        at += op.length
    return kept


@pytest.mark.parametrize("platform", ["nutanix", "aws", "virtualbox"])
def test_deflate_of_sid_is_encoded_again(platform: str, raw: Path, tmp_path: Path) -> None:
    """sid's zlib makes the streams that the one here makes: level 6 gives at least 99 % of them."""
    explanation = converted(raw, tmp_path / "image", *PLATFORMS[platform])[1]
    assert encoders(explanation) == {("zlib", 6)}
    assert encoded_units(explanation) >= 0.99 * compressed_units(explanation) > 40


def compressed_units(explanation: Explanation) -> int:
    """Grains or clusters that the file holds compressed."""
    facts = explanation.facts
    if explanation.format == "qcow2":
        return int(facts["compressed clusters"])
    return int(facts["grains encoded"].split(" of ")[1])


def test_zstd_of_sid_is_encoded_again_where_it_is_the_same(raw: Path, tmp_path: Path) -> None:
    """Of sid's zstd clusters all are encoded again if its library has the version of the one here, and
    none if not: then they are kept as they are. (Both were 1.5.7 in 2026.)"""
    options = ("-c", "-O", "qcow2", "-o", "compat=1.1,compression_type=zstd")
    explanation = converted(raw, tmp_path / "image", *options)[1]
    same = f"zstd {sid.library_version('libzstd')}" == CODECS["zstd"].version()
    assert encoders(explanation) == ({("zstd", 3)} if same else set())
    assert encoded_units(explanation) == (compressed_units(explanation) if same else 0)
    assert compressed_units(explanation) > 40


def old_qemu_img(*arguments: object) -> str:
    """This machine's qemu-img."""
    words = ["qemu-img", *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def new_qemu_img(*arguments: object) -> str:
    """sid's."""
    return sid.run("qemu-img", *arguments)


def shuffled_grains(dialect: vmdk_images.Dialect) -> bytes:
    """The disk as VMDK, its grains in any order."""
    order = vmdk_images.stored_grains(DISK, dialect)
    random.Random(3).shuffle(order)
    return vmdk_images.write(DISK, dialect, order)


def shuffled_clusters(**recipe: Any) -> bytes:
    """The disk as qcow2, its clusters and tables in any order."""
    return qcow2_images.image(DISK, replace(qcow2_images.Recipe(shuffle=random.Random(3)), **recipe))


COMPRESSED = [k for k in range(0, len(DISK) >> 16, 3) if k << 7 not in EMPTY]  # clusters of 64 KiB
ZSTD = {"encode": qcow2_images.zstandard, "compression_type": c_qcow2.ZSTD}
PADDED = DISK.ljust(-(-len(DISK) // MIB) * MIB, b"\0")  # the tests' VHDX generator makes whole blocks
SHUFFLED: dict[str, tuple[str, bytes, Callable[[], bytes]]] = {
    "qcow2": ("qcow2", DISK, shuffled_clusters),
    "qcow2 version 2": ("qcow2", DISK, lambda: shuffled_clusters(version=2, cluster_bits=12)),
    "qcow2 deflate": ("qcow2", DISK, lambda: shuffled_clusters(compressed=COMPRESSED, odd=77)),
    "qcow2 zstd": ("qcow2", DISK, lambda: shuffled_clusters(compressed=COMPRESSED, odd=77, **ZSTD)),
    "vmdk in place": ("vmdk", DISK, lambda: shuffled_grains(vmdk_images.QEMU)),
    "vmdk footer": ("vmdk", DISK, lambda: shuffled_grains(vmdk_images.VMWARE)),
    "vmdk sparse": ("vmdk", DISK, lambda: shuffled_grains(vmdk_images.SPARSE)),
    "vhd dynamic": ("vpc", DISK, lambda: vhd_images.dynamic(DISK, 65536, seed=3, spare=5, gap=512)),
    "vhd fixed": ("vpc", DISK, lambda: vhd_images.fixed(DISK)),
    "vhdx": ("vhdx", PADDED, lambda: vhdx_images.vhdx(PADDED, seed=3, empty=c_vhdx.UNMAPPED)),
}


@pytest.mark.parametrize("qemu_img", [old_qemu_img, new_qemu_img])
@pytest.mark.parametrize("name", SHUFFLED)
def test_qemu_reads_shuffled_images_as_we_do(name: str, qemu_img: Callable[..., str], tmp_path: Path) -> None:
    """`compare` finds the disk that went in; `map` says data exactly where our guest's spans say so,
    and at the places in the file that we copy from."""
    kind, guest, make = SHUFFLED[name]
    raw, path, image = tmp_path / "disk.raw", tmp_path / "image", make()
    raw.write_bytes(guest)
    path.write_bytes(image)
    qemu_img("compare", "-f", kind, "-F", "raw", path, raw)
    mapped = json.loads(qemu_img("map", "--output=json", "-f", kind, path))
    explanation = explain(BytesReader(image))
    check_explanation(explanation, BytesReader(image), guest)
    ours = sectors(explanation.guest.data_spans())
    theirs = sectors((span["start"], span["length"]) for span in mapped if span["data"])
    # qemu calls the whole of every VHDX data.
    assert theirs == (sectors([(0, len(guest))]) if kind == "vhdx" else ours)
    assert ours.isdisjoint(EMPTY) == (name != "vhd fixed")
    placed = places(explanation)
    told = [span for span in mapped if span["data"] and "offset" in span]
    expected = {
        span["offset"] + at: span["start"] + at for span in told for at in range(0, span["length"], SECTOR)
    }
    assert {offset: placed.get(offset) for offset in expected} == expected
    assert bool(told) == (kind != "vhdx" and "footer" not in name and "in place" not in name)


def sectors(spans: Iterable[tuple[int, int]]) -> set[int]:
    """The numbers of the sectors in some spans."""
    return {n for start, length in spans for n in range(start // SECTOR, -(-(start + length) // SECTOR))}


def places(explanation: Explanation) -> dict[int, int]:
    """Guest offset by file offset, for every sector that is copied from the guest."""
    where: dict[int, int] = {}
    at = 0
    for op in explanation.ops:
        if isinstance(op, Copy) and op.space == GUEST:
            where |= {at + k: op.offset + k for k in range(0, op.length, SECTOR)}
        at += op.length
    return where


def test_the_sparse_tar_of_sid_is_explained(raw: Path, tmp_path: Path) -> None:
    """gcp's tar by sid's GNU tar: the disk in it comes back, and all but its headers by rules."""
    target = tmp_path / "disk.tar"
    sid.run("tar", "-C", raw.parent, "-c", "-S", "--format=oldgnu", "-f", target, raw.name)
    image = target.read_bytes()
    explanation = explain(BytesReader(image))
    check_explanation(explanation, BytesReader(image), DISK)
    assert (image[156:157], explanation.format) == (b"S", "tar (sparse)+raw")
    assert unexplained(image, explanation) < 1024


def test_skopeo_of_sid_keeps_an_images_digest(tmp_path: Path) -> None:
    """A layout of ours through oci-archive: and dir: and back to a layout has the same manifest."""
    source = f"oci:{tmp_path}/built:v1"
    made = make_image(source, tmp_path)
    hops = [source, f"oci-archive:{tmp_path}/x.tar:v1", f"dir:{tmp_path}/dir", f"oci:{tmp_path}/back:v1"]
    for one, other in pairwise(hops):
        sid.run("skopeo", "--policy", sid.POLICY, "copy", "--quiet", one, other)
    assert [sha256(sid.run("skopeo", "inspect", "--raw", hop)) for hop in hops] == [made] * 4


def sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def make_image(reference: str, tmp_path: Path) -> str:
    """A data-only image with two layers; its manifest's digest."""
    files = [tmp_path / "one", tmp_path / "two"]
    for number, file in enumerate(files):
        file.write_bytes(random.Random(number).randbytes(100_000))
    groups = [[LayerFile(f"bundle/{file.name}", file)] for file in files]
    with stage(parse(reference)) as staging:
        staging.seal(write_image(staging, None, groups, Options()))
        staging.publish()
    with open_image(parse(reference), tmp_path) as image:
        return image.documents[0].digest
