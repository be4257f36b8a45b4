"""Mirroring the files that a stream document names.

    DEST/
      NAME, …                 the files, as their locations' basenames call them
      NAME.sig, …             their detached signatures
      stream.json             the document, its locations rewritten; written last, and only when
                              every file is there and right
      NAME.<url>.part[.json]  what a run that was broken off left, for the next one

What `plume stream-mirror` does (coreos-assembler), and more: files go on where they stopped, their
signatures are checked, one that fails does not stop the others. A file is right when it has the
document's sha256; where the document has none, only a good signature can say so. A signature
that is not right takes the file its name away, and leaves the bytes as NAME.<url>.part: with the
right keyring, the next run needs no download.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from rehydrator import host
from rehydrator.core.errors import (
    HostileInput,
    LimitExceeded,
    NotInBundle,
    RehydratorError,
    SignatureMissing,
    SignatureWrong,
    UsageError,
)
from rehydrator.host import fetch, gpg
from rehydrator.metadata.document import Document, quoted
from rehydrator.metadata.json_text import MAX_BYTES
from rehydrator.metadata.names import (
    PARTIAL_SUFFIXES,
    SIGNATURE_SUFFIX,
    STREAM_DOCUMENT,
    TEMPORARY_PREFIX,
)
from rehydrator.metadata.rewrite import checked_base

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from rehydrator.metadata.document import File, FileKey

_Result = TypeVar("_Result")

# States of a file, and of its signature.
DOWNLOADED: Final = "downloaded"
THERE: Final = "already there"
FAILED: Final = "failed"
GOOD: Final = "good"
ABSENT: Final = "absent"
UNCHECKED: Final = "not checked"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME_BYTES: Final = 255 - len(TEMPORARY_PREFIX) - len(SIGNATURE_SUFFIX)


class Reporter(Protocol):
    """Who hears of a mirror's progress; from several threads."""

    def note(self, text: str) -> None: ...
    def advance(self, steps: int, detail: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to have: its name in the mirror, the URLs of it and of its signature ("" where the
    document has none), its digest ("" as well), and where it stands in the document."""

    name: str
    source: str
    signature: str
    sha256: str
    keys: tuple[FileKey, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: bytes, digest, states, and the fingerprint of the key that signed."""

    wanted: Wanted
    state: str
    size: int = 0
    sha256: str = ""
    signature: str = ""
    signer: str = ""
    error: RehydratorError | None = None

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error else 0


# ---- what is wanted


def selected(document: Document, arches: Collection[str], platforms: Collection[str]) -> list[File]:
    """The document's files of these architectures and platforms; of all, where none is named.

    Raises:
        NotInBundle: the document has nothing of one of them.
    """
    for what, asked, known in (
        ("architecture", arches, {each.key.arch for each in document.files}),
        ("platform", platforms, {each.key.platform for each in document.files}),
    ):
        for each in asked:
            if each not in known:
                raise NotInBundle(f"the stream has no {what} {each}; it has {', '.join(sorted(known))}")
    files = [
        each
        for each in document.files
        if (not arches or each.key.arch in arches) and (not platforms or each.key.platform in platforms)
    ]
    if not files:
        raise NotInBundle("the stream has no files of these platforms for these architectures")
    return files


def planned(files: Sequence[File], document: str) -> list[Wanted]:
    """What to have for these files of the document at `document` (a URL or a path).

    Raises:
        HostileInput: a name cannot be one in a mirror, two different files have the same, or a
            digest or a location is none.
    """
    found: dict[str, Wanted] = {}
    for each in files:
        wanted = _wanted(each, document)
        other = found.get(wanted.name)
        if other:
            wanted = _one(other, wanted)
        found[wanted.name] = wanted
    for name in found:
        if name.endswith(SIGNATURE_SUFFIX) and name.removesuffix(SIGNATURE_SUFFIX) in found:
            raise HostileInput(f"{name}: a file has the name of another one's signature")
    return list(found.values())


def _wanted(file: File, document: str) -> Wanted:
    _check_name(file)
    if file.sha256 and not _SHA256.fullmatch(file.sha256):
        raise HostileInput(f"{file.key}.sha256: {file.sha256[:80]!r} is not 64 hexadecimal digits")
    try:
        source = fetch.joined(document, file.location)
        signature = fetch.joined(document, file.signature) if file.signature else ""
    except HostileInput as error:
        raise HostileInput(f"{file.key}: {error}") from None
    return Wanted(file.name, source, signature, file.sha256, (file.key,))


def _check_name(file: File) -> None:
    name = file.name
    own = {STREAM_DOCUMENT, f"{STREAM_DOCUMENT}{SIGNATURE_SUFFIX}"}
    taken = name.lower() in own or name.endswith(PARTIAL_SUFFIXES)
    strange = name.startswith(".") or "/" in name or not name.isprintable()
    if not name or taken or strange or len(name.encode(errors="replace")) > _NAME_BYTES:
        raise HostileInput(f"{file.key}.location: {name[:300]!r} cannot be the name of a file in a mirror")


def _one(first: Wanted, second: Wanted) -> Wanted:
    """The one file that two places in the document name; each may have what the other lacks."""
    both = first.sha256 and second.sha256
    if first.sha256 != second.sha256 if both else first.source != second.source:
        raise HostileInput(
            f"{first.name}: {first.keys[0]} and {second.keys[0]} are different files of the same name; "
            "mirror their platforms or architectures into directories of their own"
        )
    return Wanted(
        first.name,
        first.source,
        first.signature or second.signature,
        first.sha256 or second.sha256,
        first.keys + second.keys,
    )


# ---- having it


@dataclass(frozen=True, slots=True)
class Mirror:
    """How files get into `directory`; `keyring` is None where signatures are not checked."""

    directory: Path
    client: fetch.Client
    reporter: Reporter
    keyring: gpg.Keyring | None = None
    require_signatures: bool = False

    def look(self, wanted: Wanted) -> bool:
        """Is it there, with the document's digest? Reads all of it."""
        digest, _ = self._digest(wanted)
        return bool(wanted.sha256) and digest == wanted.sha256

    def have(self, wanted: Wanted) -> Outcome:
        """See that a file is there, and right. What goes wrong is in the outcome."""
        try:
            return self._have(wanted)
        except RehydratorError as error:
            return Outcome(wanted, FAILED, error=error)
        except OSError as error:
            return Outcome(wanted, FAILED, error=_in_words(error, self.directory / wanted.name))

    def _have(self, wanted: Wanted) -> Outcome:
        signature = self._signature(wanted)
        self._refuse_unverifiable(wanted, signature)
        signers: list[str] = []

        def check(path: Path) -> None:
            if self.keyring and signature:
                signers.append(gpg.verify(path, signature, self.keyring, wanted.name).fingerprint)

        state, size, digest = self._in_place(wanted, check)
        if signature:
            _replace(self.directory / f"{wanted.name}{SIGNATURE_SUFFIX}", signature)
        checked = GOOD if signers else UNCHECKED if signature else ABSENT
        return Outcome(wanted, state, size, digest, checked, "".join(signers[-1:]))

    def _in_place(self, wanted: Wanted, check: Callable[[Path], None]) -> tuple[str, int, str]:
        target = self.directory / wanted.name
        digest, size = self._digest(wanted)
        if digest and wanted.sha256 in {"", digest}:
            try:
                check(target)
            except SignatureWrong:
                target.rename(fetch.part_of(wanted.source, target))
                if wanted.sha256:
                    raise
            else:
                self.reporter.advance(size, wanted.name)
                return THERE, size, digest
        done = self.client.download(
            wanted.source,
            target,
            expected=wanted.sha256,
            check=check,
            progress=lambda steps: self.reporter.advance(steps, wanted.name),
        )
        return DOWNLOADED, done.size, done.sha256

    def _digest(self, wanted: Wanted) -> tuple[str, int]:
        """Of what is there under the name; "" where nothing is."""
        found, size = hashlib.sha256(), 0
        path = self.directory / wanted.name
        if not path.exists():
            return "", 0
        if not path.is_file():
            raise RehydratorError(f"{path}: there is something that is no regular file; move it away")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                self.client.refuse_when_stopped()
                found.update(chunk)
                size += len(chunk)
                self.reporter.advance(0, wanted.name)
        return found.hexdigest(), size

    def _signature(self, wanted: Wanted) -> bytes | None:
        """The detached signature; None where there is none (RHCOS named some that were not there)."""
        reason = "the document names no signature"
        if wanted.signature:
            try:
                return self.client.read(wanted.signature, gpg.MAX_SIGNATURE)
            except fetch.MISSING as error:
                reason = str(error)
        if self.require_signatures:
            raise SignatureMissing(f"{wanted.name}: not signed: {reason}")
        if self.keyring or wanted.signature:
            self.reporter.note(f"{wanted.name}: not signed: {reason}")
        return None

    def _refuse_unverifiable(self, wanted: Wanted, signature: bytes | None) -> None:
        if wanted.sha256 or (signature and self.keyring):
            return
        remedy = "give --keyring to check its signature" if signature else "it has no signature either"
        raise SignatureMissing(
            f"{wanted.name}: the document has no sha256 of it, so nothing says which bytes are right; "
            f"{remedy}"
        )


def have_all(mirror: Mirror, files: Sequence[Wanted], jobs: int) -> list[Outcome]:
    """See that all files are there, `jobs` at once; those that fail do not stop the others."""
    return _side_by_side(mirror, mirror.have, files, jobs)


def look_at_all(mirror: Mirror, files: Sequence[Wanted], jobs: int) -> list[bool]:
    """Which files are there already."""
    return _side_by_side(mirror, mirror.look, files, jobs)


def _side_by_side(
    mirror: Mirror, do: Callable[[Wanted], _Result], files: Sequence[Wanted], jobs: int
) -> list[_Result]:
    pool = ThreadPoolExecutor(jobs)
    try:
        running = [pool.submit(do, each) for each in files]
        for each in as_completed(running):
            each.result()
    except BaseException:
        # Nobody waits for a server after Ctrl-C.
        mirror.client.stop()
        host.stop_all()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return [each.result() for each in running]


# ---- the document, and the directory


def rewritten(document: Document, outcomes: Sequence[Outcome], base_url: str) -> Document:
    """The document of what was mirrored: only that, under `base_url` (as checked_base_url gives it)
    or, where it is empty, beside the document; a signature that is not there is "".
    """
    moved: dict[FileKey, tuple[str, str | None]] = {}
    for each in outcomes:
        location = base_url + quoted(each.wanted.name)
        signature = f"{location}{SIGNATURE_SUFFIX}" if each.signature != ABSENT else ""
        moved |= dict.fromkeys(each.wanted.keys, (location, signature))
    return document.only(list(moved)).relocated(moved)


def checked_base_url(url: str) -> str:
    """Where a mirror will be served, so that names can follow; "" is beside the document. A relative
    one is a forgotten https://, as files lie beside their document.

    Raises:
        UsageError: it is no URL.
    """
    base = checked_base(url)
    if base and "://" not in base:
        raise UsageError(f"--base-url {url}: a URL such as https://mirror.example/fcos is wanted")
    return base


def left_out(directory: Path, document: Document) -> list[str]:
    """The files in the directory that its present stream.json names, and `document` does not: of
    another release, or of other architectures and platforms.
    """
    path = directory / STREAM_DOCUMENT
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            old = Document.parse(file.read(MAX_BYTES + 1), str(path))
    except (OSError, HostileInput):
        return []  # it is replaced, whatever it was
    gone = {each.name for each in old.files} - {each.name for each in document.files}
    return sorted(name for name in gone if (directory / name).is_file())


def write_document(directory: Path, document: Document) -> Path:
    """Write stream.json, complete or not at all; its path."""
    _replace(directory / STREAM_DOCUMENT, document.data)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return directory / STREAM_DOCUMENT


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    try:
        # What a run that was killed left, or a link to elsewhere, is not written to.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory, made if need be, for this process alone: two would write the same parts.

    Raises:
        RehydratorError: another process mirrors into it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RehydratorError(f"{directory}: another process mirrors into it; wait for it") from None
        except OSError:
            pass  # a filesystem without locks
        yield
    finally:
        os.close(descriptor)


def _in_words(error: OSError, path: Path) -> RehydratorError:
    where, why = error.filename or path, error.strerror or str(error)
    if fetch.is_full(error):
        return LimitExceeded(f"{where}: {why.lower()}; free some space and run it again")
    return RehydratorError(f"{where}: {why.lower()}")
