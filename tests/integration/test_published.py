"""Files as they were published: outer compression by many programs, detached signatures, names."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import random
import signal
import subprocess
import sysconfig
import tarfile
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from tests.conftest import NAME, User, leftovers, names_in, sha256
from tests.gpg_keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KIB, MIB = 1 << 10, 1 << 20
OPTIONS = ["--runtime", "none", "--level", "1"]
TIME = 1_600_000_000
PLACE = 7 * MIB
BLOCKS = ["--block-size=1MiB", "-T2"]


def run(*command: object, stdin: bytes | None = None, cwd: Path | None = None) -> bytes:
    """What a program writes on stdout."""
    argv = [str(part) for part in command]
    return subprocess.run(argv, input=stdin, cwd=cwd, stdout=subprocess.PIPE, check=True).stdout


def real_bytes(size: int) -> bytes:
    """Text and machine code of this machine, on which levels differ; half of each."""
    library = Path(sysconfig.get_path("stdlib"))
    text = b"".join(path.read_bytes() for path in sorted(library.glob("*.py")))
    program = Path("/usr/bin/qemu-img").read_bytes()
    return text[: size // 2] + program[: size - size // 2]


def make_disk(path: Path, data: bytes) -> Path:
    """A disk with a GUID partition table, data, and much room."""
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(data)
        file.seek(PLACE)
        file.write(random.Random(0).randbytes(64 * KIB))
        file.truncate(12 * MIB)
    table = b"label: gpt\nlabel-id: 00000000-0000-4000-a000-000000000001\nstart=2048, size=16384, uuid=%b\n"
    run("sfdisk", "-q", path, stdin=table % b"00000000-0000-4000-a000-000000000003")
    return path


def of_platform(disk: Path, platform: str, target: Path, convert: Sequence[str]) -> Path:
    """The disk with the platform's name behind its data, in the platform's format."""
    raw = target if convert == ["raw"] else target.with_name(f".{platform}.raw")
    run("cp", "--sparse=always", disk, raw)
    with raw.open("r+b") as file:
        file.seek(PLACE)
        file.write(f"platform {platform}".encode())
    if raw != target:
        run("qemu-img", "convert", "-f", "raw", "-O", *convert, raw, target)
        raw.unlink()
    os.utime(target, (TIME, TIME))
    return target


# ---- the programs that publish: from an image to the bytes of its published file


def program(*argv: object) -> Callable[[Path], bytes]:
    """What a filter makes of the file."""

    def pack(image: Path) -> bytes:
        with image.open("rb") as file:
            words = [str(word) for word in argv]
            return subprocess.run(words, stdin=file, stdout=subprocess.PIPE, check=True).stdout

    return pack


def named(*argv: object) -> Callable[[Path], bytes]:
    """What a program makes of a file by its name: name, time and size are in it."""
    return lambda image: run(*argv, "-c", image.name, cwd=image.parent)


def two_streams(image: Path) -> bytes:
    """Two .xz streams of other checks and levels, with padding between and behind them."""
    data = image.read_bytes()
    first = run("xz", "-1", "-C", "crc32", stdin=data[: 5 * MIB + 7])
    return first + bytes(8) + run("xz", "-2", "-C", "sha256", stdin=data[5 * MIB + 7 :]) + bytes(4)


def two_members(image: Path) -> bytes:
    """Two gzip members, each with its own level."""
    data = image.read_bytes()
    return run("gzip", "-6", stdin=data[:MIB]) + run("gzip", "-n9", stdin=data[MIB:])


def by_python(image: Path) -> bytes:
    return gzip.compress(image.read_bytes(), 6, mtime=TIME)


def by_zlib(image: Path) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    return packer.compress(image.read_bytes()) + packer.flush()


def by_zstd_library(image: Path) -> bytes:
    """As a Python program does that writes what it reads."""
    data, target = image.read_bytes(), io.BytesIO()
    with zstd.ZstdFile(target, "wb", level=5) as file:
        for at in range(0, len(data), 100_000):
            file.write(data[at : at + 100_000])
    return target.getvalue()


def zipped(image: Path) -> bytes:
    """A zip file of one image, as Info-ZIP makes it for hyperv."""
    target = image.with_name("made.zip")
    run("zip", "-9jq", target, image)
    data = target.read_bytes()
    target.unlink()
    return data


@dataclass(frozen=True)
class Shape:
    """How qemu-img makes a platform's image, its suffixes, and who packs it."""

    convert: list[str]
    suffix: str
    outer: str
    pack: Callable[[Path], bytes] | None = None


QCOW2, RAW = ["qcow2"], ["raw"]
SHAPES = {
    "openstack": Shape(QCOW2, "qcow2", ".xz", program("xz", "-6", *BLOCKS)),
    "nutanix": Shape(QCOW2, "qcow2", ".xz", program("xz", "-6", *BLOCKS)),
    "metal": Shape(RAW, "raw", ".xz", program("xz", "-0")),
    "azure": Shape(["vpc", "-o", "subformat=fixed,force_size"], "vhd", ".xz", program("xz", "-9e")),
    "exoscale": Shape(QCOW2, "qcow2", ".xz", program("xz", "-1", "-C", "none")),
    "vultr": Shape(RAW, "raw", ".xz", program("xz", "-2", "-C", "sha256", "-T1", "--block-size=2MiB")),
    "hetzner": Shape(RAW, "raw", ".xz", two_streams),
    "digitalocean": Shape(QCOW2, "qcow2", ".gz", named("gzip", "-9")),
    "ibmcloud": Shape(QCOW2, "qcow2", ".gz", program("gzip", "-n", "--rsyncable")),
    "alibaba": Shape(QCOW2, "qcow2", ".gz", named("pigz", "-9", "-p2")),
    "applehv": Shape(RAW, "raw", ".gz", by_python),
    "powervs": Shape(QCOW2, "qcow2", ".gz", two_members),
    "packet": Shape(QCOW2, "qcow2", ".gz", by_zlib),
    "oraclecloud": Shape(QCOW2, "qcow2", ".zst", named("zstd", "-q", "-7")),
    "proxmoxve": Shape(QCOW2, "qcow2", ".zst", by_zstd_library),
    "cloudstack": Shape(QCOW2, "qcow2", ".bz2", program("bzip2", "-9")),
    "hyperv": Shape(["vhdx"], "vhdx", ".zip", zipped),
    "virtualbox": Shape(["vmdk", "-o", "subformat=streamOptimized"], "ova", ".gz", program("gzip", "-n")),
    "gcp": Shape(RAW, "tar.gz", ""),
    "kubevirt": Shape(QCOW2, "ociarchive", ""),
    "qemu": Shape(QCOW2, "qcow2", ""),
}


def in_archive(image: Path, platform: str, target: Path) -> None:
    """The image inside of what its platform wants around it."""
    folder = target.parent / f".{platform}"
    folder.mkdir()
    inside = folder / "disk"
    image.rename(inside)
    if platform == "gcp":
        inside = inside.rename(folder / "disk.raw")
        run("tar", "-C", folder, "-Sc", "--format=oldgnu", "-I", "gzip -9", "-f", target, inside.name)
    elif platform == "kubevirt":
        oci_archive(inside, target)
    else:
        (folder / "box.ovf").write_text("<Envelope/>")
        run("tar", "-C", folder, "--format=ustar", "-cf", target, "box.ovf", "disk")
    run("rm", "-r", folder)
    os.utime(target, (TIME, TIME))


def oci_archive(disk: Path, target: Path) -> None:
    """KubeVirt's: a tar of an OCI layout whose layer is a gzip of a tar of one disk."""
    layout = disk.with_name("layout")
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    tar = run("tar", "-C", disk.parent, "--owner=107", "--format=posix", "-c", disk.name)
    layer = run("gzip", "-n6", stdin=tar)
    (blobs / hashlib.sha256(layer).hexdigest()).write_bytes(layer)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    run("tar", "-C", layout, "--sort=name", "-cf", target, ".")


@dataclass(frozen=True)
class Published:
    """A release as it was published; the images in it by name; who signed it."""

    release: Path
    images: dict[str, Path]
    trusted: Path
    reference: str

    def files(self) -> dict[str, str]:
        """SHA-256 of every published file and signature, by name."""
        return {path.name: sha256(path) for path in self.release.iterdir() if path.suffix != ".json"}


def publish(image: Path, shape: Shape, release: Path) -> Path:
    path = release / f"{image.name}{shape.outer}"
    if shape.pack is None:
        run("cp", "-a", "--sparse=always", image, path)
    else:
        path.write_bytes(shape.pack(image))
    os.utime(path, (TIME + 1, TIME + len(path.name)))
    path.chmod(0o640)
    return path


def document(files: Iterable[tuple[str, Path, Path]]) -> bytes:
    """A stream document with URLs of files and signatures."""
    place = "https://example.invalid/builds/1.0.0/x86_64/"
    artifacts = {}
    for platform, image, path in files:
        file = {
            "location": place + path.name,
            "signature": f"{place}{path.name}.sig",
            "sha256": sha256(path),
            "uncompressed-sha256": sha256(image),
        }
        key = path.name.partition(".x86_64.")[2]
        artifacts[platform] = {"release": "1.0.0", "formats": {key: {"disk": file}}}
    return json.dumps(
        {"stream": "stable", "architectures": {"x86_64": {"artifacts": artifacts}}}, indent=1
    ).encode()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """One disk for 21 platforms in as many shapes, all signed, and a bundle of them."""
    base = tmp_path_factory.mktemp("published")
    images, release, home = base / "images", base / "release", base / "gpg"
    for folder in (images, release, base / "user"):
        folder.mkdir()
    home.mkdir(mode=0o700)
    disk = make_disk(base / "disk.raw", real_bytes(5 * MIB // 4))
    keys = Keys(home, disk)
    keys.make("release")
    made = []
    for platform, shape in SHAPES.items():
        image = of_platform(disk, platform, images / NAME.format(platform, shape.suffix), shape.convert)
        if shape.suffix in {"tar.gz", "ociarchive", "ova"}:
            in_archive(image, platform, image)
        path = publish(image, shape, release)
        path.with_name(f"{path.name}.sig").write_bytes(keys.sign("release", file=path))
        made.append((platform, image, path))
    (release / "stream.json").write_bytes(document(made))
    trusted = base / "trusted.gpg"
    trusted.write_bytes(keys.export("release"))
    keys.stop()
    reference = f"oci:{base / 'bundle'}:x"
    User(base / "user").run("build", release, "-o", reference, *OPTIONS, "--jobs", 2)
    return Published(release, {path.name: path for path in sorted(images.iterdir())}, trusted, reference)


def test_everything_as_published(user: User, published: Published) -> None:
    """Every file bit for bit with its signature beside it, under the basename of its location, with
    the mode and time that it had; gpgv accepts them."""
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", published.reference)
    back = user.home / "back"
    assert published.files() == {path.name: sha256(path) for path in back.iterdir()}
    for path in published.release.glob("demo-*"):
        if path.suffix != ".sig":
            made, was = (back / path.name).stat(), path.stat()
            assert (was.st_mode, int(was.st_mtime)) == (made.st_mode, int(made.st_mtime))
            run("gpgv", "-q", "--keyring", published.trusted, back / f"{path.name}.sig", back / path.name)


def test_images_are_the_default(user: User, published: Published) -> None:
    """Without --form, and with --form image, every image bit for bit, and no signature."""
    expected = {name: sha256(path) for name, path in published.images.items()}
    for number, more in enumerate([[], ["--form", "image"]]):
        back = user.home / f"back{number}"
        user.run("rehydrate", back, "--all", *more, "--bundle", published.reference)
        assert expected == {path.name: sha256(path) for path in back.iterdir()}


@pytest.mark.parametrize("platform", ["openstack", "digitalocean", "kubevirt", "hyperv", "qemu"])
def test_on_a_pipe(user: User, published: Published, platform: str) -> None:
    """One published file on a pipe is the file alone; it and its signature have names of their own."""
    shape = SHAPES[platform]
    path = published.release / f"{NAME.format(platform, shape.suffix)}{shape.outer}"
    bundle = ["--bundle", published.reference]
    asked = user.run("rehydrate", "-", "--disk", platform, "--form", "published", *bundle)
    assert path.read_bytes() == asked.out
    for name in (path.name, f"{path.name}.sig"):
        assert path.with_name(name).read_bytes() == user.run("rehydrate", "-", "--file", name, *bundle).out


def test_several_on_a_pipe(user: User, published: Published) -> None:
    """A tar of the published files; a signature is in it where it was named."""
    disks = ["--disk", "metal", "--disk", "packet", "--form", "published"]
    files = [NAME.format("metal", "raw.xz"), NAME.format("packet", "qcow2.gz")]
    for more, expected in (([], files), (["--file", f"{files[0]}.sig"], [*files, f"{files[0]}.sig"])):
        ran = user.run("rehydrate", "-", *disks, *more, "--bundle", published.reference)
        with tarfile.open(fileobj=io.BytesIO(ran.out)) as archive:
            found = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        assert sorted(expected) == sorted(found)
        assert {name: (published.release / name).read_bytes() for name in expected} == found


def test_a_form_of_a_named_file(user: User, published: Published) -> None:
    """--form of a name is that form of the file that has the name."""
    name, packed = NAME.format("metal", "raw"), NAME.format("metal", "raw.xz")
    bundle = ["--bundle", published.reference]
    user.run("rehydrate", "a", "--file", name, "--form", "published", *bundle)
    assert names_in(user.home / "a") == [packed, f"{packed}.sig"]
    user.run("rehydrate", "b", "--file", packed, "--form", "image", *bundle)
    assert names_in(user.home / "b") == [name]


def artifacts(user: User, reference: str) -> dict[str, Any]:
    """What info says of each file, by platform."""
    shown = json.loads(user.run("info", "--json", reference).out)["artifacts"]
    return {each["platform"]: each for each in shown}


def test_what_siblings_cost(user: User, published: Published) -> None:
    """All forms of a sibling cost a few KiB: what is in them is made by their encoders."""
    found = artifacts(user, published.reference)
    assert {name: each["how"]["cost"] for name, each in found.items() if each["how"]["cost"] >= 4 * KIB} == {}
    for name, each in found.items():
        if SHAPES[name].outer:
            assert each["how"]["published"]["bytes"]["kept"] == 0
            assert each["forms"]["published"]["available"]


def test_what_is_shown(user: User, published: Published) -> None:
    """info names the encoder with its parameters and version, the version here, and what it takes."""
    found = artifacts(user, published.reference)
    encoders = {
        name: [one["encoder"] for one in each["forms"]["published"]["encoders"]]
        for name, each in found.items()
        if SHAPES[name].outer
    }
    expected = {
        "openstack": ["xz -6"],
        "azure": ["xz -9e"],
        "digitalocean": ["gzip -9"],
        "ibmcloud": ["gzip -6 --rsyncable"],
        "alibaba": ["pigz -9"],
        "powervs": ["gzip -6", "gzip -9"],
        "oraclecloud": ["zstd -7 -T1"],
    }
    assert expected == {name: sorted(encoders[name]) for name in expected}
    forms = [each["forms"]["published"] for name, each in found.items() if SHAPES[name].outer]
    assert [one for form in forms for one in form["encoders"] if not one["made_by"]] == []
    assert [one for form in forms for one in form["encoders"] if one["made_by"] != one["here"]] == []
    assert [form for form in forms if form["memory"] < MIB] == []
    assert 0 < found["azure"]["forms"]["published"]["seconds"] < 60
    said = user.run("info", "--disk", "azure", published.reference).out.decode()
    assert [
        text for text in ("xz -9e (liblzma 5.", "takes        about", "MiB of memory") if text not in said
    ] == []


def test_verify_makes_every_form(user: User, published: Published) -> None:
    """verify --all looks at every file of the bundle, and at every image, published file and
    signature."""
    report = json.loads(user.run("verify", "--all", "--json", published.reference).out)
    checked = {each["file"]: each["ok"] for each in report["checked"]}
    assert {*published.files(), *published.images} <= checked.keys()
    assert {True} == set(checked.values())


def test_the_document_fits(user: User, published: Published) -> None:
    """An installer that reads the stream document finds its digests in what comes back, and the
    signature where the document says."""
    document = json.loads(user.run("print-stream-json", published.reference).out)
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", published.reference)
    artifacts = document["architectures"]["x86_64"]["artifacts"]
    files = [one["disk"] for each in artifacts.values() for one in each["formats"].values()]
    assert len(files) == len(SHAPES)
    for file in files:
        name = file["location"].rpartition("/")[2]
        assert file["sha256"] == sha256(user.home / "back" / name)
        signature = user.home / "back" / file["signature"].rpartition("/")[2]
        assert (published.release / f"{name}.sig").read_bytes() == signature.read_bytes()


# ---- small releases


@pytest.fixture
def release(user: User) -> Path:
    directory = user.home / "release"
    directory.mkdir()
    return directory


def take(published: Published, release: Path, *platforms: str) -> list[Path]:
    """Some of the published files and their signatures."""
    found = []
    for platform in platforms:
        name = f"{NAME.format(platform, SHAPES[platform].suffix)}{SHAPES[platform].outer}"
        run("cp", "-a", *published.release.glob(f"{name}*"), release)
        found.append(release / name)
    return found


def test_the_same_bundle_again(user: User, release: Path, published: Published) -> None:
    """The same files give the same digest, with one thread and with four."""
    take(published, release, "openstack", "nutanix", "hetzner", "oraclecloud")
    digests = set()
    for jobs in (1, 4):
        ran = user.run("build", "release", "-o", f"oci:out{jobs}:x", *OPTIONS, "--jobs", jobs)
        digests.add(ran.out.decode().strip().rpartition("@")[2])
    assert len(digests) == 1
    for jobs in (1, 4):
        asked = ["--disk", "nutanix", "--form", "published", "--jobs", jobs, "--bundle", "oci:out1"]
        packed = published.release / NAME.format("nutanix", "qcow2.xz")
        assert packed.read_bytes() == user.run("rehydrate", "-", *asked).out


RANDOM = random.Random(3).randbytes(5 * MIB // 4)


def flushed(data: bytes) -> bytes:
    """A gzip file by no program: flushed at odd places."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    pieces = [data[at : at + 77_777] for at in range(0, len(data), 77_777)]
    return (
        b"".join(packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH) for piece in pieces)
        + packer.flush()
    )


@pytest.mark.parametrize(("keep", "kept"), [("auto", False), ("always", True), ("never", False)])
def test_a_writer_that_nobody_knows(user: User, release: Path, keep: str, kept: bool) -> None:
    """Its bytes are kept, or its image alone; build says which, and rehydrate what there is."""
    packed = release / "odd.raw.gz"
    packed.write_bytes(flushed(RANDOM))
    packed.with_name("odd.raw.gz.sig").write_bytes(b"signature")
    ran = user.run("build", "release", "-o", "oci:out", *OPTIONS, "--keep-published", keep)
    said = {
        "auto": f"odd.raw.gz: no encoder here gives {packed.stat().st_size - 18} of its",
        "always": "kept as they are",
        "never": "",
    }
    assert said[keep] in ran.err
    assert user.run("rehydrate", "-", "--all", "--bundle", "oci:out").out == RANDOM
    asked = ["--all", "--form", "published", "--bundle", "oci:out"]
    if kept:
        user.run("rehydrate", "back", *asked)
        assert (user.home / "back" / packed.name).read_bytes() == packed.read_bytes()
        return
    error = user.run("rehydrate", "back", *asked, code=3).err
    assert "odd.raw.gz: the bundle cannot give back" in error
    assert "odd.raw is there as --form image" in error
    assert names_in(user.home / "back") == ["odd.raw.gz.sig"]
    user.run("rehydrate", "-", *asked, code=4)
    shown = user.run("info", "--disk", "odd", "oci:out").out.decode()
    assert "not given back" in shown
    user.run("verify", "--all", "oci:out")


def test_no_search_with_never(user: User, release: Path, published: Published) -> None:
    """--keep-published never: images alone, also where an encoder would give the published form."""
    [packed] = take(published, release, "openstack")
    user.run("build", "release", "-o", "oci:out", *OPTIONS, "--keep-published", "never")
    error = user.run("rehydrate", "-", "--file", packed.name, "--bundle", "oci:out", code=4).err
    assert f"{packed.name}: the bundle has only its digest" in error
    form = json.loads(user.run("info", "--json", "oci:out").out)["artifacts"][0]["forms"]["published"]
    assert (form["available"], form["sha256"]) == (False, sha256(packed))


def test_one_block_by_nobody(user: User, release: Path, published: Published) -> None:
    """Blocks that no encoder gives are kept, the others are encoded."""
    image = published.images[NAME.format("openstack", "qcow2")].read_bytes()
    odd = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 1, "lp": 2, "pb": 1, "nice_len": 77}]
    middle = len(image) // 2
    packed = release / "some.qcow2.xz"
    first = run("xz", "-6", "--block-size=512KiB", stdin=image[:middle])
    packed.write_bytes(first + lzma.compress(image[middle:], filters=odd))
    ran = user.run("build", "release", "-o", "oci:out", *OPTIONS)
    assert "some.qcow2.xz: no encoder here gives" in ran.err
    assert "kept as corrections" in ran.err
    asked = ["rehydrate", "-", "--all", "--form", "published", "--bundle", "oci:out"]
    assert user.run(*asked).out == packed.read_bytes()
    counts = artifacts(user, "oci:out")["some"]["how"]["published"]["bytes"]
    assert 0 < counts["kept"] <= packed.stat().st_size - len(first)
    assert counts["encoded"] > len(first) * 9 // 10


def other_program(user: User, name: str, text: str) -> dict[str, str]:
    """An environment in which a program is this shell script."""
    folder = user.home / "bin"
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    "text",
    [
        'case "$*" in *-V*) echo gzip 9.9;; *) exec /usr/bin/gzip -1 -c;; esac',
        "cat",
        "exit 3",
        "echo nothing to see; exec cat >/dev/null",
        "kill -9 $$",
        "exec head -c 300M /dev/zero",
    ],
)
def test_another_gzip(user: User, published: Published, text: str) -> None:
    """A program that gives other bytes, or none: published forms that need it are exit 10, which
    names the version and offers the image; the images need it not."""
    other = other_program(user, "gzip", text)
    name, image = (NAME.format("digitalocean", key) for key in ("qcow2.gz", "qcow2"))
    bundle = ["--bundle", published.reference]
    ran = user.run("rehydrate", "back", "--file", name, *bundle, env=other, code=10)
    expected = [name, f"{image} by --form image", "gzip 1."]
    assert [each for each in expected if each not in ran.err] == []
    assert names_in(user.home / "back") == []
    assert user.run("rehydrate", "-", "--file", image, *bundle, env=other).out == (
        published.images[image].read_bytes()
    )
    user.run("info", "--disk", "digitalocean", published.reference, env=other)


# ---- odd and hostile files


def test_files_of_nothing(user: User, release: Path) -> None:
    """Compressed files without a byte in them, and one that is compressed twice, come back in both forms."""
    packers = {"xz": ["xz", "-c"], "gz": ["gzip", "-c"], "zst": ["zstd", "-qc"], "bz2": ["bzip2", "-c"]}
    for suffix, packer in packers.items():
        (release / f"{suffix}.raw.{suffix}").write_bytes(run(*packer, stdin=b""))
    (user.home / "zip.raw").write_bytes(b"")
    run("zip", "-q", release / "zip.raw.zip", "zip.raw", cwd=user.home)
    once = run("xz", "-0", stdin=RANDOM[:50_000])
    (release / "twice.raw.xz.xz").write_bytes(run("xz", "-0", stdin=once))
    user.run("build", "release", "-o", "oci:out", *OPTIONS)
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", "oci:out")
    expected = {path.name: path.read_bytes() for path in release.iterdir()}
    assert expected == {path.name: path.read_bytes() for path in (user.home / "back").iterdir()}
    user.run("rehydrate", "images", "--all", "--bundle", "oci:out")
    images = {path.name: path.read_bytes() for path in (user.home / "images").iterdir()}
    nothing = {f"{suffix}.raw": b"" for suffix in (*packers, "zip")}
    assert images == {**nothing, "twice.raw.xz": once}


def test_signatures_that_are_none(user: User, release: Path) -> None:
    """Empty, a directory, a link, a signature of a signature: left out, and said."""
    for name in "abcd":
        (release / f"{name}.raw").write_bytes(name.encode() * 999)
    (release / "a.raw.sig").write_bytes(b"")
    (release / "b.raw.sig").mkdir()
    (release / "c.raw.sig").symlink_to("a.raw")
    (release / "d.raw.sig").write_bytes(b"signature")
    (release / "d.raw.sig.sig").write_bytes(b"signature of it")
    ran = user.run("build", "release", "-o", "oci:out", *OPTIONS)
    for name in ("a.raw.sig", "b.raw.sig", "c.raw.sig", "d.raw.sig.sig"):
        assert f"\n{name}: " in f"\n{ran.err}"
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", "oci:out")
    assert names_in(user.home / "back") == ["a.raw", "b.raw", "c.raw", "d.raw", "d.raw.sig"]


def refused(user: User, code: int, *said: str, more: Sequence[object] = ()) -> None:
    """A build that fails, saying so, and leaves nothing."""
    error = user.run("build", "release", "-o", "oci:out", *OPTIONS, *more, code=code).err
    assert [text for text in said if text not in error.splitlines()[-1]] == []
    assert not (user.home / "out").exists()


def test_what_is_refused(user: User, release: Path) -> None:
    """Two files of one image name; a name that lies; bombs; signatures of megabytes."""
    (release / "x.raw").write_bytes(b"x")
    (release / "x.raw.xz").write_bytes(lzma.compress(b"y"))
    refused(user, 8, "x.raw and x.raw.xz", "remove one")
    (release / "x.raw").unlink()
    (release / "x.raw.xz").write_bytes(b"")
    refused(user, 8, "x.raw.xz", "not what .xz says")
    (release / "x.raw.xz").write_bytes(lzma.compress(bytes(64 * MIB), preset=0))
    refused(user, 9, "x.raw.xz", "--max-image-size", more=["--max-image-size", 10 * MIB])
    (release / "x.raw.xz").write_bytes(lzma.compress(RANDOM)[:-9])
    refused(user, 8, "x.raw.xz", "cut short")
    (release / "x.raw.xz").write_bytes(lzma.compress(b"y"))
    (release / "x.raw.xz.sig").write_bytes(bytes(65 * KIB))
    refused(user, 8, "x.raw.xz.sig", "no signature")


def test_layers_are_limited_together(user: User, release: Path) -> None:
    """What unpacks inside of one file is as large as one image may be, in all of its layers."""
    layers = user.home / "layers"
    layers.mkdir()
    for name in "ab":
        (layers / name).write_bytes(gzip.compress(b"ab" * (3 * MIB), 1))
    name = NAME.format("kubevirt", "ociarchive")
    run("tar", "-C", layers, "--sort=name", "-cf", release / name, ".")
    limit = ["--max-image-size", 10 * MIB]
    refused(user, 9, name, "gzip in it", "--max-image-size", more=limit)
    (layers / "b").unlink()
    run("tar", "-C", layers, "--sort=name", "-cf", release / name, ".")
    user.run("build", "release", "-o", "oci:out", *OPTIONS, *limit)


def test_archives_that_are_none(user: User, release: Path) -> None:
    """What is called an archive and is none, or half of one, is kept as it is, exactly."""
    tar = run("tar", "-cz", "-C", release.parent, "release")
    (release / "a.tar.gz").write_bytes(gzip.compress(RANDOM[:9999]))
    (release / "b.tar.gz").write_bytes(tar[: len(tar) // 2])
    (release / "c.ociarchive").write_bytes(RANDOM[:9999])
    (release / "d.ova.gz").write_bytes(gzip.compress(RANDOM[:9999]))
    user.run("build", "release", "-o", "oci:out", *OPTIONS)
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", "oci:out")
    expected = {path.name: path.read_bytes() for path in release.iterdir()}
    assert expected == {path.name: path.read_bytes() for path in (user.home / "back").iterdir()}


# ---- interrupts and full disks


SLOW = real_bytes(2 * MIB)
REPEATED = bytes(16 * MIB) + SLOW * 6


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose encoders take seconds: xz -9e, and gzip -9 many times over."""
    base = tmp_path_factory.mktemp("slow")
    (base / "release").mkdir()
    (base / "release" / "a.raw.xz").write_bytes(run("xz", "-9e", stdin=SLOW))
    (base / "release" / "b.raw.gz").write_bytes(run("gzip", "-9", stdin=REPEATED))
    User(base).run("build", base / "release", "-o", "oci:out:x", *OPTIONS)
    return base


# Run with a tiny file system at a place, and list what is left there on stdout.
TMPFS = (
    'mount -t tmpfs -o size={size}k none "{place}" && "$@"; code=$?; find "{place}" -mindepth 1; exit $code'
)


def full(place: str, size: int) -> list[str]:
    return ["unshare", "-m", "sh", "-c", TMPFS.format(place=place, size=size), "sh"]


def gone(processes: list[int]) -> bool:
    """Whether processes end within a moment, and leave no zombie."""
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{each}").exists() for each in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(Path(f"/proc/{each}").exists() for each in processes)


def children(pid: int) -> list[int]:
    """Processes that the threads of a process started, zombies too."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, thread.read_text().split())
    return found


def interrupted(user: User, number: int, seen: Callable[[int], bool], *arguments: object) -> str:
    """Run until `seen` says so, and send a signal: exit 130 within seconds, nothing is left."""
    ran = subprocess.Popen(
        user.command(*arguments),
        cwd=user.home,
        env=user.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not seen(ran.pid) and ran.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    started = children(ran.pid)
    ran.send_signal(number)
    sent = time.monotonic()
    _, said = ran.communicate(timeout=60)
    assert (ran.returncode, time.monotonic() - sent < 5) == (130, True), said
    assert b"Traceback" not in said
    assert gone(started)
    assert leftovers(user.home) == []
    return said.decode()


def runs(name: str) -> Callable[[int], bool]:
    """Whether a program of that name was started by a process."""

    def seen(pid: int) -> bool:
        return any(is_called(each, name) for each in children(pid))

    return seen


def is_called(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_encodes(user: User, slow: Path, number: int) -> None:
    """While liblzma encodes, while gzip runs; to a directory, and in verify."""
    bundle = ["--bundle", f"oci:{slow}/out"]
    target = user.home / "back"

    def begun(_: int) -> bool:
        return target.exists() and any(path.name.startswith(".rehydrator") for path in target.iterdir())

    interrupted(user, number, begun, "rehydrate", target, "--file", "a.raw.xz", *bundle)
    assert names_in(target) == []
    interrupted(user, number, runs("gzip"), "rehydrate", target, "--file", "b.raw.gz", *bundle)
    assert names_in(target) == []
    interrupted(user, number, runs("gzip"), "rehydrate", "-", "--file", "b.raw.gz", *bundle)
    interrupted(user, number, runs("gzip"), "verify", "--all", f"oci:{slow}/out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_searches(user: User, slow: Path, number: int) -> None:
    """A build that looks for encoders."""
    ask = ["build", slow / "release", "-o", "oci:out", *OPTIONS, "--jobs", 2]
    interrupted(user, number, runs("gzip"), *ask)
    assert names_in(user.home) == ["tmp"]


def test_a_reader_that_leaves(user: User, slow: Path) -> None:
    """A pipe that is closed while gzip runs: exit 1, said in one line, and gzip is gone."""
    ask = user.command("rehydrate", "-", "--file", "b.raw.gz", "--bundle", f"oci:{slow}/out")
    ran = subprocess.Popen(ask, env=user.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.read(10)
    started = children(ran.pid)
    ran.stdout.close()
    said = ran.stderr.read().decode()
    assert (ran.wait(60), said) == (
        1,
        "rehydrator: standard output was closed by its reader before the end\n",
    )
    assert gone(started)


@pytest.mark.parametrize("where", ["TMPDIR", "--tmpdir"])
def test_no_room_for_what_is_encoded(user: User, slow: Path, where: str) -> None:
    """Encoded bytes that find no room: exit 9, which names the place and the way out."""
    (user.home / "small").mkdir()
    more, env = (["--tmpdir", "small"], {}) if where == "--tmpdir" else ([], {"TMPDIR": "small"})
    ask = ["rehydrate", "back", "--file", "b.raw.gz", "--bundle", f"oci:{slow}/out", *more]
    ran = user.run(*ask, code=9, env=env, wrapper=full("small", 3000))
    assert ran.out == b""
    assert [text for text in ("small", "No space left", "--tmpdir") if text not in ran.err] == []
    assert names_in(user.home / "back") == []


def test_no_place_for_what_is_encoded(user: User, slow: Path) -> None:
    """Without any directory that can be written to, what is not much stays in memory."""
    ask = ["--bundle", f"oci:{slow}/out"]
    locked = ["unshare", "-m", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh"]
    ran = user.run("rehydrate", "-", "--file", "b.raw.gz", *ask, wrapper=locked)
    assert ran.out == (slow / "release" / "b.raw.gz").read_bytes()
    assert user.run("rehydrate", "-", "--file", "b.raw", *ask, wrapper=locked).out == REPEATED
