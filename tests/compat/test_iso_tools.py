"""ISO images as xorriso and genisoimage write them: what they and isoinfo say of a file's place,
size and bytes is what the reader says."""

from __future__ import annotations

import os
import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from backports import zstd

from rehydrator.core.reader import BytesReader
from rehydrator.formats import cpio, embedded, initramfs, iso9660
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rehydrator.formats.filesystem import FileSystem

MIB = 1 << 20
ISOLINUX = "/usr/lib/ISOLINUX/isolinux.bin"
MBR = "/usr/lib/ISOLINUX/isohdpfx.bin"
XORRISO = ("xorriso", "-as", "mkisofs")
GENISOIMAGE = ("genisoimage",)

BIOS: tuple[str, ...] = (
    "-b",
    "isolinux/isolinux.bin",
    "-c",
    "isolinux/boot.cat",
    "-no-emul-boot",
    "-boot-load-size",
    "4",
)
BIOS += ("-boot-info-table", "-eltorito-alt-boot")
UEFI = ("-e", "images/efiboot.img", "-no-emul-boot")
HYBRID = ("-isohybrid-mbr", MBR)
APPENDED: tuple[str, ...] = (
    "-append_partition",
    "2",
    "0xef",
    "efi.img",
    "-e",
    "--interval:appended_partition_2:all::",
)
APPENDED += ("-no-emul-boot",)


def run(*words: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words], check=False, cwd=cwd, capture_output=True, timeout=300
    )
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, f"{words}: {said}"
    return done.stdout.decode("utf-8", "surrogateescape")


def make_tree(root: Path) -> dict[bytes, bytes]:
    """Empty, small and large files, long and foreign names, deep and wide directories, links."""
    dice = random.Random(11)
    files = {f"wide/a-file-with-a-rather-long-name-{k:04}.text": dice.randbytes(k) for k in range(150)}
    files |= {"/".join(f"directory{k}" for k in range(12)) + "/deep file": b"deep", "empty": b""}
    files |= {
        "n" * 200: b"long name",
        "\u00e9t\u00e9 \u20ac": b"foreign",
        "images/pxeboot/vmlinuz": dice.randbytes(MIB),
    }
    files |= {"images/efiboot.img": dice.randbytes(300 << 10), "exactly": bytes(range(256)) * 8}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "isolinux").mkdir()
    run("cp", ISOLINUX, root / "isolinux")
    (root / "symlink").symlink_to("/".join(["a-long-target"] * 60))
    os.mkfifo(root / "fifo")
    (root / "linked").hardlink_to(root / "images/efiboot.img")
    files["linked"] = files["images/efiboot.img"]
    return {os.fsencode(name): data for name, data in files.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    root = tmp_path_factory.mktemp("iso") / "tree"
    root.mkdir()
    (root.parent / "efi.img").write_bytes(random.Random(3).randbytes(MIB))
    return root, make_tree(root)


def make(maker: tuple[str, ...], options: tuple[str, ...], root: Path, target: Path) -> bytes:
    run(*maker, "-quiet", "-V", "TEST", *options, "-o", target, root, cwd=root.parent)
    return target.read_bytes()


def rebuilt(image: bytes, found: FileSystem) -> dict[bytes, bytes]:
    spans = {content.path: list(places(found, content.path)) for content in found.contents}
    return {path: b"".join(image[at : at + size] for at, size in parts) for path, parts in spans.items()}


def places(found: FileSystem, path: bytes) -> Iterator[tuple[int, int]]:
    """Where a file's bytes lie; its pieces must tile it."""
    content = next(one for one in found.contents if one.path == path)
    at = 0
    for piece in content.pieces:
        block = found.blocks[piece.block]
        assert (piece.at, piece.start, piece.length) == (at, 0, block.stored)
        yield block.offset, block.stored
        at += piece.length
    assert at == content.size


def own(files: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Without what the makers add or change."""
    added = (b"isolinux/", b"[El Torito]/")
    return {path: data for path, data in files.items() if not path.startswith(added)}


ROCK_RIDGE = [
    (XORRISO, ("-R",)),
    (XORRISO, ("-r", "-J", "-joliet-long")),
    (XORRISO, ("-R", "-D")),
    (XORRISO, ("-R", "-rr_reloc_dir", "moved")),
    (XORRISO, ("-R", "-iso-level", "4")),
    (XORRISO, ("-R", "-hfsplus")),
    (XORRISO, ("-R", *BIOS, *UEFI)),
    (XORRISO, ("-R", "-J", *HYBRID, *BIOS, *UEFI, "-isohybrid-gpt-basdat", "-isohybrid-apm-hfsplus")),
    (XORRISO, ("-R", *HYBRID, *BIOS, *APPENDED, "-partition_offset", "16")),
    (XORRISO, ("-R", *HYBRID, *BIOS, *APPENDED, "-appended_part_as_gpt")),
    (GENISOIMAGE, ("-R",)),
    (GENISOIMAGE, ("-R", "-D")),
    (GENISOIMAGE, ("-R", "-J", "-joliet-long", "-T", "-no-pad")),
    (GENISOIMAGE, ("-r", "-iso-level", "4", "-J", "-joliet-long", "-udf")),
    (GENISOIMAGE, ("-r", "-J", "-joliet-long", *BIOS, *UEFI)),
]


@pytest.mark.parametrize(("maker", "options"), ROCK_RIDGE, ids=" ".join)
def test_every_file_is_rebuilt(
    maker: tuple[str, ...], options: tuple[str, ...], tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path
) -> None:
    """Byte for byte and under its name, and where xorriso says that it lies."""
    image = make(maker, options, tree[0], tmp_path / "image.iso")
    found = iso9660.read(BytesReader(image))
    files = own(rebuilt(image, found))
    files.pop(b"TRANS.TBL", None)
    files = {path: data for path, data in files.items() if not path.endswith(b"/TRANS.TBL")}
    assert files == tree[1]
    told = reported(tmp_path / "image.iso")
    assert told == {path: (next(places(found, path))[0], len(rebuilt(image, found)[path])) for path in told}
    assert {path for path, data in tree[1].items() if data} <= set(told)


LINE = re.compile(rb"File data lba: +0 , +(\d+) , +\d+ , +(\d+) , '/(.*)'")


def reported(image: Path) -> dict[bytes, tuple[int, int]]:
    """What xorriso says: path -> byte and size, of files that are not empty."""
    out = run("xorriso", "-indev", image, "-find", "/", "-type", "f", "-exec", "report_lba", "--")
    lines = LINE.findall(os.fsencode(out))
    assert lines
    return {path: (int(lba) * 2048, int(size)) for lba, size, path in lines if int(size)}


@pytest.mark.parametrize("options", [("-J", "-joliet-long"), ()], ids=" ".join)
@pytest.mark.parametrize("maker", [(*XORRISO, "--norock"), GENISOIMAGE], ids=" ".join)
def test_names_as_isoinfo_has_them(
    maker: tuple[str, ...], options: tuple[str, ...], tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path
) -> None:
    """Without Rock Ridge the names are the identifiers; a Joliet tree adds no content."""
    image = make(maker, ("-iso-level", "3", *options), tree[0] / "wide", tmp_path / "image.iso")
    found = iso9660.read(BytesReader(image))
    names = run("isoinfo", "-f", "-i", tmp_path / "image.iso").split()
    listed = {name.removeprefix("/").removesuffix(";1").removesuffix(".") for name in names}
    files = rebuilt(image, found)
    assert {path.decode() for path in files} == listed
    wide = [data for path, data in tree[1].items() if path.startswith(b"wide/")]
    assert sorted(files.values()) == sorted(wide)
    for name in names[:3]:
        words = ["isoinfo", "-i", str(tmp_path / "image.iso"), "-x", name]
        told = subprocess.run(words, check=True, capture_output=True).stdout
        assert told == files[name.removeprefix("/").removesuffix(";1").removesuffix(".").encode()]


def test_boot_images_as_xorriso_has_them(tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """One is a file, and one an appended partition, which is no file of the tree."""
    image = make(XORRISO, ("-R", *HYBRID, *BIOS, *APPENDED), tree[0], tmp_path / "image.iso")
    found = iso9660.read(BytesReader(image))
    out = run("xorriso", "-indev", tmp_path / "image.iso", "-report_el_torito", "plain")
    told = re.findall(r"boot img : +(\d) +(\w+) .* (\d+)\n", out)
    assert {number: f"{name}, at {int(lba) * 2048}" for number, name, lba in told} == {
        number: found.facts[f"boot image {number}"] for number in "12"
    }
    efi = (tree[0].parent / "efi.img").read_bytes()
    assert rebuilt(image, found)[b"[El Torito]/2"] == efi
    assert found.facts["boot image 1"] == f"BIOS, at {next(places(found, b'isolinux/isolinux.bin'))[0]}"
    assert "MBR" in found.facts["partition tables"]


def test_a_hidden_boot_image(tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """A boot image that is hidden from all trees is found by the catalogue."""
    options = ("-R", *BIOS, *UEFI, "-hide", "efiboot.img", "-hide", "linked")
    image = make(GENISOIMAGE, options, tree[0], tmp_path / "image.iso")
    found = rebuilt(image, iso9660.read(BytesReader(image)))
    assert b"images/efiboot.img" not in found
    expected = tree[1][b"images/efiboot.img"]
    assert found[b"[El Torito]/2"][: len(expected)] == expected


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ISO with a file of a little more than 4 GiB, sparse on disk as well."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "tree").mkdir()
    with (folder / "tree/large").open("wb") as target:
        for at, data in LARGE.items():
            target.seek(at)
            target.write(data)
    (folder / "tree/small").write_bytes(b"small")
    words = [*XORRISO, "-quiet", "-R", "-J", "-iso-level", "3", "-o", "-", str(folder / "tree")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        command = ["dd", f"of={folder / 'image.iso'}", "conv=sparse", "bs=64K", "iflag=fullblock"]
        subprocess.run(command, stdin=maker.stdout, check=True, capture_output=True, timeout=500)
    assert maker.returncode == 0
    return folder / "image.iso"


LARGE_SIZE = (4 << 30) + MIB
LARGE = {0: b"first", (4 << 30) - 3: b"across", LARGE_SIZE - 4: b"last"}


def test_files_above_4_gib(large: Path) -> None:
    """Several extents in a row, which are one block; xorriso says the same size."""
    file = FileReader(large)
    found = iso9660.read(file)
    (at, size), *rest = places(found, b"large")
    assert (size, rest) == (LARGE_SIZE, [])
    assert {place: file.pread(at + place, len(data)) for place, data in LARGE.items()} == LARGE
    assert [content.path for content in found.contents] == [b"large", b"small"]
    file.close()
    assert large.stat().st_blocks * 512 < MIB
    assert reported(large)[b"large"] == (at, LARGE_SIZE)


def test_an_iso_is_little_more_than_its_files(tmp_path: Path) -> None:
    """A live ISO with the PXE trio as files: what is no file's bytes is a few KB."""
    image, found = live_iso(tmp_path)
    taken = sorted((block.offset, block.stored) for block in found.blocks)
    rest, at = [], 0
    for offset, size in [*taken, (len(image), 0)]:
        rest.append(image[at:offset])
        at = offset + size
    loose = b"".join(rest)
    assert len(loose) - loose.count(0) < 16 << 10
    assert len(zstd.compress(loose, 19)) < 8 << 10


def live_iso(folder: Path) -> tuple[bytes, FileSystem]:
    """As osbuild lays out Fedora CoreOS: isolinux, an EFI partition, and the PXE trio."""
    dice, root = random.Random(1), folder / "tree"
    pxe = root / "images/pxeboot"
    pxe.mkdir(parents=True)
    (root / "isolinux").mkdir()
    run("cp", ISOLINUX, root / "isolinux")
    for path, size in {
        pxe / "vmlinuz": 2 * MIB,
        pxe / "initrd.img": 3 * MIB,
        root / "images/efiboot.img": MIB,
    }.items():
        path.write_bytes(dice.randbytes(size))
    (folder / "content").mkdir()
    (folder / "content/file").write_bytes(dice.randbytes(MIB))
    run("mksquashfs", "content", "root.squashfs", "-quiet", "-no-progress", cwd=folder)
    with (pxe / "rootfs.img").open("wb") as target:
        words = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(words, input=b"root.squashfs\n", stdout=target, check=True, cwd=folder)
    image = make(XORRISO, ("-R", "-J", "-joliet-long", *HYBRID, *BIOS, *UEFI), root, folder / "live.iso")
    return image, iso9660.read(BytesReader(image))


def test_what_is_embedded_in_a_live_iso(tmp_path: Path) -> None:
    """The root filesystem, in a cpio archive of GNU cpio, in an ISO."""
    image, found = live_iso(tmp_path)
    squashfs = (tmp_path / "root.squashfs").read_bytes()
    at, size = next(places(found, b"images/pxeboot/rootfs.img"))
    rows = [(one.offset, one.kind, one.path) for one in embedded.embedded(BytesReader(image))]
    inner = image.index(squashfs)
    path = b"images/pxeboot/rootfs.img"
    assert rows == [(at, "cpio", path), (inner, "squashfs", path + b"/root.squashfs")]
    archive = cpio.read(BytesReader(image[at : at + size]))
    # GNU cpio pads to blocks of 512 bytes, which is no part of the archive.
    assert (archive.end + 511) // 512 * 512 == size
    assert [one.path for one in archive.members] == [b"root.squashfs"]


@pytest.mark.parametrize("kind", ["newc", "crc"])
def test_archives_of_gnu_cpio(kind: str, tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """Every regular file, byte for byte; a file of two names once, by the first of them."""
    names = run("find", ".", "-mindepth", "1", cwd=tree[0])
    words = ["cpio", "-o", "-H", kind, "--quiet"]
    raw = subprocess.run(words, input=os.fsencode(names), capture_output=True, check=True, cwd=tree[0]).stdout
    found = cpio.read_files(BytesReader(raw))
    files = rebuilt(raw, found)
    del files[b"isolinux/isolinux.bin"]
    links = {b"linked", b"images/efiboot.img"}
    assert len(links & set(files)) == 1
    assert files == {path: data for path, data in tree[1].items() if path in files or path not in links}
    if kind == "crc":
        sums = {one.path: one.check for one in cpio.read(BytesReader(raw)).members}
        assert sums[b"exactly"] == sum(tree[1][b"exactly"])


PACKERS = {
    "gzip": ["gzip", "-9n"],
    "xz": ["xz", "--check=crc32", "--lzma2=dict=1MiB"],
    "zstd": ["zstd", "-q", "-19", "-T2"],
    "bzip2": ["bzip2"],
    "lzma": ["xz", "--format=lzma"],
    "lz4": ["lz4", "-l", "-9", "-q"],
}


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_archives(kind: str, tree: tuple[Path, dict[bytes, bytes]]) -> None:
    """As the tools write them through a pipe, of more than one block of LZ4, between others."""
    names = run("find", ".", cwd=tree[0])
    words = ["cpio", "-o", "-H", "newc", "--quiet"]
    raw = subprocess.run(words, input=os.fsencode(names), capture_output=True, check=True, cwd=tree[0]).stdout
    packed = subprocess.run(PACKERS[kind], input=raw * 5, capture_output=True, check=True).stdout
    pieces = [raw, packed, packed, raw]
    gap = bytes(512)
    found = list(initramfs.segments(BytesReader(gap.join(pieces))))
    ends = [sum(len(one) + len(gap) for one in pieces[:k]) for k in range(4)]
    kinds = ["cpio", kind, kind, "cpio"]
    end = cpio.read(BytesReader(raw)).end
    lengths = [end, len(packed), len(packed), end]
    expected = [initramfs.Segment(*row) for row in zip(ends, lengths, kinds, strict=True)]
    assert found == expected
