"""What a disk is said to be is checked before qemu-img sees it, and what qemu-img answers after."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, ToolMissing, UsageError
from rehydrator.formats import c_qcow2
from rehydrator.variants.convert import KNOWN_FORMATS, convert, inspect
from rehydrator.variants.identity import Identity
from tests import vhd_images, vhdx_images, vmdk_images
from tests.conftest import leftovers, names_in
from tests.vmdk_images import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDENTITY = Identity("demo 1.0 x86_64 qemu", 1_700_000_000)
GUEST = b"guest".ljust(1 << 16, b"\0")
INFO = {"virtual-size": 65536, "format": "qcow2", "dirty-flag": False}


@pytest.fixture(name="qemu_img")
def fixture_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of qemu-img."""

    def write(script: str) -> None:
        program = tmp_path / "bin" / "qemu-img"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return write


def qcow2(version: int = 3, features: int = 0, backing: int = 0, crypt: int = 0) -> bytes:
    """A header, as far as it is looked at here."""
    head = c_qcow2.HEADER.pack(c_qcow2.MAGIC, version, backing, 0, 16, 65536, crypt, 1, 0, 0, 1, 0, 0)
    return (head + features.to_bytes(8, "big")).ljust(1024, b"\0")


def refused(path: Path, data: bytes, format_name: str) -> str:
    path.write_bytes(data)
    with pytest.raises(HostileInput) as caught:
        inspect(path, format_name)
    assert str(path) in str(caught.value)
    return str(caught.value)


def at(offset: int, magic: bytes) -> bytes:
    """A file with `magic` at `offset`."""
    return (bytes(offset) + magic).ljust(offset + 1024, b"\0")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"x", "nothing known (78)"),
        (at(0, b"\xfd7zXZ\0"), "xz-compressed data; decompress it first: xz -d"),
        (at(0, b"\x1f\x8b\x08"), "gzip-compressed data; decompress it first: gzip -d"),
        (at(0, b"\x28\xb5\x2f\xfd"), "zstd-compressed data; decompress it first: zstd -d"),
        (at(0, b"PK\x03\x04"), "a zip archive; unzip it first"),
        (at(257, b"ustar"), "a tar archive; take the disk out of it first"),
        (at(32769, b"CD001"), "an ISO 9660 image; give a disk image instead"),
        (at(512, b"EFI PART"), "a raw disk with a GPT; give its real format"),
        (at(4096, b"EFI PART"), "sectors of 4,096 bytes"),
        (at(510, b"\x55\xaa"), "a raw disk with a boot sector"),
        (vmdk_images.write(GUEST, Dialect()), "a VMDK; give its real format"),
        (b"# Disk DescriptorFile\nversion=1\n", "a VMDK descriptor, whose data is in other files"),
        (vhdx_images.vhdx(bytes(1 << 20)), "a VHDX"),
        (vhd_images.fixed(GUEST), "a fixed VHD"),
        (vhd_images.dynamic(GUEST), "a dynamic VHD"),
    ],
)
def test_not_what_its_name_says(data: bytes, words: str, tmp_path: Path) -> None:
    """The message says what the first bytes look like and what to do."""
    said = refused(tmp_path / "base.qcow2", data, "qcow2")
    assert "not qcow2: its first bytes look like" in said
    assert words in said


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (qcow2()[:40], "cut short"),
        (qcow2(backing=512), "has a backing file"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(features=1), "refcounts are dirty"),
        (qcow2(features=2), "marked corrupt"),
        (qcow2(features=4), "an external data file"),
    ],
)
def test_qcow2_that_is_not_whole(
    data: bytes, why: str, tmp_path: Path, qemu_img: Callable[[str], None]
) -> None:
    """A header that names other files, or an unsound image, is refused before qemu-img opens it."""
    qemu_img(f"touch {tmp_path}/was-run")
    assert why in refused(tmp_path / "base.qcow2", data, "qcow2")
    assert not (tmp_path / "was-run").exists()


def test_raw_that_is_not(tmp_path: Path) -> None:
    """A qcow2 named .raw would be copied as if its tables were the disk."""
    assert "not raw: its first bytes look like a qcow2" in refused(tmp_path / "a.raw", qcow2(), "raw")


def test_vmdk_of_other_files(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """A VMDK whose descriptor names other extents is refused before qemu-img opens them."""
    qemu_img(f"touch {tmp_path}/was-run")
    data = vmdk_images.write(GUEST, Dialect()).replace(b" SPARSE ", b" FLAT   ", 1)
    assert "extents" in refused(tmp_path / "a.vmdk", data, "vmdk")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("not JSON", "not valid JSON"),
        ("[]", "not a qcow2 image"),
        ("{}", "not a qcow2 image"),
        (INFO | {"format": "raw"}, "not a qcow2 image"),
        (INFO | {"virtual-size": "65536"}, "a virtual disk of '65536' bytes"),
        (INFO | {"virtual-size": 0}, "a virtual disk of 0 bytes"),
        (INFO | {"virtual-size": -512}, "a virtual disk of -512 bytes"),
        (INFO | {"virtual-size": True}, "a virtual disk of True bytes"),
        (INFO | {"virtual-size": 1 << 60}, "a virtual disk"),
        (INFO | {"backing-filename": "/etc/passwd"}, "has a backing file"),
        (INFO | {"encrypted": True}, "encrypted"),
        (INFO | {"dirty-flag": True}, "not closed properly"),
        (INFO | {"format-specific": {"data": {"corrupt": True}}}, "marked corrupt"),
        (INFO | {"format-specific": {"data": {"data-file": "x"}}}, "data in another file"),
    ],
)
def test_answers_of_qemu_img(answer: Any, why: str, tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """Types are checked; an image that is not sound and whole is refused."""
    (tmp_path / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
    qemu_img(f"cat {tmp_path}/answer")
    assert why in refused(tmp_path / "base.qcow2", qcow2(), "qcow2")


def test_odd_but_harmless_answer(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """Unknown and oddly typed facts do no harm."""
    (tmp_path / "answer").write_text(json.dumps(INFO | {"format-specific": [], "children": [{"a": 1}]}))
    qemu_img(f"cat {tmp_path}/answer")
    (tmp_path / "base.qcow2").write_bytes(qcow2())
    disk = inspect(tmp_path / "base.qcow2", "qcow2")
    assert (disk.virtual_size, disk.format, disk.facts["dirty-flag"]) == (65536, "qcow2", "False")


def test_qemu_img_fails_at_info(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """A refusal of qemu-img's is hostile input; a crash of qemu-img's is a failure; both say what it said."""
    path = tmp_path / "base.qcow2"
    qemu_img("echo 'the L1 table is too large' >&2; exit 1")
    assert "the L1 table is too large" in refused(path, qcow2(), "qcow2")
    qemu_img("echo oops >&2; kill -SEGV $$")
    with pytest.raises(RehydratorError, match="qemu-img was killed by SIGSEGV: oops"):
        inspect(path, "qcow2")


@pytest.mark.parametrize("format_name", ["vdi", "", "raw,file=x"])
def test_unknown_format(format_name: str, tmp_path: Path) -> None:
    """An unknown format is a wrong use, and the message lists the known ones."""
    for call in (
        lambda: inspect(tmp_path / "x", format_name),
        lambda: convert(tmp_path / "x", format_name, "raw", (), tmp_path / "y", IDENTITY, 5),
        lambda: convert(tmp_path / "x", "raw", format_name, (), tmp_path / "y", IDENTITY, 5),
    ):
        with pytest.raises(UsageError, match=", ".join(KNOWN_FORMATS)):
            call()


def test_no_such_source(tmp_path: Path) -> None:
    """A missing source, a directory and a loop of links are named."""
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "loop", "."):
        with pytest.raises(RehydratorError, match=str(tmp_path)):
            inspect(tmp_path / name, "raw")
        with pytest.raises(RehydratorError, match=str(tmp_path)):
            convert(tmp_path / name, "raw", "qcow2", (), tmp_path / "out", IDENTITY, 5)


@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("echo no such option >&2; exit 1", RehydratorError, "qemu-img ended with 1: no such option"),
        ("touch $last; kill -ABRT $$", RehydratorError, "qemu-img was killed by SIGABRT"),
        ("kill -KILL $$", RehydratorError, "SIGKILL: it said nothing"),
        ("touch $last; exec sleep 60", RehydratorError, "did not end within 0.5 seconds"),
        ("echo 'x: No space left on device' >&2; touch $last; exit 1", LimitExceeded, "no space in"),
        ("echo 'x: Disk quota exceeded' >&2; exit 1", LimitExceeded, "no space in"),
        ("exit 0", RehydratorError, "No such file"),
        ("echo nonsense > $last", HostileInput, "no sparse extent header"),
    ],
)
def test_failed_conversion(
    script: str, error: type[RehydratorError], why: str, tmp_path: Path, qemu_img: Callable[[str], None]
) -> None:
    """However qemu-img fails: what it said is told, and nothing is left under any name."""
    qemu_img(f"for last; do :; done\n{script}")
    (tmp_path / "source.raw").write_bytes(GUEST)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RehydratorError) as caught:
        convert(tmp_path / "source.raw", "raw", "vmdk", (), out / "disk.vmdk", IDENTITY, 0.5)
    assert type(caught.value) is error
    assert why in str(caught.value)
    if error is LimitExceeded:
        assert f"no space in {out}:" in str(caught.value)
    assert names_in(out) == []
    assert leftovers(tmp_path) == []


def test_how_qemu_img_is_called(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """The source by its absolute path, the target by its bare name, in a directory beside it."""
    qemu_img(f'for last; do :; done\necho "$PWD" "$@" > {tmp_path}/called\ntouch "$last"')
    (tmp_path / "a:b.raw").write_bytes(GUEST)
    convert(tmp_path / "a:b.raw", "raw", "qcow2", ["-c", "-o", "x=1"], tmp_path / "nbd:c", IDENTITY, 5)
    where, *argv = (tmp_path / "called").read_text().split()
    expected = f"convert -f raw -O qcow2 -c -o x=1 {tmp_path}/a:b.raw ./nbd:c"
    assert " ".join(argv) == expected
    assert where.startswith(f"{tmp_path}/.rehydrator-")
    assert (tmp_path / "nbd:c").exists()


def test_old_file_stays(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """A failed conversion leaves a file of the target's name as it was."""
    qemu_img("exit 1")
    (tmp_path / "source.raw").write_bytes(GUEST)
    (tmp_path / "disk.qcow2").write_bytes(b"old")
    with pytest.raises(RehydratorError):
        convert(tmp_path / "source.raw", "raw", "qcow2", (), tmp_path / "disk.qcow2", IDENTITY, 5)
    assert (tmp_path / "disk.qcow2").read_bytes() == b"old"


def test_no_directory(tmp_path: Path, qemu_img: Callable[[str], None]) -> None:
    """A target in a directory that does not exist."""
    qemu_img("exit 0")
    (tmp_path / "source.raw").write_bytes(GUEST)
    with pytest.raises(RehydratorError, match="No such file"):
        convert(tmp_path / "source.raw", "raw", "raw", (), tmp_path / "no" / "disk", IDENTITY, 5)


def test_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the program and its package."""
    monkeypatch.setattr("rehydrator.host._SYSTEM_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "a.raw").write_bytes(GUEST)
    with pytest.raises(ToolMissing, match=r"qemu-img is not installed .*apt-get install qemu-utils"):
        inspect(tmp_path / "a.raw", "raw")
    with pytest.raises(ToolMissing, match="qemu-utils"):
        convert(tmp_path / "a.raw", "raw", "qcow2", (), tmp_path / "b", IDENTITY, 5)
    assert names_in(tmp_path) == ["a.raw"]
