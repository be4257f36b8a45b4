"""Editing guests: a few files in the filesystems of one disk, replaced differently in each of many
qcow2 overlays of it. Which filesystem has a file, and what a path means, is decided here; three
back ends behind it do the same work by other means (docs/decisions/009-guest-editing.md).
"""

from __future__ import annotations

import fnmatch
import os
import platform
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rehydrator import host
from rehydrator.core.errors import HostileInput, Interrupted, RehydratorError, ToolMissing, UsageError
from rehydrator.host.guest_offline import NotOffline, Offline
from rehydrator.host.guest_process import guestfs_backend, guestfs_python, mount_backend
from rehydrator.host.guest_volumes import Backend, Entry, Volume, volumes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

EDITORS: Final = ("auto", "offline", "guestfs", "mount")
MAX_READ: Final = 1 << 20
_MAX_LINKS = 40
# Linux's PATH_MAX. What is larger is not even read: debugfs gives all of it, be it gigabytes.
_MAX_TARGET = 4096
_MAX_DEPTH = 128
_MAX_FOUND = 4096
_BOOT_FOLDERS: Final = frozenset({"loader", "grub2", "grub"})
# mov dx, 0x501; mov al, 0x10; out dx, al; then halt for ever.
_BOOT_SECTOR: Final = bytes.fromhex("ba0105 b010 ee f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"
# The exit device gives QEMU the exit status 2 * byte + 1 (QEMU, hw/misc/debugexit.c).
_PROOF: Final = 2 * 0x10 + 1
_MACHINE: Final = (
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"),
    *("-m", "16", "-device", "isa-debug-exit,iobase=0x501,iosize=1"),
)
_TRIAL_SECONDS: Final = 5.0
_kvm: list[bool] = []
_kvm_lock = threading.Lock()
_FOLDERS: Final = frozenset({"folder", "link"})


class NoBootFiles(HostileInput):
    """No filesystem that this editor can open has boot loader files."""


class Guests:
    """One base disk's files, and overlays of it in which some are replaced. Paths are absolute and
    as the guest sees them: /boot/... lies on the boot filesystem where there is a separate one.
    Symlinks are followed as long as they stay on their filesystem.

    write() may be called from several threads, for different disks.
    """

    def __init__(
        self, base: Path, editor: str, backend: Backend, volumes: Sequence[Volume], root_too: bool
    ) -> None:
        """Find the filesystems, and refuse those that cannot be edited; use open_guests()."""
        self.editor = editor
        self._base, self._backend = base, backend
        self._written: set[Path] = set()
        self._lock = threading.Lock()
        self._listed: dict[tuple[Volume, str], dict[str, Entry]] = {}
        self._targets: dict[tuple[Volume, str], str] = {}
        self._boot, self._roots, self._separate = self._locate(volumes)
        self._editable = [self._boot]
        if root_too and self._separate:
            self._editable.append(self._root_volume())
        backend.prepare(self._editable)

    def find(self, pattern: str) -> list[str]:
        """Regular files of the base that match a shell pattern, such as
        "/boot/loader/entries/*.conf"; a "*" does not match a "/". Sorted.

        Raises:
            HostileInput: a name that matches has characters that are no text, or there are
                thousands.
        """
        found = [""]
        *folders, last = _parts(pattern)
        if not folders:
            raise UsageError(f"{pattern}: the first directory of a pattern is taken as it is")
        for part in folders:
            found = [f"{path}/{name}" for path in found for name in self._matching(path, part, _FOLDERS)]
        return sorted(f"{path}/{name}" for path in found for name in self._matching(path, last, {"file"}))

    def read(self, path: str) -> bytes | None:
        """A file of the base; None where there is none.

        Raises:
            HostileInput: it is no regular file, or larger than 1 MiB.
        """
        volume, inside = self._resolved(path)
        entry = self._entry(volume, inside)
        if entry is None:
            return None
        if entry.kind != "file":
            raise HostileInput(f"{self._base}: {path} is a {entry.kind}, not a file")
        if entry.size > MAX_READ:
            raise HostileInput(f"{self._base}: {path} has {entry.size} bytes, more than {MAX_READ}")
        data = self._backend.read(volume, inside)
        if len(data) != entry.size:
            raise HostileInput(f"{self._base}: {path} has {len(data)} bytes where {entry.size} were said")
        return data

    def write(self, disk: Path, files: Mapping[str, bytes]) -> None:
        """Replace or create files on one overlay, once; nothing else of it is touched. A file that
        is replaced keeps its mode, owner and extended attributes; a new one is 0644 root:root with
        its directory's SELinux label.

        Raises:
            LimitExceeded: the filesystem (or this machine's) is full.
            HostileInput: a path is no file, or leaves its filesystem through a symlink.
            RehydratorError: the editor failed; the overlay must not be used.
        """
        with self._lock:
            if disk in self._written:
                raise UsageError(f"{disk}: was edited before; give all of its files at once")
            self._written.add(disk)
        sorted_out: dict[Volume, dict[str, bytes]] = {}
        for path in sorted(files):
            volume, inside = self._resolved(path)
            entry = self._entry(volume, inside)
            if entry is not None and entry.kind != "file":
                raise HostileInput(f"{self._base}: {path} is a {entry.kind}; only files can be replaced")
            if volume not in self._editable:
                raise UsageError(f"{path} lies on {volume}, which was not opened for editing (root_too)")
            if inside in sorted_out.setdefault(volume, {}):
                raise UsageError(f"{path} and another path given are the same file, by a symlink")
            sorted_out[volume][inside] = files[path]
        if sorted_out:
            self._backend.write(disk, sorted_out)

    def _locate(self, volumes: Sequence[Volume]) -> tuple[Volume, list[Volume], bool]:
        """The boot filesystem, those that may be the root, and whether they are different ones."""
        boots, roots, whole, problems = [], [], [], []
        for volume in volumes:
            if not self._backend.opens(volume):
                problems.append(f"{volume}: not for the editor {self.editor}")
                continue
            try:
                top = self._entries(volume, "/")
                if "ostree" in top or {"etc", "usr"} <= set(top):
                    roots.append(volume)
                if self._has_boot_files(top):
                    boots.append(volume)
                elif top.get("boot", Entry("", 0)).kind == "folder":
                    whole += [volume] if self._has_boot_files(self._entries(volume, "/boot")) else []
            except Interrupted:
                raise
            except RehydratorError as error:
                problems.append(f"{volume}: {error}")
        found = boots or whole
        if len(found) > 1:
            names = " and ".join(map(str, found))
            raise HostileInput(
                f"{self._base}: {names} both have boot loader files; remove them from all but one"
            )
        if not found:
            more = f" ({'; '.join(problems)})" if problems else ""
            raise NoBootFiles(
                f"{self._base}: no filesystem has boot loader files (/loader, /grub2 or /grub at its top, or "
                f"below /boot){more}; give the disk of an installed system"
            )
        # A boot filesystem may have /ostree, too: the kernels of the deployments lie there.
        return found[0], [volume for volume in roots if not boots or volume != found[0]], bool(boots)

    def _has_boot_files(self, entries: Mapping[str, Entry]) -> bool:
        return any(entries[name].kind in _FOLDERS for name in _BOOT_FOLDERS & set(entries))

    def _root_volume(self) -> Volume:
        if len(self._roots) == 1:
            return self._roots[0]
        names = " and ".join(map(str, self._roots)) or "none"
        raise HostileInput(
            f"{self._base}: files outside of /boot need one root filesystem (with /ostree, or /etc and "
            f"/usr) that the editor {self.editor} can open; there is {names}"
        )

    def _placed(self, path: str) -> tuple[Volume, str]:
        """Volume and path within it of a path as the guest sees it, symlinks left alone."""
        if not self._separate:
            return self._boot, path
        if path == "/boot" or path.startswith("/boot/"):
            return self._boot, path[len("/boot") :] or "/"
        return self._root_volume(), path

    def _resolved(self, path: str) -> tuple[Volume, str]:
        """Volume and path within it, without symlinks; what does not exist is taken as it is."""
        volume, inside = self._placed("/" + "/".join(_parts(path)))
        todo = [part for part in reversed(inside.split("/")) if part]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if len(done) > _MAX_DEPTH:
                raise HostileInput(f"{self._base}: {path:.120} leads deeper than {_MAX_DEPTH} directories")
            if part == "..":
                if not done:
                    raise HostileInput(f"{self._base}: {path} leaves its filesystem through a symlink")
                done.pop()
                continue
            here = "/".join(["", *done, part])
            entry = self._entry(volume, here)
            if entry is None or entry.kind != "link":
                done.append(part)
                continue
            links += 1
            if entry.size > _MAX_TARGET:
                raise HostileInput(f"{self._base}: {here} is a symlink of {entry.size} bytes; it is damaged")
            target = self._target(volume, here)
            if target.startswith("/") or links > _MAX_LINKS or len(target) > _MAX_TARGET:
                raise HostileInput(
                    f"{self._base}: {path} leads through the symlink {here} -> {target!r:.80}, "
                    "which is absolute or goes round; name the file itself"
                )
            todo += [each for each in reversed(target.split("/")) if each not in {"", "."}]
        return volume, "/" + "/".join(done)

    def _entry(self, volume: Volume, path: str) -> Entry | None:
        """What lies at a path that has no symlinks before its last part."""
        parent, _, name = path.rpartition("/")
        if not name:
            return Entry("folder", 0)
        above = self._entry(volume, parent or "/")
        if above is None:
            return None
        if above.kind != "folder":
            raise HostileInput(f"{self._base}: {parent} is a {above.kind}, not a directory")
        return self._entries(volume, parent or "/").get(name)

    def _entries(self, volume: Volume, folder: str) -> dict[str, Entry]:
        """The base does not change, so each directory is listed once."""
        if (volume, folder) not in self._listed:
            self._listed[volume, folder] = self._backend.entries(volume, folder)
        return self._listed[volume, folder]

    def _target(self, volume: Volume, path: str) -> str:
        if (volume, path) not in self._targets:
            self._targets[volume, path] = self._backend.target(volume, path)
        return self._targets[volume, path]

    def _matching(self, folder: str, pattern: str, kinds: frozenset[str] | set[str]) -> list[str]:
        if not folder:
            return [pattern]
        volume, inside = self._resolved(folder)
        entry = self._entry(volume, inside)
        if entry is None or entry.kind != "folder":
            return []
        entries = self._entries(volume, inside)
        names = [name for name in entries if fnmatch.fnmatchcase(name, pattern)]
        found = [name for name in names if entries[name].kind in kinds]
        strange = [name for name in found if not name.isprintable()]
        if strange or len(found) > _MAX_FOUND:
            what = f"a strange name, {strange[0]!r:.80}" if strange else f"{len(found)} files"
            raise HostileInput(f"{self._base}: {folder}/{pattern} matches {what}")
        return found


@contextmanager
def open_guests(
    base: Path,
    disks: Sequence[Path],
    editor: str,
    epoch: int,
    work: Path,
    note: Callable[[str], None],
    root_too: bool = False,
) -> Iterator[Guests]:
    """Open the raw disk `base` and its qcow2 overlays `disks` for editing. Times in the guest come
    from `epoch` (seconds since 1970) as far as the editor can; temporary files lie in `work` and are
    gone at the end. Files outside of /boot need `root_too`. `note` is told which editor "auto" took.

    Raises:
        UsageError: no such editor.
        HostileInput: the base has no filesystem with boot loader files, or several.
        ToolMissing: what the editor needs is not installed.
        RehydratorError: the editor that was asked for cannot edit this base.
    """
    if editor not in EDITORS:
        raise UsageError(f"--editor {editor}: there are {', '.join(EDITORS)}")
    volumes = volumes_of(base)
    with tempfile.TemporaryDirectory(dir=work, prefix="guests-") as folder:
        place = Path(folder)
        guests = None
        if editor in {"auto", "offline"}:
            guests = _offline(base, editor, epoch, place, volumes, root_too, note)
        if guests:
            yield guests
            return
        with _process(base, disks, editor, epoch, place, note) as (name, backend):
            guests = Guests(base, name, backend, volumes, root_too)
            if editor == "auto":
                note(f"guests are edited with the editor {name}")
            yield guests


@contextmanager
def _process(
    base: Path, disks: Sequence[Path], editor: str, epoch: int, work: Path, note: Callable[[str], None]
) -> Iterator[tuple[str, Backend]]:
    """The editor with a process of its own that was asked for, or that there is."""
    try:
        python = "" if editor == "mount" else guestfs_python()
    except ToolMissing as error:
        if editor == "guestfs":
            raise
        if os.geteuid():
            raise ToolMissing(f"{error}; or run as root, for --editor mount") from None
        note(f"not edited with guestfs: {error}")
        python = ""
    if not python:
        with mount_backend(base, epoch, work) as mounted:
            yield "mount", mounted
        return
    with guestfs_backend(python, base, disks, epoch, work, kvm_works(), note) as appliance:
        yield "guestfs", appliance


def _offline(
    base: Path,
    editor: str,
    epoch: int,
    work: Path,
    volumes: list[Volume],
    root_too: bool,
    note: Callable[[str], None],
) -> Guests | None:
    """The offline editor; None where another must be tried, and why is noted."""
    try:
        guests = Guests(base, "offline", Offline(base, epoch, work), volumes, root_too)
    except (NoBootFiles, NotOffline, ToolMissing) as error:
        final = isinstance(error, NoBootFiles) and all(volume.kind == "ext" for volume in volumes)
        if editor == "offline" or final:
            raise
        note(f"not edited offline: {error}")
        return None
    if editor == "auto":
        note("guests are edited with the editor offline")
    return guests


def _parts(path: str) -> list[str]:
    """The parts of a guest's path."""
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts[1:]) or len(path) > 4096:
        raise UsageError(f"{path!r:.120}: a file of a guest is named by its absolute path, without . and ..")
    return parts[1:]


def kvm_works() -> bool:
    """Whether a machine runs under KVM here, proven by running one for a moment. /dev/kvm may exist
    and hang, so its presence says nothing. Tried once per process; on other processors than x86_64
    there is no trial, and KVM is not used.
    """
    with _kvm_lock:
        if not _kvm:
            usable = platform.machine() == "x86_64" and os.access("/dev/kvm", os.R_OK | os.W_OK)
            _kvm.append(usable and boots("kvm"))
        return _kvm[0]


def boots(accelerator: str) -> bool:
    """Whether QEMU with this accelerator runs our boot sector, within five seconds."""
    with tempfile.NamedTemporaryFile(prefix="rehydrator-") as file:
        file.write(_BOOT_SECTOR)
        file.flush()
        try:
            done = host.run([*_MACHINE, "-accel", accelerator, "-fda", file.name], _TRIAL_SECONDS)
        except Interrupted:
            raise
        except RehydratorError:
            return False
    return done.status == _PROOF
