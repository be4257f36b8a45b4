"""Images at hand, out of which frames are taken that need not be read from the bundle then.

An image whose bytes lie open (raw, qcow2, VHD, VHDX, tar; not VMDK) has most of a pack's bytes,
and the recipe of the artifact that it is, or is an older version of, tells where. So has a disk that
an image was written to. What is put together so is a frame if it has the frame's digest; else the
bundle is read as ever.
"""

from __future__ import annotations

import os
import stat
import threading
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.bundle.manifest import PLAIN_DIGEST, PackSpace
from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import HostileInput, RehydratorError, UsageError
from rehydrator.core.pack import DATA
from rehydrator.core.reader import check_span
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact, Manifest
    from rehydrator.bundle.reader import Bundle
    from rehydrator.core.pack import Frame
    from rehydrator.core.reader import Reader

# Copies that are looked at to find what an image has; each takes 200 bytes, and a recipe of hostile
# recipes may have any number.
_MOST_RUNS = 1 << 17

# Frames of each raw image, of 8 or 16 MiB mostly, that are looked for on a disk to tell which it has.
_SAMPLES = 4
_RAW = (".raw", ".img")


class Amount(NamedTuple):
    """Data frames, and the bytes that they have in the bundle."""

    frames: int
    stored: int


def _sum(stored: Iterable[int]) -> Amount:
    sizes = list(stored)
    return Amount(len(sizes), sum(sizes))


class Seeds:
    """Images at hand. Frames come from the first that has them."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._seeds: list[dict[int, _Runs]] = []
        self._lock = threading.Lock()
        self._asked: dict[tuple[int, int], tuple[int, bool]] = {}
        self._known: dict[int, dict[int, bytes]] = {}

    @property
    def asked(self) -> Amount:
        """What was needed."""
        return _sum(stored for stored, _ in self._asked.values())

    @property
    def taken(self) -> Amount:
        """What of it came from an image at hand, whenever it was needed."""
        return _sum(stored for stored, was_taken in self._asked.values() if was_taken)

    def add(self, path: Path) -> Artifact:
        """Take frames from an image; the artifact that it is taken for.

        Raises:
            UsageError: it is neither a file nor a disk, no artifact of the bundle is like it, or it
                has no bytes that lie open.
        """
        file = _opened(path)
        if not any(pack.plain for pack in self._bundle.manifest.packs):
            raise UsageError(
                f"--seed {path}: of no use: this bundle is small, or older than seeds are; leave --seed out"
            )
        artifact = (
            self._artifact_on(file)
            if isinstance(file, _Disk)
            else _artifact_like(self._bundle.manifest, path.name, file.size)
        )
        runs = _runs(self._bundle, artifact, file)
        if not runs:
            raise UsageError(
                f"--seed {path}: nothing can be taken from a file like {artifact.image.name}, whose bytes "
                "are compressed or too few; give a raw disk, a VHD, a VHDX, a tar, or a qcow2 that is not "
                "compressed"
            )
        self._seeds.append(runs)
        for number, pack in enumerate(self._bundle.packs()):
            pack.seed = self._seed_of(number)
        return artifact

    def _artifact_on(self, disk: _Disk) -> Artifact:
        """The raw image that a disk has, whose name says nothing, by some of its frames."""
        artifacts = [
            each
            for each in self._bundle.manifest.artifacts()
            if each.image.space is not None and each.image.name.endswith(_RAW)
        ]
        if not artifacts:
            raise UsageError(f"--seed {disk.path}: this bundle has no raw image, as which a disk is read")
        if len(artifacts) == 1:
            return artifacts[0]
        return max(artifacts, key=lambda each: self._matches(_runs(self._bundle, each, disk)))

    def _matches(self, runs: dict[int, _Runs]) -> int:
        """How many of some frames are there."""
        found = 0
        for pack, those in runs.items():
            frames = [frame for frame in self._bundle.packs()[pack].frames() if frame.kind == DATA]
            for frame in frames[:: -(-len(frames) // _SAMPLES)]:
                data = those.read(frame.start, frame.plain)
                digest = self._digests(pack).get(frame.start)
                found += data is not None and frame_digest(data)[:PLAIN_DIGEST] == digest
        return found

    def _seed_of(self, pack: int) -> Callable[[Frame], bytes | None]:
        """What a pack asks for its frames."""

        def seed(frame: Frame) -> bytes | None:
            if frame.kind != DATA:
                return None
            digest = self._digests(pack).get(frame.start)
            found = self._find(pack, frame, digest) if digest else None
            with self._lock:
                key = pack, frame.start
                _, was_taken = self._asked.get(key, (0, True))
                self._asked[key] = frame.stored, was_taken and found is not None
            return found

        return seed

    def _digests(self, pack: int) -> dict[int, bytes]:
        """The digest of each data frame of a pack, by where its bytes begin."""
        if pack not in self._known:
            frames = (frame for frame in self._bundle.packs()[pack].frames() if frame.kind == DATA)
            digests = self._bundle.manifest.packs[pack].plain
            self._known[pack] = {frame.start: digest for frame, digest in zip(frames, digests, strict=False)}
        return self._known[pack]

    def _find(self, pack: int, frame: Frame, digest: bytes) -> bytes | None:
        for runs in self._seeds:
            found = runs[pack].read(frame.start, frame.plain) if pack in runs else None
            if found is not None and frame_digest(found)[:PLAIN_DIGEST] == digest:
                return found
        return None


class _Disk:
    """A block device, read with pread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = os.lseek(self._descriptor, 0, os.SEEK_END)

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, str(self.path))
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise HostileInput(f"{self.path}: ended while it was read")
        return data

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _opened(path: Path) -> FileReader | _Disk:
    mode = path.stat().st_mode
    if stat.S_ISBLK(mode):
        return _Disk(path)
    if not stat.S_ISREG(mode):
        raise UsageError(f"--seed {path}: neither a file nor a disk; name an image, or a disk that has one")
    return FileReader(path)


class _Runs:
    """Where bytes of one pack's space lie in a file: (start, length, offset in the file)."""

    def __init__(self, file: Reader, runs: Iterable[tuple[int, int, int]]) -> None:
        self._file = file
        self._runs = list(_apart(sorted(runs)))
        self._starts = [start for start, _, _ in self._runs]

    def read(self, start: int, length: int) -> bytes | None:
        """A span of the space; None where the file has not all of it, or cannot be read."""
        spans = self._spans(start, start + length)
        if spans is None:
            return None
        try:
            return b"".join([self._file.pread(offset, part) for offset, part in spans])
        except (RehydratorError, OSError):
            # Shorter than it was, or a disk that is broken there; the bundle has it.
            return None

    def _spans(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """Where a span lies in the file: (offset, length)."""
        spans, index = [], max(bisect_right(self._starts, start) - 1, 0)
        for low, size, offset in islice(self._runs, index, None):
            if start >= end or low > start:
                break
            part = min(end, low + size) - start
            if part <= 0:
                return None
            if offset + start - low + part > self._file.size:
                return None
            spans.append((offset + start - low, part))
            start += part
        return spans if start >= end else None


def _apart(runs: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Ascending runs without what those before them have."""
    end = 0
    for start, length, offset in runs:
        skip = max(end - start, 0)
        if length > skip:
            yield start + skip, length - skip, offset + skip
            end = start + length


def _artifact_like(manifest: Manifest, name: str, size: int) -> Artifact:
    """The artifact that a file is: by its name; by its size; or as an older version of it, by the
    parts of its name that are not the version."""
    artifacts = [each for each in manifest.artifacts() if each.image.space is not None]
    by_name = [each for each in artifacts if each.image.name == name]
    parts = _parts(name)
    alike = sorted(artifacts, key=lambda each: -len(parts & _parts(each.image.name)))
    by_size = [each for each in alike if each.image.size == size]
    found = by_name or by_size or [each for each in alike[:1] if parts & _parts(each.image.name)]
    if not found:
        raise UsageError(
            f"--seed {name}: like none of this bundle's images; name it as the one that it is an older "
            "version of"
        )
    return found[0]


def _parts(name: str) -> set[str]:
    """Words of a name: platform, architecture, suffix, and not its numbers."""
    words = name.replace("-", ".").split(".")
    return {word for word in words if word and not word[0].isdigit()}


def _runs(bundle: Bundle, artifact: Artifact, file: Reader) -> dict[int, _Runs]:
    """Which bytes of which packs lie open in an image."""
    space, found = artifact.image.space, dict[int, list[tuple[int, int, int]]]()
    assert space is not None
    copied = bundle.machine.copied(space, 0, artifact.image.size)
    for below, start, length, at in islice(copied, _MOST_RUNS):
        held = bundle.manifest.spaces[below]
        if isinstance(held, PackSpace) and bundle.manifest.packs[held.pack].plain:
            found.setdefault(held.pack, []).append((start, length, at))
    return {pack: _Runs(file, runs) for pack, runs in found.items()}
