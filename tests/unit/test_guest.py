"""Guest editing without an appliance: the offline editor, path rules, and bad disks."""

from __future__ import annotations

import random
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, ToolMissing, UsageError
from rehydrator.host.guest import Guests, open_guests
from tests.guest_disks import (
    CONSOLE,
    ENTRY,
    EPOCH,
    FOLDER_LABEL,
    LABEL,
    OLD,
    TABLE,
    GuestDisk,
    boot_tree,
    debugfs,
    make_disk,
    mkfs,
    run,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    Offline = Callable[..., AbstractContextManager[Guests]]

NEW = {ENTRY: b"title Demo\noptions root=x ignition.platform.id=aws\n", CONSOLE: b"", TABLE: b"{}\n" * 3000}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> GuestDisk:
    return make_disk(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Where temporary files go; a name that debugfs and qemu-io could stumble over."""
    folder = tmp_path / 'it\'s a "work"?offset=3'
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def offline(work: Path) -> Callable[..., AbstractContextManager[Guests]]:
    def opened(base: Path, editor: str = "offline", root_too: bool = False) -> AbstractContextManager[Guests]:
        return open_guests(base, [], editor, EPOCH, work, lambda _: None, root_too=root_too)

    return opened


def edited(guests: Guests, disk: GuestDisk, overlay: Path, files: Mapping[str, bytes]) -> Path:
    guests.write(disk.overlay(overlay), files)
    return disk.raw(overlay)


class TestReading:
    def test_find(self, disk: GuestDisk, offline: Offline) -> None:
        """Patterns are matched on the boot filesystem, through ostree's symlink."""
        with offline(disk.base) as guests:
            assert guests.editor == "offline"
            assert guests.find("/boot/loader/entries/*.conf") == [ENTRY]
            assert (
                guests.find("/boot/loader*/entries/*.conf")
                == [
                    ENTRY.replace("loader", "loader.0"),
                    ENTRY,
                ][::-1][::-1]
            )
            assert guests.find("/boot/grub2/*") == [CONSOLE]
            assert guests.find("/boot/nothing/*") == []
            assert guests.find("/boot/*") == []

    def test_read(self, disk: GuestDisk, offline: Offline) -> None:
        """Files are read whole; what does not exist is None, what is no file is refused."""
        with offline(disk.base) as guests:
            assert {path: guests.read(path) for path in OLD} == OLD
            assert guests.read("/boot/boot/boot/grub2/console.cfg") == OLD[CONSOLE]
            assert guests.read(TABLE) is None
            assert guests.read("/boot/nothing/at/all") is None
            with pytest.raises(HostileInput, match="/boot/grub2 is a folder"):
                guests.read("/boot/grub2")
            with pytest.raises(HostileInput, match=r"console\.cfg is a file, not a directory"):
                guests.read(f"{CONSOLE}/x")

    @pytest.mark.parametrize("path", ["", "boot/x", "/boot/../etc/x", "/boot//x", "/", "/boot/./x"])
    def test_unsafe_paths(self, disk: GuestDisk, offline: Offline, path: str) -> None:
        """Only plain absolute paths name a file."""
        with offline(disk.base) as guests, pytest.raises(UsageError, match="absolute path"):
            guests.read(path)


class TestOffline:
    def test_result(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """The overlay has the new files, and in its filesystem nothing is wrong."""
        before = disk.base.read_bytes()
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        assert {path: disk.content(raw, path) for path in NEW} == NEW
        disk.check(raw, disk.boot)
        assert disk.base.read_bytes() == before

    def test_only_boot_changes(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Not a byte outside of the boot filesystem is touched."""
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        old, new = bytearray(disk.base.read_bytes()), bytearray(raw.read_bytes())
        place = slice(disk.boot.offset, disk.boot.offset + disk.boot.size)
        assert old[place] != new[place]
        old[place] = new[place] = b""
        assert old == new

    def test_metadata_kept(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Mode, owner, group and SELinux label of the old file; a new one has its directory's label."""
        new = "/boot/grub2/new/deep/file"
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", {CONSOLE: b"x", new: b"y", TABLE: b"z"})
        assert disk.facts(raw, CONSOLE) == (0o600, 7, 8, {"security.selinux": LABEL})
        labelled = {"security.selinux": FOLDER_LABEL}
        assert disk.facts(raw, new) == (0o644, 0, 0, labelled)
        assert disk.facts(raw, "/boot/grub2/new") == (0o755, 0, 0, labelled)
        assert disk.facts(raw, "/boot/grub2/new/deep") == (0o755, 0, 0, labelled)
        assert disk.facts(raw, TABLE) == (0o644, 0, 0, labelled)
        disk.check(raw, disk.boot)

    def test_identical_twice(self, disk: GuestDisk, work: Path, tmp_path: Path) -> None:
        """Two runs at different times give the same bytes, whatever the clock says."""
        raws = []
        for number in range(2):
            with open_guests(disk.base, [], "offline", EPOCH, work, lambda _: None) as guests:
                raws.append(edited(guests, disk, tmp_path / f"{number}.qcow2", NEW).read_bytes())
            time.sleep(1.1 if number == 0 else 0)
        assert raws[0] == raws[1]

    def test_times_are_the_epoch(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Times of new files and of the superblock come from the epoch."""
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        said = debugfs(f"{raw}?offset={disk.boot.offset}", f"stat {TABLE[5:]}")
        assert said.count(f"time: 0x{EPOCH:08x}:00000000") == 4
        (written,) = struct.unpack_from("<I", raw.read_bytes(), disk.boot.offset + 1024 + 48)
        assert written == EPOCH

    def test_larger_overlay(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """An overlay may be larger than its base, and stays so."""
        overlay = disk.overlay(tmp_path / "big.qcow2", 1 << 30)
        with offline(disk.base) as guests:
            guests.write(overlay, NEW)
        raw = disk.raw(overlay)
        assert raw.stat().st_size == 1 << 30
        assert disk.content(raw, ENTRY) == NEW[ENTRY]

    def test_root_too(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Files outside of /boot lie on the root filesystem."""
        files = {"/etc/hostname": b"other\n", "/usr/lib/new/file": b"n", ENTRY: b"e"}
        with offline(disk.base, root_too=True) as guests:
            assert guests.read("/etc/hostname") == b"demo\n"
            raw = edited(guests, disk, tmp_path / "one.qcow2", files)
        assert {path: disk.content(raw, path) for path in files} == files
        disk.check(raw, disk.root)
        disk.check(raw, disk.boot)

    def test_root_was_not_asked_for(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Without root_too the root filesystem is read, and not written."""
        overlay = disk.overlay(tmp_path / "one.qcow2")
        with offline(disk.base) as guests:
            assert guests.read("/etc/hostname") == b"demo\n"
            with pytest.raises(UsageError, match=r"partition 3 \(ext\), which was not opened for editing"):
                guests.write(overlay, {"/etc/hostname": b""})

    def test_attribute_block(self, tmp_path: Path, offline: Offline) -> None:
        """Attributes too large for the inode are kept, and their old block is freed."""
        disk = make_disk(tmp_path)
        big = tmp_path / "big"
        big.write_bytes(random.Random(1).randbytes(700))
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, f"ea_set -f {big} {CONSOLE[5:]} user.big", write=True)
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        assert disk.facts(raw, CONSOLE)[3] == {"security.selinux": LABEL, "user.big": big.read_bytes()}
        disk.check(raw, disk.boot)

    @pytest.mark.parametrize("features", ["^has_journal", "^64bit,^metadata_csum", "^64bit,^extent"])
    def test_features(self, tmp_path: Path, offline: Offline, features: str) -> None:
        """Filesystems of other features are edited as well."""
        disk = make_disk(tmp_path, "-O", features)
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        assert {path: disk.content(raw, path) for path in NEW} == NEW
        disk.check(raw, disk.boot)

    def test_leftover_tmp(self, tmp_path: Path, offline: Offline) -> None:
        """A .tmp file that a crash left is in nobody's way."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, f"write {tmp_path / 'label'} console.cfg.tmp", write=True)
        debugfs(image, f"ln console.cfg.tmp {CONSOLE[5:]}.tmp", "unlink console.cfg.tmp", write=True)
        with offline(disk.base) as guests:
            raw = edited(guests, disk, tmp_path / "one.qcow2", NEW)
        assert "console.cfg.tmp" not in debugfs(f"{raw}?offset={disk.boot.offset}", "ls -p /grub2")
        disk.check(raw, disk.boot)

    def test_same_file_twice(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Two paths that a symlink makes one are refused, not decided by their order."""
        files = {ENTRY: b"a", ENTRY.replace("loader", "loader.0", 1): b"b"}
        with offline(disk.base) as guests, pytest.raises(UsageError, match="are the same file"):
            guests.write(tmp_path / "one.qcow2", files)

    def test_threads(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """Several threads may edit different disks at once."""
        overlays = [disk.overlay(tmp_path / f"{number}.qcow2") for number in range(4)]
        with offline(disk.base) as guests, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda overlay: guests.write(overlay, NEW), overlays))
        raws = [disk.raw(overlay).read_bytes() for overlay in overlays]
        assert raws == raws[:1] * 4
        assert disk.content(overlays[0].with_suffix(".raw"), TABLE) == NEW[TABLE]

    def test_twice_the_same_disk(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """One overlay is edited once: a second edit would start from the base again."""
        overlay = disk.overlay(tmp_path / "one.qcow2")
        with offline(disk.base) as guests:
            guests.write(overlay, NEW)
            with pytest.raises(UsageError, match="was edited before"):
                guests.write(overlay, NEW)


class TestRefusals:
    def test_full(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """A file that does not fit: which filesystem, bytes needed and bytes free."""
        overlay = disk.overlay(tmp_path / "one.qcow2")
        with (
            offline(disk.base) as guests,
            pytest.raises(LimitExceeded, match=r"partition 2 \(ext\): full: .* need \d+ bytes, \d+ are free"),
        ):
            guests.write(overlay, {TABLE: bytes(range(256)) * 50000})

    def test_no_overlay(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """What qemu-io cannot open is that disk's failure alone."""
        with offline(disk.base) as guests:
            with pytest.raises(RehydratorError, match=r"none.qcow2: writing the edited pages"):
                guests.write(tmp_path / "none.qcow2", NEW)
            assert edited(guests, disk, tmp_path / "good.qcow2", NEW).exists()

    def test_needs_recovery(self, tmp_path: Path, offline: Offline) -> None:
        """A journal that must be replayed is not for debugfs."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, "feature +needs_recovery", write=True)
        with pytest.raises(RehydratorError, match="journal needs recovery"), offline(disk.base):
            pass

    def test_inline_data(self, tmp_path: Path, offline: Offline) -> None:
        """debugfs damages files that lie in inodes."""
        disk = make_disk(tmp_path, "-O", "inline_data")
        with pytest.raises(RehydratorError, match="inline_data"), offline(disk.base):
            pass

    def test_damaged(self, tmp_path: Path, offline: Offline) -> None:
        """A filesystem that e2fsck finds damaged beforehand is not edited."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, "freei /grub2", write=True)
        with pytest.raises(RehydratorError, match="e2fsck finds it damaged"), offline(disk.base):
            pass

    def test_read_too_large(self, tmp_path: Path, offline: Offline) -> None:
        """At most 1 MiB is read, however large a hostile inode says it is."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, f"set_inode_field {CONSOLE[5:]} size 0xfffffffff", write=True)
        with offline(disk.base) as guests, pytest.raises(HostileInput, match="68719476735 bytes, more than"):
            guests.read(CONSOLE)

    def test_symlinks(self, tmp_path: Path, offline: Offline) -> None:
        """A symlink that leaves its filesystem, is absolute or goes round is refused."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        long = "../" * 30 + "etc/shadow"
        links = ["out ../etc/shadow", "abs /etc/shadow", "round round", f"long {long}"]
        debugfs(image, *(f"symlink {link}" for link in links), write=True)
        with offline(disk.base) as guests:
            for name in ("out", "abs", "round", "long"):
                with pytest.raises(HostileInput, match="symlink"):
                    guests.read(f"/boot/{name}")
                with pytest.raises(HostileInput, match="symlink"):
                    guests.write(tmp_path / name, {f"/boot/{name}": b""})

    def test_symlink_of_gigabytes(self, tmp_path: Path, offline: Offline) -> None:
        """A symlink that says it has gigabytes is refused before it is read, also on a filesystem
        that is not to be edited, which nobody has checked."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.root.offset}"
        debugfs(image, f"symlink long {'a' * 100}", "set_inode_field long size 3000000000", write=True)
        with offline(disk.base) as guests, pytest.raises(HostileInput, match="symlink of 3000000000 bytes"):
            guests.read("/long")

    def test_deep(self, tmp_path: Path, offline: Offline) -> None:
        """A path or a symlink through thousands of directories is refused."""
        disk = make_disk(tmp_path)
        image = f"{disk.base}?offset={disk.boot.offset}"
        debugfs(image, "symlink deep " + "a/" * 400 + "b", write=True)
        with offline(disk.base) as guests:
            for path in ("/boot/deep", "/boot" + "/a" * 2000):
                with pytest.raises(HostileInput, match="deeper than 128"):
                    guests.read(path)

    def test_strange_names(self, tmp_path: Path, offline: Offline) -> None:
        """A name that is no text is said where it matters; a name with a line feed, too."""
        disk = make_disk(tmp_path)
        tree = tmp_path / "boot/grub2"
        (tree / "a\u200b.conf").write_text("")
        mkfs(disk.base, disk.boot, tmp_path / "boot")
        with offline(disk.base) as guests:
            assert guests.find("/boot/grub2/console*") == [CONSOLE]
            with pytest.raises(HostileInput, match="strange name"):
                guests.find("/boot/grub2/*.conf")
        (tree / "x\n").write_text("")
        mkfs(disk.base, disk.boot, tmp_path / "boot")
        with offline(disk.base) as guests, pytest.raises(HostileInput, match="unreadable"):
            guests.find("/boot/grub2/*.conf")

    def test_names_for_debugfs(self, disk: GuestDisk, offline: Offline, tmp_path: Path) -> None:
        """A name that debugfs's command language would take apart is refused."""
        with offline(disk.base) as guests:
            for name in ("a b", 'a"b', "a\nrm /x", "a\\b"):
                with pytest.raises(RehydratorError, match="debugfs cannot be given"):
                    guests.write(tmp_path / f"{len(name)}{name[1:2]!r:.2}", {f"/boot/{name}": b""})

    def test_two_boot_filesystems(self, tmp_path: Path, offline: Offline) -> None:
        """Two filesystems with boot loader files are both named."""
        base = tmp_path / "base.raw"
        tree = boot_tree(tmp_path / "tree")
        for part in write_table(base, [8, 8]):
            mkfs(base, part, tree)
        with (
            pytest.raises(HostileInput, match=r"partition 1 \(ext\) and partition 2 \(ext\)"),
            offline(base, "auto"),
        ):
            pass

    def test_no_boot_files(self, tmp_path: Path, offline: Offline) -> None:
        """A filesystem without boot loader files is not the disk of a system."""
        base = tmp_path / "base.raw"
        (tmp_path / "tree").mkdir()
        for part in write_table(base, [8]):
            mkfs(base, part, tmp_path / "tree")
        for editor in ("auto", "offline"):
            with (
                pytest.raises(HostileInput, match="no filesystem has boot loader files"),
                offline(base, editor),
            ):
                pass

    def test_neither_table_nor_filesystem(self, tmp_path: Path, offline: Offline) -> None:
        """Zeros and noise are no disk."""
        base = tmp_path / "base.raw"
        for data in (bytes(1 << 20), random.Random(2).randbytes(1 << 20)):
            base.write_bytes(data)
            with pytest.raises(HostileInput, match="no partition table and no filesystem"), offline(base):
                pass
        base.write_bytes(b"")
        with pytest.raises(HostileInput, match="whole 512-byte sectors"), offline(base):
            pass
        base.write_bytes(bytes(4096) + b"EFI PART" + bytes(1 << 20))
        with pytest.raises(HostileInput, match="sectors"), offline(base):
            pass

    def test_cut_short(self, disk: GuestDisk, tmp_path: Path, offline: Offline) -> None:
        """A partition beyond the end of the file is refused."""
        base = tmp_path / "short.raw"
        base.write_bytes(disk.base.read_bytes()[: disk.boot.offset + (1 << 20)])
        with pytest.raises(HostileInput), offline(base):
            pass

    def test_mutated(self, disk: GuestDisk, tmp_path: Path, offline: Offline) -> None:
        """Noise in partition table and superblock gives an error of ours or a disk that is edited
        and clean, and nothing else."""
        base = tmp_path / "base.raw"
        good = disk.base.read_bytes()
        chance = random.Random(3)
        spots = [(0, 2048), (disk.boot.offset + 1024, 400), (disk.boot.offset + 4096, 16384)]
        ends = set()
        for number in range(24):
            at, length = spots[number % 3]
            data = bytearray(good)
            for _ in range(1 + number // 3):
                data[at + chance.randrange(length)] = chance.randrange(256)
            base.write_bytes(data)
            mutated = GuestDisk(base, disk.boot, disk.root)
            try:
                with offline(base) as guests:
                    raw = edited(guests, mutated, tmp_path / f"{number}.qcow2", NEW)
                mutated.check(raw, disk.boot)
                ends.add("edited")
            except RehydratorError:
                ends.add("refused")
        assert ends == {"edited", "refused"}

    def test_unknown_editor(self, disk: GuestDisk, offline: Offline) -> None:
        """There are four editors."""
        with pytest.raises(UsageError, match="auto, offline, guestfs, mount"), offline(disk.base, "vi"):
            pass


class TestLayouts:
    def test_one_filesystem(self, tmp_path: Path, offline: Offline) -> None:
        """Without a boot filesystem of its own, /boot is the root filesystem's."""
        base = tmp_path / "base.raw"
        boot_tree(tmp_path / "tree/boot")
        (tmp_path / "tree/etc").mkdir()
        for table in ("gpt", "none", "dos"):
            whole = table == "none"
            (part,) = write_table(base, [12])
            if table == "dos":
                run(
                    "sfdisk",
                    "--quiet",
                    "--wipe",
                    "always",
                    base,
                    input=b"label: dos\nstart=2048,size=24576\n",
                )
            if whole:
                base.write_bytes(bytes(12 << 20))
                part = type(part)(0, 12 << 20)
            mkfs(base, part, tmp_path / "tree")
            disk = GuestDisk(base, part, part)
            with offline(base, "auto") as guests:
                assert guests.find("/boot/loader/entries/*.conf") == [ENTRY]
                guests.write(disk.overlay(tmp_path / "one.qcow2"), {ENTRY: b"new", "/etc/x": b"x"})
            raw = disk.raw(tmp_path / "one.qcow2")
            said = debugfs(f"{raw}?offset={part.offset}", f"cat {ENTRY}", "cat /etc/x")
            assert [line for line in said.splitlines() if "new" in line or line.startswith("x")] != []
            disk.check(raw, part)

    def test_root_is_not_there(self, tmp_path: Path, offline: Offline) -> None:
        """Files outside of /boot without a root filesystem: the disk is refused, not the run."""
        base = tmp_path / "base.raw"
        for part in write_table(base, [8]):
            mkfs(base, part, boot_tree(tmp_path / "tree"))
        with pytest.raises(HostileInput, match="need one root filesystem"), offline(base, root_too=True):
            pass

    def test_tools_missing(
        self, disk: GuestDisk, offline: Offline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Without debugfs the offline editor names the package."""
        (tmp_path / "sfdisk").symlink_to("/usr/sbin/sfdisk")
        monkeypatch.setattr("rehydrator.host._SYSTEM_PATH", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ToolMissing, match="apt-get install e2fsprogs"), offline(disk.base):
            pass
