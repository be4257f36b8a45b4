"""Damaged, lying and unreadable input, full disks and signals: what a build refuses or falls back
on, and what never happens: a wrong byte under a final name, a success that is none."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from tests import vmdk_images
from tests.conftest import NAME, NOBODY, Made, User, leftovers, names_in, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPTIONS = ["--runtime", "none", "--level", "1", "-o", "oci:out:x"]
QEMU = NAME.format("qemu", "qcow2")
AZURE = NAME.format("azure", "vhd")
DATA = random.Random(7).randbytes(300_000)


@pytest.fixture
def release(user: User) -> Path:
    """A release directory of one small file."""
    directory = user.home / "release"
    directory.mkdir()
    (directory / "good.raw").write_bytes(DATA)
    return directory


def refused(user: User, code: int, *said: str, more: Sequence[object] = (), **run: Any) -> str:
    """A build of the release that ends with `code`, names what must be named, and leaves nothing."""
    ran = user.run("build", "release", *OPTIONS, *more, code=code, **run)
    assert [text for text in said if text not in ran.err] == []
    assert ran.err.splitlines()[-1].startswith("rehydrator: ")
    assert not (user.home / "out").exists()
    return ran.err


def round_trip(user: User, release: Path, *more: object) -> dict[str, dict[str, Any]]:
    """Build, give everything back, compare; what info says of each file."""
    user.run("build", release, *OPTIONS, *more)
    user.run("rehydrate", "back", "--all", "--bundle", "oci:out:x")
    report = json.loads(user.run("info", "--json", "oci:out:x").out)
    for item in report["artifacts"]:
        assert item["sha256"] == sha256(user.home / "back" / item["file"])
    assert sorted(item["file"] for item in report["artifacts"]) == names_in(user.home / "back")
    return {item["file"]: item for item in report["artifacts"]}


# ---- the release directory


def test_only_regular_files_are_taken(user: User, release: Path) -> None:
    """Directories, links, pipes and sockets are listed and left, whatever their names."""
    (release / "folder").mkdir()
    (release / "folder" / "inside.raw").write_bytes(b"x")
    (release / "link").symlink_to("good.raw")
    (release / "dangling").symlink_to("nowhere")
    (release / "new\nline").mkdir()
    os.mkfifo(release / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(release / "socket"))
        ran = user.run("build", "release", *OPTIONS)
    for name in ("folder", "link", "dangling", "pipe", "socket"):
        assert f"{name}: not a regular file, left out\n" in ran.err
    assert [item["file"] for item in json.loads(user.run("list", "--json", "oci:out").out)] == ["good.raw"]


def test_without_images(user: User, release: Path) -> None:
    """Files that are no images, and files of no bytes, are kept exactly."""
    (release / "good.raw").unlink()
    (release / "README").write_text("hello\n")
    (release / "nothing").write_bytes(b"")
    (release / "nothing.qcow2").write_bytes(b"")
    (release / "zeros.vhd").write_bytes(bytes(5000))
    found = round_trip(user, release)
    assert {item["how"]["rung"] for item in found.values()} <= {"whole", "delta"}
    user.run("rehydrate", "-", "--file", "nothing", "--bundle", "oci:out")


def test_nothing_to_build(user: User, release: Path) -> None:
    """An empty directory is refused (8); one that is no directory is a usage error (2)."""
    (release / "good.raw").unlink()
    refused(user, 8, "release", "no files")
    user.run("build", "nowhere", *OPTIONS, code=2)


@pytest.mark.parametrize(
    "name",
    ["a\x1bb.raw", "new\nline.raw", "tab\t.raw", "del\x7f.raw", "c1\x85.raw", "..xz", "...gz"],
)
def test_names_that_no_file_should_have(user: User, release: Path, name: str) -> None:
    """Control characters and names that are nothing but dots inside are refused, escaped on stderr."""
    (release / name).write_bytes(b"content")
    said = refused(user, 8, "rename it")
    assert not [letter for letter in said if letter != "\n" and not letter.isprintable()]


def test_name_that_is_not_utf8(user: User, release: Path) -> None:
    """A name that is not UTF-8 is refused, and shown."""
    (release / os.fsdecode(b"caf\xe9.raw")).write_bytes(b"content")
    refused(user, 8, "caf", "UTF-8", "rename it")


def test_long_name_of_another_script(user: User, release: Path) -> None:
    """A name of 255 bytes in 85 letters has room for its temporary file."""
    (release / ("\N{SNOWMAN}" * 85)).write_bytes(DATA)
    round_trip(user, release)


def test_strange_but_good_names(user: User, release: Path) -> None:
    """Spaces, dashes, dots, the longest name and any script go through, tar and all."""
    longest = "x" * 251 + ".raw"
    names = ["-rf", "a b.raw", "..hidden..", "é\N{SNOWMAN}\u202e.raw", "x.tar.gz.xz.gz", longest, ".xz"]
    for number, name in enumerate(names):
        (release / name).write_bytes(DATA[: 1000 * (number + 1)])
    (release / "x.tar.gz.xz.gz").write_bytes(gzip.compress(b"inner"))
    found = round_trip(user, release)
    assert {*names, "good.raw"} - {"x.tar.gz.xz.gz"} | {"x.tar.gz.xz"} == set(found)
    archive = user.run("rehydrate", "-", "--all", "--bundle", "oci:out").out
    listed = subprocess.run(["tar", "-t"], input=archive, capture_output=True, check=True).stdout
    assert longest.encode() in listed
    for verb in ("list", "info"):
        assert "\u202e" not in user.run(verb, "oci:out").out.decode()


def test_two_files_claim_one_name(user: User, release: Path) -> None:
    """A file and its compressed form, or two compressed forms, are refused, both named."""
    (release / "good.raw.xz").write_bytes(lzma.compress(DATA))
    refused(user, 8, "good.raw and good.raw.xz", "remove one")
    (release / "good.raw").rename(release / "other.raw")
    (release / "good.raw.gz").write_bytes(gzip.compress(DATA))
    refused(user, 8, "good.raw.gz and good.raw.xz")


def test_unreadable(user: User, release: Path) -> None:
    """A file or a directory that cannot be read is named with the system's reason: exit 1."""
    for folder in (user.home, *user.home.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    user.tmp.chmod(0o777)
    user.home.chmod(0o777)
    nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    (release / "secret.raw").write_bytes(b"secret")
    (release / "secret.raw").chmod(0)
    refused(user, 1, "release/secret.raw", "Permission denied", wrapper=nobody)
    release.chmod(0o711)
    assert "not readable" in user.run("build", "release", *OPTIONS, code=2, wrapper=nobody).err
    release.chmod(0o744)
    refused(user, 1, "release", "Permission denied", wrapper=nobody)


# ---- outer compression

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstd.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files(user: User, release: Path, suffix: str) -> None:
    """One stream or several in a row give the image inside."""
    pack = PACKERS[suffix]
    (release / f"one.raw{suffix}").write_bytes(pack(DATA))
    (release / f"two.raw{suffix}").write_bytes(pack(DATA[:1000]) + pack(DATA[1000:]))
    if suffix == ".xz":
        (release / "padded.raw.xz").write_bytes(pack(DATA[:9]) + bytes(8) + pack(DATA[9:]) + bytes(4))
    found = round_trip(user, release)
    assert {item["sha256"] for item in found.values()} == {hashlib.sha256(DATA).hexdigest()}
    assert found["one.raw"]["published"]["file"] == f"one.raw{suffix}"


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-20], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (
            lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:-300_000] + data[-300_000:],
            "damaged",
        ),
        (lambda data: data + data[:2] + b"!" + data[3:], "damaged"),
        (lambda data: b"QFI\xfb" + data[4:], "rename it or fetch it again"),
        (bz2.compress, "rename it or fetch it again"),
        (lambda data: data[:0], "rename it or fetch it again"),
    ],
    ids=["tail", "half", "flip", "second", "magic", "bzip2", "empty"],
)
def test_damaged_compressed_files(
    user: User, release: Path, suffix: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    """Cut short, flipped, or of another kind: refused by name (8)."""
    pack = PACKERS[suffix]
    if suffix == ".zst":  # without a checksum only the structure shows damage
        packed = zstd.compress(DATA, options={int(zstd.CompressionParameter.checksum_flag): 1})
    else:
        packed = pack(DATA)
    (release / f"bad.raw{suffix}").write_bytes(damage(packed))
    refused(user, 8, f"bad.raw{suffix}", said)


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix != ".gz"])
def test_bytes_behind_the_end(user: User, release: Path, suffix: str) -> None:
    """What stands behind the end of a compressed file is damage (8)."""
    (release / f"bad.raw{suffix}").write_bytes(PACKERS[suffix](DATA) + b"garbage!")
    refused(user, 8, f"bad.raw{suffix}", "damaged")


def test_bytes_behind_gzip(user: User, release: Path) -> None:
    """gzip(1) ignores bytes behind the last member, so that they may be published: they are kept."""
    published = gzip.compress(DATA, mtime=5) + b"garbage!"
    (release / "odd.raw.gz").write_bytes(published)
    user.run("build", release, "--runtime", "none", "--level", 1, "-o", "oci:out:x")
    user.run("rehydrate", "back", "--bundle", "oci:out:x", "--file", "odd.raw.gz")
    assert (user.home / "back/odd.raw.gz").read_bytes() == published


@pytest.mark.parametrize("suffix", PACKERS)
def test_bombs(user: User, release: Path, suffix: str) -> None:
    """What unpacks, or simply is, larger than --max-image-size is exit 9, and its disk space is free."""
    (release / f"bomb.raw{suffix}").write_bytes(PACKERS[suffix](bytes(30 << 20)))
    limit = ["--max-image-size", 20 << 20]
    refused(user, 9, f"bomb.raw{suffix}", "--max-image-size", more=limit)
    (release / f"bomb.raw{suffix}").unlink()
    with (release / "large.raw").open("wb") as file:
        file.truncate(30 << 20)
    refused(user, 9, "large.raw", "--max-image-size", more=limit)


# ---- the stream document


def document(*files: dict[str, Any]) -> bytes:
    """A stream document of qemu's formats a, b, … in a row."""
    formats = {chr(97 + number): {"disk": file} for number, file in enumerate(files)}
    artifacts = {"qemu": {"release": "7.1", "formats": formats}}
    return json.dumps({"stream": "stable", "architectures": {"aarch64": {"artifacts": artifacts}}}).encode()


def described(location: str, data: bytes | None, inner: bytes | None = None) -> dict[str, Any]:
    digest = {"sha256": (data is not None and hashlib.sha256(data).hexdigest()) or None}
    plain = {"uncompressed-sha256": hashlib.sha256(inner).hexdigest()} if inner is not None else {}
    return {"location": location, **digest, **plain, "signature": None}


def test_stream_document(user: User, release: Path) -> None:
    """Files are found by the basename of their location, quoted or not, or by the name inside,
    and keep the document's platform, format and architecture; others are listed and left."""
    packed = lzma.compress(DATA)
    (release / "b c.raw.xz").write_bytes(packed)
    (release / "extra.raw").write_bytes(b"extra")
    given = document(
        described("https://example.invalid/x/good.raw.xz?a=b#c", packed, DATA),
        described("b%20c.raw.xz", packed, DATA),
    )
    (release / "stream.json").write_bytes(given)
    ran = user.run("build", "release", *OPTIONS, "--stream-json", release / "stream.json")
    assert "extra.raw: not in the stream document, left out" in ran.err
    listed = json.loads(user.run("list", "--json", "oci:out").out)
    found = [(item["file"], item["platform"], item["arch"], item["format"]) for item in listed]
    assert found == [("b c.raw", "qemu", "aarch64", "b"), ("good.raw", "qemu", "aarch64", "a")]
    assert user.run("print-stream-json", "oci:out").out == given
    assert user.run("rehydrate", "-", "--disk", "qemu", "--format", "a", "--bundle", "oci:out").out == DATA


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ([described("good.raw", b"other")], 5, ["good.raw", "stream document says", "fetch it again"]),
        ([described("good.raw.xz", b"", b"other")], 5, ["good.raw", "stream document says"]),
        ([described("good.raw.xz", b"")], 2, ["good.raw", "no digest", "give good.raw.xz"]),
        ([described("good.raw", DATA), described("gone.raw", b"")], 4, ["gone.raw", "--allow-missing"]),
        ([described("gone.raw", b"")], 4, ["gone.raw"]),
        ([], 4, ["none of its files"]),
    ],
)
def test_stream_document_that_does_not_fit(
    user: User, release: Path, files: list[dict[str, Any]], code: int, said: Sequence[str]
) -> None:
    """Another digest is 5, a missing file 4, no digest to go by 2."""
    (user.home / "stream.json").write_bytes(document(*files))
    refused(user, code, *said, more=["--stream-json", "stream.json"])


def test_allow_missing_and_no_digests(user: User, release: Path) -> None:
    """--allow-missing lists what is missing and goes on; empty and null digests check nothing; a
    second entry for a file is said."""
    empty = {"location": "good.raw", "sha256": "", "uncompressed-sha256": None}
    (user.home / "stream.json").write_bytes(document(empty, described("gone.raw", b""), empty))
    more = ["--stream-json", "stream.json", "--allow-missing"]
    ran = user.run("build", "release", *OPTIONS, *more)
    assert "gone.raw: named by the stream document, missing, left out" in ran.err
    assert "good.raw: stands in the stream document again" in ran.err


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b'{"stream": "s"}',
        b'{"stream": 5, "architectures": {}}',
        b'{"stream": "s", "stream": "t", "architectures": {}}',
        b'{"stream": "s/../t", "architectures": {}}',
        b'{"stream": "\\u0007", "architectures": {}}',
        b'{"stream": "\\ud800", "architectures": {}}',
        b'{"stream": "s", "architectures": {"a/b": {}}}',
        b'{"stream": "s", "architectures": {"a": {"artifacts": {"": {}}}}}',
        b'{"stream": "s", "architectures": {"a": {"artifacts": {"p": {"formats": {"f": {"r": {}}}}}}}}',
        b'{"stream": "s", "n": ' + b"9" * 5000 + b', "architectures": {}}',
        b"[" * 100_000,
    ],
)
def test_no_stream_document(user: User, release: Path, data: bytes) -> None:
    """Duplicate keys, huge numbers, deep nesting, wrong types and names that cannot be: 8, by name."""
    (user.home / "stream.json").write_bytes(data)
    refused(user, 8, "stream.json", more=["--stream-json", "stream.json"])


# ---- options


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--name", "a/b"], "--name"),
        (["--stream", "a\nb"], "--stream"),
        (["--release", "x" * 300], "--release"),
        (["--name", os.fsdecode(b"\xff")], "--name"),
        (["--arch", "x 86"], "--arch"),
        (["--canonical", "gone.raw"], "--canonical gone.raw"),
        (["--canonical", "good.raw"], "--canonical good.raw"),
    ],
)
def test_options_that_make_no_sense(user: User, release: Path, more: Sequence[str], said: str) -> None:
    """Names that the format cannot hold are exit 2, before the work."""
    refused(user, 2, said, more=more)


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("oci:release", 2),
        ("oci:release/good.raw", 1),
        ("oci-archive:release", 2),
        ("oci:no/such/place", 2),
        ("docker://localhost/x", 2),
        ("dir:somewhere", 2),
        ("oci:", 2),
    ],
)
def test_outputs_that_cannot_be(user: User, release: Path, output: str, code: int) -> None:
    """A directory that is no layout, a file, a missing parent: said before the work, nothing touched."""
    ran = user.run("build", "release", "--runtime", "none", "-o", output, code=code)
    place = Path(output.partition(":")[2])
    assert (place.parent.name or place.name or output) in ran.err
    assert names_in(release) == ["good.raw"]
    assert names_in(user.home) == ["release", "tmp"]


def test_hostile_current_directory(user: User, release: Path) -> None:
    """Modules that lie in the current directory are not imported, not by the proof either."""
    for name in ("json.py", "click.py", "numpy.py"):
        (user.home / name).write_text("raise SystemExit('imported from the release')\n")
    (user.home / "rehydrator").mkdir()
    (user.home / "rehydrator" / "__init__.py").write_text("raise SystemExit('imported')\n")
    user.run("build", "release", *OPTIONS, env={"PYTHONSAFEPATH": "1"})


# ---- damaged images


KINDS = {
    "a.qcow2": ["qcow2"],
    "b.qcow2": ["qcow2", "-c"],
    "c.vmdk": ["vmdk", "-o", "subformat=streamOptimized"],
    "d.vmdk": ["vmdk"],
    "e.vhd": ["vpc", "-o", "subformat=dynamic"],
    "f.vhd": ["vpc", "-o", "subformat=fixed"],
    "g.vhdx": ["vhdx"],
}


def images(directory: Path) -> list[Path]:
    """A small disk in the formats that are explained, in the form of siblings."""
    disk = directory / "disk.raw"
    with disk.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa" + DATA)
        file.truncate(4 << 20)
    for name, (kind, *options) in KINDS.items():
        argv = ["qemu-img", "convert", "-f", "raw", "-O", kind, *options, str(disk), str(directory / name)]
        subprocess.run(argv, check=True)
    return [directory / name for name in KINDS]


def test_damaged_images_take_a_lower_rung(user: User, tmp_path: Path) -> None:
    """Truncated, flipped and lying images are kept exactly, some by a lower rung; info says why."""
    whole, release = tmp_path / "whole", tmp_path / "release"
    whole.mkdir()
    release.mkdir()
    dice = random.Random(11)
    for path in images(whole):
        data = path.read_bytes()
        (release / path.name).write_bytes(data)
        for number, kept in enumerate((len(data) // 2, len(data) - 300, 40)):
            (release / f"cut{number}-{path.name}").write_bytes(data[:kept])
        for number in range(6):
            damaged = bytearray(data)
            for _ in range(1 + number):
                damaged[dice.randrange(min(len(data), 2048 << (3 * (number % 3))))] ^= 1 << dice.randrange(8)
            (release / f"flip{number}-{path.name}").write_bytes(damaged)
        for number in range(4):
            lying = bytearray(data)
            at = 4 * dice.randrange(28)
            lying[at : at + 4] = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")[number]
            (release / f"lie{number}-{path.name}").write_bytes(lying)
    found = round_trip(user, release)
    assert {found[path.name]["how"]["rung"] for path in images(whole)} == {"explained"}
    lower = [item for item in found.values() if item["how"]["rung"] != "explained"]
    assert len(lower) >= 14
    assert all(item["how"]["tried"][0]["why"] for item in lower)


def test_disks_of_zeros(user: User, release: Path) -> None:
    """Disks without a byte of data are explained in every format, encoded zeros among them."""
    empty = user.home / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(1 << 20)
    for name, (kind, *options) in KINDS.items():
        argv = ["qemu-img", "convert", "-f", "raw", "-O", kind, *options, str(empty), str(release / name)]
        subprocess.run(argv, check=True)
    with (release / "zeros.vmdk").open("wb") as file:
        file.write(vmdk_images.write(bytes(256 << 10), vmdk_images.VMWARE, range(4)))
    (release / "good.raw").unlink()
    found = round_trip(user, release)
    assert {item["how"]["rung"] for item in found.values()} == {"explained"}


def test_release_that_changes_under_the_build(user: User, release: Path) -> None:
    """A file that is written while it is built is a mismatch (5) or cut short, never a bundle."""
    target = release / "good.raw"
    target.write_bytes(DATA * 100)
    process = subprocess.Popen(
        [*user.command("build", "release"), *OPTIONS],
        cwd=user.home,
        env=user.environment(),
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(user.home.glob(".rehydrator-build-*/bundle")) and time.monotonic() < deadline:
        time.sleep(0.005)
    with target.open("r+b") as file:
        while process.poll() is None:
            file.seek(0)
            file.write(random.Random(time.monotonic_ns()).randbytes(len(DATA)))
            file.flush()
    _, said = process.communicate()
    assert (process.returncode in {5, 8}, leftovers(user.home)) == (True, []), said
    assert b"Traceback" not in said
    assert not (user.home / "out").exists()


# ---- full disks

TMPFS = (
    'mount -t tmpfs -o size={size}k none "{place}" && "$@"; code=$?; find "{place}" -mindepth 1; exit $code'
)


def full(place: str, size: int) -> list[str]:
    """Run with a tiny file system at `place`, and list what is left there on stdout."""
    return ["unshare", "-m", "sh", "-c", TMPFS.format(place=place, size=size), "sh"]


@pytest.mark.parametrize("size", [4, 200, 500])
@pytest.mark.parametrize("more", [["-o", "oci:small/out"], ["-o", "oci-archive:small/out.tar"]])
def test_full_disk_for_the_bundle(user: User, release: Path, size: int, more: Sequence[str]) -> None:
    """A build that runs out of space is exit 9, names the place, and leaves it empty."""
    (user.home / "small").mkdir()
    options = ["--runtime", "none", "--level", "1", "--tmpdir", "tmp"]
    ran = user.run(
        "build", "release", *options, *more, code=9 if size < 500 else 0, wrapper=full("small", size)
    )
    if size < 500:
        assert ran.out == b""
        assert "free" in ran.err


@pytest.mark.parametrize("size", [4, 100, 400])
def test_full_tmpdir(user: User, release: Path, size: int) -> None:
    """A full --tmpdir is exit 9, with the remedy, and nothing stays in it."""
    (release / "packed.raw.xz").write_bytes(lzma.compress(bytes(1 << 20) + DATA))
    (user.home / "small").mkdir()
    ran = user.run("build", "release", *OPTIONS, "--tmpdir", "small", code=9, wrapper=full("small", size))
    assert ran.out == b""
    assert "small" in ran.err
    assert "free some" in ran.err
    assert not (user.home / "out").exists()


def test_tmpdir_that_fills_while_unpacking(user: User, release: Path) -> None:
    """What no estimate knows, a small file that unpacks to a large one, is exit 9 as well."""
    (release / "packed.raw.xz").write_bytes(lzma.compress(b"ab" * (8 << 20)))
    (user.home / "small").mkdir()
    ran = user.run("build", "release", *OPTIONS, "--tmpdir", "small", code=9, wrapper=full("small", 5000))
    assert ran.out == b""
    assert [text for text in ("packed.raw.xz", "No space left", "--tmpdir") if text not in ran.err] == []
    assert not (user.home / "out").exists()


def test_file_size_limit(user: User, made: Made) -> None:
    """A limit on file sizes is exit 9 for build and rehydrate, and nothing stays."""
    small = ["sh", "-c", 'ulimit -f 800; exec "$@"', "sh"]
    user.run("build", made.release, *OPTIONS, code=9, wrapper=small)
    assert not (user.home / "out").exists()
    ask = ["rehydrate", "back", "--bundle", made.reference, "--disk", "qemu"]
    ran = user.run(*ask, code=9, wrapper=small)
    assert QEMU in ran.err
    assert names_in(user.home / "back") == []


def test_full_disk_for_an_image(user: User, made: Made) -> None:
    """rehydrate checks the space first (9), says how much is needed, and leaves nothing."""
    (user.home / "small").mkdir()
    ask = ["rehydrate", "small", "--bundle", made.reference, "--disk", "qemu"]
    ran = user.run(*ask, code=9, wrapper=full("small", 2000))
    assert ran.out == b""
    assert [text for text in ("small", QEMU, "free some") if text not in ran.err] == []
    [report] = json.loads(user.run(*ask, "--json", code=9, wrapper=full("small", 2000)).out.decode())
    assert report["exit_code"] == 9


def test_disk_that_fills_meanwhile(user: User, made: Made) -> None:
    """Where the space goes while an image is written, its half is removed (9). One without holes has
    its space from the beginning."""
    (user.home / "small").mkdir()
    ask = ["rehydrate", "small", "--bundle", made.reference, "--disk", "azure", "--sparse"]
    # What takes the space comes in after the first bytes, behind the check of the free space.
    script = (
        'mount -t tmpfs -o size=60m none small && { "$@" & program=$!; }; '
        "until ls -A small | grep -q rehydrator; do kill -0 $program || break; done; kill -STOP $program; "
        "head -c 60M /dev/zero >small/thief; kill -CONT $program; wait $program; code=$?; "
        "ls -A small; exit $code"
    )
    ran = user.run(*ask, code=9, wrapper=["unshare", "-m", "bash", "-c", script, "bash"])
    assert ran.out == b"thief\n"
    assert "No space left" in ran.err


# ---- signals


def interrupted(user: User, number: int, after: float, *arguments: object) -> tuple[int, float]:
    """Start, wait, send a signal; the exit code and the seconds that it still took."""
    process = subprocess.Popen(
        user.command(*arguments),
        cwd=user.home,
        env=user.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    time.sleep(after)
    process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said, said
    return process.returncode, time.monotonic() - sent


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, 0.3),
        (signal.SIGTERM, 0.5),
        (signal.SIGINT, 0.8),
        (signal.SIGTERM, 1.0),
        (signal.SIGINT, 1.2),
    ],
)
def test_interrupted_build(user: User, made: Made, number: int, after: float) -> None:
    """At any moment: exit 130 within seconds, and nothing that looks like a bundle or a build."""
    ask = ["build", made.release, "--runtime", "none", "--level", 19, "--jobs", 2, "-o", "oci:out:x"]
    code, seconds = interrupted(user, number, after, *ask)
    assert (code, seconds < 5) == (130, True)
    assert names_in(user.home) == ["tmp"]
    assert leftovers(user.home) == []


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 0.4), (signal.SIGINT, 0.6)]
)
def test_interrupted_rehydrate(user: User, large: str, number: int, after: float) -> None:
    """No half image under any name, 130 within seconds; verify --all likewise."""
    code, seconds = interrupted(
        user, number, after, "rehydrate", "back", "--no-sparse", "--all", "--bundle", large
    )
    assert (code, seconds < 5) == (130, True)
    assert leftovers(user.home) == []
    assert not (user.home / "back").exists() or names_in(user.home / "back") == []
    code, seconds = interrupted(user, number, after, "verify", "--all", large)
    assert (code, seconds < 5) == (130, True)
    assert leftovers(user.home) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle whose image takes seconds to write: 3 GiB of few bytes, none of them in holes."""
    home = tmp_path_factory.mktemp("large")
    user = User(home)
    (home / "release").mkdir()
    with (home / "release" / "large.raw").open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa")
        file.truncate(3 << 30)
    user.run("build", "release", *OPTIONS)
    return f"oci:{home / 'out'}:x"


def test_interrupted_before_a_stuck_reader(user: User, made: Made) -> None:
    """A reader that does not read does not hold the program up: 130 within seconds."""
    process = subprocess.Popen(
        user.command("rehydrate", "-", "--disk", "azure", "--bundle", made.reference),
        env=user.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(3) == 130
        assert leftovers(user.home) == []
    finally:
        process.kill()
        process.communicate()


# ---- damaged bundles


def blobs(made: Made) -> dict[str, Path]:
    """What a user may damage: the layers of the packs, of bundle.json, the manifest, the index."""
    folder = made.layout / "blobs" / "sha256"
    index = json.loads((made.layout / "index.json").read_bytes())
    manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
    parsed = json.loads((folder / manifest).read_bytes())
    layers = [layer["digest"].removeprefix("sha256:") for layer in parsed["layers"]]
    return {
        "pack": Path("blobs/sha256", max(layers, key=lambda name: (folder / name).stat().st_size)),
        "metadata": Path("blobs/sha256", layers[-2]),
        "signatures": Path("blobs/sha256", layers[-1]),
        "config": Path("blobs/sha256", parsed["config"]["digest"].removeprefix("sha256:")),
        "manifest": Path("blobs/sha256", manifest),
        "index": Path("index.json"),
    }


def short(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size * 3 // 4)


def altered(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def swapped(path: Path, other: Path) -> None:
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def missing(path: Path, other: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [missing, short, altered, swapped])
@pytest.mark.parametrize("what", ["pack", "metadata", "signatures", "config", "manifest", "index"])
def test_damaged_bundle(user: User, made: Made, what: str, damage: Callable[[Path, Path], None]) -> None:
    """verify finds any damage (5 to 8, or 4 where the image is gone), and no verb ever gives a wrong
    byte: rehydrate ends with the right file, or without it and not with 0."""
    reference = made.copy(user.home / "bundle")
    parts = blobs(made)
    other = parts["pack" if what != "pack" else "metadata"]
    damage(user.home / "bundle" / parts[what], user.home / "bundle" / other)
    codes = {}
    for verb in (
        ["verify"],
        ["list"],
        ["rehydrate", "back", "--disk", "qemu"],
        ["rehydrate", "-", "--disk", "qemu"],
    ):
        done = subprocess.run(
            user.command(*verb, "--bundle", reference, "--key", made.public),
            cwd=user.home,
            env=user.environment(),
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr
        assert (done.returncode == 0) or done.stderr
        codes[" ".join(verb[:2])] = done.returncode
        if verb[:2] == ["rehydrate", "-"]:
            right = hashlib.sha256(done.stdout).hexdigest() == sha256(made.images[QEMU])
            assert right is (done.returncode == 0)
    assert codes["verify"] in {5, 6, 7, 8}, codes
    assert {*codes.values()} <= {0, 5, 6, 7, 8}, codes
    back = user.home / "back"
    found = names_in(back) if back.exists() else []
    assert found == ([QEMU] if not codes["rehydrate back"] else [])
    assert not found or sha256(back / QEMU) == sha256(made.images[QEMU])
    assert leftovers(user.home) == []
    if what == "pack":
        assert codes["rehydrate back"] != 0


def test_output_is_bad(user: User, made: Made) -> None:
    """After a mismatch on a pipe the last line on stderr says that the output is bad, and a tar
    has no end marker."""
    reference = made.copy(user.home / "bundle")
    pack = user.home / "bundle" / blobs(made)["pack"]
    altered(pack, pack)
    ran = user.run("rehydrate", "-", "--all", "--bundle", reference, code=5)
    assert "BAD" in ran.err.splitlines()[-1]
    assert ran.out[-1024:] != bytes(1024)


def test_swapped_bundles(user: User, made: Made) -> None:
    """A bundle that somebody else made under the same tag is 6 or 7 with the user's key."""
    (user.home / "release").mkdir()
    (user.home / "release" / "a.raw").write_bytes(b"evil")
    user.run("keygen", "evil", "--no-password")
    user.run("build", "release", *OPTIONS, "--key", "evil.key")
    for verb in (["list"], ["verify"], ["rehydrate", "-", "--all"], ["info"], ["print-stream-json"]):
        ran = user.run(*verb, "--bundle", "oci:out:x", "--key", made.public, code=7)
        assert ran.out == b""


def test_no_bundle_at_all(user: User, made: Made) -> None:
    """Directories, files and images that hold no bundle are named, with what was expected."""
    (user.home / "empty").mkdir()
    (user.home / "file").write_bytes(b"x" * 5000)
    shutil.copytree(made.layout, user.home / "no-index")
    (user.home / "no-index" / "index.json").unlink()
    for reference in (
        "oci:empty",
        "oci:file",
        "oci-archive:file",
        "oci-archive:empty",
        "oci:no-index",
    ):
        ran = user.run("list", reference, code=8)
        assert reference.partition(":")[2] in ran.err
    for reference in ("oci:gone", "oci-archive:gone", "dir:gone", "dir:empty"):
        ran = user.run("list", reference, code=4)
        assert reference.partition(":")[2] in ran.err
