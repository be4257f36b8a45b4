"""Tasks: a file back, verified, from nothing but what is stored, to a file and to a pipe; all of them.

obtain/PLATFORM/WHO/ROUND    to a file; WHO is a peer, rehydrator or a row of plain.py
obtain/PLATFORM/WHO-pipe/ROUND
single/FILE/ROUND            every file by rehydrator, in a run of its own
all/WHO/ROUND                every file
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.base import Base, File
from benchmarks.cache import warm
from benchmarks.plain import PLAIN, conversion
from benchmarks.steps import sha256

if TYPE_CHECKING:
    from benchmarks.peers import Peer
    from benchmarks.plain import Plain

PIPE = "-pipe"

# What one file needed beside what the next one needs, too.
_TIDY = "find scratch -mindepth 1 -maxdepth 1 ! -name base ! -name canonical ! -name repo -exec rm -r {} +"


class Obtaining(Base):
    """Files back. Each run's digest is compared with the release's own."""

    def _obtain_all(self, *, to_file: bool, to_pipe: bool) -> None:
        """Round by round, in turn, so that what else the machine does meets all alike."""
        for file in self._cases():
            for number in range(self._options.rounds):
                if to_file:
                    self._plain_all(file, number)
                for who, script in self._obtainers(file, to_file=to_file, to_pipe=to_pipe):
                    self._obtain(f"obtain/{file.platform}/{who}/{number}", who, script, file)
            self._fresh("prepared/plain")

    def _obtainers(self, file: File, *, to_file: bool, to_pipe: bool) -> list[tuple[str, str]]:
        found = []
        if self._wants(peers.REHYDRATOR):
            found += [(peers.REHYDRATOR, self._fill(peers.REHYDRATE, file))] if to_file else []
            kept = f"{self._fill(peers.TO_PIPE, file)} | {_kept(file)}"
            found += [(peers.REHYDRATOR + PIPE, kept)] if to_pipe else []
        for peer in self._peers():
            if self._has(peer, file):
                obtain = self._base(peer) + self._obtaining(peer, file)
                found += [(peer.name, _verified(peer, obtain, file))] if to_file else []
                found += [(peer.name + PIPE, _piped(peer, obtain))] if to_pipe else []
        return found

    def _has(self, peer: Peer, file: File) -> bool:
        """Whether the tool could store the file."""
        step = self.results["steps"].get(f"store/{peer.name}/{_part(file, self._canonical)}")
        return bool(step) and not step["failed"]

    def _obtain(self, key: str, who: str, script: str, file: File, scratch: str = "back") -> None:
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        for stored in (who.removesuffix(PIPE), "floor"):
            warm(self._work / "stored" / stored)
        done = self._step(key, script, self._code)
        if not done["failed"]:
            done["exact"] = self._digest(done, file, scratch) == file.sha256
        self._record(key, done)
        self._fresh("scratch")

    def _digest(self, done: dict[str, Any], file: File, scratch: str) -> str:
        """What sha256sum said; of what was only written, it is looked at here, in no one's time."""
        if done["stdout"]:
            return str(done["stdout"].split()[0])
        back = self._work / "scratch" / scratch
        return sha256(back / file.name if back.is_dir() else back)

    # Plain tools

    def _plain_all(self, file: File, number: int) -> None:
        for row in PLAIN:
            if row.is_for(file.platform) and self._wants(row.name):
                script = self._fill(row.script, file, **conversion(file.platform))
                key, of = f"obtain/{file.platform}/{row.name}/{number}", file
                if not self._is_done(key, script, ".", self._code):
                    self._prepare(row, file)
                if row.of == "canonical":
                    of = self._canonical
                self._obtain(key, row.name, script, of)

    def _prepare(self, row: Plain, file: File) -> None:
        script = self._fill(row.prepare, file, **conversion(file.platform))
        made = script.split()[-1] if script else "."
        if not (self._work / made).exists():
            (self._work / made).parent.mkdir(exist_ok=True)
            self._make(f"{script.replace(made, f'{made}.new')}\nmv {made}.new {made}")

    # All of them

    def _obtain_release(self) -> None:
        for number in range(self._options.rounds):
            if self._wants(peers.REHYDRATOR):
                for file in self._files:
                    self._obtain(
                        f"single/{file.name}/{number}",
                        peers.REHYDRATOR,
                        self._fill(peers.REHYDRATE, file),
                        file,
                    )
                script = peers.REHYDRATE_ALL
                self._everything(f"all/{peers.REHYDRATOR}/{number}", peers.REHYDRATOR, script, self._files)
        for peer in self._peers():
            files = [file for file in self._files if self._has(peer, file)]
            if files:
                self._everything(f"all/{peer.name}/0", peer.name, self._each(peer, files), files)

    def _each(self, peer: Peer, files: list[File]) -> str:
        """Everything that a peer has, in one script that decompresses the canonical qcow2 once. A file
        is thrown away when it was hashed: some fill holes, and all of them together take much of a disk."""
        parts = [self._base(peer)]
        for file in files:
            parts.append(_verified(peer, self._obtaining(peer, file), file))
            parts.append(f"rm scratch/back\n{_TIDY}")
        return "\n".join(parts)

    def _everything(self, key: str, who: str, script: str, files: list[File]) -> None:
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        for stored in (who, "floor"):
            warm(self._work / "stored" / stored)
        done = self._step(key, script, self._code)
        said = dict(zip((file.name for file in files), _first_words(done["stdout"]), strict=False))
        wrong = []
        for file in files:
            back = self._work / "scratch/all" / file.name
            digest = said.get(file.name) or (sha256(back) if back.exists() else "")
            wrong += [file.name] if digest != file.sha256 else []
        done |= {"exact": not wrong, "wrong": wrong, "files": len(files)}
        self._record(key, done)
        self._fresh("scratch")


def _part(file: File, canonical: File) -> str:
    return "start" if file == canonical else file.name


def _first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _kept(file: File) -> str:
    """Keeps standard input as scratch/back; holes where the original has them."""
    if file.allocated > file.size // 2:
        return "cat > scratch/back"
    return "dd of=scratch/back conv=sparse iflag=fullblock bs=64K status=none"


def _verified(peer: Peer, obtain: str, file: File) -> str:
    """A script that keeps what `obtain` gives and says its SHA-256; holes where the original has them."""
    if peer.writes:
        return f"{obtain}\nsha256sum scratch/back"
    if file.allocated > file.size // 2:
        return f"{{ {obtain}\n}} | tee scratch/back | sha256sum"
    return (
        "mkfifo scratch/pipe\nsha256sum < scratch/pipe &\n"
        f"{{ {obtain}\n}} | tee scratch/pipe | {_kept(file)}\nwait $!"
    )


def _piped(peer: Peer, obtain: str) -> str:
    """A script whose only output is a pipe, with a reader that verifies and keeps nothing."""
    if peer.writes:
        return f"{obtain}\nsha256sum < scratch/back"
    return f"{{ {obtain}\n}} | sha256sum"
