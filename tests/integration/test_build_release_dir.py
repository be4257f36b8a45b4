"""A build takes the directory that a mirror or a variant run leaves: files as published, their
signatures, stream.json, and what was not downloaded to its end."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import NAME, User, names_in, sha256
from tests.integration.test_published import make_disk, real_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPTIONS = ["--runtime", "none", "--level", "1", "-o", "oci:out:x"]
# Encoders are found elsewhere; for a zip of a disk that begins with zeros that takes seconds.
NO_SEARCH = ["--keep-published", "never"]
DATA = random.Random(9).randbytes(200_000)
KIB = 1 << 10
LAYER_TAR = ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--sort=name", "--owner=107"]


# Platform -> its format key, how qemu-img makes the image of it, and what packs that.
PLATFORMS: dict[str, tuple[str, list[str], list[str]]] = {
    "metal": ("raw", ["raw"], ["xz", "-1"]),
    "qemu": ("qcow2", ["qcow2"], []),
    "openstack": ("qcow2", ["qcow2"], ["xz", "-1"]),
    "hyperv": ("vhdx", ["vhdx"], ["zip", "-9jqm"]),
    "vmware": ("ova", ["vmdk", "-o", "subformat=streamOptimized"], []),
    "virtualbox": ("ova", ["vmdk", "-o", "subformat=streamOptimized"], ["gzip", "-n"]),
    "gcp": ("tar.gz", ["raw"], []),
    "kubevirt": ("ociarchive", ["qcow2"], []),
    "packed": ("ociarchive", ["qcow2"], []),
}
SUFFIXES = {"xz": ".xz", "gzip": ".gz", "zip": ".zip"}


@dataclass(frozen=True)
class Published:
    """A release directory, the image forms by name, and its stream document."""

    directory: Path
    images: dict[str, Path]
    document: bytes


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def make_image(base: Path, platform: str, target: Path, work: Path) -> None:
    """The disk with the platform's name in it, as that platform's image."""
    key, convert, _ = PLATFORMS[platform]
    work.mkdir()
    disk = work / "disk.raw"
    run("cp", "--sparse=always", base, disk)
    with disk.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        file.write(f"platform {platform}".encode())
    made = disk if convert == ["raw"] else work / "disk.img"
    if made != disk:
        run("qemu-img", "convert", "-f", "raw", "-O", *convert, disk, made)
    if key == "tar.gz":
        run("tar", "-C", work, "-Sc", "--format=oldgnu", "-zf", target, disk.name)
    elif key == "ova":
        (work / "coreos.ovf").write_text("<Envelope/>")
        run("tar", "-C", work, "-c", "--format=ustar", "-f", target, "coreos.ovf", made.name)
    elif key == "ociarchive":
        oci_archive(target, made, work, compressed=platform == "packed")
    else:
        run("cp", "--sparse=always", made, target)


def oci_archive(target: Path, disk: Path, work: Path, *, compressed: bool) -> None:
    """KubeVirt's containerDisk as an OCI archive: one layer with /disk/NAME."""
    (work / "tree" / "disk").mkdir(parents=True)
    blobs = work / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    disk.rename(work / "tree" / "disk" / "demo.qcow2")
    layer = work / "layer"
    run("tar", "-C", work / "tree", *LAYER_TAR, "-cf", layer, "disk")
    if compressed:
        run("gzip", "-n", layer)
        layer = work / "layer.gz"
    config = b'{"architecture": "amd64"}'
    (blobs / hashlib.sha256(config).hexdigest()).write_bytes(config)
    layer.rename(blobs / sha256(layer))
    (work / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (work / "layout" / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    run("tar", "-C", work / "layout", "--sort=name", "-cf", target, ".")


def publish(image: Path, platform: str, directory: Path) -> Path:
    """The file as published, and a signature beside it."""
    _, _, packer = PLATFORMS[platform]
    path = directory / image.name
    run("cp", "-a", "--sparse=always", image, path)
    if packer:
        published = path.with_name(path.name + SUFFIXES[packer[0]])
        run(*packer, *([published] if packer[0] == "zip" else []), path)
        path = published
    path.with_name(f"{path.name}.sig").write_bytes(b"a signature")
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Nine platforms as CoreOS publishes them: xz, zip, tar.gz, OVA, OVA in gzip, OCI archives; one
    platform of another release; absolute and relative locations; leftovers of a mirror."""
    base = tmp_path_factory.mktemp("published")
    disk = make_disk(base / "disk.raw", real_bytes(1 << 20))
    images, directory = base / "images", base / "release"
    images.mkdir()
    directory.mkdir()
    artifacts = {}
    for number, platform in enumerate(PLATFORMS):
        image = images / NAME.format(platform, PLATFORMS[platform][0])
        make_image(disk, platform, image, base / platform)
        path = publish(image, platform, directory)
        url = "https://example.invalid/builds/1.0.0/x86_64/" if number % 2 else ""
        file = {"location": url + path.name, "sha256": sha256(path), "signature": f"{url}{path.name}.sig"}
        if path.name != image.name:
            file["uncompressed-sha256"] = sha256(image)
        key = path.name.partition(".x86_64.")[2]
        release = "1.0.1" if platform == "qemu" else "1.0.0"
        artifacts[platform] = {"release": release, "formats": {key: {"disk": file}}}
    document = {"extra": [1.0, {}], "architectures": {"x86_64": {"artifacts": artifacts}}, "stream": "next"}
    data = json.dumps(document, indent=3).encode()
    (directory / "stream.json").write_bytes(data)
    (directory / f"{NAME.format('aws', 'vmdk.xz')}.part").write_bytes(b"half")
    (directory / f"{NAME.format('azure', 'vhd.xz')}.sig").write_bytes(b"a signature")
    return Published(directory, {path.name: path for path in sorted(images.iterdir())}, data)


@dataclass(frozen=True)
class Built:
    """A bundle of the release directory, and what its build said."""

    reference: str
    said: str


@pytest.fixture(scope="module")
def built(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The release directory built once, for tests that only look at what came of it."""
    home = tmp_path_factory.mktemp("built")
    ran = User(home).run("build", published.directory, *OPTIONS, "--jobs", "2")
    return Built(f"oci:{home / 'out'}", ran.err)


def test_release_directory(user: User, published: Published, built: Built) -> None:
    """Everything in the document comes back as an image, bit for bit; stream.json is the document,
    its bytes unchanged, and no artifact; leftovers are named."""
    notes = built.said.splitlines()
    taken = f"{published.directory / 'stream.json'}: taken as the release's stream document"
    assert [line for line in notes if line.startswith(taken)] != []
    assert f"{NAME.format('azure', 'vhd.xz')}.sig: a signature of a file that is not here, left out" in notes
    assert f"{NAME.format('aws', 'vmdk.xz')}.part: of an unfinished download, left out" in notes
    user.run("rehydrate", "back", "--all", "--bundle", built.reference)
    expected = {name: sha256(path) for name, path in published.images.items()}
    assert expected == {path.name: sha256(path) for path in sorted((user.home / "back").iterdir())}
    assert user.run("print-stream-json", built.reference).out == published.document
    for key in ("vhdx", "vhdx.zip"):
        user.run("rehydrate", key, "--disk", "hyperv", "--format", key, "--bundle", built.reference)
        assert names_in(user.home / key) == [NAME.format("hyperv", "vhdx")]


def test_what_each_file_costs(user: User, built: Built) -> None:
    """Archives are explained down to the disk, through tar and gzip; what each adds is small."""
    lines = {line.split()[0]: line for line in built.said.splitlines() if line.startswith("demo-")}
    stored = {
        ("kubevirt", "ociarchive"): "explained (tar+tar+qcow2)",
        ("hyperv", "vhdx"): "explained (vhdx)",
        ("virtualbox", "ova"): "explained (tar+vmdk)",
        ("gcp", "tar.gz"): "explained (gzip+tar (sparse)+raw)",
        ("packed", "ociarchive"): "explained (tar+gzip+tar+qcow2)",
    }
    for (platform, key), said in stored.items():
        assert f" {said} " in f"{lines[NAME.format(platform, key)]} "
    report = json.loads(user.run("info", "--json", built.reference).out)
    cost = {item["platform"]: item["how"]["cost"] for item in report["artifacts"]}
    assert [platform for platform in cost if cost[platform] >= 64 * KIB] == []


def some(user: User, published: Published, *platforms: str) -> tuple[Path, list[str]]:
    """A release directory of some of the platforms, whose document has no others; their images' names."""
    directory = user.home / "release"
    directory.mkdir()
    for platform in platforms:
        for path in published.directory.glob(f"demo-*-{platform}.*"):
            os.link(path, directory / path.name)
    document = json.loads(published.document)
    architecture = document["architectures"]["x86_64"]
    architecture["artifacts"] = {platform: architecture["artifacts"][platform] for platform in platforms}
    (directory / "stream.json").write_text(json.dumps(document))
    return directory, sorted(NAME.format(platform, PLATFORMS[platform][0]) for platform in platforms)


def test_stream_json_none(user: User, published: Published) -> None:
    """`none` ignores stream.json: a document is written from the names, and it is no artifact."""
    directory, images = some(user, published, "hyperv", "kubevirt", "qemu")
    ran = user.run("build", directory, *OPTIONS, *NO_SEARCH, "--stream-json", "none", "--stream", "mine")
    assert "stream.json: left out, as --stream-json says" in ran.err
    listed = json.loads(user.run("list", "--json", "oci:out").out)
    assert images == sorted(item["file"] for item in listed)
    assert {item["format"] for item in listed if item["platform"] == "hyperv"} == {"vhdx.zip"}
    written = json.loads(user.run("print-stream-json", "oci:out").out)
    assert written["stream"] == "mine"
    formats = written["architectures"]["x86_64"]["artifacts"]["hyperv"]["formats"]
    assert formats["vhdx.zip"]["disk"]["location"] == NAME.format("hyperv", "vhdx.zip")


def test_dry_run_takes_the_document_too(user: User, published: Published) -> None:
    """A plan is that of the build: the same files, from the same document."""
    directory, images = some(user, published, "gcp", "openstack", "qemu")
    ran = user.run("build", directory, "--dry-run", "--json")
    assert images == sorted(item["file"] for item in json.loads(ran.out))
    assert "taken as the release's stream document" in ran.err
    shown = user.run("build", directory, "--dry-run").out.decode()
    assert "explained as gzip+tar (sparse)+raw" in shown


# ---- small directories


@pytest.fixture
def release(user: User) -> Path:
    directory = user.home / "release"
    directory.mkdir()
    return directory


def document(*files: tuple[str, bytes]) -> bytes:
    """A stream document of qemu's formats 0, 1, …."""
    formats = {
        str(number): {"disk": {"location": location, "sha256": hashlib.sha256(data).hexdigest()}}
        for number, (location, data) in enumerate(files)
    }
    artifacts = {"qemu": {"release": "1", "formats": formats}}
    return json.dumps({"stream": "s", "architectures": {"x86_64": {"artifacts": artifacts}}}).encode()


def refused(user: User, code: int, *said: str, more: Sequence[object] = ()) -> str:
    ran = user.run("build", "release", *OPTIONS, *more, code=code)
    last = ran.err.splitlines()[-1]
    assert [text for text in said if text not in last] == []
    assert not (user.home / "out").exists()
    return ran.err


@pytest.mark.parametrize(
    "location",
    [
        "a b+c.raw.xz",
        "a%20b+c.raw.xz",
        "./sub/a%20b%2Bc.raw.xz",
        "https://example.invalid/x%2Fy/a%20b+c.raw.xz?token=a/b.raw#c/d",
        "file:///srv/a%20b+c.raw.xz",
    ],
)
def test_locations(user: User, release: Path, location: str) -> None:
    """Relative, absolute, percent-encoded: it is the basename that counts."""
    packed = lzma.compress(DATA)
    (release / "a b+c.raw.xz").write_bytes(packed)
    (release / "stream.json").write_bytes(document((location, packed)))
    user.run("build", "release", *OPTIONS)
    [item] = json.loads(user.run("list", "--json", "oci:out").out)
    assert (item["file"], item["platform"], item["format"]) == ("a b+c.raw", "qemu", "0")
    assert user.run("rehydrate", "-", "--all", "--bundle", "oci:out").out == DATA


def test_another_digest(user: User, release: Path) -> None:
    """A file that is not what stream.json says is exit 5, by its name."""
    (release / "a.raw").write_bytes(DATA)
    (release / "b.raw").write_bytes(DATA)
    (release / "stream.json").write_bytes(document(("a.raw", DATA), ("b.raw", b"other")))
    refused(user, 5, "b.raw", "fetch it again")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", "line 1"),
        (b'{"stream": "s",\n "architectures": {,}}', "line 2"),
        (b'{"stream": "s"}', "architectures"),
        (b'{"stream": "s", "architectures": {"x86_64": {"artifacts": {"qemu": 7}}}}', "qemu"),
        (b'{"stream": "s", "architectures": {\xff}}', "stream.json"),
        (b"\0" * (33 << 20), "bytes are no stream document"),
    ],
)
def test_damaged_document(user: User, release: Path, data: bytes, place: str) -> None:
    """Exit 8 with the file, the place and the way round it; `none` is that way."""
    (release / "a.raw").write_bytes(DATA)
    (release / "stream.json").write_bytes(data)
    refused(user, 8, "release/stream.json", place)
    user.run("build", "release", *OPTIONS, "--stream-json", "none")
    assert [item["file"] for item in json.loads(user.run("list", "--json", "oci:out").out)] == ["a.raw"]


def test_files_that_are_missing(user: User, release: Path) -> None:
    """A mirror of some platforms has a document of all: they are listed, --allow-missing goes on."""
    (release / "a.raw").write_bytes(DATA)
    (release / "stream.json").write_bytes(document(("a.raw", DATA), ("gone.raw", DATA)))
    refused(user, 4, "gone.raw", "--allow-missing")
    user.run("build", "release", *OPTIONS, "--allow-missing")


def test_nothing_but_companions(user: User, release: Path) -> None:
    """stream.json, signatures and unfinished downloads alone make no release."""
    (release / "a.raw.part").write_bytes(b"x")
    (release / "a.raw.sig").write_bytes(b"x")
    refused(user, 8, "no files")
    (release / "stream.json").write_bytes(document())
    refused(user, 8, "no files but stream.json", more=["--stream-json", "none"])
    refused(user, 4, "none of its files")


def test_another_document_beside_it(user: User, release: Path) -> None:
    """What --stream-json names wins over stream.json; naming stream.json itself says nothing."""
    (release / "a.raw").write_bytes(DATA)
    (release / "stream.json").write_bytes(b"damaged")
    (release / "other.json").write_bytes(document(("a.raw", DATA)))
    ran = user.run("build", "release", *OPTIONS, "--stream-json", "release/other.json")
    assert "stream.json: left out, as --stream-json says" in ran.err
    assert user.run("print-stream-json", "oci:out").out == document(("a.raw", DATA))
    shutil.copy(release / "other.json", release / "stream.json")
    ran = user.run("build", "release", *OPTIONS, "--stream-json", "release/stream.json")
    assert "stream.json: " not in ran.err


def test_a_link_is_no_document(user: User, release: Path) -> None:
    """stream.json is taken as a regular file alone, as every other file is."""
    (release / "a.raw").write_bytes(DATA)
    (user.home / "real.json").write_bytes(document(("a.raw", DATA)))
    (release / "stream.json").symlink_to(user.home / "real.json")
    ran = user.run("build", "release", *OPTIONS)
    assert "stream.json: not a regular file, left out" in ran.err
    assert b"rehydrator" in user.run("print-stream-json", "oci:out").out


def test_zip_files(user: User, release: Path) -> None:
    """A zip file of one image is unpacked sparse; of anything else it is exit 8, saying what."""
    with zipfile.ZipFile(release / "a.raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.raw", bytes(4 << 20) + DATA)
    user.run("build", "release", *OPTIONS, *NO_SEARCH)
    user.run("rehydrate", "back", "--all", "--bundle", "oci:out")
    assert (user.home / "back" / "a.raw").read_bytes() == bytes(4 << 20) + DATA
    assert (user.home / "back" / "a.raw").stat().st_blocks * 512 < 1 << 20
    shutil.rmtree(user.home / "out")
    refused(user, 9, "a.raw.zip", "--max-image-size", more=["--max-image-size", 4 << 20])
    with zipfile.ZipFile(release / "a.raw.zip", "a") as archive:
        archive.writestr("readme", b"text")
    refused(user, 8, "a.raw.zip", "'a.raw', 'readme'", "leave it out")


def test_two_files_of_one_format(user: User, release: Path) -> None:
    """Without a document they are told apart by --file, packed or not."""
    for name, data in (("d-1-qemu.x86_64.raw.gz", DATA), ("e-1-qemu.x86_64.raw.gz", DATA[::-1])):
        (release / name).write_bytes(gzip.compress(data))
        os.utime(release / name, (1, 1))
    ran = user.run("build", "release", *OPTIONS)
    assert "both are qemu raw.gz" in ran.err
    asked = ["--file", "e-1-qemu.x86_64.raw", "--bundle", "oci:out"]
    assert user.run("rehydrate", "-", *asked).out == DATA[::-1]
