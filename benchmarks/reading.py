"""Tasks: read 1 MiB at a random place, cold; start-up.

read/rehydrator/ROUND        readers that were just opened, at many places (cold_read.py)
read/WHO/ROUND               one place, the whole command
startup/VERB/ROUND           list, print-stream-json

Half of the places are anywhere in the file, the others where it has data: most of a disk is a hole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.base import MIB, Base, File
from benchmarks.cache import cold

if TYPE_CHECKING:
    from pathlib import Path

PLACES = 20
COMMAND = "rehydrator-command"
PIPELINE = "pipeline"
_PLATFORM = "azure"  # a fixed VHD: as large as the disk
_VERBS = {
    "list": f"rehydrator list --bundle {peers.BUNDLE} > /dev/null",
    "print-stream-json": f"rehydrator print-stream-json --bundle {peers.BUNDLE} > /dev/null",
}

# What follows the range is not waited for, so that who gives a file from its beginning ends here, too.
_RANGE = "set +o pipefail\n{{ {obtain}\n}} | tail -c +{begin} | head -c {length} | sha256sum"


class Reading(Base):
    """Ranges of one large file, and commands that read no data at all."""

    def _read_all(self) -> None:
        file = self._case(_PLATFORM) or max(self._files, key=lambda each: each.size)
        length = min(MIB, file.size)
        anywhere, data = _places(self._release / file.name, length)
        for number in range(self._options.rounds):
            if self._wants(peers.REHYDRATOR):
                self._read_many(file, length, [*anywhere, *data], number)
            for who, script in self._readers(file, length, data[number % len(data)]):
                self._read_one(f"read/{who}/{number}", who, script, file, length, data[number % len(data)])

    def _readers(self, file: File, length: int, offset: int) -> list[tuple[str, str]]:
        words = {"offset": offset, "begin": offset + 1, "length": length}
        found = []
        if self._wants(peers.REHYDRATOR):
            found.append((COMMAND, _cold_read(file, length, [offset])))
        for peer in self._peers():
            if f"store/{peer.name}/{file.name}" not in self.results["steps"]:
                continue
            if self.results["steps"][f"store/{peer.name}/{file.name}"]["failed"]:
                continue
            if peer.read:
                found.append((peer.name, self._fill(f"{peer.read} | sha256sum", file, **words)))
            else:
                obtain = self._base(peer) + self._obtaining(peer, file)
                obtain += "\ncat scratch/back" if peer.writes else ""
                found.append((peer.name, _RANGE.format(obtain=obtain, **words)))
        return found

    def _read_many(self, file: File, length: int, offsets: list[int], number: int) -> None:
        key, script = f"read/{peers.REHYDRATOR}/{number}", _cold_read(file, length, offsets)
        if self._is_done(key, script, ".", self._code):
            return
        done = self._step(key, script, self._code)
        if not done["failed"]:
            done["reads"] = self._checked(done, file, length)
            done["exact"] = all(read["exact"] for read in done["reads"])
        self._record(key, done)

    def _read_one(self, key: str, who: str, script: str, file: File, length: int, offset: int) -> None:
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        for stored in (peers.REHYDRATOR if who == COMMAND else who, "floor"):
            cold(self._work / "stored" / stored)
        done = self._step(key, script, self._code)
        if done["failed"]:
            pass
        elif who == COMMAND:
            done["exact"] = all(read["exact"] for read in self._checked(done, file, length))
        else:
            wanted = _range_digest(self._release / file.name, offset, length)
            done["exact"] = done["stdout"].split()[:1] == [wanted]
        self._record(key, done)
        self._fresh("scratch")

    def _checked(self, done: dict[str, Any], file: File, length: int) -> list[dict[str, Any]]:
        """What cold_read said, with whether the bytes are those of the release."""
        path = self._release / file.name
        return [
            each
            | {
                "exact": each["sha256"] == _range_digest(path, each["offset"], length),
                "anywhere": number < PLACES // 2,
            }
            for number, each in enumerate(json.loads(done["stdout"]))
        ]

    def _startup(self) -> None:
        for number in range(self._options.rounds):
            for verb, script in _VERBS.items():
                key = f"startup/{verb}/{number}"
                if not self._is_done(key, script, ".", self._code):
                    self._record(key, self._step(key, script, self._code))


def _cold_read(file: File, length: int, offsets: list[int]) -> str:
    places = " ".join(map(str, offsets))
    return f"cold_read {peers.BUNDLE} {file.name} {length} stored/rehydrator {places}"


def _places(path: Path, length: int) -> tuple[list[int], list[int]]:
    """Offsets anywhere, and offsets of data, always the same."""
    dice, size = random.Random(5), path.stat().st_size
    anywhere = [dice.randrange(size - length + 1) for _ in range(PLACES // 2)]
    spans = _data(path)
    picked = dice.choices(spans, weights=[end - start for start, end in spans], k=PLACES // 2)
    data = [min(dice.randrange(start, end), size - length) for start, end in picked]
    return anywhere, data


def _data(path: Path) -> list[tuple[int, int]]:
    """Where a file has data, as its file system says (lseek(2), SEEK_DATA)."""
    spans, at = [], 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only a hole is left
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            spans.append((start, at))
    return spans


def _range_digest(path: Path, offset: int, length: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(length)).hexdigest()
