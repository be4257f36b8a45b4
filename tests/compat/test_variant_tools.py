"""Converted, wrapped and compressed disks in the hands of the real tools, and made twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError
from rehydrator.formats import explain
from rehydrator.store.files import FileReader
from rehydrator.variants import compress as compression
from rehydrator.variants import wrap
from rehydrator.variants.compress import COMPRESSORS, compress
from rehydrator.variants.convert import convert, inspect
from rehydrator.variants.identity import Identity
from tests.compat import sid
from tests.conftest import names_in, sha256
from tests.corpus.live import make_rootfs
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
EPOCH = 1_700_000_000
IDENTITY = Identity("demo 1.0 x86_64 test", EPOCH)
SIZE = 9 * MIB
TIMEOUT = 120.0
VALUES = {
    "vsphere_image_name": "demo & <co>",
    "vsphere_product_name": "Demo",
    "vsphere_product_vendor_name": "Us",
    "vsphere_product_version": "1.0",
    "vsphere_virtual_system_type": "vmx-17",
    "vsphere_os_type": "fedora64Guest",
    "vsphere_scsi_controller_type": "VirtualSCSI",
    "vsphere_network_controller_type": "VmxNet3",
    "secure_boot": "true",
}
# What the table of derivations uses, and more that qemu-img has.
DERIVED = [
    ("raw", ""),
    ("qcow2", "-o compat=1.1"),
    ("qcow2", "-c -o compat=1.1"),
    ("vmdk", "-c -o adapter_type=lsilogic,compat6,subformat=streamOptimized"),
    ("vmdk", "-o adapter_type=lsilogic,subformat=streamOptimized,compat6"),
    ("vmdk", "-o subformat=streamOptimized"),
    ("vmdk", ""),
    ("vpc", "-o subformat=fixed,force_size"),
    ("vpc", "-o force_size"),
    ("vhdx", ""),
    ("vhdx", "-o subformat=fixed,block_size=1M"),
]


def tool(*argv: object, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    """Run a program that must succeed; its stdout."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=TIMEOUT,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, argv) == (0, argv), done.stderr.decode()
    return done.stdout


def make_disk(path: Path) -> Path:
    """A guest disk with a boot sector, data here and there, some of it compressible, its last
    sector in use."""
    dice = random.Random(23)
    with path.open("wb") as out:
        out.truncate(SIZE)
        out.write(bytes(510) + b"\x55\xaa")
        for at in (MIB, 3 * MIB + 1024, 5 * MIB, 8 * MIB - 4096):
            out.seek(at)
            out.write(dice.randbytes(dice.randrange(60_000)) + b"text" * 9000)
        out.seek(SIZE - 512)
        out.write(dice.randbytes(512))
    return path


@pytest.fixture(name="raw", scope="module")
def fixture_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw")


def twice(tmp_path: Path, make: Callable[[Path], Path]) -> Path:
    """Make a file in two directories, more than a second apart; they must be the same bytes."""
    one, other = tmp_path / "one", tmp_path / "another" / "place"
    one.mkdir()
    other.mkdir(parents=True)
    first = make(one)
    time.sleep(1.1)
    assert sha256(make(other)) == sha256(first)
    return first


def check_still_explained(path: Path, raw: Path) -> None:
    """Our own reading of the file: all of it, and the guest is the disk."""
    file = FileReader(path)
    check_explanation(explain(file), file, raw.read_bytes())


@pytest.mark.parametrize(("format_name", "arguments"), DERIVED)
def test_converted_twice(raw: Path, tmp_path: Path, format_name: str, arguments: str) -> None:
    """Two runs are the same bytes; qemu-img finds the image sound and equal to the disk; we
    explain it."""

    def make(place: Path) -> Path:
        target = place / "disk.img"
        convert(raw, "raw", format_name, arguments.split(), target, IDENTITY, TIMEOUT)
        assert names_in(place) == ["disk.img"]
        return target

    made = twice(tmp_path, make)
    tool("qemu-img", "compare", "-f", "raw", "-F", format_name, raw, made)
    if format_name in {"qcow2", "vmdk", "vhdx"}:
        tool("qemu-img", "check", "-f", format_name, made)
    assert inspect(made, format_name).virtual_size == SIZE
    check_still_explained(made, raw)


@pytest.mark.parametrize(("format_name", "arguments"), DERIVED[4:])
def test_only_identifiers_differ(raw: Path, tmp_path: Path, format_name: str, arguments: str) -> None:
    """Of what qemu-img itself writes, nothing else changes than the sectors that identify, and
    what lies in a VHDX's empty log: of a VMDK the descriptor (two sectors where its text ends in
    the second), of a VHD the footers, of a VHDX two headers and the page 83 item."""
    theirs = tmp_path / "disk.img"
    tool("qemu-img", "convert", "-f", "raw", "-O", format_name, *arguments.split(), raw, theirs)
    (tmp_path / "ours").mkdir()
    ours = tmp_path / "ours" / "disk.img"
    convert(raw, "raw", format_name, arguments.split(), ours, IDENTITY, TIMEOUT)
    one, two = theirs.read_bytes(), ours.read_bytes()
    assert len(one) == len(two)
    log = range(MIB, 2 * MIB) if format_name == "vhdx" else range(0)
    starts = (at for at in range(0, len(one), 512) if at not in log)
    differing = [at for at in starts if one[at : at + 512] != two[at : at + 512]]
    most = {"vmdk": 2, "vpc": 2, "vhdx": 3}[format_name]
    assert 0 < len(differing) <= most


def test_vmdk_keeps_its_name(raw: Path, tmp_path: Path) -> None:
    """The descriptor names the target, not the directory or file in which it was made."""
    target = tmp_path / "demo-aws.x86_64.vmdk"
    convert(raw, "raw", "vmdk", ["-o", "subformat=streamOptimized"], target, IDENTITY, TIMEOUT)
    text = target.read_bytes()[512 : 512 * 21]
    assert b'SPARSE "demo-aws.x86_64.vmdk"\n' in text
    assert b"\nCID=%08x\n" % IDENTITY.number32("vmdk cid") in text


def test_raw_is_sparse(raw: Path, tmp_path: Path) -> None:
    """A raw disk takes no more space than its data."""
    target = tmp_path / "disk.raw"
    convert(raw, "raw", "raw", (), target, IDENTITY, TIMEOUT)
    assert sha256(target) == sha256(raw)
    assert target.stat().st_blocks * 512 < SIZE // 4


def test_overlay(raw: Path, tmp_path: Path) -> None:
    """The source may be a qcow2 overlay with a raw backing file; given as a base, it is refused."""
    overlay = tmp_path / "overlay.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-b", raw, "-F", "raw", overlay, 12 * MIB)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", overlay)
    target = tmp_path / "disk.raw"
    convert(overlay, "qcow2", "raw", (), target, IDENTITY, TIMEOUT)
    expected = bytearray(raw.read_bytes() + bytes(3 * MIB))
    expected[2 * MIB : 2 * MIB + 65536] = b"\7" * 65536
    assert target.read_bytes() == expected
    with pytest.raises(HostileInput, match=r"overlay\.qcow2: has a backing file"):
        inspect(overlay, "qcow2")


@pytest.fixture(name="small_disk", scope="module")
def fixture_small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path_factory.mktemp("small")
    tool("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place)
    yield place
    tool("umount", place)


@pytest.fixture(name="dense", scope="module")
def fixture_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A megabyte that nothing makes smaller."""
    path = tmp_path_factory.mktemp("dense") / "disk.raw"
    path.write_bytes(random.Random(5).randbytes(MIB))
    return path


@pytest.mark.parametrize(("format_name", "arguments"), DERIVED)
def test_full_disk_at_conversion(dense: Path, small_disk: Path, format_name: str, arguments: str) -> None:
    """Whatever qemu-img says of it (with streamOptimized: it crashes), the place is named as full,
    and nothing is left there."""
    with pytest.raises(LimitExceeded, match=f"no space in {small_disk}: qemu-img"):
        convert(dense, "raw", format_name, arguments.split(), small_disk / "disk", IDENTITY, TIMEOUT)
    assert names_in(small_disk) == []


def test_full_disk_at_wrapping(dense: Path, small_disk: Path) -> None:
    """tar and our own writes."""
    template = wrap.load_template("vmware.ovf")
    calls: list[Callable[[], None]] = [
        lambda: wrap.ova(dense, SIZE, small_disk / "x", template, VALUES, IDENTITY),
        lambda: wrap.gcp_tar(dense, small_disk / "x", IDENTITY),
        lambda: wrap.ociarchive(dense, small_disk / "x", "amd64", "1", "disk/x.qcow2", IDENTITY),
    ]
    for call in calls:
        with pytest.raises(LimitExceeded, match=f"no space in {small_disk}: "):
            call()
        assert names_in(small_disk) == []


@pytest.mark.parametrize("method", COMPRESSORS)
def test_full_disk_at_compression(dense: Path, small_disk: Path, method: str) -> None:
    """Every compressor."""
    with pytest.raises(LimitExceeded, match=f"no space in {small_disk}: "):
        compress(method, dense, small_disk / "x", 2, TIMEOUT)
    assert names_in(small_disk) == []


@pytest.mark.parametrize(("format_name", "arguments"), DERIVED[1:])
def test_damaged_images(raw: Path, tmp_path: Path, format_name: str, arguments: str) -> None:
    """Cut or with flipped bytes in what describes the disk, an image is read or refused in words of ours;
    never longer than a few seconds."""
    whole = tmp_path / "whole"
    tool("qemu-img", "convert", "-f", "raw", "-O", format_name, *arguments.split(), raw, whole)
    data, dice = whole.read_bytes(), random.Random(format_name + arguments)
    damaged = tmp_path / "damaged"
    outcomes: set[type] = set()
    for number in range(25):
        mutable = bytearray(data[: dice.randrange(len(data))] if number % 5 == 0 else data)
        for _ in range(0 if number % 5 == 0 else 3):
            place = dice.choice((dice.randrange(128), -dice.randrange(1, 512), 65536 + dice.randrange(80)))
            mutable[place] ^= 1 << dice.randrange(8)
        damaged.write_bytes(mutable)
        try:
            outcomes.add(type(inspect(damaged, format_name)))
        except RehydratorError as error:
            assert str(damaged) in str(error)  # noqa: PT017 - which of the two it is depends on the damage
            outcomes.add(type(error))
    assert HostileInput in outcomes


# ---- wrapped


def stamped(path: Path, at: int) -> Path:
    """A file with a time and a mode that must not show."""
    path.chmod(0o600 + at % 64)
    os.utime(path, (at, at))
    return path


def vmdk_in(place: Path, raw: Path) -> Path:
    target = place / "disk.vmdk"
    convert(raw, "raw", "vmdk", ["-o", "subformat=streamOptimized"], target, IDENTITY, TIMEOUT)
    return stamped(target, time.time_ns() // 10**9)


def listing(path: Path) -> list[list[str]]:
    """mode, owner, size, date, time, name of each member, as GNU tar tells them."""
    lines = tool("tar", "--numeric-owner", "-tvf", path).decode().splitlines()
    return [line.split() for line in lines]


WHEN = ["2023-11-14", "22:13"]


@pytest.mark.parametrize("name", ["vmware.ovf", "virtualbox.ovf"])
def test_ova(raw: Path, tmp_path: Path, name: str) -> None:
    """Two runs are the same bytes: a ustar of descriptor and disk, which we explain."""

    def make(place: Path) -> Path:
        disk, target = vmdk_in(place, raw), place / "demo.ova"
        wrap.ova(disk, SIZE, target, wrap.load_template(name), VALUES, IDENTITY)
        assert names_in(place) == ["demo.ova", "disk.vmdk"]
        return target

    made = twice(tmp_path, make)
    tool("tar", "-xf", made, "-C", tmp_path)
    ovf, disk = tmp_path / "coreos.ovf", tmp_path / "disk.vmdk"
    assert listing(made) == [
        ["-rw-r--r--", "0/0", str(ovf.stat().st_size), *WHEN, "coreos.ovf"],
        ["-rw-r--r--", "0/0", str(disk.stat().st_size), *WHEN, "disk.vmdk"],
    ]
    assert made.read_bytes()[257:265] == b"ustar\x0000"
    assert f'ovf:size="{disk.stat().st_size}"' in ovf.read_text()
    assert f'ovf:capacity="{SIZE}"' in ovf.read_text()
    assert sha256(disk) == sha256(made.with_name("disk.vmdk"))
    check_still_explained(made, raw)


def test_powervs_ova(raw: Path, tmp_path: Path) -> None:
    """Two runs are the same bytes, whatever holes the disk had; a sparse member with its own name."""

    def make(place: Path) -> Path:
        disk, target = place / "x.raw", place / "demo.ova"
        disk.write_bytes(raw.read_bytes())  # no holes
        if place.name == "one":
            convert(raw, "raw", "raw", (), disk, IDENTITY, TIMEOUT)
        template = wrap.load_template("powervs.ovf")
        wrap.powervs_ova(stamped(disk, 5), target, template, VALUES, IDENTITY, disk_name="demo-disk.raw")
        return target

    made = twice(tmp_path, make)
    assert [line[-1] for line in listing(made)] == ["coreos.ovf", "demo-disk.raw"]
    assert made.stat().st_size < SIZE // 4
    tool("tar", "-xSf", made, "-C", tmp_path)
    assert sha256(tmp_path / "demo-disk.raw") == sha256(raw)
    assert f'capacity="{120 << 30}"' in (tmp_path / "coreos.ovf").read_text()
    assert f'size="{SIZE}"' in (tmp_path / "coreos.ovf").read_text()


def test_gcp_tar(raw: Path, tmp_path: Path) -> None:
    """Two runs are the same bytes, whatever holes the disk had: one sparse member in the old
    format of GNU tar, which we explain."""

    def make(place: Path) -> Path:
        disk, target = place / "any name.raw", place / "demo.tar"
        disk.write_bytes(raw.read_bytes())  # no holes
        if place.name == "one":
            convert(raw, "raw", "raw", (), disk, IDENTITY, TIMEOUT)
        wrap.gcp_tar(stamped(disk, 7), target, IDENTITY)
        assert names_in(place) == ["any name.raw", "demo.tar"]
        return target

    made = twice(tmp_path, make)
    assert listing(made) == [["-rw-r--r--", "0/0", str(SIZE), *WHEN, "disk.raw"]]
    header = made.read_bytes()[:512]
    assert (header[156:157], header[257:265]) == (b"S", b"ustar  \0")
    assert made.stat().st_size < SIZE // 4
    tool("tar", "-xSf", made, "-C", tmp_path)
    assert sha256(tmp_path / "disk.raw") == sha256(raw)
    check_still_explained(made, raw)


def qcow2_in(place: Path, raw: Path) -> Path:
    target = place / "demo.qcow2"
    convert(raw, "raw", "qcow2", ["-o", "compat=1.1"], target, IDENTITY, TIMEOUT)
    return stamped(target, time.time_ns() // 10**9)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["demo.qcow2", "long-" * 30 + ".qcow2"])
def test_ociarchive(raw: Path, tmp_path: Path, compressed: bool, name: str) -> None:
    """Two runs are the same bytes; skopeo reads and copies the image; its layer holds /disk with
    the qcow2 of user 107."""

    def make(place: Path) -> Path:
        disk, target = qcow2_in(place, raw), place / "demo.ociarchive"
        wrap.ociarchive(disk, target, "arm64", "1.0.2", f"disk/{name}", IDENTITY, compressed=compressed)
        assert names_in(place) == ["demo.ociarchive", "demo.qcow2"]
        return target

    made = twice(tmp_path, make)
    said = json.loads(tool("skopeo", "inspect", "--override-arch", "arm64", f"oci-archive:{made}"))
    assert (said["Architecture"], said["Os"]) == ("arm64", "linux")
    assert said["Labels"] == {"version": "1.0.2"}
    assert said["Created"] == "2023-11-14T22:13:20Z"
    copied = tmp_path / "copied"
    tool("skopeo", "copy", "--quiet", "--override-arch", "arm64", f"oci-archive:{made}", f"dir:{copied}")
    manifest = json.loads((copied / "manifest.json").read_bytes())
    (layer,) = manifest["layers"]
    suffix = "+gzip" if compressed else ""
    assert layer["mediaType"] == f"application/vnd.oci.image.layer.v1.tar{suffix}"
    blob = copied / layer["digest"].removeprefix("sha256:")
    size = qcow2_in(tmp_path, raw).stat().st_size
    assert listing(blob) == [
        ["drwxr-xr-x", "107/107", "0", *WHEN, "disk/"],
        ["-rw-r--r--", "107/107", str(size), *WHEN, f"disk/{name}"],
    ]
    assert (
        sha256(tmp_path / "demo.qcow2")
        == hashlib.sha256(tool("tar", "-xOf", blob, f"disk/{name}")).hexdigest()
    )


def test_ociarchive_itself(raw: Path, tmp_path: Path) -> None:
    """Its members are sorted and of owner 0; blobs have the names of their digests; the diff id
    is the layer's before compression."""
    made = tmp_path / "demo.ociarchive"
    wrap.ociarchive(qcow2_in(tmp_path, raw), made, "amd64", "1", "disk/demo.qcow2", IDENTITY)
    members = listing(made)
    names = [member[-1] for member in members]
    assert names == sorted(names)
    assert {member[1] for member in members} == {"0/0"}
    assert {" ".join(member[3:5]) for member in members} == {" ".join(WHEN)}
    tool("tar", "-xf", made, "-C", tmp_path)
    blobs = tmp_path / "blobs" / "sha256"
    assert [path.name for path in sorted(blobs.iterdir())] == sorted(map(sha256, blobs.iterdir()))
    (entry,) = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    manifest = json.loads((blobs / entry["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    plain = tool("gzip", "-dc", stdin=(blobs / manifest["layers"][0]["digest"][7:]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]


# ---- compressed

TESTS = {
    "xz": ("xz", "-t"),
    "gzip": ("gzip", "-t"),
    "gzip9": ("gzip", "-t"),
    "zstd": ("zstd", "-q", "-t"),
    "zip": ("zip", "-T"),
}


@pytest.mark.parametrize("method", COMPRESSORS)
def test_compressed_twice(raw: Path, tmp_path: Path, method: str) -> None:
    """Two runs are the same bytes, with one thread and with three; the tool finds them sound;
    digests and sizes are the files'."""
    suffix = COMPRESSORS[method].suffix

    def make(place: Path) -> Path:
        source = place / "demo.vhdx"
        convert(raw, "raw", "vhdx", (), source, IDENTITY, TIMEOUT)
        stamped(source, EPOCH)
        os.utime(source, (EPOCH + len(str(place)), EPOCH))  # the time of the last access does not count
        target = place / f"demo.vhdx{suffix}"
        made = compress(method, source, target, 1 if place.name == "one" else 3, TIMEOUT)
        assert (made.plain.sha256, made.plain.size) == (sha256(source), source.stat().st_size)
        assert (made.packed.sha256, made.packed.size) == (sha256(target), target.stat().st_size)
        assert names_in(place) == ["demo.vhdx", f"demo.vhdx{suffix}"]
        return target

    made = twice(tmp_path, make)
    tool(*TESTS[method], made)


def test_zip_member(tmp_path: Path) -> None:
    """The member has the source's name without a directory, its time, mode 0644, and no more."""
    source = tmp_path / "demo.vhdx"
    source.write_bytes(b"disk" * 100)
    stamped(source, EPOCH)
    compress("zip", source, tmp_path / "out", 1, TIMEOUT)
    fields = tool("zipinfo", "-l", tmp_path / "out").decode().splitlines()[2].split()
    assert (fields[0], fields[3], fields[-3:]) == ("-rw-r--r--", "400", ["23-Nov-14", "22:13", "demo.vhdx"])
    assert tool("unzip", "-p", tmp_path / "out") == b"disk" * 100


def test_gzip_keeps_name_and_time(tmp_path: Path) -> None:
    """As coreos-assembler's: gzip's header has the source's name and time, gzip9's has neither."""
    source = tmp_path / "demo.raw"
    source.write_bytes(b"disk")
    stamped(source, EPOCH)
    for method, flags, when in (("gzip", 8, EPOCH), ("gzip9", 0, 0)):
        compress(method, source, tmp_path / method, 1, TIMEOUT)
        head = (tmp_path / method).read_bytes()[:20]
        assert (head[3], int.from_bytes(head[4:8], "little")) == (flags, when)
    assert (tmp_path / "gzip").read_bytes()[10:19] == b"demo.raw\0"


@pytest.mark.parametrize(
    ("method", "epoch"), [("zip", 0), ("gzip", 0), ("zip", (1 << 32) - 1), ("gzip", (1 << 32) - 1)]
)
def test_first_and_last_time(method: str, epoch: int, tmp_path: Path) -> None:
    """The first and the last time that an identity can have do no harm to a compressor."""
    source = tmp_path / "demo.raw"
    source.write_bytes(b"disk")
    os.utime(source, (epoch, epoch))
    compress(method, source, tmp_path / "out", 1, TIMEOUT)
    assert names_in(tmp_path) == ["demo.raw", "out"]


@pytest.mark.parametrize("epoch", [0, (1 << 32) - 1])
def test_first_and_last_time_of_archives(epoch: int, raw: Path, tmp_path: Path) -> None:
    """Nor to disks and archives."""
    identity = Identity("x", epoch)
    disk = tmp_path / "demo.vpc"
    convert(raw, "raw", "vpc", ["-o", "force_size"], disk, identity, TIMEOUT)
    tool("qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, disk)
    wrap.ociarchive(disk, tmp_path / "a", "amd64", "1", "disk/x", identity)
    tool("skopeo", "inspect", f"oci-archive:{tmp_path / 'a'}")
    wrap.ova(disk, SIZE, tmp_path / "b", wrap.load_template("vmware.ovf"), VALUES, identity)
    (tmp_path / "out").mkdir()
    tool("tar", "-xf", tmp_path / "b", "-C", tmp_path / "out")
    assert {int(path.stat().st_mtime) for path in (tmp_path / "out").iterdir()} == {epoch}


def test_xz_of_one_thread_differs(raw: Path) -> None:
    """Why xz never gets -T1: its bytes are others than those of any larger number."""
    one, two, three = (tool("xz", "-c9", f"-T{n}", raw) for n in (1, 2, 3))
    assert two == three
    assert one != two


def test_zip_without_x_has_the_time_of_access(tmp_path: Path) -> None:
    """Why zip gets -X."""
    source = tmp_path / "x"
    source.write_bytes(b"disk")
    found = set()
    for accessed in (EPOCH, EPOCH + 100):
        os.utime(source, (accessed, EPOCH))
        found.add(tool("zip", "-q", "-9j", "-", source))
    assert len(found) == 2


def test_unexplained_bytes_stay_few(raw: Path, tmp_path: Path) -> None:
    """Identifiers cost what they did: the edit adds nothing that no rule gives."""
    for format_name in ("vmdk", "vpc", "vhdx"):
        theirs = tmp_path / "disk.img"
        tool("qemu-img", "convert", "-f", "raw", "-O", format_name, raw, theirs)
        (tmp_path / format_name).mkdir()
        ours = tmp_path / format_name / "disk.img"
        convert(raw, "raw", format_name, (), ours, IDENTITY, TIMEOUT)
        counts = []
        for path in (theirs, ours):
            file = FileReader(path)
            counts.append(unexplained_bytes(explain(file)))
        assert counts[1] <= counts[0]


def test_compressor_that_lies(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real xz file of other bytes is found by decompressing it."""
    other = tmp_path / "other"
    other.write_bytes(b"other")
    liar = COMPRESSORS["xz"]
    liar = type(liar)(liar.suffix, 9, ("xz", "-c9", str(other)), liar.unpack)
    monkeypatch.setitem(compression.COMPRESSORS, "xz", liar)
    with pytest.raises(RehydratorError, match="decompressed it has 5 bytes"):
        compress("xz", raw, tmp_path / "out", 2, TIMEOUT)
    assert names_in(tmp_path) == ["other"]


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_rootfs_twice(tmp_path: Path, kind: str) -> None:
    """The corpus's live root file systems: two runs are the same bytes, whatever the times of the files;
    sid's fsck.erofs and Debian 12's unsquashfs give the files back."""
    tree, dice = tmp_path / "tree", random.Random(5)
    (tree / "usr/bin").mkdir(parents=True)
    files = {
        f"usr/bin/{size}": dice.randbytes(size // 2) + b"text" * (size // 8) for size in (1, 5000, 300_000)
    }
    for name, data in files.items():
        (tree / name).write_bytes(data)

    def make(place: Path) -> Path:
        for path in tree.rglob("*"):
            path.touch()
        make_rootfs(kind, tree, place / "image", owned=False)
        return place / "image"

    image = twice(tmp_path, make)
    out = tmp_path / "out"
    if kind == "erofs":
        sid.run("fsck.erofs", f"--extract={out}", image)
    else:
        tool("unsquashfs", "-quiet", "-no-progress", "-d", out, image)
    assert {name: (out / name).read_bytes() for name in files} == files
