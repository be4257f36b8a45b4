"""Small raw disks with a boot filesystem, for the tests of guest editing."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
EPOCH = 1_600_000_000
ENTRY = "/boot/loader/entries/ostree-1-demo.conf"
CONSOLE = "/boot/grub2/console.cfg"
TABLE = "/boot/coreos/platforms.json"
OLD = {ENTRY: b"title Demo\noptions root=x\n", CONSOLE: b"# console\n"}
LABEL = b"system_u:object_r:boot_t:s0\0"
FOLDER_LABEL = b"system_u:object_r:folder_t:s0\0"


def run(*argv: object, code: int = 0, **options: object) -> str:
    """Run a program that must end with `code`; what it printed."""
    done = subprocess.run([*map(str, argv)], capture_output=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    return str(done.stdout.decode(errors="replace"))


def debugfs(image: object, *commands: str, write: bool = False) -> str:
    """What debugfs answers to commands."""
    script = "\n".join(commands) + "\n"
    options = ["-w"] if write else []
    return run("debugfs", *options, "-f", "/dev/stdin", image, input=script.encode())


@dataclass(frozen=True)
class Part:
    """A partition's place in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class GuestDisk:
    """A raw disk: partition 2 is the boot filesystem, 3 the root."""

    base: Path
    boot: Part
    root: Part

    def overlay(self, path: Path, size: int | None = None) -> Path:
        """A qcow2 overlay of it."""
        more = [str(size)] if size else []
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", "raw", path, *more)
        return path

    def raw(self, overlay: Path) -> Path:
        """An overlay's guest disk as a raw file."""
        target = overlay.with_suffix(".raw")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, target)
        return target

    def content(self, raw: Path, path: str) -> bytes:
        """A file of the guest, read with debugfs."""
        part, inside = (self.boot, path[5:]) if path.startswith("/boot/") else (self.root, path)
        target = raw.with_name("dumped")
        target.unlink(missing_ok=True)
        debugfs(f"{raw}?offset={part.offset}", f"dump {inside} {target}")
        return target.read_bytes()

    def facts(self, raw: Path, path: str) -> tuple[int, int, int, dict[str, bytes]]:
        """Mode, owner, group and extended attributes of a file of the guest."""
        part, inside = (self.boot, path[5:]) if path.startswith("/boot/") else (self.root, path)
        image, target = f"{raw}?offset={part.offset}", raw.with_name("attribute")
        said = debugfs(image, f"stat {inside}")
        numbers = [re.search(rf"{what}: +(\d+)", said) for what in ("Mode", "User", "Group")]
        mode, owner, group = (match[1] for match in numbers if match)
        found = {}
        for name in re.findall(r"^  (\S+) \(\d+\)", debugfs(image, f"ea_list {inside}"), re.MULTILINE):
            debugfs(image, f"ea_get -f {target} {inside} {name}")
            found[name] = target.read_bytes()
        return int(mode, 8), int(owner), int(group), found

    def check(self, raw: Path, part: Part) -> None:
        """Fails unless the filesystem is clean."""
        piece = raw.with_name("piece")
        with raw.open("rb") as file:
            file.seek(part.offset)
            piece.write_bytes(file.read(part.size))
        run("e2fsck", "-fn", piece)


def boot_tree(tree: Path) -> Path:
    """The files of a boot filesystem as ostree lays it out: loader is a symlink."""
    for path, data in OLD.items():
        target = tree / path[6:].replace("loader/", "loader.0/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (tree / "loader").symlink_to("loader.0")
    (tree / "boot").symlink_to(".")
    return tree


def write_table(path: Path, sizes: list[int]) -> list[Part]:
    """A GPT with partitions of some MiB each."""
    at, parts, lines = MIB, [], ["label: gpt"]
    for size in sizes:
        parts.append(Part(at, size * MIB))
        lines.append(f"start={at // 512}, size={size * MIB // 512}")
        at += size * MIB
    with path.open("wb") as file:
        file.truncate(at + MIB)
    run("sfdisk", "--quiet", path, input="\n".join(lines).encode())
    return parts


def mkfs(path: Path, part: Part, tree: Path, *options: str) -> None:
    """An ext4 filesystem filled from a directory, within a disk."""
    place = f"offset={part.offset},root_owner=0:0,lazy_itable_init=0,nodiscard"
    run("mkfs.ext4", "-q", "-F", *options, "-E", place, "-d", tree, path, f"{part.size // 1024}k")


def make_disk(folder: Path, *options: str) -> GuestDisk:
    """A disk with a BIOS boot partition, /boot (12 MiB) and the root filesystem (8 MiB)."""
    base = folder / "base.raw"
    _, boot, root = write_table(base, [1, 12, 8])
    mkfs(base, boot, boot_tree(folder / "boot"), *options)
    tree = folder / "root"
    for each in ("etc", "usr", "boot"):
        (tree / each).mkdir(parents=True)
    (tree / "etc/hostname").write_text("demo\n")
    mkfs(base, root, tree)
    label, more = folder / "label", folder / "folder-label"
    label.write_bytes(LABEL)
    more.write_bytes(FOLDER_LABEL)
    debugfs(
        f"{base}?offset={boot.offset}",
        f"ea_set -f {label} {CONSOLE[5:]} security.selinux",
        f"ea_set -f {more} / security.selinux",
        f"ea_set -f {more} /grub2 security.selinux",
        f"set_inode_field {CONSOLE[5:]} mode 0100600",
        f"set_inode_field {CONSOLE[5:]} uid 7",
        f"set_inode_field {CONSOLE[5:]} gid 8",
        write=True,
    )
    return GuestDisk(base, boot, root)
