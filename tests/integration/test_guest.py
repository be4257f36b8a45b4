"""Guest editing for real: libguestfs's appliance, loop mounts, and what is left when we are killed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, ToolMissing
from rehydrator.host import guest, guest_process
from rehydrator.host.guest import boots, kvm_works, open_guests
from tests.guest_disks import (
    CONSOLE,
    ENTRY,
    EPOCH,
    OLD,
    TABLE,
    GuestDisk,
    boot_tree,
    make_disk,
    mkfs,
    run,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent
NEW_FOLDER = "/boot/grub2/new/deep/file"
NEW = {
    ENTRY: b"title Demo\noptions root=x ignition.platform.id=aws\n",
    CONSOLE: b"",
    TABLE: b"{}\n" * 3000,
    NEW_FOLDER: b"new",
    "/etc/hostname": b"other\n",
    "/usr/lib/new": b"\0\xff\n",
}
LARGE = 256 << 20
TOO_LARGE = {TABLE: bytes(range(256)) * 50000}
HOLD = """
import faulthandler, sys, time
from pathlib import Path
from rehydrator.host import guest
# A process that hangs says where.
faulthandler.dump_traceback_later(50)
guest._kvm.append(False)
base, disk, work = map(Path, sys.argv[2:])
with guest.open_guests(base, [disk], sys.argv[1], 0, work, lambda _: None) as guests:
    guests.read("/boot/grub2/console.cfg")
    print("ready", flush=True)
    # Short, because a signal that comes just before a sleep is not noticed until its end.
    while True:
        time.sleep(0.05)
"""


@dataclass
class Edited:
    """What an editor made of overlays."""

    disk: GuestDisk
    raw: Path
    notes: list[str] = field(default_factory=list)
    errors: dict[str, RehydratorError] = field(default_factory=dict)


def processes(word: str) -> dict[int, str]:
    """Command lines of the processes that have `word` in theirs, by process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line:
                    found[int(entry.name)] = line
    return found


def loops(folder: Path) -> list[str]:
    """Loop devices whose file lies below a directory."""
    return [line for line in run("losetup", "-a").splitlines() if str(folder) in line]


def until(true: Callable[[], object], seconds: float) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> GuestDisk:
    return make_disk(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def small(editor: str, disk: GuestDisk, folder: Path) -> Edited:
    """One overlay edited by an editor that needs no appliance."""
    folder.mkdir()
    overlay, notes = disk.overlay(folder / "one.qcow2"), list[str]()
    (folder / "work").mkdir()
    with open_guests(
        disk.base, [overlay], editor, EPOCH, folder / "work", notes.append, root_too=True
    ) as guests:
        guests.write(overlay, NEW)
    assert list((folder / "work").iterdir()) == []
    return Edited(disk, disk.raw(overlay), notes)


@pytest.fixture(scope="module")
def appliance(disk: GuestDisk, tmp_path_factory: pytest.TempPathFactory) -> Edited:
    """One launch: the first overlay is edited, the second is too full, and before the third the
    appliance is killed. Another 25 seconds for each test would be too dear."""
    folder = tmp_path_factory.mktemp("appliance")
    work = folder / "work"
    work.mkdir()
    overlays = [
        disk.overlay(folder / f"{number}.qcow2", size) for number, size in enumerate((LARGE, None, None))
    ]
    notes: list[str] = []
    errors: dict[str, RehydratorError] = {}
    with open_guests(disk.base, overlays, "guestfs", EPOCH, work, notes.append, root_too=True) as guests:
        assert guests.editor == "guestfs"
        assert guests.find("/boot/loader/entries/*.conf") == [ENTRY]
        assert {path: guests.read(path) for path in OLD} == OLD
        assert guests.read(TABLE) is None
        guests.write(overlays[0], NEW)
        with pytest.raises(LimitExceeded) as full:
            guests.write(overlays[1], TOO_LARGE)
        errors["full"] = full.value
        (machine,) = (pid for pid, line in processes(str(overlays[2])).items() if "qemu-system" in line)
        os.kill(machine, signal.SIGKILL)
        with pytest.raises(RehydratorError) as crash:
            guests.write(overlays[2], NEW)
        errors["crash"] = crash.value
    assert list(work.iterdir()) == []
    assert until(lambda: not processes(str(folder)), 5)
    return Edited(disk, disk.raw(overlays[0]), notes, errors)


@pytest.fixture(params=["offline", "mount", "guestfs"])
def edited(request: pytest.FixtureRequest, disk: GuestDisk, tmp_path: Path) -> Edited:
    """The same edit by each editor."""
    if request.param == "guestfs":
        made: Edited = request.getfixturevalue("appliance")
        return made
    return small(request.param, disk, tmp_path / "edited")


class TestEditors:
    def test_content(self, edited: Edited) -> None:
        """Every editor writes the same content, and leaves filesystems in which nothing is wrong."""
        disk, raw = edited.disk, edited.raw
        assert {path: disk.content(raw, path) for path in NEW} == NEW
        disk.check(raw, disk.boot)
        disk.check(raw, disk.root)

    def test_metadata(self, edited: Edited, disk: GuestDisk, tmp_path: Path) -> None:
        """Mode, owner and attributes are what the offline editor gives, whose unit tests say what."""
        expected = small("offline", disk, tmp_path / "offline").raw
        paths = [*NEW, "/boot/grub2/new", "/boot/grub2/new/deep"]
        assert {path: disk.facts(expected, path) for path in paths} == {
            path: disk.facts(edited.raw, path) for path in paths
        }

    def test_no_leftover_names(self, edited: Edited) -> None:
        """No .tmp file is left beside a new one."""
        image = f"{edited.raw}?offset={edited.disk.boot.offset}"
        said = run("debugfs", "-R", "ls -p /grub2", image) + run(
            "debugfs", "-R", "ls -p /loader.0/entries", image
        )
        assert "console.cfg" in said
        assert ".tmp" not in said


class TestGuestfs:
    def test_full(self, appliance: Edited) -> None:
        """A full filesystem: which, bytes needed, bytes free; the other disks go on."""
        said = str(appliance.errors["full"])
        assert "1.qcow2: partition 2 (ext): full: the new files need" in said
        assert "are free" in said

    def test_crash(self, appliance: Edited) -> None:
        """An appliance that dies fails the disks that are left, in words, and not those done."""
        assert "2.qcow2: partition 2 (ext): " in str(appliance.errors["crash"])
        assert "--editor offline or mount" in str(appliance.errors["crash"])

    def test_larger_overlay(self, appliance: Edited) -> None:
        """The overlay that was edited was larger than the base, and stays so."""
        assert appliance.raw.stat().st_size == LARGE

    def test_note(self, appliance: Edited) -> None:
        """The launch, which takes a while, is said; with KVM, and then without, where that misled us."""
        said = [note.split()[-2] for note in appliance.notes]
        assert said in (["without"], ["with"], ["with", "without"])

    @pytest.mark.parametrize(
        ("variable", "value"), [("LIBGUESTFS_PATH", "/nonexistent"), ("LIBGUESTFS_HV", "/bin/false")]
    )
    def test_does_not_start(
        self, disk: GuestDisk, work: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        """A missing or broken appliance: what to install, what to try, how to look closer."""
        monkeypatch.setattr(guest, "_kvm", [False])
        monkeypatch.setenv(variable, value)
        expected = r"appliance does not start .*supermin.*--editor offline or mount.*LIBGUESTFS_DEBUG=1"
        with (
            pytest.raises(RehydratorError, match=expected),
            open_guests(disk.base, [], "guestfs", EPOCH, work, lambda _: None),
        ):
            pass
        assert list(work.iterdir()) == []

    def test_without_kvm_where_it_fails(
        self, disk: GuestDisk, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """KVM that runs a boot sector and no appliance: it is launched once more, without KVM."""
        notes: list[str] = []

        def launch(*_: object) -> str:
            if len(notes) == 1:
                raise RehydratorError("guestfs_launch failed")
            return "launched"

        monkeypatch.setattr(guest_process, "Guestfs", launch)
        none: list[Path] = []
        python = ("/usr/bin/python3", disk.base, none, EPOCH, work)
        with guest_process.guestfs_backend(*python, kvm=True, note=notes.append) as got:
            assert got == "launched"  # type: ignore[comparison-overlap]
        assert [note.split()[-2] for note in notes] == ["with", "without"]

    def test_missing(self, disk: GuestDisk, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without python3-guestfs the editor that was asked for is not replaced: its packages are named."""
        monkeypatch.setattr(guest_process, "_PYTHONS", (sys.executable,))
        with (
            pytest.raises(ToolMissing, match="apt-get install python3-guestfs libguestfs0 supermin"),
            open_guests(disk.base, [], "guestfs", EPOCH, work, lambda _: None),
        ):
            pass

    def test_killed(self, disk: GuestDisk, tmp_path: Path, work: Path) -> None:
        """SIGKILL of our process while the appliance starts leaves no process."""
        overlay = disk.overlay(tmp_path / "one.qcow2")
        holder = _hold("guestfs", disk, overlay, work)
        assert until(lambda: any("qemu-system" in line for line in processes(str(overlay)).values()), 60)
        holder.kill()
        holder.wait()
        assert until(lambda: not processes(str(overlay)), 10)
        assert until(lambda: not processes("guest_worker.py guestfs"), 1)


class TestMount:
    def test_killed(self, disk: GuestDisk, tmp_path: Path, work: Path) -> None:
        """SIGKILL of our process leaves no mount, no loop device and no process; while it runs, its
        mounts are its own."""
        holder = _hold("mount", disk, disk.overlay(tmp_path / "one.qcow2"), work)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        assert len(loops(tmp_path)) == 1
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
        assert str(tmp_path) in _mounts_of("guest_worker.py mount")
        holder.kill()
        holder.wait()
        assert until(lambda: not loops(tmp_path), 10)
        assert until(lambda: not _mounts_of("guest_worker.py mount"), 1)

    def test_signal(self, disk: GuestDisk, tmp_path: Path, work: Path) -> None:
        """Ctrl-C leaves nothing: no loop device, no process, no temporary file."""
        holder = _hold("mount", disk, disk.overlay(tmp_path / "one.qcow2"), work)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        assert len(loops(tmp_path)) == 1
        holder.send_signal(signal.SIGINT)
        assert holder.wait(60) != 0
        assert until(lambda: not loops(tmp_path), 1)
        assert processes(str(work)) == {}
        assert list(work.iterdir()) == []

    def test_worker_killed(self, disk: GuestDisk, tmp_path: Path, work: Path) -> None:
        """A worker that dies is said with what to try, and nothing stays mounted."""
        overlay = disk.overlay(tmp_path / "one.qcow2")
        expected = (
            r"worker process ended in the middle of '\w+' \(status -9\); try --editor offline or guestfs"
        )
        with open_guests(disk.base, [overlay], "mount", EPOCH, work, lambda _: None) as guests:
            (worker,) = (pid for pid in processes("guest_worker.py mount") if _parent(pid) == os.getpid())
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(RehydratorError, match=expected):
                guests.write(overlay, {ENTRY: b"e"})
        assert loops(tmp_path) == []
        assert list(work.iterdir()) == []

    def test_interrupted(self, disk: GuestDisk, work: Path) -> None:
        """An exception in the block ends everything before it is seen outside."""
        with (
            pytest.raises(KeyboardInterrupt),
            open_guests(disk.base, [], "mount", EPOCH, work, lambda _: None) as guests,
        ):
            _interrupt(guests.read(CONSOLE))
        assert loops(work) == []
        assert list(work.iterdir()) == []

    def test_full(self, disk: GuestDisk, tmp_path: Path, work: Path) -> None:
        """A full filesystem: which, bytes needed, bytes free; the next disk goes on."""
        overlays = [disk.overlay(tmp_path / f"{number}.qcow2") for number in range(2)]
        with open_guests(disk.base, overlays, "mount", EPOCH, work, lambda _: None) as guests:
            with pytest.raises(
                LimitExceeded, match=r"partition 2 \(ext\): full: .*need \d+ bytes, \d+ are free"
            ):
                guests.write(overlays[0], TOO_LARGE)
            guests.write(overlays[1], {ENTRY: b"e"})
        assert disk.content(disk.raw(overlays[1]), ENTRY) == b"e"

    def test_not_root(self, disk: GuestDisk, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Mounting is root's business."""
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with (
            pytest.raises(ToolMissing, match="run as root"),
            open_guests(disk.base, [], "mount", EPOCH, work, lambda _: None),
        ):
            pass

    def test_xfs(self, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A boot filesystem that debugfs does not know: auto says so and takes the next editor."""
        disk = _xfs_disk(tmp_path)
        overlay, notes = disk.overlay(tmp_path / "one.qcow2"), list[str]()
        monkeypatch.setattr(guest_process, "_PYTHONS", (sys.executable,))
        with open_guests(disk.base, [overlay], "auto", EPOCH, work, notes.append) as guests:
            assert guests.editor == "mount"
            assert guests.find("/boot/loader/entries/*.conf") == [ENTRY]
            guests.write(overlay, {ENTRY: b"e", TABLE: b"t"})
            assert guests.read(ENTRY) == OLD[ENTRY]
        assert [
            "not edited offline" in notes[0],
            "python3-guestfs" in notes[1],
            "editor mount" in notes[2],
        ] == [True] * 3
        with open_guests(disk.raw(overlay), [], "mount", EPOCH, work, notes.append) as guests:
            assert (guests.read(ENTRY), guests.read(TABLE)) == (b"e", b"t")
        with (
            pytest.raises(HostileInput, match=r"partition 2 \(xfs\): not for the editor offline"),
            open_guests(disk.base, [], "offline", EPOCH, work, notes.append),
        ):
            pass


class TestKvm:
    def test_boot_sector_runs(self) -> None:
        """Under TCG, which always works, the trial succeeds: it is no check that cannot pass."""
        assert boots("tcg") is True

    def test_no_proof(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine that hangs is ended, and proves nothing."""
        monkeypatch.setattr(guest, "_BOOT_SECTOR", b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa")
        monkeypatch.setattr(guest, "_TRIAL_SECONDS", 2.0)
        before = time.monotonic()
        assert boots("tcg") is False
        assert time.monotonic() - before < 4

    def test_unknown_accelerator(self) -> None:
        """What QEMU does not know does not work."""
        assert boots("nonsense") is False

    def test_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The trial is bounded, and its answer is kept: true only where a machine ran under KVM."""
        asked: list[str] = []

        def trial(accelerator: str) -> bool:
            asked.append(accelerator)
            return boots(accelerator)

        monkeypatch.setattr(guest, "_kvm", [])
        monkeypatch.setattr(guest, "boots", trial)
        before = time.monotonic()
        first = kvm_works()
        assert time.monotonic() - before < 8
        assert kvm_works() is first
        tried = platform.machine() == "x86_64" and os.access("/dev/kvm", os.R_OK | os.W_OK)
        assert asked == ["kvm"] * tried
        assert first <= tried


def _interrupt(read: bytes | None) -> NoReturn:
    assert read == OLD[CONSOLE]
    raise KeyboardInterrupt


def _hold(editor: str, disk: GuestDisk, overlay: Path, work: Path) -> subprocess.Popen[bytes]:
    """A process of ours that has guests open, until it is killed."""
    command = [sys.executable, "-c", HOLD, editor, *map(str, (disk.base, overlay, work))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _mounts_of(word: str) -> str:
    """What the processes of that command line have mounted."""
    mounts = ""
    for pid in processes(word):
        with suppress(OSError):
            mounts += Path(f"/proc/{pid}/mounts").read_text()
    return mounts


def _xfs_disk(folder: Path) -> GuestDisk:
    """A disk whose boot filesystem is XFS, which is at least 300 MiB; sparse."""
    base, image = folder / "base.raw", folder / "image"
    _, boot, root = write_table(base, [1, 304, 8])
    tree = boot_tree(folder / "boot")
    proto = [
        "/",
        "0 0",
        "d--755 0 0",
        "grub2 d--755 0 0",
        f"console.cfg ---644 0 0 {tree}/grub2/console.cfg",
        "$",
    ]
    proto += ["loader.0 d--755 0 0", "entries d--755 0 0"]
    proto += [f"ostree-1-demo.conf ---644 0 0 {tree}/loader.0/entries/ostree-1-demo.conf", "$", "$"]
    proto += ["loader l--777 0 0 loader.0", "$"]
    (folder / "proto").write_text("\n".join(proto) + "\n")
    with image.open("wb") as file:
        file.truncate(boot.size)
    run("mkfs.xfs", "-q", "-f", "-p", folder / "proto", image)
    run("dd", f"if={image}", f"of={base}", f"seek={boot.offset >> 20}", "bs=1M", "conv=notrunc,sparse")
    (folder / "root/etc").mkdir(parents=True)
    (folder / "root/usr").mkdir()
    mkfs(base, root, folder / "root")
    return GuestDisk(base, boot, root)
