"""The steps of the comparison, each kept as soon as it is done: an interrupted run goes on behind it.

floor                        zstd of the canonical qcow2 alone
store/PEER/start, /FILE      the canonical qcow2, then each sibling
build                        rehydrator's bundle of the whole release, and what each file adds to it
without/FILE                 the same release without one sibling
obtain/PLATFORM/WHO/ROUND    a file back, verified, from what is stored
huge/build, huge/rehydrate   a raw disk of 100 GiB beside the canonical qcow2
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.machine import machine, tools
from benchmarks.measure import measure
from benchmarks.peers import PEERS, Peer
from benchmarks.steps import Steps, sha256, size
from rehydrator.metadata.names import STREAM_DOCUMENT, parse_name

if TYPE_CHECKING:
    from pathlib import Path

CASES = ("openstack", "azure", "aws")
CHECKED = ("openstack", "vmware")  # left out of the release, to see what the bundle shrinks by
LARGE = "ibmcloud"  # a qcow2 of a disk of 100 GiB
PIPELINE, OPENSSL, TO_PIPE = "pipeline", "pipeline-openssl", "rehydrator-pipe"

GIB = 1 << 30


@dataclass(frozen=True)
class Options:
    """What the user asked for; `huge` in GiB, 0: left out; `timeout` of a step in seconds."""

    release: Path
    work: Path
    corpus: str
    level: int
    rounds: int
    huge: int
    timeout: float
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of the release; sizes in bytes, `allocated` as the file system counts."""

    name: str
    platform: str
    size: int
    allocated: int
    modified: int
    sha256: str


class Comparison(Steps):
    """One run; `results` is what the document is written from."""

    def __init__(self, options: Options) -> None:
        super().__init__(options.release, options.work, options.timeout)
        self._options = options
        self.results = self._load()
        self._files = [File(**each) for each in self.results["files"]]
        self._canonical = next(each for each in self._files if each.name == self.results["canonical"])

    def run(self) -> None:
        """Every step that is not done yet."""
        self._check_space()
        self._floor()
        for peer in self._peers():
            self._store(peer)
        if self._wanted(peers.REHYDRATOR):
            self._build()
            self._build_without()
        self._obtain_all()
        if self._options.huge and self._wanted(peers.REHYDRATOR):
            self._huge()

    def _wanted(self, name: str) -> bool:
        return not self._options.only or name in self._options.only

    def _peers(self) -> list[Peer]:
        return [peer for peer in PEERS if self._wanted(peer.name)]

    # What is kept between runs

    def _load(self) -> dict[str, Any]:
        options = self._options
        settings = {"corpus": options.corpus, "level": options.level, "rounds": options.rounds}
        kept = self._found()
        known = {(each["name"], each["size"], each["modified"]): each for each in kept.get("files", ())}
        paths = [path for path in sorted(options.release.iterdir()) if path.is_file()]
        files = [_file(path, known) for path in paths if path.name != STREAM_DOCUMENT]
        canonical = next((each.name for each in files if each.platform == "qemu"), None)
        if canonical is None:
            sys.exit("the release has no qemu image to measure against")
        start = {"settings": settings, "files": [asdict(each) for each in files], "canonical": canonical}
        if any(kept.get(key) != value for key, value in start.items()):
            kept = {**start, "steps": {}}
        taken = time.strftime("%Y-%m-%d", time.gmtime())
        return {**kept, "huge": options.huge, "taken": taken, "machine": machine(), "tools": tools()}

    def _check_space(self) -> None:
        """Room for every peer's worst case (a delta as large as its file), and one file as it comes back."""
        needed = 4 * sum(each.allocated for each in self._files) + GIB
        needed += max(each.size for each in self._files if each.platform in CASES)
        free = shutil.disk_usage(self._work).free + size(self._work / "stored")
        if free < needed:
            sys.exit(f"the comparison needs {needed >> 20:,} MiB of disk space; {free >> 20:,} MiB are free")

    def _fill(self, script: str, file: File | None = None) -> str:
        file = file or self._canonical
        return script.format(
            canonical=shlex.quote(f"release/{self._canonical.name}"),
            canonical_name=shlex.quote(self._canonical.name),
            file=shlex.quote(f"release/{file.name}"),
            name=shlex.quote(file.name),
            platform=file.platform,
            level=self._options.level,
            window=max(1 << 23, 1 << (self._canonical.size - 1).bit_length()),
        )

    # Storing

    def _floor(self) -> None:
        script = self._fill(peers.FLOOR_COMMAND)
        if not self._is_done("floor", script, peers.FLOOR):
            self._fresh("stored/floor")
            self._record("floor", self._step("floor", script, keep="floor"))

    def _store(self, peer: Peer) -> None:
        siblings = [each for each in self._files if each != self._canonical]
        steps = {f"store/{peer.name}/start": self._fill(peer.start)}
        steps |= {f"store/{peer.name}/{each.name}": self._fill(peer.add, each) for each in siblings}
        home = f"stored/{peer.name}"
        done = [self._is_done(key, script, home) for key, script in steps.items()]
        if all(done):
            return
        if peer.cumulative or not done[0]:
            self._fresh(home)
            self._fresh(f"prepared/{peer.name}")
            done = [False] * len(done)
            for key in steps:
                self.results["steps"].pop(key, None)
        for (key, script), finished in zip(steps.items(), done, strict=True):
            if not finished:
                self._store_one(peer, key, script)

    def _store_one(self, peer: Peer, key: str, script: str) -> None:
        home = self._work / "stored" / peer.name
        if not peer.cumulative:
            _remove_delta(home, key)
        done = self._step(key, script, keep=peer.name)
        if done["failed"] and not peer.cumulative:
            _remove_delta(home, key)
            done["stored"] = 0
        self._record(key, done)

    # Rehydrator's bundle

    def _build(self) -> None:
        script = self._fill(peers.BUILD)
        if self._is_done("build", script, "stored/rehydrator/index.json", self._code):
            return
        self._fresh("stored/rehydrator")
        done = self._step("build", script, self._code, keep="rehydrator")
        info = measure("rehydrator info --json --bundle oci:stored/rehydrator:bench", self._work, 600)
        if done["failed"] or info.failed:
            sys.exit(f"the bundle was not built: {done['failed'] or info.failed}")
        told = json.loads(info.stdout)
        done["bundle"] = told["bundle"]["bytes stored"]
        done["adds"] = {each["file"]: each["how"]["cost"] for each in told["artifacts"]}
        done["rungs"] = {
            each["file"]: f"{each['how']['rung']} {each['how'].get('format') or ''}".strip()
            for each in told["artifacts"]
        }
        self._record("build", done)

    def _build_without(self) -> None:
        """Build without a sibling: what the bundle shrinks by is what that sibling added."""
        for platform in CHECKED:
            left_out = next((each for each in self._files if each.platform == platform), None)
            if left_out is None:
                continue
            key, home = f"without/{left_out.name}", "stored/without"
            script = self._fill(peers.BUILD).replace(" release ", " prepared/without ")
            script = script.replace("stored/rehydrator", home)
            if self._is_done(key, script, ".", self._code):
                continue
            self._fresh("prepared/without")
            self._fresh(home)
            others = [each for each in self._files if each != left_out]
            for each in others:
                self._copy(each, f"prepared/without/{each.name}")
            self._record(key, self._step(key, script, self._code, keep="without"))
            self._fresh("prepared/without")
            self._fresh(home)

    def _copy(self, file: File, target: str) -> None:
        self._make(f"cp -p {shlex.quote(f'release/{file.name}')} {shlex.quote(target)}")

    # Getting files back

    def _obtain_all(self) -> None:
        """Round by round, in turn, so that what else the machine does meets all alike."""
        for platform in CASES:
            file = next(each for each in self._files if each.platform == platform)
            for number in range(self._options.rounds):
                for who, script in self._obtainers(file):
                    self._obtain(f"obtain/{platform}/{who}/{number}", who, script, file)
        large = next((each for each in self._files if each.platform == LARGE), None)
        if large and self._wanted(peers.REHYDRATOR):
            script = self._fill(peers.REHYDRATE, large)
            self._obtain(f"obtain/{LARGE}/{peers.REHYDRATOR}/0", peers.REHYDRATOR, script, large)

    def _obtainers(self, file: File) -> list[tuple[str, str]]:
        found = []
        if file.platform == CASES[0]:
            found.append((PIPELINE, f"{peers.PIPELINE} | tee scratch/back | sha256sum"))
            found.append((OPENSSL, f"{peers.PIPELINE} | tee scratch/back | openssl dgst -sha256 -r"))
        if self._wanted(peers.REHYDRATOR):
            found.append((peers.REHYDRATOR, self._fill(peers.REHYDRATE, file)))
            if file.platform == CASES[0]:
                found.append((TO_PIPE, self._fill(peers.TO_PIPE, file)))
        steps = self.results["steps"]
        return found + [
            (peer.name, _verified(peer, self._fill(peer.obtain, file), file))
            for peer in self._peers()
            if not steps[f"store/{peer.name}/{file.name}"]["failed"]
        ]

    def _obtain(self, key: str, who: str, script: str, file: File) -> None:
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        for warm in (who.removesuffix("-pipe"), "floor"):
            _read(self._work / "stored" / warm)
        done = self._step(key, script, self._code)
        wanted = self._canonical if who in {PIPELINE, OPENSSL} else file
        if not done["failed"] and self._digest(done, wanted) != wanted.sha256:
            done["failed"] = "other bytes came back"
        self._record(key, done)
        self._fresh("scratch")

    def _digest(self, done: dict[str, Any], file: File) -> str:
        """What sha256sum said; of what rehydrator wrote, it is looked at here, in no one's time."""
        if done["stdout"]:
            return str(done["stdout"].split()[0])
        back = self._work / "scratch/back"
        return sha256(back / file.name if back.is_dir() else back)

    # A disk of 100 GiB

    def _huge(self) -> None:
        """Its own release of two files: the canonical qcow2, and its disk as a raw file grown with a hole."""
        level = self._options.level
        build = f"rehydrator build prepared/huge -o oci:stored/huge:bench --runtime none --level {level}"
        back = "rehydrator rehydrate scratch/back --bundle oci:stored/huge:bench --disk metal"
        if not self._is_done("huge/build", build, "stored/huge/index.json", self._code):
            self._fresh("stored/huge")
            self._fresh("prepared/huge")
            self._copy(self._canonical, "prepared/huge/huge-1-qemu.x86_64.qcow2")
            raw = "prepared/huge/huge-1-metal.x86_64.raw"
            canonical = shlex.quote(f"release/{self._canonical.name}")
            self._make(f"qemu-img convert -O raw {canonical} {raw}\ntruncate -s {self._options.huge}G {raw}")
            self._record("huge/build", self._step("huge/build", build, self._code, keep="huge"))
        if not self._is_done("huge/rehydrate", back, ".", self._code):
            self._fresh("scratch")
            self._record("huge/rehydrate", self._step("huge/rehydrate", back, self._code))
            self._fresh("scratch")


def _remove_delta(home: Path, key: str) -> None:
    """What an interrupted or failed step left of its delta."""
    for path in home.iterdir():
        if path.stem == key.rpartition("/")[2]:
            path.unlink()


def _verified(peer: Peer, obtain: str, file: File) -> str:
    """A script that keeps what `obtain` gives and says its SHA-256; holes where the original has them."""
    if peer.writes:
        return f"{obtain}\nsha256sum scratch/back"
    if file.allocated > file.size // 2:
        return f"{{ {obtain}\n}} | tee scratch/back | sha256sum"
    keep = "dd of=scratch/back conv=sparse iflag=fullblock bs=64K status=none"
    return (
        "mkfifo scratch/pipe\nsha256sum < scratch/pipe &\n"
        f"{{ {obtain}\n}} | tee scratch/pipe | {keep}\nwait $!"
    )


def _file(path: Path, known: dict[tuple[str, int, int], dict[str, Any]]) -> File:
    status = path.stat()
    if found := known.get((path.name, status.st_size, status.st_mtime_ns)):
        return File(**found)
    named = parse_name(path.name)
    platform = named.platform if named.role == "disk" and named.format != "iso" else named.format
    return File(path.name, platform, status.st_size, status.st_blocks * 512, status.st_mtime_ns, sha256(path))


def _read(directory: Path) -> None:
    """Into the page cache, so that nobody's first round pays for the disk."""
    buffer = bytearray(1 << 20)
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
