"""Real files of this machine, chosen so that the same machine gives the same choice."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TREES = ("/usr/bin", "/usr/lib/python3*", "/usr/lib/*-linux-gnu*", "/usr/share")
# Names that the protofile of mkfs.xfs and debugfs take as one word.
_PLAIN_NAME = re.compile(r"[\w.,+@:~=-]+\Z", re.ASCII)


def _regular_files() -> Iterator[tuple[str, int]]:
    trees = sorted(tree for pattern in _TREES for tree in Path("/").glob(pattern[1:]))
    for tree in trees:
        for folder, folders, names in os.walk(tree):
            folders[:] = sorted(name for name in folders if _PLAIN_NAME.match(name) and name != "__pycache__")
            for name in sorted(filter(_PLAIN_NAME.match, names)):
                path = os.path.join(folder, name)  # noqa: PTH118 - a tenth of the time over 60,000 files
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size and status.st_mode & stat.S_IROTH:
                    yield path, status.st_size


def choose_files(budget: int, seed: int) -> list[Path]:
    """About `budget` bytes of files, no file above an eighth of it; sorted."""
    files = [(path, size) for path, size in _regular_files() if size <= budget // 8]
    random.Random(seed).shuffle(files)
    chosen = []
    for path, size in files:
        if size <= budget:
            chosen.append(Path(path))
            budget -= size
        if budget < 4096:
            break
    return sorted(chosen)


def copy_files(files: Iterable[Path], tree: Path) -> None:
    """Copy files to the same paths below `tree`; access times become modification times."""
    for file in files:
        target = tree / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        status = file.stat()
        target.chmod(stat.S_IMODE(status.st_mode) & 0o755)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def kernel_like(files: Iterable[Path], size: int) -> bytes:
    """`size` bytes that look like a bzImage: a DOS header and one compressed stream of real bytes."""
    packed = b"MZ" + bytes(510)
    for file in files:
        packed += gzip.compress(file.read_bytes(), 9, mtime=0)
        if len(packed) >= size:
            break
    return packed[:size]


def newc(members: Mapping[str, tuple[int, bytes]], when: int = 0) -> bytes:
    """A cpio archive as Linux reads for its initramfs; `members` maps names to mode and content.
    `when` is the time of every member.

    Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    out = bytearray()
    for number, (name, (mode, data)) in enumerate([*members.items(), ("TRAILER!!!", (0, b""))], 1):
        out += _newc_header(number, name, mode, len(data), when) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def write_newc(target: Path, members: Mapping[str, tuple[int, Path]], when: int) -> None:
    """The same in a file, of directories and of files, which may be large; to whole blocks of 512 bytes
    as GNU cpio has it. A member of another mode than a file's has no content."""
    with target.open("wb") as out:
        for number, (name, (mode, source)) in enumerate(members.items(), 1):
            is_file = stat.S_ISREG(mode)
            size = source.stat().st_size if is_file else 0
            out.write(_newc_header(number, name, mode, size, when))
            if is_file:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
            out.write(bytes(-out.tell() % 4))
        out.write(_newc_header(len(members) + 1, "TRAILER!!!", 0, 0, when))
        out.write(bytes(-out.tell() % 512))


def _newc_header(number: int, name: str, mode: int, size: int, when: int) -> bytes:
    """110 bytes and the name; the data begins at a multiple of 4."""
    fields = (number, mode, 0, 0, 1, when, size, 0, 0, 0, 0, len(name) + 1, 0)
    out = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return out + bytes(-len(out) % 4)
