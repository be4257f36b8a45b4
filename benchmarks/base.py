"""What the tasks of the comparison share: the release, the scripts with their words filled in, rounds."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine, physical_memory, tools
from benchmarks.peers import PEERS
from benchmarks.steps import Steps, sha256
from rehydrator.metadata.names import SIGNATURE_SUFFIX, STREAM_DOCUMENT, parse_name

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers import Peer

CASES = ("openstack", "azure", "aws", "gcp", "metal", "iso")
TASKS = ("store", "obtain", "pipe", "all", "read", "startup", "cores", "levels", "scale")

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Options:
    """What the user asked for. `only`: these peers (none: all); `rounds` of getting files back,
    `store_rounds` of storing; `levels` of the table; `scale_data` in MB of data, `scale_virtual` in
    GiB, `scale_files` in number of files; `memory` and `patience` that
    bsdiff may have, GiB and processor seconds; `timeout` of a step in
    seconds; `minutes` after which no step is begun (0: none)."""

    release: Path
    work: Path
    corpus: str
    level: int
    rounds: int
    timeout: float
    tasks: tuple[str, ...] = TASKS
    only: tuple[str, ...] = ()
    store_rounds: int = 1
    levels: tuple[int, ...] = ()
    scale_data: tuple[int, ...] = ()
    scale_virtual: tuple[int, ...] = ()
    scale_files: tuple[int, ...] = ()
    scale_level: int = 3
    packed: int = 6
    memory: int = 8
    patience: int = 1800
    minutes: float = 0


@dataclass(frozen=True)
class File:
    """A file of the release; sizes in bytes, `allocated` as the file system counts."""

    name: str
    platform: str
    size: int
    allocated: int
    modified: int
    sha256: str


class OutOfTime(Exception):
    """The minutes that the user gave are over."""


class Base(Steps):
    """One run; `results` is what the document is written from."""

    def __init__(self, options: Options) -> None:
        super().__init__(options.release, options.work, options.timeout)
        self._options = options
        self._ends = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
        self.results = self._load()
        self._files = [File(**each) for each in self.results["files"]]
        self._canonical = next(each for each in self._files if each.name == self.results["canonical"])
        rootfs = (each.name for each in self._files if "live-rootfs" in each.name)
        self._rootfs = next(rootfs, "")

    def _wants(self, name: str) -> bool:
        return not self._options.only or name in self._options.only

    def _peers(self) -> list[Peer]:
        return [peer for peer in PEERS if self._wants(peer.name)]

    def _case(self, platform: str) -> File | None:
        return next((each for each in self._files if each.platform == platform), None)

    def _cases(self) -> list[File]:
        return [file for file in map(self._case, CASES) if file]

    # What is kept between runs

    def _load(self) -> dict[str, Any]:
        options = self._options
        settings = {
            "corpus": options.corpus,
            "level": options.level,
            "rounds": options.rounds,
            "store_rounds": options.store_rounds,
            "memory": options.memory,
            "patience": options.patience,
            "packed": options.packed,
            "scale_level": options.scale_level,
        }
        kept = self._found()
        known = {(each["name"], each["size"], each["modified"]): each for each in kept.get("files", ())}
        files = [_file(path, known) for path in sorted(options.release.iterdir()) if _is_artifact(path)]
        canonical = next((each.name for each in files if each.platform == "qemu"), None)
        if canonical is None:
            sys.exit("the release has no qemu image to measure against")
        start = {"files": [asdict(each) for each in files], "canonical": canonical}
        if any(kept.get(key) != value for key, value in start.items()):
            kept = {**start, "steps": {}}
            for name in ("stored", "prepared", "scratch"):
                self._fresh(name)
        taken = time.strftime("%Y-%m-%d", time.gmtime())
        return {**kept, "settings": settings, "taken": taken, "machine": machine(), "tools": tools()}

    # Steps

    def _fill(self, script: str, file: File | None = None, **more: str | int) -> str:
        file = file or self._canonical
        path, canonical = shlex.quote(f"release/{file.name}"), shlex.quote(f"release/{self._canonical.name}")
        rootfs = file.platform == "iso" and self._rootfs
        words: dict[str, str | int] = {
            "canonical": canonical,
            "canonical_name": shlex.quote(self._canonical.name),
            "file": path,
            "name": shlex.quote(file.name),
            "platform": file.platform,
            "level": self._options.level,
            "packed": self._options.packed,
            "memory": self._options.memory << 20,
            "most": physical_memory() * 3 // 4 >> 10,
            "patience": self._options.patience,
            "window": max(1 << 23, 1 << (self._canonical.size - 1).bit_length()),
            # The words of predecessor.py.
            "base": canonical,
            "plain": path,
            "source": shlex.quote(f"release/{rootfs}") if rootfs else canonical,
        }
        return script.format(**(words | more))

    def _adding(self, peer: Peer, file: File) -> str:
        return self._fill(peer.adding(file.name, shlex.quote(self._rootfs)), file)

    def _obtaining(self, peer: Peer, file: File) -> str:
        if file == self._canonical and (whole := peer.canonical):
            return f"cp {whole} scratch/back" if peer.writes else f"cat {whole}"
        return self._fill(peer.obtaining(file.name, shlex.quote(self._rootfs)), file)

    def _base(self, peer: Peer) -> str:
        return self._fill(peer.base) + "\n" if peer.base else ""

    def _step(self, key: str, script: str, of: str = "", keep: str = "") -> dict[str, Any]:
        if time.monotonic() > self._ends:
            raise OutOfTime
        return super()._step(key, script, of, keep)


def once_more(key: str, number: int) -> str:
    """The key of a step in another round; the first round has the plain one."""
    return f"round-{number}/{key}" if number else key


def pinned(processors: int, script: str) -> str:
    """A script that runs on so many of the processors that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))[:processors]
    return f"taskset -cp {','.join(map(str, allowed))} $$ > /dev/null\n{script}"


def _is_artifact(path: Path) -> bool:
    return path.is_file() and path.name != STREAM_DOCUMENT and not path.name.endswith(SIGNATURE_SUFFIX)


def _file(path: Path, known: dict[tuple[str, int, int], dict[str, Any]]) -> File:
    status = path.stat()
    if found := known.get((path.name, status.st_size, status.st_mtime_ns)):
        return File(**found)
    named = parse_name(path.name)
    platform = named.platform if named.role == "disk" and named.format != "iso" else named.format
    return File(path.name, platform, status.st_size, status.st_blocks * 512, status.st_mtime_ns, sha256(path))
