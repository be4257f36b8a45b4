"""`rehydrator variants` as a release team runs it: every platform's file is what CoreOS publishes,
is that platform inside, and comes out the same however often it is made."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.conftest import NOBODY, User, names_in, sha256
from tests.corpus.release import PLATFORMS
from tests.guest_disks import CONSOLE, ENTRY, MIB, TABLE, run
from tests.variant_runs import (
    AARCH64,
    CLOUD_MIB,
    EPOCH,
    IBM_MIB,
    X86_64,
    Base,
    everybodys,
    make_base,
    variants,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

QCOW2 = "aliyun exoscale ibmcloud openstack oraclecloud proxmoxve qemu"
# What follows the architecture in a published file's name (reference table 3.3).
PUBLISHED = {
    **dict.fromkeys(QCOW2.split(), "qcow2.xz"),
    **dict.fromkeys(("metal", "hetzner", "vultr"), "raw.xz"),
    **dict.fromkeys(("azure", "azurestack"), "vhd.xz"),
    **dict.fromkeys(("vmware", "virtualbox"), "ova"),
    "applehv": "raw.gz",
    "aws": "vmdk.xz",
    "digitalocean": "qcow2.gz",
    "gcp": "tar.gz",
    "hyperv": "vhdx.zip",
    "kubevirt": "ociarchive",
    "nutanix": "qcow2",
}
FORMATS = {"qcow2": "qcow2", "raw": "raw", "vhd": "vpc", "ova": "vmdk", "vmdk": "vmdk", "vhdx": "vhdx"}
WRAPPED = {"gcp": "raw", "kubevirt": "qcow2"}
AS_PUBLISHED = {"gcp", "kubevirt", "nutanix", "virtualbox", "vmware"}
TESTS = {"xz": ["xz", "-t"], "gz": ["gzip", "-t"], "zip": ["unzip", "-tqq"]}
UNPACK = {"xz": ["xz", "-dc"], "gz": ["gzip", "-dc"], "zip": ["unzip", "-p"]}
BOTH = "console=tty0 console=ttyS0,115200n8"
GRAPHICAL = "console=ttyS0,115200n8 console=tty0"
ARGUMENTS = {
    **dict.fromkeys(("aws", "azure", "gcp", "ibmcloud", "qemu"), BOTH),
    **dict.fromkeys(("kubevirt", "openstack", "virtualbox", "vmware"), GRAPHICAL),
}
SERIAL = b"serial --speed=115200\nterminal_input serial console\nterminal_output serial console\n"


@dataclass(frozen=True)
class AllMade:
    """A release of all platforms of x86_64 as published, and what the program said of it."""

    release: Path
    report: dict[str, Any]
    work: Path

    def file(self, platform: str) -> Path:
        return self.release / f"demo-1.0.0-{platform}.x86_64.{PUBLISHED[platform]}"

    def image(self, platform: str) -> Path:
        """The file without its outer compression."""
        file = self.file(platform)
        stem, _, packer = file.name.rpartition(".")
        if packer not in UNPACK or platform == "gcp":
            return file
        target = self.work / stem
        if not target.exists():
            with target.open("wb") as out:
                subprocess.run([*UNPACK[packer], file], stdout=out, check=True)
        return target

    def disk(self, platform: str) -> Path:
        """The disk inside: taken out of its archive."""
        image, inner = self.image(platform), self.work / f"{platform}.disk"
        if platform not in AS_PUBLISHED - {"nutanix"}:
            return image
        if not inner.exists():
            archive = layer_of(image) if platform == "kubevirt" else image
            name = {"gcp": "disk.raw", "kubevirt": "disk/demo-1.0.0-kubevirt.x86_64.qcow2"}
            with inner.open("wb") as out:
                member = name.get(platform, "disk.vmdk")
                subprocess.run(["tar", "-xOf", archive, member], stdout=out, check=True)
        return inner

    def raw(self, platform: str, base: Base) -> Path:
        """The guest's disk as a raw file."""
        target = self.work / platform / "disk.raw"
        if not target.exists():
            target.parent.mkdir()
            source = self.disk(platform)
            run("qemu-img", "convert", "-f", format_of(platform), "-O", "raw", source, target)
        return target


def format_of(platform: str) -> str:
    """qemu-img's name of the platform's disk format."""
    return WRAPPED.get(platform) or FORMATS[PUBLISHED[platform].split(".")[0]]


def layer_of(archive: Path) -> Path:
    """The one layer of an OCI archive, unpacked beside nothing else."""
    place = archive.parent.parent / "layout"
    if not place.exists():
        place.mkdir()
        run("tar", "-C", place, "-xf", archive)
    return place / "blobs/sha256" / layers(place)[0]


def layers(layout: Path) -> list[str]:
    """The digests of an image's layers."""
    index = json.loads((layout / "index.json").read_bytes())
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].split(":")[1]).read_bytes())
    return [layer["digest"].split(":")[1] for layer in manifest["layers"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A canonical disk."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: Base) -> AllMade:
    """All platforms, compressed as published, four at a time."""
    home = tmp_path_factory.mktemp("made-variants")
    ran = variants(User(home), base, "--json", "--jobs", 4)
    (home / "work").mkdir()
    return AllMade(home / "release", json.loads(ran.out), home / "work")


# ---- what is published


def test_every_platform_has_its_file(made: AllMade) -> None:
    """The 21 platforms of x86_64 have the names that CoreOS gives, and nothing else is there."""
    names = [made.file(platform).name for platform in X86_64]
    assert sorted([*names, "stream.json"]) == names_in(made.release)
    assert sorted(PUBLISHED) == X86_64


@pytest.mark.parametrize("platform", X86_64)
def test_a_file_is_its_format(made: AllMade, platform: str) -> None:
    """The compression is sound, and the disk is of the platform's format and virtual size."""
    packer = made.file(platform).suffix[1:]
    if packer in TESTS:
        run(*TESTS[packer], made.file(platform))
    mib = {"ibmcloud": IBM_MIB, "metal": 23}.get(platform, CLOUD_MIB)
    asked = ["qemu-img", "info", "--output=json", "-f", format_of(platform), made.disk(platform)]
    info = json.loads(run(*asked))
    assert info["virtual-size"] == mib * MIB
    if format_of(platform) in {"qcow2", "vmdk", "vhdx"}:
        run("qemu-img", "check", "-q", "-f", format_of(platform), made.disk(platform))


@pytest.mark.parametrize("platform", [*QCOW2.split(), "digitalocean", "nutanix", "kubevirt"])
def test_qcow2_options(made: AllMade, platform: str) -> None:
    """qcow2 disks are compat 1.1; nutanix's, and no other's, has compressed clusters."""
    disk = made.disk(platform)
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", disk))
    check = json.loads(run("qemu-img", "check", "--output=json", "-f", "qcow2", disk))
    assert info["format-specific"]["data"]["compat"] == "1.1"
    assert (check.get("compressed-clusters", 0) > 0) is (platform == "nutanix")


@pytest.mark.parametrize(
    ("platform", "inside", "adapter", "version"),
    [
        ("aws", "demo-1.0.0-aws.x86_64.vmdk", "lsilogic", "6"),
        ("vmware", "disk.vmdk", "lsilogic", "6"),
        ("virtualbox", "disk.vmdk", "ide", "4"),
    ],
)
def test_vmdk_descriptor(made: AllMade, platform: str, inside: str, adapter: str, version: str) -> None:
    """A VMDK is streamOptimized, names itself, and has the adapter and version of coreos-assembler."""
    text = made.disk(platform).read_bytes()[512:].partition(b"\0")[0].decode()
    for line in (
        'createType="streamOptimized"',
        f'SPARSE "{inside}"',
        f'ddb.adapterType = "{adapter}"',
        f'ddb.virtualHWVersion = "{version}"',
    ):
        assert line in text


@pytest.mark.parametrize("platform", ["azure", "azurestack"])
def test_vhd_is_fixed(made: AllMade, platform: str) -> None:
    """A VHD is the raw disk and a footer: fixed, of SOURCE_DATE_EPOCH, counted from the year 2000."""
    data = made.disk(platform).read_bytes()
    assert len(data) == CLOUD_MIB * MIB + 512
    cookie, time, kind = struct.unpack_from(">8s16xI32xI", data, len(data) - 512)
    assert (cookie, time, kind) == (b"conectix", EPOCH - 946_684_800, 2)


def test_gcp_archive(made: AllMade) -> None:
    """Google's archive is one sparse member of the old GNU format, root's, of SOURCE_DATE_EPOCH,
    in a gzip without name and time."""
    data = made.file("gcp").read_bytes()
    assert data[3:9] == bytes(5) + b"\x02"
    listed = run("tar", "--utc", "--full-time", "-tvf", made.file("gcp"))
    assert listed.split()[1:] == ["root/root", str(CLOUD_MIB * MIB), "2025-06-15", "15:06:40", "disk.raw"]
    header = gzip.decompress(data)[:512]
    assert (header[156:157], header[257:265]) == (b"S", b"ustar  \0")


@pytest.mark.parametrize("platform", ["digitalocean", "applehv"])
def test_gzip_headers(made: AllMade, platform: str) -> None:
    """gzip -6 keeps the file's name and time, which is SOURCE_DATE_EPOCH."""
    data = made.file(platform).read_bytes()
    name = made.file(platform).stem.encode()
    assert (
        data[: 10 + len(name) + 1] == struct.pack("<4sIBB", b"\x1f\x8b\x08\x08", EPOCH, 0, 3) + name + b"\0"
    )


def test_hyperv_zip(made: AllMade) -> None:
    """The zip has one member, deflated, named as the file, of SOURCE_DATE_EPOCH."""
    with zipfile.ZipFile(made.file("hyperv")) as archive:
        [member] = archive.infolist()
    assert member.filename == "demo-1.0.0-hyperv.x86_64.vhdx"
    assert (member.compress_type, member.date_time) == (zipfile.ZIP_DEFLATED, (2025, 6, 15, 15, 6, 40))


def test_kubevirt_archive(made: AllMade, tmp_path: Path) -> None:
    """skopeo reads the container disk; its one layer has /disk and the qcow2, 107's."""
    archive = made.file("kubevirt")
    told = json.loads(run("skopeo", "--tmpdir", tmp_path, "inspect", f"oci-archive:{archive}"))
    assert (told["Architecture"], told["Os"], told["Labels"]) == ("amd64", "linux", {"version": "1.0.0"})
    assert told["Created"] == "2025-06-15T15:06:40Z"
    with tarfile.open(layer_of(archive)) as layer:
        members = [(each.name, each.mode, each.uid, each.gid, each.mtime) for each in layer]
    assert members == [
        ("disk", 0o755, 107, 107, EPOCH),
        ("disk/demo-1.0.0-kubevirt.x86_64.qcow2", 0o644, 107, 107, EPOCH),
    ]


@pytest.mark.parametrize("platform", ["vmware", "virtualbox"])
def test_ova_archive(made: AllMade, platform: str) -> None:
    """An OVA is a ustar of the descriptor, which knows size and capacity, and then the disk."""
    with tarfile.open(made.file(platform)) as archive:
        members = [(each.name, each.uid, each.mode, each.mtime) for each in archive]
        file = archive.extractfile("coreos.ovf")
        assert file
        ovf = file.read().decode()
    assert members == [("coreos.ovf", 0, 0o644, EPOCH), ("disk.vmdk", 0, 0o644, EPOCH)]
    assert made.file(platform).read_bytes()[257:265] == b"ustar\x0000"
    for said in (f'size="{made.disk(platform).stat().st_size}"', f'capacity="{CLOUD_MIB * MIB}"', "1.0.0"):
        assert said in ovf


# ---- what the guest is


@pytest.mark.parametrize("platform", X86_64)
def test_the_guest_knows_its_platform(made: AllMade, base: Base, platform: str) -> None:
    """The boot loader entry names the platform and has its arguments in their order; console.cfg and
    platforms.json are written; file systems are clean; all outside of /boot is the base's."""
    raw, disk = made.raw(platform, base), base.disk
    words = ["root=x", f"ignition.platform.id={platform}", *ARGUMENTS.get(platform, "").split()]
    assert disk.content(raw, ENTRY) == f"title Demo\noptions {' '.join(words)}\n".encode()
    assert disk.content(raw, CONSOLE) == (SERIAL if platform in ARGUMENTS else b"")
    assert json.loads(disk.content(raw, TABLE)) == yaml.safe_load(PLATFORMS.read_text())["x86_64"]
    for part in (disk.boot, disk.root):
        disk.check(raw, part)
    old, new = disk.base.read_bytes(), raw.read_bytes()
    after = disk.boot.offset + disk.boot.size
    assert new[: disk.boot.offset] == old[: disk.boot.offset]
    assert new[after : len(old)] == old[after:]
    assert not any(new[len(old) :])


# ---- what is said of it


def test_stream_document(made: AllMade, user: User) -> None:
    """stream.json is valid; it has release, location, both digests and sizes of every file."""
    user.run("stream", "validate", made.release / "stream.json")
    document = json.loads((made.release / "stream.json").read_bytes())
    assert (document["stream"], list(document["architectures"])) == ("stable", ["x86_64"])
    assert document["metadata"]["last-modified"] == "2025-06-15T15:06:40Z"
    artifacts = document["architectures"]["x86_64"]["artifacts"]
    assert list(artifacts) == X86_64
    for platform in X86_64:
        file, image = made.file(platform), made.image(platform)
        disk = {"location": file.name, "sha256": sha256(file), "size": file.stat().st_size}
        if platform not in AS_PUBLISHED:
            disk |= {"uncompressed-sha256": sha256(image), "uncompressed-size": image.stat().st_size}
        if platform == "gcp":
            plain = gzip.decompress(file.read_bytes())
            disk |= {
                "uncompressed-sha256": hashlib.sha256(plain).hexdigest(),
                "uncompressed-size": len(plain),
            }
        formats = {PUBLISHED[platform]: {"disk": disk}}
        assert artifacts[platform] == {"release": "1.0.0", "formats": formats}


def test_json_report(made: AllMade) -> None:
    """--json says of every platform what was written, and where the time went."""
    assert Path(made.report["stream_json"]).name == "stream.json"
    assert [each["platform"] for each in made.report["platforms"]] == X86_64
    for each in made.report["platforms"]:
        file = made.file(each["platform"])
        assert (each["file"], each["sha256"], each["size"]) == (file.name, sha256(file), file.stat().st_size)
        assert (each["signed"], "error" in each) == (False, False)
        assert set(each["seconds"]) <= {"convert", "compress", "hash"}


# ---- twice the same


def test_two_runs_are_identical(made: AllMade, base: Base, user: User) -> None:
    """Another directory, another TMPDIR, another form of the base, one job: the same bytes of every
    file and of stream.json."""
    (user.home / "elsewhere").mkdir()
    more = ["--jobs", 1, "--tmpdir", "elsewhere"]
    ran = variants(user, base, *more, source=base.raw, output="again")
    assert ran.out == b"again/stream.json\n"
    assert names_in(user.home / "elsewhere") == []
    again = user.home / "again"
    assert names_in(again) == names_in(made.release)
    assert [name for name in names_in(again) if sha256(again / name) != sha256(made.release / name)] == []


def vmdk_cid(data: bytes) -> bytes:
    return data[512:2048].partition(b"CID=")[2][:8]


def identifiers(release: Path) -> list[object]:
    """The content identifier of aws, the UUIDs of azure and hyperv."""
    [aws] = release.glob("*aws*")
    [azure] = release.glob("*azure*")
    [hyperv] = release.glob("*hyperv*")
    footer = azure.read_bytes()[-512:]
    page83 = hyperv.read_bytes()[(1 << 16) : (1 << 16) + 96]
    return [vmdk_cid(aws.read_bytes()), uuid.UUID(bytes=footer[68:84]), page83]


def test_another_release_has_other_identifiers(base: Base, user: User) -> None:
    """Identifiers follow from the release's name: another release has others, the same has the same."""
    plain = ["--compress", "none"]
    ask: dict[str, Any] = {"platforms": "aws azure hyperv"}
    variants(user, base, *plain, output="one", **ask)
    variants(user, base, *plain, output="later", epoch=EPOCH + 1, **ask)
    variants(user, base, *plain, "--release", "1.0.1", output="two", **ask)
    one, later, two = (identifiers(user.home / name) for name in ("one", "later", "two"))
    assert one == later
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, False]
    vhd = "demo-1.0.0-azure.x86_64.vhd"
    assert sha256(user.home / "one" / vhd) != sha256(user.home / "later" / vhd)


# ---- architectures


def test_aarch64(base: Base, user: User) -> None:
    """The architecture comes from the base's name; 13 platforms of aarch64 need no foreign tool."""
    shutil.copy(base.qcow2, user.home / "demo-base.aarch64.qcow2")
    ran = variants(user, base, "--compress", "none", "--json", source="demo-base.aarch64.qcow2")
    assert [each["platform"] for each in json.loads(ran.out)["platforms"]] == AARCH64
    assert "nvidiabluefield: left out, needs mlx-mkbfb" in ran.err
    release = user.home / "release"
    told = run("skopeo", "inspect", f"oci-archive:{release}/demo-1.0.0-kubevirt.aarch64.ociarchive")
    assert json.loads(told)["Architecture"] == "arm64"
    raw = release / "demo-1.0.0-applehv.aarch64.raw"
    assert base.disk.content(raw, ENTRY) == b"title Demo\noptions root=x ignition.platform.id=applehv\n"
    raw = user.home / "aws.raw"
    vmdk = release / "demo-1.0.0-aws.aarch64.vmdk"
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", vmdk, raw)
    end = b" ignition.platform.id=aws console=tty0 console=ttyAMA0,115200n8\n"
    assert base.disk.content(raw, ENTRY).endswith(end)


def test_ppc64le(base: Base, user: User) -> None:
    """--arch wins over the base's name; powervs is an OVA of a raw disk, for a volume of 120 GiB."""
    ran = variants(user, base, "--arch", "ppc64le", "--json")
    files = [each["file"] for each in json.loads(ran.out)["platforms"]]
    assert files == [
        "demo-1.0.0-metal.ppc64le.raw.xz",
        "demo-1.0.0-openstack.ppc64le.qcow2.xz",
        "demo-1.0.0-powervs.ppc64le.ova.gz",
        "demo-1.0.0-qemu.ppc64le.qcow2.xz",
    ]
    with tarfile.open(user.home / "release" / files[2]) as archive:
        assert archive.getnames() == ["coreos.ovf", "demo-disk.raw"]
        file = archive.extractfile("coreos.ovf")
        assert file
        assert str(120 << 30) in file.read().decode()


@pytest.mark.parametrize(
    ("arch", "platform", "needs"),
    [
        *(("s390x", name, "zipl") for name in ("ibmcloud", "kubevirt", "metal", "openstack", "qemu")),
        ("s390x", "qemu-secex", "genprotimg"),
        ("s390x", "metal4k", "zipl"),
        ("x86_64", "metal4k", "--base-4k"),
        ("aarch64", "nvidiabluefield", "mlx-mkbfb"),
    ],
)
def test_what_needs_a_foreign_tool(base: Base, user: User, arch: str, platform: str, needs: str) -> None:
    """What this program cannot make is refused by name, with what it needs: exit 2."""
    ran = variants(user, base, "--arch", arch, platforms=platform, code=2)
    assert [text for text in (platform, arch, needs) if text not in ran.err] == []
    assert not (user.home / "release").exists()


# ---- asking for some


def test_some_platforms(base: Base, user: User) -> None:
    """--platform may be repeated, also for the same; two runs into one directory become one document,
    as do two architectures; a new release replaces the old one's entry."""
    variants(user, base, platforms="qemu nutanix qemu")
    variants(user, base, "--compress", "none", platforms="metal")
    variants(user, base, "--arch", "aarch64", platforms="qemu")
    variants(user, base, "--release", "2.0.0", platforms="nutanix")
    document = json.loads((user.home / "release" / "stream.json").read_bytes())
    found = {
        (arch, platform, artifact["release"], key)
        for arch, part in document["architectures"].items()
        for platform, artifact in part["artifacts"].items()
        for key in artifact["formats"]
    }
    assert found == {
        ("x86_64", "qemu", "1.0.0", "qcow2.xz"),
        ("x86_64", "nutanix", "2.0.0", "qcow2"),
        ("x86_64", "metal", "1.0.0", "raw"),
        ("aarch64", "qemu", "1.0.0", "qcow2.xz"),
    }
    user.run("stream", "validate", "release/stream.json")


def test_dry_run(base: Base, user: User) -> None:
    """--dry-run prints the plan and writes nothing, not even the directory."""
    ran = variants(user, base, "--dry-run", "--json", platforms="aws ibmcloud")
    arguments = ["-c", "-o", "adapter_type=lsilogic,compat6,subformat=streamOptimized"]
    aws, ibmcloud = json.loads(ran.out)
    assert aws == {
        "platform": "aws",
        "file": "demo-1.0.0-aws.x86_64.vmdk.xz",
        "virtual_size": CLOUD_MIB * MIB,
        "format": "vmdk",
        "arguments": arguments,
        "wrap": None,
        "compress": "xz",
    }
    assert ibmcloud["virtual_size"] == IBM_MIB * MIB
    text = variants(user, base, "--dry-run").out.decode()
    assert [line.split()[0] for line in text.splitlines()] == ["PLATFORM", *X86_64]
    assert names_in(user.home) == ["tmp"]


def test_added_files(base: Base, user: User) -> None:
    """--add publishes live media, whatever is in them, as metal's iso and pxe."""
    live = {
        "demo-1.0.0-live-iso.x86_64.iso": ("iso", "disk"),
        "demo-1.0.0-live-kernel.x86_64": ("pxe", "kernel"),
        "demo-1.0.0-live-initramfs.x86_64.img": ("pxe", "initramfs"),
        "demo-1.0.0-live-rootfs.x86_64.img": ("pxe", "rootfs"),
    }
    (user.home / "live").mkdir()
    for name in live:
        (user.home / "live" / name).write_bytes(name.encode() * 10)
    added = [word for name in live for word in ("--add", f"live/{name}")]
    variants(user, base, *added, platforms="metal")
    document = json.loads((user.home / "release" / "stream.json").read_bytes())
    formats = document["architectures"]["x86_64"]["artifacts"]["metal"]["formats"]
    assert set(formats) == {"raw.xz", "iso", "pxe"}
    for name, (key, role) in live.items():
        assert formats[key][role] == {
            "location": name,
            "sha256": sha256(user.home / "live" / name),
            "size": len(name) * 10,
        }
        assert (user.home / "release" / name).read_bytes() == name.encode() * 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demo-1.0.0-live.x86_64.iso.xz", "not compressed"),
        ("demo-1.0.0-live.x86_64.iso.sig", "--gpg-key"),
        ("demo-1.0.1-live.x86_64.iso", "demo-1.0.0-ROLE.x86_64.EXT"),
        ("demo-1.0.0-live.aarch64.iso", "demo-1.0.0-ROLE.x86_64.EXT"),
        ("live.iso", "demo-1.0.0-ROLE.x86_64.EXT"),
        ("demo-1.0.0-nutanix.x86_64.qcow2", "nutanix"),
    ],
)
def test_files_that_cannot_be_added(base: Base, user: User, name: str, said: str) -> None:
    """A file to add must be named as one of this release, and not as one that is made: exit 2."""
    (user.home / name).write_bytes(b"x")
    ran = variants(user, base, "--add", name, platforms="nutanix", code=2)
    assert [text for text in (name, said) if text not in ran.err] == []
    assert not (user.home / "release").exists()


# ---- a new platform is a stanza


def test_a_stanza_is_a_platform(base: Base, user: User) -> None:
    """A new platform with a size, arguments, GRUB commands, a template and files of the guest's own
    needs a stanza and nothing else."""
    (user.home / "own.ovf").write_text("<Own size='{vmdk_size}' of='{vmdk_capacity}'>{motto}</Own>")
    (user.home / "new.yaml").write_text(
        json.dumps(
            {
                "platforms": {
                    "moon": {
                        "format": "vmdk",
                        "arguments": ["-o", "subformat=streamOptimized"],
                        "wrap": "ova",
                        "template": "own.ovf",
                        "values": {"motto": "a < b & c"},
                        "compress": "zstd",
                        "size": "25M",
                        "stamp": "moon.id={platform}",
                        "kernel-arguments": ["quiet"],
                        "grub-commands": ["set timeout=1"],
                        "files": {"/etc/moon/release": "{name} {release} {arch} {kernel_arguments}\n"},
                    }
                }
            }
        )
    )
    variants(user, base, platforms="moon", derivations="new.yaml")
    run("zstd", "-qd", user.home / "release" / "demo-1.0.0-moon.x86_64.ova.zst")
    with tarfile.open(user.home / "release" / "demo-1.0.0-moon.x86_64.ova") as archive:
        archive.extractall(user.home, filter="data")
    size = (user.home / "disk.vmdk").stat().st_size
    text = f"<Own size='{size}' of='{25 * MIB}'>a &lt; b &amp; c</Own>"
    assert (user.home / "coreos.ovf").read_text() == text
    raw = user.home / "moon.raw"
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", user.home / "disk.vmdk", raw)
    assert base.disk.content(raw, ENTRY) == b"title Demo\noptions root=x moon.id=moon quiet\n"
    assert base.disk.content(raw, CONSOLE) == b"set timeout=1\n"
    assert base.disk.content(raw, "/etc/moon/release") == b"demo 1.0.0 x86_64 quiet\n"
    base.disk.check(raw, base.disk.root)


# ---- signatures


@pytest.fixture
def gnupg(user: User) -> Iterator[dict[str, str]]:
    """A home of GnuPG with one signing key, and its keyring in release.gpg."""
    home = user.home / "gnupg"
    home.mkdir(mode=0o700)
    env = {**os.environ, "GNUPGHOME": str(home)}
    key = ["--quick-generate-key", "Release <release@example.com>", "ed25519", "sign", "never"]
    run("gpg", "--batch", "--passphrase", "", *key, env=env)
    run("gpg", "--batch", "--output", user.home / "release.gpg", "--export", env=env)
    yield {"GNUPGHOME": str(home)}
    run("gpgconf", "--kill", "all", env=env)


def test_signatures(base: Base, user: User, gnupg: dict[str, str]) -> None:
    """--gpg-key signs every published file; gpgv verifies, stream.json names the signature. A later
    run without a key leaves no signature beside a file that it does not fit."""
    live = user.home / "demo-1.0.0-live-iso.x86_64.iso"
    live.write_bytes(b"live")
    ask: dict[str, Any] = {"platforms": "nutanix qemu", "env": gnupg}
    variants(user, base, "--gpg-key", "release@example.com", "--add", live, **ask)
    release = user.home / "release"
    files = [name for name in names_in(release) if name != "stream.json" and not name.endswith(".sig")]
    assert len(files) == 3
    for name in files:
        run("gpgv", "--keyring", user.home / "release.gpg", release / f"{name}.sig", release / name)
    document = json.loads((release / "stream.json").read_bytes())
    assert user.run("stream", "validate", "--strict", release / "stream.json", code=8).err == ""
    for artifact in document["architectures"]["x86_64"]["artifacts"].values():
        for roles in artifact["formats"].values():
            assert roles["disk"]["signature"] == f"{roles['disk']['location']}.sig"
    variants(user, base, platforms="nutanix")
    variants(user, base, platforms="qemu", epoch=EPOCH + 1, derivations=other_size(user))
    assert (release / "demo-1.0.0-nutanix.x86_64.qcow2.sig").exists()
    assert not (release / "demo-1.0.0-qemu.x86_64.qcow2.xz.sig").exists()


def other_size(user: User) -> Path:
    table = user.home / "other.yaml"
    table.write_text("cloud-size: 32M\n")
    return table


def test_signing_that_fails(base: Base, user: User, gnupg: dict[str, str]) -> None:
    """A key that gpg does not have is named before any work (2); one that cannot sign is named by the
    platform (1); nothing is published without the signature that was asked for."""
    ask: dict[str, Any] = {"platforms": "nutanix", "env": gnupg}
    ran = variants(user, base, "--gpg-key", "nobody@example.com", code=2, **ask)
    assert ran.err == "rehydrator: gpg has no secret key nobody@example.com; list yours with gpg -K\n"
    [private] = (user.home / "gnupg" / "private-keys-v1.d").iterdir()
    private.write_bytes(b"noise")
    run("gpgconf", "--kill", "all", env={**os.environ, **gnupg})
    ran = variants(user, base, "--gpg-key", "release@example.com", code=1, **ask)
    assert f"nutanix: FAILED: {user.home / 'release'}" in ran.err
    assert not (user.home / "release").exists()


# ---- into a bundle


def test_build_and_rehydrate(made: AllMade, user: User) -> None:
    """The release is what `build` takes; disks come back bit for bit."""
    user.run("build", made.release, "-o", "oci:bundle:demo", "--runtime", "none", "--level", 1)
    more = ["--disk", "vmware", "--disk", "azure", "--bundle", "oci:bundle:demo"]
    user.run("rehydrate", "back", *more)
    for platform in ("vmware", "azure"):
        image = made.image(platform)
        assert sha256(user.home / "back" / image.name) == sha256(image)
    stream = user.run("print-stream-json", "--bundle", "oci:bundle:demo").out
    assert stream == (made.release / "stream.json").read_bytes()


# ---- without root


def test_without_root(made: AllMade, base: Base) -> None:
    """The offline editor needs no root, and gives the same bytes."""
    nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    with everybodys(base) as (user, copy):
        ask: dict[str, Any] = {"platforms": "qemu vmware gcp kubevirt hyperv", "wrapper": nobody}
        ran = variants(user, copy, "--editor", "offline", **ask)
        assert ran.out == b"release/stream.json\n"
        for path in (user.home / "release").iterdir():
            assert path.stat().st_uid == NOBODY
            assert path.name == "stream.json" or sha256(path) == sha256(made.release / path.name)
        assert len(names_in(user.home / "release")) == 6
