"""What `rehydrator variants` refuses, and what it leaves behind when it fails, is stopped or is
killed: nothing under a final name that is not whole, no temporary file, no process, no mount."""

from __future__ import annotations

import ctypes
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.cli import main
from rehydrator.core.errors import RehydratorError
from rehydrator.core.interrupts import INTERRUPTS
from rehydrator.variants import convert as conversion
from rehydrator.variants import maker
from rehydrator.variants.identity import Identity
from rehydrator.variants.plan import Options
from tests.conftest import NOBODY, Ran, User, leftovers, names_in, sha256
from tests.corpus.release import PLATFORMS
from tests.guest_disks import MIB, debugfs, run
from tests.variant_runs import EPOCH, Base, everybodys, make_base, variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

NUTANIX = "demo-1.0.0-nutanix.x86_64.qcow2"
NOBODYS = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A canonical disk."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _no_mounts_or_loops(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does: nothing of it is mounted afterwards, and no loop device holds it."""
    yield
    mounts = Path("/proc/self/mounts").read_text()
    loops = [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert [text for text in (mounts, *loops) if str(tmp_path) in text] == []


class Inside(User):
    """Runs the program in this process, which is quicker, where no signals and no mounts matter."""

    def run(
        self,
        *arguments: object,
        code: int = 0,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        stdin: bytes = b"",
    ) -> Ran:
        assert (tuple(wrapper), stdin) == ((), b"")
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.home)
            patch.setattr(tempfile, "tempdir", str(self.tmp))
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)
            for key, value in (env or {}).items():
                patch.setenv(key, value)
            try:
                ended = main([*map(str, arguments)])
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        assert code == ended, err.getvalue()
        assert leftovers(self.home) == []
        return Ran(ended, out.getvalue().encode(), err.getvalue())


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    return Inside(tmp_path)


def refused(user: User, base: Base, code: int, *said: str, platforms: str = "nutanix", **ask: Any) -> str:
    """A run that ends with `code`, says what must be said, and publishes nothing."""
    ran = variants(user, base, platforms=platforms, code=code, **ask)
    assert [text for text in said if text not in ran.err] == [], ran.err
    assert ran.out == b""
    if not {"output", "wrapper"} & set(ask):
        assert not (user.home / "release").exists()
    return ran.err


# ---- a base that is none


def nothing(path: Path, base: Base) -> None:
    pass


def folder(path: Path, base: Base) -> None:
    path.mkdir()


def of_bytes(data: bytes) -> Callable[[Path, Base], object]:
    return lambda path, _: path.write_bytes(data)


def zeros(path: Path, base: Base) -> None:
    with path.open("wb") as file:
        file.truncate(2 * MIB)


def odd(path: Path, base: Base) -> None:
    path.write_bytes(base.raw.read_bytes()[:-7])


def truncated(path: Path, base: Base) -> None:
    shutil.copy(base.qcow2, path)
    os.truncate(path, path.stat().st_size * 3 // 5)


def header_only(path: Path, base: Base) -> None:
    path.write_bytes(base.qcow2.read_bytes()[:50])


def with_backing_file(path: Path, base: Base) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path)


def with_data_file(path: Path, base: Base) -> None:
    data = path.with_name("data.raw")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, "10M")


def encrypted(path: Path, base: Base) -> None:
    """crypt_method LUKS (docs/interop/qcow2.txt, "Header")."""
    data = bytearray(base.qcow2.read_bytes())
    data[32:36] = (2).to_bytes(4, "big")
    path.write_bytes(data)


def pipe(path: Path, base: Base) -> None:
    os.mkfifo(path)


def loop_of_links(path: Path, base: Base) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("name", "make", "code", "said"),
    [
        ("gone.qcow2", nothing, 2, "does not exist"),
        ("folder.qcow2", folder, 2, "is a directory"),
        ("loop.qcow2", loop_of_links, 2, "does not exist"),
        ("pipe.qcow2", pipe, 8, "not a regular file"),
        ("empty.qcow2", of_bytes(b""), 8, "an empty file"),
        ("empty.raw", of_bytes(b""), 8, "an empty file"),
        ("base.vmdk", of_bytes(b"x"), 2, ".qcow2 or .raw"),
        ("base.qcow2.xz", of_bytes(b"x"), 2, "decompress it"),
        ("raw.qcow2", lambda path, base: path.symlink_to(base.raw), 8, "a raw disk with a GPT"),
        ("qcow2.raw", lambda path, base: path.symlink_to(base.qcow2), 8, "a qcow2 image"),
        ("xz.qcow2", of_bytes(lzma.compress(b"x")), 8, "xz -d"),
        ("xz.raw", of_bytes(lzma.compress(b"x")), 8, "xz -d"),
        ("noise.qcow2", of_bytes(b"noise" * 999), 8, "nothing known"),
        ("short.qcow2", header_only, 8, "cut short"),
        ("truncated.qcow2", truncated, 8, "cut short"),
        ("backed.qcow2", with_backing_file, 8, "backing file"),
        ("data.qcow2", with_data_file, 8, "data"),
        ("luks.qcow2", encrypted, 8, "encrypted"),
        ("odd.raw", odd, 8, "whole 512-byte sectors"),
        ("zeros.raw", zeros, 8, "no partition table"),
    ],
)
def test_a_base_that_is_none(
    inside: Inside, base: Base, name: str, make: Callable[[Path, Base], object], code: int, said: str
) -> None:
    """A base that is not what its name says is refused by name, before any work: exit 2 where the
    command line is wrong, 8 where the file is."""
    make(inside.home / name, base)
    refused(inside, base, code, name, said, source=name)


# ---- a base without what stamping needs


def guest(user: User, base: Base, *commands: str) -> Path:
    """A raw copy of the base whose boot file system went through some commands of debugfs."""
    path = user.home / "changed.raw"
    shutil.copy(base.raw, path)
    debugfs(f"{path}?offset={base.disk.boot.offset}", *commands, write=True)
    return path


def overwritten(user: User, base: Base, *places: tuple[int, bytes]) -> Path:
    path = user.home / "changed.raw"
    shutil.copy(base.raw, path)
    with path.open("r+b") as file:
        for offset, data in places:
            file.seek(offset)
            file.write(data)
    return path


def no_partition_table(user: User, base: Base) -> Path:
    end = base.raw.stat().st_size - 512
    return overwritten(user, base, (0, bytes(1024)), (end, bytes(512)))


def damaged_partition_table(user: User, base: Base) -> Path:
    end = base.raw.stat().st_size - 512
    return overwritten(user, base, (512 + 16, b"\xff" * 64), (end + 16, b"\xff" * 64))


def cut_short(user: User, base: Base) -> Path:
    path = overwritten(user, base)
    os.truncate(path, 8 * MIB)
    return path


def no_file_system(user: User, base: Base) -> Path:
    return overwritten(user, base, (base.disk.boot.offset, bytes(4096)), (base.disk.root.offset, bytes(4096)))


def superblock_of_noise(user: User, base: Base) -> Path:
    return overwritten(user, base, (base.disk.boot.offset + 1024, b"\xff" * 56))


def no_entries(user: User, base: Base) -> Path:
    return guest(user, base, "rm /loader.0/entries/ostree-1-demo.conf")


def no_options(user: User, base: Base) -> Path:
    (user.home / "entry").write_bytes(b"title Demo\nlinux /vmlinuz\n")
    path = "/loader.0/entries/ostree-1-demo.conf"
    return guest(user, base, f"rm {path}", f"write {user.home}/entry {path}")


def entry_of_noise(user: User, base: Base) -> Path:
    (user.home / "entry").write_bytes(b"options \xff\xfe\n")
    path = "/loader.0/entries/ostree-1-demo.conf"
    return guest(user, base, f"rm {path}", f"write {user.home}/entry {path}")


def entries_in_a_loop(user: User, base: Base) -> Path:
    return guest(user, base, "rm /loader", "symlink /loader loader", "rmdir /loader.0/entries", no_entry())


def no_entry() -> str:
    return "rm /loader.0/entries/ostree-1-demo.conf"


def link_out_of_the_guest(user: User, base: Base) -> Path:
    return guest(user, base, "rm /loader", no_entry(), "symlink /loader ../../../../../../../../etc")


def table_of_noise(user: User, base: Base) -> Path:
    (user.home / "table").write_bytes(b"{")
    return guest(user, base, "mkdir /coreos", f"write {user.home}/table /coreos/platforms.json")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (no_partition_table, 8, "no partition table"),
        (damaged_partition_table, 8, "partition table"),
        (cut_short, 8, "changed.raw"),
        (no_file_system, 8, "no filesystem"),
        (superblock_of_noise, 8, "partition"),
        (no_entries, 8, "/boot/loader/entries/*.conf"),
        (no_options, 8, "without an `options` line"),
        (entry_of_noise, 8, "not UTF-8"),
        (entries_in_a_loop, 8, "changed.raw"),
        (link_out_of_the_guest, 8, "changed.raw"),
        (table_of_noise, 8, "platforms.json"),
    ],
)
def test_a_base_without_what_stamping_needs(
    inside: Inside, base: Base, make: Callable[[User, Base], Path], code: int, said: str
) -> None:
    """What cannot be stamped is refused with what is missing (8); messages name the base as the user
    did, and no temporary file."""
    source = make(inside, base)
    err = refused(inside, base, code, "changed.raw", said, source=source.name)
    assert ".rehydrator" not in err
    assert "base.raw" not in err


def full_boot(user: User, base: Base) -> Path:
    """No room on /boot for the new files."""
    with (user.home / "filler").open("wb") as file:
        file.write(os.urandom(12 * MIB))
    try:
        return guest(user, base, f"write {user.home}/filler /filler")
    finally:
        (user.home / "filler").unlink()


def test_a_full_boot_file_system(inside: Inside, base: Base) -> None:
    """A boot file system without room for the new files is exit 9, with the remedy."""
    source = full_boot(inside, base)
    err = refused(inside, base, 9, "nutanix: FAILED", "full", "larger", source=source.name)
    assert ".rehydrator" not in err


def test_a_base_without_a_guest(inside: Inside, base: Base) -> None:
    """A derivation without a stamp takes any disk, even one without file systems."""
    zeros(inside.home / "zeros.raw", base)
    table = inside.home / "plain.yaml"
    table.write_text("platforms: {plain: {format: qcow2, compress: none, size: base, stamp: null}}\n")
    variants(inside, base, source="zeros.raw", derivations=table, platforms="plain")
    assert names_in(inside.home / "release") == ["demo-1.0.0-plain.x86_64.qcow2", "stream.json"]


def test_a_base_too_large_for_some(inside: Inside, base: Base) -> None:
    """A platform whose size is below the base's fails by name, the others are made: exit 3."""
    table = inside.home / "small.yaml"
    table.write_text("platforms: {nutanix: {size: 8M}, ibmcloud: {size: 24M}}\n")
    ran = variants(inside, base, "--json", platforms="nutanix ibmcloud metal", derivations=table, code=3)
    nutanix, ibmcloud, metal = json.loads(ran.out)["platforms"]
    assert nutanix["error"]["code"] == 2
    for said in (str(base.qcow2), "nutanix", str(8 * MIB), "--derivations"):
        assert said in nutanix["error"]["message"]
    assert ["error" in each for each in (ibmcloud, metal)] == [False, False]
    assert names_in(inside.home / "release") == [ibmcloud["file"], metal["file"], "stream.json"]
    document = json.loads((inside.home / "release" / "stream.json").read_bytes())
    assert sorted(document["architectures"]["x86_64"]["artifacts"]) == ["ibmcloud", "metal"]


def test_a_base_that_would_be_overwritten(inside: Inside, base: Base) -> None:
    """A base that lies where one of the files goes is refused, and not touched."""
    (inside.home / "release").mkdir()
    there = inside.home / "release" / NUTANIX
    shutil.copy(base.qcow2, there)
    refused(inside, base, 2, NUTANIX, "elsewhere", source=there, output="release")
    assert (names_in(inside.home / "release"), sha256(there)) == ([NUTANIX], sha256(base.qcow2))


# ---- tables


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cloud-size: banana", "cloud-size"),
        ("cloud-size: 1000", "512"),
        ("cloud_sizes: 10G", "cloud_sizes"),
        ("defaults: []", "defaults"),
        ("defaults: {colour: red}", "colour"),
        ("platforms: []", "platforms"),
        ("platforms: {Nutanix: {format: raw}}", "Nutanix"),
        ("platforms: {'../x': {format: raw}}", "../x"),
        ("platforms: {nutanix: []}", "platforms.nutanix"),
        ("platforms: {moon: {}}", "platforms.moon: format"),
        ("platforms: {nutanix: {format: qed}}", "platforms.nutanix: format"),
        ("platforms: {nutanix: {arches: [vax]}}", "platforms.nutanix: arches"),
        ("platforms: {nutanix: {arguments: [-o, 'backing_file=/etc/passwd']}}", "arguments"),
        ("platforms: {nutanix: {arguments: [/etc/passwd]}}", "arguments"),
        ("platforms: {nutanix: {wrap: zip}}", "platforms.nutanix: wrap"),
        ("platforms: {nutanix: {wrap: ova}}", "platforms.nutanix: template"),
        ("platforms: {nutanix: {extension: ../x}}", "platforms.nutanix: extension"),
        ("platforms: {nutanix: {compress: rar}}", "platforms.nutanix: compress"),
        ("platforms: {nutanix: {size: -1}}", "platforms.nutanix: size"),
        ("platforms: {nutanix: {stamp: 'a b'}}", "platforms.nutanix: stamp"),
        ("platforms: {nutanix: {kernel-arguments: ['a b']}}", "kernel-arguments"),
        ('platforms: {nutanix: {grub-commands: ["a\\nb"]}}', "grub-commands"),
        ("platforms: {nutanix: {files: {relative: x}}}", "platforms.nutanix: files"),
        ("platforms: {nutanix: {files: {/a/../b: x}}}", "platforms.nutanix: files"),
        ("platforms: {nutanix: {values: [x]}}", "platforms.nutanix: values"),
        ("platforms: {nutanix: {needs: x}}", "platforms.nutanix: needs"),
        ("platforms: {nutanix: {size: 1G, size: 2G}}", "size"),
        ("{", "not YAML"),
        ("[]", "mapping"),
        ("!!python/object/apply:os.system [x]", "not YAML"),
    ],
)
def test_a_wrong_table(inside: Inside, base: Base, text: str, said: str) -> None:
    """What is wrong in a file of derivations is named with file and member: exit 2."""
    (inside.home / "wrong.yaml").write_text(text)
    refused(inside, base, 2, "wrong.yaml", said, derivations="wrong.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vax: {}", "'vax'"),
        ("x86_64: []", "x86_64"),
        ("x86_64: {nutanix: {kernel_arguments: console=tty0}}", "x86_64.nutanix: kernel_arguments"),
        ("x86_64: {nutanix: {kernel_arguments: ['a b']}}", "x86_64.nutanix: kernel_arguments"),
        ('x86_64: {nutanix: {grub_commands: ["a\\nb"]}}', "x86_64.nutanix: grub_commands"),
        ("x86_64: {nutanix: 3}", "x86_64.nutanix"),
        ("\x00", "not YAML"),
    ],
)
def test_a_wrong_platforms_yaml(inside: Inside, base: Base, text: str, said: str) -> None:
    """What is wrong in platforms.yaml is named with file and member: exit 2."""
    (inside.home / "wrong.yaml").write_text(text)
    ask = ["--platforms", "wrong.yaml"]
    ran = variants(inside, base, *ask, platforms="nutanix", code=2)
    assert [word for word in ("wrong.yaml", said) if word not in ran.err] == []
    assert not (inside.home / "release").exists()


@pytest.mark.parametrize(
    "name", ["moon", "", "../../etc/passwd", "a\x1b[31mb", "-o", "\N{SNOWMAN}", "x" * 5000]
)
def test_an_unknown_platform(inside: Inside, base: Base, name: str) -> None:
    """An unknown platform is exit 2 with the list of those that there are, in printable letters."""
    ran = variants(inside, base, "--platform", name, code=2)
    assert [known for known in ("aliyun", "vultr", "--derivations") if known not in ran.err] == []
    assert "\x1b" not in ran.err
    assert not (inside.home / "release").exists()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 2, "own.ovf"),
        ("<O a='{vmdk_capacity}'/>", 2, "{vmdk_size}"),
        ("<O a='{vmdk_size}{vmdk_capacity}'>{colour}</O>", 2, "{colour}"),
        ("<O a='{vmdk_size}{vmdk_capacity}'>", 2, "well-formed"),
    ],
)
def test_a_wrong_template(inside: Inside, base: Base, text: str | None, code: int, said: str) -> None:
    """A template that is missing, lacks a field or has one without a value is named, and so is the
    platform; the other platform is made where the template was there to be filled."""
    if text is not None:
        (inside.home / "own.ovf").write_text(text)
    (inside.home / "own.yaml").write_text("platforms: {vmware: {template: own.ovf}}\n")
    refused(inside, base, code, "vmware", "own.ovf", said, derivations="own.yaml", platforms="vmware")


@pytest.mark.parametrize(
    "epoch", ["yesterday", "-1", "1.5", str(1 << 32), "9" * 5000, "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_a_wrong_time(inside: Inside, base: Base, epoch: str) -> None:
    """A SOURCE_DATE_EPOCH that is no time of the formats is exit 2."""
    refused(inside, base, 2, "SOURCE_DATE_EPOCH", "seconds since 1970", epoch=epoch)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--name", "a/b"], "--name 'a/b'"),
        (["--name", ""], "--name ''"),
        (["--release", "x y"], "--release 'x y'"),
        (["--release", "../1"], "--release '../1'"),
        (["--stream", "a\nb"], "--stream"),
        (["--stream", ""], "--stream ''"),
        (["--arch", "vax"], "vax"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_options(inside: Inside, base: Base, more: Sequence[str], said: str) -> None:
    """Names that make no file name or document, and numbers out of range, are exit 2."""
    ran = variants(inside, base, *more, platforms="nutanix", code=2)
    assert said in ran.err
    assert not (inside.home / "release").exists()


def test_a_thousand_jobs(user: User, base: Base) -> None:
    """--jobs 1000 is as good as 2."""
    variants(user, base, "--jobs", 1000, platforms="nutanix qemu")
    names = [NUTANIX, "demo-1.0.0-qemu.x86_64.qcow2.xz", "stream.json"]
    assert names_in(user.home / "release") == names


@pytest.mark.parametrize(("jobs", "gib"), [(1, 1), (2, 2), (2, 64), (64, 8), (64, 256), (1024, 1), (4, 4)])
def test_memory_for_xz(base: Base, monkeypatch: pytest.MonkeyPatch, jobs: int, gib: int) -> None:
    """However many jobs: xz -9 takes 650 MiB for each thread, and has never fewer than two."""
    monkeypatch.setattr(maker, "_free_memory", lambda: gib << 30)
    names = ("demo", "s", "1", "x86_64")
    options = Options(base.qcow2, Path("release"), PLATFORMS, *names, epoch=EPOCH, jobs=jobs)
    at_once, threads = maker.side_by_side(options, 21)
    assert (at_once <= jobs, threads >= 2) == (True, True)
    assert at_once * threads <= max(2 * at_once, jobs)
    assert at_once * threads * 650 <= max(1300, gib << 10)


# ---- the release directory


def test_a_release_directory_that_cannot_be(user: User, base: Base) -> None:
    """A file, a directory that may not be written, and one on a read-only file system are refused
    before any work, by name."""
    (user.home / "file").write_text("x")
    refused(user, base, 2, "file", output="file")
    (user.home / "closed").mkdir()
    with everybodys(base) as (other, copy):
        (other.home / "closed").mkdir(mode=0o755)
        refused(other, copy, 1, "closed", "Permission denied", output="closed", wrapper=NOBODYS)
    read_only = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none closed && exec "$@"', "sh"]
    refused(user, base, 1, "closed", "Read-only file system", output="closed", wrapper=read_only)


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"{", 8, "stream.json"),
        (b"", 8, "stream.json"),
        (b'{"stream": "testing", "metadata": {}, "architectures": {}}', 2, "--stream testing"),
        (b'{"stream": 3, "metadata": {}, "architectures": {}}', 8, "stream"),
        (None, 1, "stream.json"),
    ],
)
def test_a_document_that_is_there(
    inside: Inside, base: Base, data: bytes | None, code: int, said: str
) -> None:
    """A stream.json that is damaged or of another stream is named before any work, and kept."""
    (inside.home / "release").mkdir()
    document = inside.home / "release" / "stream.json"
    if data is None:
        document.mkdir()
    else:
        document.write_bytes(data)
    refused(inside, base, code, "release/stream.json", said, output="release")
    assert names_in(inside.home / "release") == ["stream.json"]
    assert data is None or document.read_bytes() == data


@pytest.mark.parametrize("name", [b"a b,c:d=e\n\xe2\x98\x83", b"-o", b"caf\xe9"])
def test_strange_names_of_places(user: User, base: Base, name: bytes) -> None:
    """Directories, and the base, may have any name: commas, colons, line ends, bytes that are no text."""
    place = Path(os.fsdecode(name))
    source = user.home / os.fsdecode(b"json:" + name + b".qcow2")
    shutil.copy(base.qcow2, source)
    (user.home / f"tmp {place}").mkdir()
    more = ["--arch", "x86_64", "--jobs", 2, "--tmpdir", f"tmp {place}"]
    platforms = "nutanix vmware gcp kubevirt hyperv"
    ran = variants(user, base, *more, output=place, source=source.name, platforms=platforms)
    assert ran.out == os.fsencode(place / "stream.json") + b"\n"
    assert len(names_in(user.home / place)) == 6


def test_a_directory_in_the_way(user: User, base: Base) -> None:
    """A directory that has a file's name stays, and fails this file's platform by its name."""
    (user.home / "release" / NUTANIX / "x").mkdir(parents=True)
    ran = variants(user, base, platforms="nutanix qemu", code=3)
    assert f"nutanix: FAILED: release/{NUTANIX}: Is a directory" in ran.err
    assert (user.home / "release" / NUTANIX / "x").is_dir()


def test_adding_that_fails(user: User, base: Base) -> None:
    """A file that cannot be added is named (1); what was made is in the document."""
    os.mkfifo(user.home / "demo-1.0.0-live.x86_64.iso")
    more = ["--add", "demo-1.0.0-live.x86_64.iso"]
    ran = variants(user, base, *more, platforms="nutanix", code=1)
    assert "demo-1.0.0-live.x86_64.iso" in ran.err
    assert names_in(user.home / "release") == [NUTANIX, "stream.json"]


# ---- full disks

TMPFS = 'mount -t tmpfs -o size={size}k none small && "$@"; code=$?; find small -mindepth 1; exit $code'


def full(size: int) -> list[str]:
    """Run with a tiny file system at `small`, and list what is left there on stdout."""
    return ["unshare", "-m", "sh", "-c", TMPFS.format(size=size), "sh"]


@pytest.mark.parametrize(
    ("place", "size"),
    [
        *(("release", size) for size in (4, 1000, 4500, 6000)),
        *(("tmpdir", size) for size in (4, 400, 800, 1200)),
    ],
)
def test_a_full_disk(user: User, base: Base, place: str, size: int) -> None:
    """Without room for the work, or for a file, it is exit 9: the place is named, and nothing stays,
    in the release directory as in --tmpdir."""
    (user.home / "small").mkdir()
    table = user.home / "large.yaml"
    table.write_text("platforms: {nutanix: {arguments: [-S, '0'], format: raw}}\n")
    where = {"release": ("small", "tmp"), "tmpdir": ("release", "small")}[place]
    ask: dict[str, Any] = {"derivations": table, "wrapper": full(size), "platforms": "nutanix"}
    ran = variants(user, base, "--tmpdir", where[1], output=where[0], code=9, **ask)
    assert ran.out == b""
    assert [word for word in ("small", "free") if word not in ran.err] == []
    assert ".rehydrator" not in ran.err
    assert not (user.home / "release").exists()


def test_a_disk_too_small_for_one(user: User, base: Base) -> None:
    """Where one file does not fit and the others do, these are published: exit 3."""
    (user.home / "small").mkdir()
    table = user.home / "large.yaml"
    table.write_text(
        "platforms: {aws: {arguments: [-S, '0'], format: raw, extension: raw, compress: none}}\n"
    )
    ran = variants(
        user,
        base,
        *("--jobs", 1, "--tmpdir", "tmp"),
        derivations=table,
        output="small",
        platforms="aws nutanix",
        wrapper=full(8000),
        code=3,
    )
    assert sorted(ran.out.decode().split()) == ["small/" + NUTANIX, "small/stream.json", "small/stream.json"]
    assert "aws: FAILED: demo-1.0.0-aws.x86_64.raw: no space" in ran.err


# ---- programs


def without(program: str) -> list[str]:
    """Run where a program cannot be executed."""
    hide = f'mount --bind /dev/null "$(realpath "$(command -v {program})")" && exec "$@"'
    return ["unshare", "-m", "sh", "-c", hide, "sh"]


@pytest.mark.parametrize(
    ("program", "package", "platform"),
    [
        ("qemu-img", "qemu-utils", "nutanix"),
        ("qemu-io", "qemu-utils", "nutanix"),
        ("debugfs", "e2fsprogs", "nutanix"),
        ("e2fsck", "e2fsprogs", "nutanix"),
        ("sfdisk", "fdisk", "nutanix"),
        ("xz", "xz-utils", "qemu"),
        ("gzip", "gzip", "applehv"),
        ("gzip", "gzip", "kubevirt"),
        ("zip", "zip", "hyperv"),
        ("unzip", "unzip", "hyperv"),
        ("tar", "tar", "vmware"),
        ("fallocate", "util-linux", "gcp"),
    ],
)
def test_a_missing_program(user: User, base: Base, program: str, package: str, platform: str) -> None:
    """A program that is not here is named with its package: exit 10."""
    ask: dict[str, Any] = {"wrapper": without(program), "platforms": platform, "code": 10}
    ran = variants(user, base, "--editor", "offline", **ask)
    assert f"{program} is not installed (on Debian: apt-get install {package})" in ran.err
    assert not (user.home / "release").exists()


def fake(user: User, program: str, when: str, then: str) -> dict[str, str]:
    """An environment where `program` does something else when its arguments match a pattern."""
    folder = user.home / "fake"
    folder.mkdir(exist_ok=True)
    real = shutil.which(program)
    script = folder / program
    script.write_text(f'#!/bin/sh\ncase "$*" in\n{when}) {then} ;;\nesac\nexec {real} "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("program", "when", "code"),
    [
        ("qemu-img", "info*", 1),
        ("qemu-img", "*base.raw", 1),
        ("qemu-img", "create*", 1),
        ("qemu-img", "*nutanix*", 1),
        ("qemu-io", "*", 1),
        ("debugfs", "*-w*", 1),
    ],
)
def test_a_program_that_crashes(user: User, base: Base, program: str, when: str, code: int) -> None:
    """A program that dies of a signal is named; nothing is published."""
    env = fake(user, program, when, "kill -SEGV $$")
    ran = variants(user, base, "--editor", "offline", platforms="nutanix", code=code, env=env)
    assert program in ran.err
    assert not (user.home / "release").exists()


def test_a_crash_stops_one_platform(user: User, base: Base) -> None:
    """A conversion that crashes fails its platform with what happened; the others are made: exit 3."""
    env = fake(user, "qemu-img", "*'-O vmdk'*", "kill -SEGV $$")
    ran = variants(user, base, platforms="aws nutanix", code=3, env=env)
    assert "aws: FAILED: demo-1.0.0-aws.x86_64.vmdk: qemu-img was killed by SIGSEGV" in ran.err
    assert names_in(user.home / "release") == [NUTANIX, "stream.json"]


def test_a_program_that_hangs(user: User, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end in its time is killed and named."""
    monkeypatch.setenv("PATH", fake(user, "qemu-img", "*", "exec sleep 987")["PATH"])
    monkeypatch.setattr(conversion, "_INFO_TIMEOUT", 0.3)
    with pytest.raises(RehydratorError, match="qemu-img: did not end within"):
        conversion.inspect(base.qcow2, "qcow2")
    target = user.home / "x.raw"
    with pytest.raises(RehydratorError, match="qemu-img: did not end within"):
        conversion.convert(base.qcow2, "qcow2", "raw", (), target, Identity("", 0), 0.3)
    assert names_in(user.home) == ["fake", "tmp"]
    assert running(user) == []


# ---- signals


def running(user: User) -> list[str]:
    """Processes that have to do with the user's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str(process.joinpath("cwd").readlink())
            state = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and int(process.name) != os.getpid():
            found += [words] if str(user.home) in words or place.startswith(str(user.home)) else []
    return found


def start(user: User, base: Base, *more: object, platforms: str, **env: str) -> subprocess.Popen[bytes]:
    """The program in a process group of its own."""
    some = [word for platform in platforms.split() for word in ("--platform", platform)]
    options = [*base.options(user.home / "release"), "--editor", "offline", *some, *more]
    return subprocess.Popen(
        user.command("variants", base.qcow2, *options),
        cwd=user.home,
        env=user.environment({"SOURCE_DATE_EPOCH": str(EPOCH), **env}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes], send: Callable[[], object]) -> tuple[int, str]:
    """Send a signal; exit code and stderr, within some seconds."""
    send()
    sent = time.monotonic()
    out, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert (out, b"Traceback" in said) == (b"", False), said
    return process.returncode, said.decode()


def interrupt_thread(process: int) -> None:
    """SIGINT for a process's youngest thread (tgkill(2)), which tells nobody."""
    youngest = max(int(task.name) for task in Path(f"/proc/{process}/task").iterdir())
    assert youngest != process
    assert ctypes.CDLL(None).tgkill(process, youngest, signal.SIGINT) == 0


STAGES = {
    "inspection": ("qemu-img", "info*"),
    "base": ("qemu-img", "*base.raw"),
    "overlay": ("qemu-img", "create*"),
    "edit": ("debugfs", "*-w*"),
    "check": ("e2fsck", "*edited*"),
    "pages": ("qemu-io", "*"),
    "conversion": ("qemu-img", "*'-O qcow2'*qemu*"),
    "xz": ("xz", "*-c9*qemu*"),
    "proof": ("xz", "*-dc*"),
    "tar": ("tar", "*"),
}


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("inspection", "SIGINT"),
        ("base", "terminal"),
        ("overlay", "SIGTERM"),
        ("edit", "terminal"),
        ("check", "SIGINT"),
        ("pages", "SIGTERM"),
        ("conversion", "terminal"),
        ("xz", "SIGINT"),
        ("xz", "terminal"),
        ("xz", "thread"),
        ("proof", "SIGTERM"),
        ("proof", "thread"),
        ("tar", "SIGINT"),
    ],
)
def test_interrupted(user: User, base: Base, stage: str, how: str) -> None:
    """An interrupt in any step, of the process, as a terminal sends it to all, or taken by a thread
    without waking the main one: exit 130 at once, no program runs on, nothing temporary stays, files
    that were done are whole, and no document lies."""
    program, when = STAGES[stage]
    env = fake(user, program, when, f": >{user.home}/reached; exec sleep 987")
    process = start(user, base, "--jobs", 1, platforms="nutanix qemu vmware", **env)
    try:
        wait_for(user.home / "reached")
        send = {
            "SIGINT": lambda: process.send_signal(signal.SIGINT),
            "SIGTERM": lambda: process.send_signal(signal.SIGTERM),
            "terminal": lambda: os.killpg(process.pid, signal.SIGINT),
            "thread": lambda: interrupt_thread(process.pid),
        }
        code, said = ended(process, send[how])
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert (code, said.splitlines()[-1]) == (130, "rehydrator: interrupted")
    assert running(user) == []
    assert leftovers(user.home) == []
    release = user.home / "release"
    done = [NUTANIX] if stage in {"conversion", "xz", "proof", "tar"} else []
    if stage == "tar":
        done.append("demo-1.0.0-qemu.x86_64.qcow2.xz")
    assert (names_in(release) if release.exists() else []) == done
    for name in done:
        if name.endswith(".xz"):
            run("xz", "-t", release / name)
        else:
            run("qemu-img", "check", "-q", release / name)


@pytest.mark.parametrize("after", [0.15, 0.3, 0.5, 0.8, 1.2])
def test_interrupted_at_some_moment(user: User, base: Base, after: float) -> None:
    """An interrupt at any moment, importing included: 130 or, where it came too late, 0."""
    process = start(user, base, platforms="aws azure gcp hyperv kubevirt qemu vmware vultr")
    time.sleep(after)
    code, _ = ended(process, lambda: process.send_signal(signal.SIGINT))
    assert code in {130, -signal.SIGINT}
    assert (running(user), leftovers(user.home)) == ([], [])


def test_killed(user: User, base: Base) -> None:
    """After SIGKILL its programs come to their end by themselves, and leave nothing under a final
    name; a later run works, and removes what the killed one left."""
    env = fake(user, "xz", "*-c9*", f": >{user.home}/reached; sleep 1")
    process = start(user, base, platforms="qemu", **env)
    wait_for(user.home / "reached")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while running(user) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(user) == []
    release = user.home / "release"
    left = names_in(release)
    assert [name.startswith(".rehydrator-variants-") for name in left] == [True, True]
    for name in left:
        os.utime(release / name, (time.time() - 100, time.time() - 100))
    ran = variants(user, base, platforms="qemu")
    assert [f"{name}: removed" in ran.err for name in left] == [True, True]
    assert names_in(release) == ["demo-1.0.0-qemu.x86_64.qcow2.xz", "stream.json"]


def test_a_run_beside_a_running_one(user: User, base: Base) -> None:
    """A run does not take away what another one, that still runs, works with; stream.json has the
    platforms of both."""
    env = fake(user, "xz", "*-c9*", f": >{user.home}/reached; while [ ! -e go ]; do sleep 0.1; done")
    process = start(user, base, platforms="qemu", **env)
    try:
        wait_for(user.home / "reached")
        release = user.home / "release"
        work = names_in(release)
        for name in work:
            os.utime(release / name, (time.time() - 100, time.time() - 100))
        some = ["--platform", "nutanix", *base.options("release")]
        done = subprocess.run(
            user.command("variants", base.qcow2, *some), cwd=user.home, env=user.environment(), check=True
        )
        assert done.returncode == 0
        assert set(work) <= set(names_in(release))
    finally:
        (user.home / "go").touch()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert leftovers(user.home) == []
    document = json.loads((release / "stream.json").read_bytes())
    assert list(document["architectures"]["x86_64"]["artifacts"]) == ["nutanix", "qemu"]
