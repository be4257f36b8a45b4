"""Editing ext2/3/4 filesystems with debugfs: no mount, no root, no appliance, and identical bytes
for identical input.

debugfs ends with status 0 whatever happened, so nothing is believed: what it says on stderr beyond
its banner is an error, every file is read back and compared, and e2fsck has the last word.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from rehydrator import host
from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError
from rehydrator.host.guest_pages import Copies, check_ext
from rehydrator.host.guest_volumes import TIMEOUT, Entry, Superblock, Volume, superblock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# debugfs's command language (libss) splits at blanks and knows double quotes; <N> is an inode.
SAFE: Final = re.compile(r"(/[A-Za-z0-9_.@+=:,~%#^-]+)+\Z")
_LISTED: Final = re.compile(r"/(\d+)/(\d+)/(\d+)/(\d+)/([^/]+)/(\d*)/")
_KINDS: Final = {"100": "file", "040": "folder", "120": "link"}
_ATTRIBUTE: Final = re.compile(r"^  ((?:security|user|trusted|system)\.[\x21-\x7e]+) \(\d+\)", re.MULTILINE)
_FAST_LINK: Final = re.compile(r'^Fast link dest: "(.*)"$', re.MULTILINE)
_ACL_BLOCK: Final = re.compile(r"^File ACL: (\d+)", re.MULTILINE)
_BANNER: Final = re.compile(r"debugfs \d\S* \([^)]*\)\n?")
_MISSING: Final = "File not found by ext2_lookup"
_LABEL: Final = "security.selinux"


class NotOffline(RehydratorError):
    """This guest cannot be edited offline; another editor may."""


class Offline:
    """The debugfs back end. `work` is a directory of its own; write() may be called by several
    threads at once, for different disks."""

    def __init__(self, base: Path, epoch: int, work: Path) -> None:
        host.find("debugfs")
        host.find("e2fsck")
        self._base, self._work = base, work
        self._env = {"E2FSPROGS_FAKE_TIME": str(epoch), "E2FSCK_TIME": str(epoch)}
        self._copies = Copies(base, work)
        self._serial = itertools.count()
        (work / "base").symlink_to(base.absolute())

    def opens(self, volume: Volume) -> bool:
        return volume.kind == "ext"

    def entries(self, volume: Volume, folder: str) -> dict[str, Entry]:
        return {name: entry for name, (entry, _) in self._listed(self._base_image(volume), folder).items()}

    def target(self, volume: Volume, path: str) -> str:
        image = self._base_image(volume)
        fast = _FAST_LINK.search(self._ask(image, f"stat {_safe(path)}"))
        return fast[1] if fast else self._ask(image, f"cat {path}")

    def read(self, volume: Volume, path: str) -> bytes:
        with self._copies.folder() as folder:
            return self._dump(self._base_image(volume), path, folder)

    def prepare(self, volumes: list[Volume]) -> None:
        for volume in volumes:
            if volume.kind != "ext":
                raise NotOffline(f"{self._base}: {volume}: debugfs edits ext2, ext3 and ext4 only")
            obstacle = superblock(self._base, volume).obstacle
            if obstacle:
                raise NotOffline(f"{self._base}: {volume}: {obstacle}")
            said = check_ext(self._copies.name(self._copies.pristine(volume)), self._work, self._env)
            if said:
                raise NotOffline(f"{self._base}: {volume}: e2fsck finds it damaged: {said}")

    def write(self, disk: Path, files: Mapping[Volume, Mapping[str, bytes]]) -> None:
        self._copies.edit(disk, files, self._edit)

    def _base_image(self, volume: Volume) -> str:
        """Debugfs's name of a filesystem within the base, which it opens read-only."""
        return f"base?offset={volume.offset}"

    def _debugfs(self, image: str, *options: str) -> str:
        """What debugfs answers; raises what it complains of."""
        done = host.run(["debugfs", *options, image], TIMEOUT, cwd=self._work, env=self._env)
        complaint = _BANNER.sub("", done.said, count=1).strip()
        if done.status or complaint:
            raise RehydratorError(f"debugfs: {complaint or f'ended with status {done.status}'}")
        return done.stdout.decode(errors="surrogateescape")

    def _ask(self, image: str, command: str) -> str:
        return self._debugfs(image, "-R", command)

    def _listed(self, image: str, folder: str) -> dict[str, tuple[Entry, tuple[int, int, int]]]:
        """A directory: entry and (mode, owner, group) by name."""
        found = {}
        for line in self._ask(image, f"ls -p {_safe(folder)}").split("\n"):
            if not line:
                continue
            match = _LISTED.fullmatch(line)
            if not match:
                raise HostileInput(f"{folder}: a file name there is unreadable: {line!r:.80}")
            _, mode, owner, group, name, size = match.groups()
            entry = Entry(_KINDS.get(mode[:3], "other"), int(size or 0))
            found[name] = entry, (int(mode, 8), int(owner), int(group))
        for dots in (".", ".."):
            found.pop(dots, None)
        return found

    def _dump(self, image: str, path: str, folder: Path) -> bytes:
        target = folder / "dumped"
        target.unlink(missing_ok=True)
        self._ask(image, f"dump {_safe(path)} {self._copies.name(target)}")
        return target.read_bytes()

    def _room(self, volume: Volume, contents: Mapping[str, bytes]) -> None:
        """Old and new files lie side by side for a moment, and a directory may grow by a block."""
        found: Superblock = superblock(self._base, volume)
        needed = sum(-(-len(data) // found.block) + 1 for data in contents.values()) * found.block
        if needed > found.free:
            raise LimitExceeded(
                f"full: the new files need {needed} bytes, {found.free} are free; "
                "make this filesystem larger, or the files smaller"
            )

    def _edit(self, volume: Volume, edited: str, contents: Mapping[str, bytes], folder: Path) -> None:
        self._room(volume, contents)
        self._replace(edited, contents, folder)
        self._verify(edited, contents, folder)

    def _replace(self, edited: str, contents: Mapping[str, bytes], folder: Path) -> None:
        commands: list[str] = []
        made: set[str] = set()
        loose = False
        for number, (path, data) in enumerate(contents.items()):
            source = folder / f"new-{number}"
            source.write_bytes(data)
            parent, _, name = _safe(path).rpartition("/")
            commands += self._folders(edited, parent, made, folder)
            old = {} if parent in made else self._listed(edited, parent or "/")
            commands += [f"cd {parent or '/'}"]
            if name in old:
                commands += self._replaced(edited, path, old, source, folder)
                loose = loose or self._has_block(edited, path)
            else:
                commands += [f"write {self._copies.name(source)} {name}", *_mode(name, 0o100644, 0, 0)]
                commands += self._labelled(edited, parent, name, made, folder)
        script = folder / "commands"
        script.write_text("".join(f"{command}\n" for command in commands), encoding="utf-8")
        self._debugfs(edited, "-w", "-f", self._copies.name(script))
        if loose:
            # debugfs 1.47.0's rm leaves the block of the old file's attributes allocated.
            host.run(["e2fsck", "-fp", edited], TIMEOUT, cwd=self._work, env=self._env)

    def _replaced(
        self,
        edited: str,
        path: str,
        old: Mapping[str, tuple[Entry, tuple[int, int, int]]],
        source: Path,
        folder: Path,
    ) -> list[str]:
        name = path.rpartition("/")[2]
        entry, (mode, owner, group) = old[name]
        new = f"{name}.tmp"
        if entry.kind != "file":
            raise RehydratorError(f"{path} is a {entry.kind}, not a file that could be replaced")
        commands = [f"rm {new}"] if new in old else []
        commands += [f"write {self._copies.name(source)} {new}", *_mode(new, mode, owner, group)]
        commands += self._attributes(edited, path, new, folder)
        return [*commands, f"rm {name}", f"ln {new} {name}", f"unlink {new}"]

    def _attributes(self, edited: str, path: str, name: str, folder: Path, only: str = "") -> list[str]:
        """Commands that give `name` the extended attributes that `path` has."""
        listed = _ATTRIBUTE.findall(self._ask(edited, f"ea_list {path}"))
        commands = []
        for attribute in listed:
            # system.data is the content of a small file, not an attribute (inline_data).
            if attribute == "system.data" or (only and attribute != only):
                continue
            if not SAFE.match(f"/{attribute}"):
                raise RehydratorError(f"{path}: an extended attribute has a strange name: {attribute!r:.80}")
            value = self._copies.name(folder / f"attribute-{next(self._serial)}")
            self._ask(edited, f"ea_get -r -f {value} {path} {attribute}")
            commands.append(f"ea_set -r -f {value} {name} {attribute}")
        return commands

    def _labelled(self, edited: str, parent: str, name: str, made: set[str], folder: Path) -> list[str]:
        """A new file's SELinux label is that of the nearest directory that was there."""
        while parent in made:
            parent = parent.rpartition("/")[0]
        return self._attributes(edited, parent or "/", name, folder, _LABEL)

    def _folders(self, edited: str, parent: str, made: set[str], folder: Path) -> list[str]:
        """Commands that make the directories of a new file, and add them to `made`."""
        commands: list[str] = []
        above = ""
        for name in parent.split("/")[1:]:
            path = f"{above}/{name}"
            known = path in made
            listed = {} if known or above in made else self._listed(edited, above or "/")
            if not known and name not in listed:
                commands += [f"cd {above or '/'}", f"mkdir {name}", *_mode(name, 0o040755, 0, 0)]
                commands += self._labelled(edited, above, name, made, folder)
                made.add(path)
            above = path
        return commands

    def _has_block(self, edited: str, path: str) -> bool:
        found = _ACL_BLOCK.search(self._ask(edited, f"stat {path}"))
        return found is not None and found[1] != "0"

    def _verify(self, edited: str, contents: Mapping[str, bytes], folder: Path) -> None:
        said = check_ext(edited, self._work, self._env)
        if said:
            raise RehydratorError(
                f"debugfs left the filesystem damaged, so this disk is not done: {said}; try --editor guestfs"
            )
        for path, data in contents.items():
            if self._dump(edited, path, folder) != data:
                raise RehydratorError(f"debugfs did not write {path} as it was told; try --editor guestfs")


def _mode(name: str, mode: int, owner: int, group: int) -> list[str]:
    fields = {"mode": f"0{mode:o}", "uid": owner, "gid": group}
    return [f"set_inode_field {name} {field} {value}" for field, value in fields.items()]


def _safe(path: str) -> str:
    if path != "/" and not SAFE.match(path):
        raise NotOffline(
            f"{path!r:.120}: debugfs cannot be given a name with such characters; try --editor guestfs"
        )
    return path
