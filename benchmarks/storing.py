"""Tasks: store the whole release, add a sibling; and the table of levels.

floor                      zstd of the canonical qcow2 alone
store/PEER/start, /FILE    the canonical qcow2, then each sibling
build                      rehydrator's bundle of the whole release, and what each file adds to it
without/FILE               the same release without one sibling
level/N/floor, /build      both at another level
round-N/...                the same once more
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.base import Base, File, once_more
from benchmarks.measure import measure

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers import Peer

CHECKED = ("openstack", "vmware")  # left out of the release, to see what the bundle shrinks by


class Storing(Base):
    """What tools store of the release."""

    def _store_all(self) -> None:
        for number in range(self._options.store_rounds):
            self._floor(number)
            if self._wants(peers.REHYDRATOR):
                self._build(number)
            for peer in self._peers():
                self._store(peer, number)
        if self._wants(peers.REHYDRATOR):
            self._build_without()

    def _floor(self, number: int = 0) -> None:
        key, script = once_more("floor", number), self._fill(peers.FLOOR_COMMAND)
        if not self._is_done(key, script, peers.FLOOR):
            self._fresh("stored/floor")
            self._record(key, self._step(key, script, keep="floor"))

    # Peers

    def _store(self, peer: Peer, number: int) -> None:
        siblings = [each for each in self._files if each != self._canonical]
        place, home = once_more(f"store/{peer.name}", number), f"stored/{peer.name}"
        steps = {f"{place}/start": self._fill(peer.start)}
        steps |= {f"{place}/{each.name}": self._adding(peer, each) for each in siblings}
        done = [self._is_done(key, script, home) for key, script in steps.items()]
        if all(done):
            return
        prepared = self._work / "prepared" / peer.name
        if peer.cumulative or not done[0] or not prepared.exists():
            self._fresh(home)
            self._fresh(f"prepared/{peer.name}")
            done = [False] * len(done)
            for key in steps:
                self.results["steps"].pop(key, None)
        for (key, script), finished in zip(steps.items(), done, strict=True):
            if not finished:
                self._store_one(peer, key, script)
        # Files come back from nothing but what is stored; the disk is needed, too.
        shutil.rmtree(prepared)

    def _store_one(self, peer: Peer, key: str, script: str) -> None:
        home = self._work / "stored" / peer.name
        self._fresh("scratch")
        if not peer.cumulative:
            _remove_delta(home, key)
        done = self._step(key, script, keep=peer.name)
        if done["failed"] and not peer.cumulative:
            _remove_delta(home, key)
            done["stored"] = 0
        self._record(key, done)
        self._fresh("scratch")

    # Rehydrator's bundle

    def _build(self, number: int = 0) -> None:
        key, script = once_more("build", number), self._fill(peers.BUILD)
        if self._is_done(key, script, "stored/rehydrator/index.json", self._code):
            return
        self._fresh("stored/rehydrator")
        done = self._step(key, script, self._code, keep="rehydrator")
        info = measure(f"rehydrator info --json --bundle {peers.BUNDLE}", self._work, 600)
        if done["failed"] or info.failed:
            sys.exit(f"the bundle was not built: {done['failed'] or info.failed}")
        told = _told(json.loads(info.stdout))
        if left_out := [each.name for each in self._files if each.name not in told["adds"]]:
            sys.exit(f"{', '.join(left_out)}: not in the bundle; does the release's stream.json name them?")
        self._record(key, done | told)

    def _build_without(self) -> None:
        """Build without a sibling: what the bundle shrinks by is what that sibling added."""
        for left_out in filter(None, map(self._case, CHECKED)):
            key, home = f"without/{left_out.name}", "stored/without"
            script = self._fill(peers.BUILD).replace(" release ", " prepared/without ")
            script = script.replace("stored/rehydrator", home)
            if self._is_done(key, script, ".", self._code):
                continue
            self._fresh("prepared/without")
            self._fresh(home)
            for each in self._files:
                if each != left_out:
                    self._copy(each, f"prepared/without/{each.name}")
            self._record(key, self._step(key, script, self._code, keep="without"))
            self._fresh("prepared/without")
            self._fresh(home)

    def _copy(self, file: File, target: str) -> None:
        self._make(f"cp -p {shlex.quote(f'release/{file.name}')} {shlex.quote(target)}")

    # Levels

    def _levels(self) -> None:
        for level in self._options.levels:
            if level != self._options.level:
                self._level(level, "floor", peers.FLOOR_COMMAND, "")
                if self._wants(peers.REHYDRATOR):
                    self._level(level, "build", peers.BUILD, self._code)

    def _level(self, level: int, what: str, command: str, of: str) -> None:
        key = f"level/{level}/{what}"
        script = self._fill(command, level=level).replace("stored/floor", "stored/level")
        script = script.replace("stored/rehydrator", "stored/level")
        if not self._is_done(key, script, ".", of):
            self._fresh("stored/level")
            self._record(key, self._step(key, script, of, keep="level"))
            self._fresh("stored/level")


def _told(info: dict[str, Any]) -> dict[str, Any]:
    """What the bundle says of itself."""
    artifacts = info["artifacts"]
    return {
        "bundle": info["bundle"]["bytes stored"],
        "adds": {each["file"]: each["how"]["cost"] for each in artifacts},
        "rungs": {
            each["file"]: f"{each['how']['rung']} {each['how'].get('format') or ''}".strip()
            for each in artifacts
        },
    }


def _remove_delta(home: Path, key: str) -> None:
    """What an interrupted or failed step left of its delta."""
    for path in home.iterdir():
        if path.stem == key.rpartition("/")[2]:
            path.unlink()
