"""Images at hand, out of which frames are taken that need not be read from the bundle then.

An image whose bytes lie open (raw, qcow2, VHD, VHDX, tar; not VMDK) has most of a pack's bytes,
and the recipe of the artifact that it is, or is an older version of, tells where. What is put
together so is a frame if it has the frame's digest; else the bundle is read as ever.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING

from rehydrator.bundle.manifest import PLAIN_DIGEST, PackSpace
from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import UsageError
from rehydrator.core.pack import DATA
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact, Manifest
    from rehydrator.bundle.reader import Bundle
    from rehydrator.core.pack import Frame


class Seeds:
    """Images at hand. Frames come from the first that has them."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._seeds: list[dict[int, _Runs]] = []
        self._lock = threading.Lock()
        self.taken = self.missed = 0

    def add(self, path: Path) -> Artifact:
        """Take frames from an image; the artifact that it is taken for.

        Raises:
            UsageError: no artifact of the bundle is like it, or it has no bytes that lie open.
        """
        file = FileReader(path)
        artifact = _artifact_like(self._bundle.manifest, path.name, file.size)
        runs = _runs(self._bundle, artifact, file)
        if not runs:
            raise UsageError(f"--seed {path}: nothing can be taken from it: what it has is compressed in it")
        self._seeds.append(runs)
        for number, pack in enumerate(self._bundle.packs()):
            pack.seed = self._seed_of(number)
        return artifact

    def _seed_of(self, pack: int) -> Callable[[Frame], bytes | None]:
        """What a pack asks for its frames."""
        digests = self._bundle.manifest.packs[pack].plain
        numbers = self._numbers(pack) if digests else {}

        def seed(frame: Frame) -> bytes | None:
            number = numbers.get(frame.start)
            if frame.kind != DATA or number is None or number >= len(digests):
                return None
            found = self._find(pack, frame, digests[number])
            with self._lock:
                self.taken += found is not None
                self.missed += found is None
            return found

        return seed

    def _numbers(self, pack: int) -> dict[int, int]:
        """The number of each data frame, by where its bytes begin."""
        frames = [frame for frame in self._bundle.packs()[pack].frames() if frame.kind == DATA]
        return {frame.start: number for number, frame in enumerate(frames)}

    def _find(self, pack: int, frame: Frame, digest: bytes) -> bytes | None:
        for runs in self._seeds:
            found = runs[pack].read(frame.start, frame.plain) if pack in runs else None
            if found is not None and frame_digest(found)[:PLAIN_DIGEST] == digest:
                return found
        return None


class _Runs:
    """Where bytes of one pack's space lie in a file: (start, length, offset in the file)."""

    def __init__(self, file: FileReader, runs: list[tuple[int, int, int]]) -> None:
        self._file, self._runs = file, sorted(runs)
        self._starts = [start for start, _, _ in self._runs]

    def read(self, start: int, length: int) -> bytes | None:
        """A span of the space; None where the file has not all of it."""
        made, end = bytearray(), start + length
        index = max(bisect_right(self._starts, start) - 1, 0)
        while start < end:
            if index >= len(self._runs):
                return None
            low, size, offset = self._runs[index]
            if low > start:
                return None
            take = min(end, low + size) - start
            if take > 0:
                if offset + start - low + take > self._file.size:
                    return None
                made += self._file.pread(offset + start - low, take)
                start += take
            index += 1
        return bytes(made)


def _artifact_like(manifest: Manifest, name: str, size: int) -> Artifact:
    """The artifact that a file is: by its name; by its size; or as an older version of it, by the
    parts of its name that are not the version."""
    artifacts = [each for each in manifest.artifacts() if each.image.space is not None]
    by_name = [each for each in artifacts if each.image.name == name]
    by_size = [each for each in artifacts if each.image.size == size]
    parts = _parts(name)
    alike = sorted(artifacts, key=lambda each: -len(parts & _parts(each.image.name)))
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


def _runs(bundle: Bundle, artifact: Artifact, file: FileReader) -> dict[int, _Runs]:
    """Which bytes of which packs lie open in an image."""
    space, found = artifact.image.space, dict[int, list[tuple[int, int, int]]]()
    assert space is not None
    for below, start, length, at in bundle.machine.copied(space, 0, artifact.image.size):
        held = bundle.manifest.spaces[below]
        if isinstance(held, PackSpace) and bundle.manifest.packs[held.pack].plain:
            found.setdefault(held.pack, []).append((start, length, at))
    return {pack: _Runs(file, runs) for pack, runs in found.items()}
