"""Taking a release directory in: which files, what their names and the stream document say of
them, their digests, and the image inside an outer compression."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from rehydrator.bundle.chain import Recorder
from rehydrator.bundle.manifest import MAX_FILE_NAME
from rehydrator.core.errors import (
    DigestMismatch,
    HostileInput,
    LimitExceeded,
    NotInBundle,
    RehydratorError,
    UsageError,
)
from rehydrator.core.reader import data_spans
from rehydrator.formats import containers
from rehydrator.metadata.names import (
    PARTIAL_SUFFIXES,
    SIGNATURE_SUFFIX,
    TEMPORARY_PREFIX,
    Named,
    image_name,
    outer_suffix,
    parse_name,
)
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from rehydrator.bundle.chain import Boundary
    from rehydrator.core.reader import Reader
    from rehydrator.formats.streams import Layout
    from rehydrator.metadata.stream import Published, StreamDocument

_BLOCK = 4 << 20
_PAGE = 4096
_ZEROS = bytes(_BLOCK)

# A detached signature of several keys is a few KiB.
_MAX_SIGNATURE = 64 << 10


@dataclass(frozen=True, slots=True)
class Measured:
    """A file read whole: size in bytes, SHA-256, bytes in 4 KiB blocks that are not zero, and
    chaining values of the SHA-256."""

    size: int
    sha256: str
    data: int
    boundaries: tuple[Boundary, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the release. `image` is where the image form lies: the file itself, or what
    was unpacked from it; `published` is None where the two are the same."""

    path: Path
    name: str
    image: Path
    named: Named
    measured: Measured
    published: Measured | None
    mtime: int
    mode: int
    sparse: bool
    layout: Layout | None = None
    signature: bytes = b""


def list_files(directory: Path, note: Callable[[str], None]) -> list[Path]:
    """The regular files of a release directory, by name; others are noted and left, and so are
    detached signatures and unfinished downloads.

    Raises:
        HostileInput: a name that no output could have, two files that claim one image name,
            or no file at all.
        RehydratorError: the directory cannot be read.
    """
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise RehydratorError(f"{directory}: {error.strerror}") from None
    files = []
    for path in entries:
        if path.is_file() and not path.is_symlink():
            _check_name(path)
            files.append(path)
        else:
            note(f"{path.name}: not a regular file, left out")
    files = _without_companions(files, note)
    if not files:
        raise HostileInput(f"{directory}: no files in this directory; put the release's images there")
    _check_claims(files)
    return files


def _without_companions(files: Sequence[Path], note: Callable[[str], None]) -> list[Path]:
    """The files without what is no part of a release."""
    whole = [path for path in files if not _is_leftover(path.name, note)]
    here = {path.name for path in whole}
    kept = []
    for path in whole:
        signed = path.name.removesuffix(SIGNATURE_SUFFIX)
        if signed == path.name:
            kept.append(path)
        elif signed not in here:
            note(f"{path.name}: a signature of a file that is not here, left out")
        elif signed.endswith(SIGNATURE_SUFFIX):
            note(f"{path.name}: a signature of a signature, left out")
        elif not path.stat().st_size:
            note(f"{path.name}: an empty file is no signature, left out")
    return kept


def _is_leftover(name: str, note: Callable[[str], None]) -> bool:
    """True, with a note, for what a mirror or a variant run did not finish."""
    if name.endswith(PARTIAL_SUFFIXES):
        note(f"{name}: of an unfinished download, left out")
        return True
    if name.startswith(TEMPORARY_PREFIX):
        note(f"{name}: of a run that was broken off, left out")
        return True
    return False


def select_files(
    files: Sequence[Path], document: StreamDocument, allow_missing: bool, note: Callable[[str], None]
) -> dict[Path, Published]:
    """Each file that a stream document names, by the basename of its location or by the name
    without its outer compression; files that it does not name are noted and left.

    Raises:
        NotInBundle: it names files that are not there, and `allow_missing` is not set.
    """
    by_name = {path.name: path for path in files}
    found: dict[Path, Published] = {}
    missing: set[str] = set()
    for item in document.files:
        path = by_name.get(item.name) or by_name.get(image_name(item.name))
        if path is None:
            missing.add(item.name)
        elif path not in found:
            found[path] = item
        else:
            kept = found[path]
            note(
                f"{path.name}: stands in the stream document again, for {item.platform} {item.format}; "
                f"kept as {kept.platform} {kept.format}"
            )
    for path in files:
        if path not in found:
            note(f"{path.name}: not in the stream document, left out")
    if missing and not allow_missing:
        raise NotInBundle(
            f"the stream document names files that are not there: {', '.join(sorted(missing))}; "
            "fetch them, or leave them out with --allow-missing"
        )
    for name in sorted(missing):
        note(f"{name}: named by the stream document, missing, left out")
    return found


def take_in(
    path: Path, item: Published | None, names: tuple[str, str], arch: str, work: Path, limit: int
) -> Source:
    """Read one file whole, unpack its outer compression into `work`, check its digests.

    Raises:
        DigestMismatch: a digest is not the one in the stream document.
        HostileInput: the compressed stream is damaged or cut short.
        LimitExceeded: it has or unpacks to more than `limit` bytes, or the disk is full.
        RehydratorError: it cannot be read.
    """
    try:
        return _take_in(path, item, names, arch, work, limit)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise LimitExceeded(
                f"unpacking {path.name}: {error.strerror}; free some space, or see --tmpdir"
            ) from None
        raise RehydratorError(f"{path}: cannot be read: {error.strerror}") from None


def _take_in(
    path: Path, item: Published | None, names: tuple[str, str], arch: str, work: Path, limit: int
) -> Source:
    file = FileReader(path)
    try:
        packed = compression(path.name, file)
        if not packed and file.size > limit:
            raise LimitExceeded(
                f"{path.name}: {file.size} bytes, above the limit of {limit} (--max-image-size)"
            )
        whole, status = measure(file), file.status
        image, inner, layout = path, whole, None
        if packed:
            image = work / image_name(path.name)
            inner, layout = unpack(file, path.name, image, limit)
    finally:
        file.close()
    named = _name(item, parse_name(path.name, *names), arch)
    source = Source(
        path=path,
        name=image.name,
        image=image,
        named=named,
        measured=inner,
        published=whole if packed else None,
        mtime=int(status.st_mtime),
        mode=status.st_mode & 0o777,
        sparse=bool(packed) or status.st_blocks * 512 < whole.size,
        layout=layout,
        signature=_signature(path),
    )
    if item:
        _check_digests(source, item)
    return source


def _signature(path: Path) -> bytes:
    """The detached signature beside a file."""
    beside = path.with_name(path.name + SIGNATURE_SUFFIX)
    if len(beside.name.encode()) > MAX_FILE_NAME or beside.is_symlink() or not beside.is_file():
        return b""
    size = beside.stat().st_size
    if size > _MAX_SIGNATURE:
        raise HostileInput(f"{beside.name}: {size} bytes are no signature; remove it or fetch it again")
    return beside.read_bytes()


def measure(file: FileReader) -> Measured:
    """Size, SHA-256 and data of a file; holes are hashed without being read."""
    state, data, here = Recorder(), 0, 0
    for offset, length in [*data_spans(file), (file.size, 0)]:
        while here < offset:
            step = min(_BLOCK, offset - here)
            state.update(memoryview(_ZEROS)[:step], 0)
            here += step
        while here < offset + length:
            block = file.pread(here, min(_BLOCK, offset + length - here))
            found = nonzero_bytes(block)
            state.update(block, found)
            data += found
            here += len(block)
    return Measured(file.size, state.hexdigest(), data, state.boundaries())


def nonzero_bytes(block: bytes) -> int:
    """Bytes of the block's 4 KiB pages that are not zero."""
    whole = len(block) // _PAGE
    words = np.frombuffer(block, dtype=np.uint64, count=whole * _PAGE // 8).reshape(whole, _PAGE // 8)
    rest = len(block) - whole * _PAGE
    return int(np.count_nonzero(words.any(axis=1))) * _PAGE + (rest if any(block[len(block) - rest :]) else 0)


def compression(name: str, file: FileReader) -> str:
    """The suffix of the outer compression that both name and content show, or ""."""
    suffix = outer_suffix(name)
    if not suffix:
        return ""
    if not containers.CONTAINERS[suffix].recognise(file):
        raise HostileInput(f"{name}: its content is not what {suffix} says; rename it or fetch it again")
    return suffix


def unpack(file: Reader, name: str, target: Path, limit: int) -> tuple[Measured, Layout]:
    """Decompress a file into `target`, leaving holes where the image is zero; what it holds, and
    where its encoded parts lie.

    Raises:
        HostileInput: the stream is damaged or cut short.
        LimitExceeded: more than `limit` bytes come out.
    """
    state, size, data = Recorder(), 0, 0
    held = bytearray()
    with target.open("xb") as image:

        def put(block: bytes) -> None:
            nonlocal size, data
            found = nonzero_bytes(block)
            state.update(block, found)
            _write_sparse(image, size, block)
            size += len(block)
            data += found

        def take(piece: bytes) -> None:
            held.extend(piece)
            if len(held) >= _BLOCK:
                put(bytes(held[:_BLOCK]))
                del held[:_BLOCK]

        try:
            layout = containers.read(file, name, limit, take)
        except HostileInput as error:
            raise HostileInput(f"{error}; if it is damaged or cut short, fetch it again") from None
        except LimitExceeded as error:
            raise LimitExceeded(f"{error} (--max-image-size)") from None
        put(bytes(held))
        image.truncate(size)
    return Measured(size, state.hexdigest(), data, state.boundaries()), layout


def check_free_space(places: Iterable[tuple[Path, int]]) -> None:
    """Raise LimitExceeded where a place has less free than it needs; places on one file
    system add up."""
    needs: dict[int, tuple[Path, int]] = {}
    for place, needed in places:
        device = place.stat().st_dev
        needs[device] = (place, needs.get(device, (place, 0))[1] + needed)
    for place, needed in needs.values():
        free = shutil.disk_usage(place).free
        if free < needed:
            raise LimitExceeded(
                f"{place}: this build needs about {needed} bytes and {free} are free; "
                "free some space, or name another place with --tmpdir"
            )


def estimated_need(files: Sequence[Path]) -> tuple[int, int]:
    """Bytes that a build may need: for work, and at its target.

    Compressed files are unpacked (taken to grow fourfold; their zeros stay holes). What
    is stored is one copy of the disk that siblings share: at worst, where nothing compresses,
    as large as the largest file.
    """
    held = {path: min(path.stat().st_blocks * 512, path.stat().st_size) for path in files}
    unpacked = sum(4 * size for path, size in held.items() if image_name(path.name) != path.name)
    stored = max((4 if image_name(path.name) != path.name else 1) * size for path, size in held.items())
    return unpacked + stored, stored


def measure_in_parallel(
    pool: Executor, work: Callable[[Path], Source], files: Sequence[Path]
) -> list[Source]:
    """Take files in side by side, largest first, in the order of `files`."""
    futures = {path: pool.submit(work, path) for path in sorted(files, key=_size, reverse=True)}
    return [futures[path].result() for path in files]


def _size(path: Path) -> int:
    return path.stat().st_size


def _write_sparse(image: BinaryIO, offset: int, block: bytes) -> None:
    """Write a block but for its zero pages, run by run."""
    for at in range(0, len(block), 64 << 10):
        part = block[at : at + (64 << 10)]
        if part.count(0) != len(part):
            os.pwrite(image.fileno(), part, offset + at)


def _check_name(path: Path) -> None:
    name = path.name
    try:
        name.encode()
    except UnicodeEncodeError:
        raise HostileInput(f"{name!r}: a file name that is not UTF-8; rename it") from None
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        raise HostileInput(f"{name!r}: a file name with control characters; rename it")
    if image_name(name) in {".", ".."}:
        raise HostileInput(f"{name!r}: unpacked it has no name of its own; rename it")


def _check_claims(files: Sequence[Path]) -> None:
    claims: dict[str, Path] = {}
    for path in files:
        for name in (image_name(path.name), path.name, path.name + SIGNATURE_SUFFIX):
            other = claims.setdefault(name, path)
            if other != path:
                raise HostileInput(f"{other.name} and {path.name} both claim the name {name}; remove one")


def _name(item: Published | None, parsed: Named, arch: str) -> Named:
    if item is None:
        return Named(
            parsed.platform, parsed.format, parsed.role, parsed.arch or arch, parsed.name, parsed.release
        )
    return Named(item.platform, item.format, item.role, item.arch, parsed.name, item.release)


def _check_digests(source: Source, item: Published) -> None:
    """The digest of the file at hand, as published or unpacked, and of the image inside."""
    as_published = source.path.name == item.name
    whole = source.published or source.measured
    expected = item.sha256 if as_published else item.uncompressed_sha256
    if expected and whole.sha256 != expected:
        raise DigestMismatch(
            f"{source.path.name}: SHA-256 is {whole.sha256}, the stream document says {expected}; "
            "fetch it again"
        )
    if not expected and not as_published:
        raise UsageError(
            f"{source.path.name}: the stream document has no digest of the uncompressed file; "
            f"give {item.name} instead"
        )
    inner = item.uncompressed_sha256
    if source.published and inner and source.measured.sha256 != inner:
        raise DigestMismatch(
            f"{source.path.name}: unpacks to SHA-256 {source.measured.sha256}, "
            f"the stream document says {inner}"
        )
