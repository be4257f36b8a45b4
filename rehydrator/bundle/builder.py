"""Building a bundle: take in, explain, choose the canonical disks, store what is new, seal.

    take in     digests, outer compression, names                      intake
    explain     which rung each file takes                             formats
    survey      pages of every guest disk; groups; canonical disks     survey
    store       canonical disks, then each artifact's recipe           packing, residue, delta
    manifest    everything pinned; the proof and the signature follow  manifest

The bundle is written as a directory tree that nothing takes for a bundle until the caller has
proven it and moved it into an image.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from xxhash import xxh3_64_intdigest

from rehydrator import __version__
from rehydrator.bundle import intake, manifest
from rehydrator.bundle.manifest import Artifact, Form, KnownAnswer, Manifest, Release, StoredFile
from rehydrator.bundle.packing import FRAME_SIZE, Ledger, PackWriter
from rehydrator.bundle.prediction import check_prediction
from rehydrator.bundle.residue import Residue
from rehydrator.bundle.survey import PAGE, SIBLING_SHARE, Survey, nonzero_pages, survey
from rehydrator.codecs import codec
from rehydrator.core.digest import sha256_hex
from rehydrator.core.errors import NotInBundle, Unexplained, UsageError
from rehydrator.core.ops import Copy, Encode, Offsets, Rules, is_zeros, zeros
from rehydrator.core.reader import WindowReader
from rehydrator.delta import PageIndex
from rehydrator.formats import explain
from rehydrator.formats.explanation import FILE, GUEST, SIZES, append
from rehydrator.metadata import stream as streams
from rehydrator.metadata.names import parse_name
from rehydrator.metadata.stream import Described, Published
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rehydrator.bundle.intake import Source
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader, SparseReader
    from rehydrator.formats.explanation import Explanation

UNMATCHED = -1

_SMALL = 4096
_ROLLING = 64 << 10
_INDEX_LITERALS = 1 << 20
_MAX_REPEATED = 64 << 20
_SAMPLE_PAGES = 4


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked for; sizes in bytes."""

    directory: Path
    work: Path
    stream_json: Path | None = None
    name: str = ""
    stream: str = ""
    release: str = ""
    arch: str = ""
    host_arch: str = "x86_64"
    canonicals: tuple[str, ...] = ()
    level: int = 19
    jobs: int = 1
    allow_missing: bool = False
    max_image_size: int = 256 << 30
    frame_size: int = FRAME_SIZE


class Reporter(Protocol):
    """What a build says while it runs; the command line shows it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...

    def phase(self, title: str, total: int) -> None:
        """A new phase of `total` steps (bytes) begins."""
        ...

    def advance(self, steps: int, detail: str = "") -> None:
        """Some steps of the phase are done."""
        ...


@dataclass
class _Disk:
    """A file with its explanation, or the reasons why it has none."""

    source: Source
    file: FileReader
    explanation: Explanation | None
    tried: list[dict[str, str]] = field(default_factory=list)
    survey: Survey | None = None
    guest_space: int | None = None
    canonical: bool = False


@dataclass(frozen=True)
class Built:
    """A bundle's directory tree, not sealed: groups of files in layer order, and the manifest."""

    root: Path
    groups: list[list[str]]
    manifest: Manifest
    signed_bytes: bytes


class Builder:
    """One build."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._root = options.work / "bundle"
        self._ledger = Ledger()
        self._index = PageIndex()
        self._spaces: dict[int, Reader] = {}
        self._groups: list[list[str]] = []
        self._sample: tuple[int, int, bytes] | None = None
        self._stream = options.stream

    def build(self) -> Built:
        """Write the bundle's tree below the work directory.

        Raises:
            RehydratorError: see the intake; nothing outside of the work directory was written.
        """
        with _workers(self._options.jobs) as pool:
            sources, document = self._take_in(pool)
            disks = [self._explain(source, pool) for source in sources]
            try:
                artifacts = self._store(disks, pool)
            finally:
                for disk in disks:
                    disk.file.close()
        return self._finish(artifacts, sources, document)

    def plan(self) -> list[dict[str, Any]]:
        """What a build would do, without writing a bundle: every file and its rung."""
        with _workers(self._options.jobs) as pool:
            sources, _ = self._take_in(pool)
            disks = [self._explain(source, pool) for source in sources]
            self._survey(disks, pool)
            groups = self._group(disks)
        planned = []
        for disk in disks:
            group = next((members for members in groups if disk in members), [disk])
            rung = f"explained as {disk.explanation.format}" if disk.explanation else "delta"
            planned.append(
                {
                    "file": disk.source.name,
                    "size": disk.source.measured.size,
                    "rung": rung,
                    "canonical": bool(disk.explanation) and group[0] is disk,
                    "against": group[0].source.name if disk.explanation else "",
                    "tried": disk.tried,
                }
            )
            disk.file.close()
        return planned

    # --- taking in ---------------------------------------------------------------------------

    def _take_in(self, pool: Executor) -> tuple[list[Source], bytes | None]:
        options, note = self._options, self._reporter.note
        files = intake.list_files(options.directory, note)
        document, named = self._document(files)
        chosen = sorted(named) if named is not None else files
        if not chosen:
            raise NotInBundle(f"{options.directory}: none of its files is in the stream document")
        intake.check_free_space([(options.work, intake.estimated_need(chosen))])
        for directory in (self._root / "packs", self._root / "streams", options.work / "images"):
            directory.mkdir(parents=True)
        self._reporter.phase("reading", sum(path.stat().st_size for path in chosen))

        arch = options.arch or _only_arch(chosen) or options.host_arch

        def take(path: Path) -> Source:
            source = intake.take_in(
                path,
                named[path] if named is not None else None,
                (options.name, options.release),
                arch,
                options.work / "images",
                options.max_image_size,
            )
            self._reporter.advance(path.stat().st_size, path.name)
            return source

        return intake.measure_in_parallel(pool, take, chosen), document

    def _document(self, files: Sequence[Path]) -> tuple[bytes | None, dict[Path, Published] | None]:
        options = self._options
        if options.stream_json is None:
            return None, None
        data = options.stream_json.read_bytes()
        parsed = streams.parse(data, options.stream_json.name)
        self._stream = self._stream or parsed.stream
        candidates = [path for path in files if path.resolve() != options.stream_json.resolve()]
        found = intake.select_files(candidates, parsed, options.allow_missing, self._reporter.note)
        return data, found

    # --- explaining --------------------------------------------------------------------------

    def _explain(self, source: Source, pool: Executor) -> _Disk:
        file = FileReader(source.image)
        self._reporter.phase(f"explaining {source.name}", 0)
        try:
            explanation = explain(file, pool.map)
            check_prediction(explanation, file)
            return _Disk(source, file, explanation)
        except Unexplained as error:
            return _Disk(source, file, None, [{"rung": "explained", "why": str(error)}])

    def _survey(self, disks: Sequence[_Disk], pool: Executor) -> None:
        explained = [disk for disk in disks if disk.explanation]
        self._reporter.phase("surveying", len(explained))
        surveys = pool.map(lambda disk: survey(disk.explanation.guest), explained)
        for disk, found in zip(explained, surveys, strict=True):
            disk.survey = found
            self._reporter.advance(1, disk.source.name)

    def _group(self, disks: Sequence[_Disk]) -> list[list[_Disk]]:
        """Groups of siblings, each with its canonical disk first."""
        explained = [disk for disk in disks if disk.survey]
        forced = [self._forced(name, explained) for name in self._options.canonicals]
        rest = [disk for disk in explained if all(disk is not each for each in forced)]
        rest.sort(key=lambda disk: (-_survey_of(disk).data, disk.source.name))
        groups: list[list[_Disk]] = [[disk] for disk in forced]
        for disk in rest:
            shares = [_survey_of(group[0]).share(_survey_of(disk)) for group in groups]
            best = max(range(len(groups)), key=lambda number: shares[number], default=None)
            if best is not None and shares[best] >= SIBLING_SHARE:
                groups[best].append(disk)
            else:
                groups.append([disk])
        return groups

    def _forced(self, name: str, explained: Sequence[_Disk]) -> _Disk:
        for disk in explained:
            if name in {disk.source.name, disk.source.path.name}:
                return disk
        raise UsageError(f"--canonical {name}: no such file among the disks that were explained")

    # --- storing -----------------------------------------------------------------------------

    def _store(self, disks: Sequence[_Disk], pool: Executor) -> list[Artifact]:
        self._survey(disks, pool)
        groups = self._group(disks)
        for group in groups:
            self._store_canonical(group[0], pool)
            for disk in group:
                disk.guest_space = group[0].guest_space
        explained = [disk for disk in disks if disk.explanation]
        others = [disk for disk in disks if not disk.explanation]
        others.sort(key=lambda disk: (-disk.source.measured.size, disk.source.name))
        self._reporter.phase("matching", sum(disk.source.measured.data for disk in disks))
        stored = {}
        for disk in explained + others:
            stored[disk.source.name] = self._store_artifact(disk, pool)
            self._reporter.advance(disk.source.measured.data, disk.source.name)
        return [stored[disk.source.name] for disk in disks]

    def _writer(self, pool: Executor) -> PackWriter:
        options = self._options
        ahead = 2 * options.jobs
        return PackWriter(self._root, self._ledger, options.level, pool, ahead, options.frame_size)

    def _store_canonical(self, disk: _Disk, pool: Executor) -> None:
        assert disk.explanation is not None
        guest, found = disk.explanation.guest, _survey_of(disk)
        self._reporter.phase(f"storing the disk of {disk.source.name}", found.data)
        writer = self._writer(pool)
        try:
            ops = list(self._canonical_ops(guest, found, writer))
            if self._sample is None and found.data:
                self._store_sample(guest, found, writer)
            disk.guest_space = writer.add_recipe(ops)
            disk.canonical = True
            self._finish_group(writer)
        finally:
            writer.close()
        self._spaces[disk.guest_space] = guest
        self._index.add(disk.guest_space, guest)

    def _canonical_ops(self, guest: SparseReader, found: Survey, writer: PackWriter) -> Iterator[Op]:
        """The disk's pages, zeros left out, repeated pages once and together in front: a
        reader keeps the few frames that hold them, and the rest it passes once, in order."""
        repeated = self._store_repeated(guest, found, writer)
        ops: list[Op] = []
        here = 0
        for page, data in nonzero_pages(guest):
            append(ops, zeros(page * PAGE - here))
            held = repeated.get(xxh3_64_intdigest(data)) if repeated else None
            if held and held[1] == data:
                append(ops, held[0])
            else:
                for space, at, length in writer.append(data):
                    append(ops, Copy(length, space, at))
                self._reporter.advance(len(data))
            here = page * PAGE + len(data)
        append(ops, zeros(guest.size - here))
        return iter(ops)

    def _store_repeated(
        self, guest: SparseReader, found: Survey, writer: PackWriter
    ) -> dict[int, tuple[Copy, bytes]]:
        wanted = found.repeated()
        repeated: dict[int, tuple[Copy, bytes]] = {}
        if not wanted:
            return {}
        for page, digest in zip(found.pages.tolist(), found.hashes.tolist(), strict=True):
            if digest in wanted and digest not in repeated and len(repeated) * PAGE < _MAX_REPEATED:
                data = guest.pread(page * PAGE, min(PAGE, guest.size - page * PAGE))
                if len(data) == PAGE:
                    [(space, at, length)] = writer.append(data)
                    repeated[digest] = (Copy(length, space, at), data)
        writer.flush()
        return repeated

    def _store_sample(self, guest: SparseReader, found: Survey, writer: PackWriter) -> None:
        """Real bytes for the known-answer tests of encoders, in a small frame of their own."""
        count = len(found.pages)
        picked = [int(found.pages[count * n // _SAMPLE_PAGES]) for n in range(min(count, _SAMPLE_PAGES))]
        plain = b"".join(guest.pread(page * PAGE, min(PAGE, guest.size - page * PAGE)) for page in picked)
        self._sample = (*writer.append_frame(plain), plain)

    def _store_artifact(self, disk: _Disk, pool: Executor) -> Artifact:
        writer = self._writer(pool)
        try:
            residue = Residue(self._ledger, writer, self._spaces)
            if disk.explanation:
                how, space = self._store_explained(disk, disk.explanation, writer, residue)
            else:
                how, space = self._store_unexplained(disk, writer, residue)
            how["cost"] = self._finish_group(writer)
        finally:
            writer.close()
        if how["bytes"].get("stored", 0) > _INDEX_LITERALS:
            self._spaces[space] = disk.file
            self._index.add(space, disk.file)
        return self._artifact(disk, how, space)

    def _store_explained(
        self, disk: _Disk, explanation: Explanation, writer: PackWriter, residue: Residue
    ) -> tuple[dict[str, Any], int]:
        guest, stored = self._store_guest(disk, explanation.guest, writer, residue)
        sizes = self._store_sizes(explanation, writer)
        ops = list(self._place(explanation, disk, {GUEST: guest, SIZES: sizes}))
        counts = _counts(ops)
        counts["stored"] = counts.pop("unmatched", 0) + stored
        settled = residue.settle(ops, disk.file, UNMATCHED)
        whole = len(settled) == 1 and settled[0] == Copy(disk.file.size, guest, 0)
        space = guest if whole else writer.add_recipe(settled)
        encoders = [rule.codec for rule in explanation.rules.encodes]
        how = {
            "rung": "explained",
            "format": explanation.format,
            "facts": dict(explanation.facts),
            "tried": [],
            "encoders": {name: codec(name).version() for name in encoders},
            "bytes": counts,
        }
        return how, space

    def _store_guest(
        self, disk: _Disk, guest: SparseReader, writer: PackWriter, residue: Residue
    ) -> tuple[int, int]:
        """The space of the file's guest disk, and how many of its bytes had to be stored."""
        canonical = disk.guest_space
        assert canonical is not None
        if disk.canonical:
            return canonical, 0
        ops = list(self._index.match(guest, UNMATCHED, twin=canonical))
        stored = sum(op.length for op in ops if _is_unmatched(op))
        if ops == [Copy(self._ledger.size(canonical), canonical, 0)]:
            return canonical, stored
        return writer.add_recipe(residue.settle(ops, guest, UNMATCHED)), stored

    def _store_sizes(self, explanation: Explanation, writer: PackWriter) -> int:
        """The space of the table of unit sizes; its integers are stored as byte planes."""
        if not explanation.sizes:
            return UNMATCHED
        width = explanation.rules.tables[0].width
        space, at = writer.append_frame(explanation.sizes, width)
        return writer.add_recipe([Copy(len(explanation.sizes), space, at)])

    def _place(self, explanation: Explanation, disk: _Disk, spaces: dict[int, int]) -> Iterator[Op]:
        """The explanation's ops with real numbers, its FILE spans matched against everything."""
        base = self._add_rules(explanation.rules, spaces)
        for op in explanation.ops:
            if isinstance(op, Copy) and op.space == FILE:
                yield from self._match_span(disk.file, op)
            elif isinstance(op, Copy):
                yield replace(op, space=spaces[op.space])
            elif isinstance(op, Offsets):
                yield replace(op, rule=op.rule + base[0])
            elif isinstance(op, Encode):
                yield replace(op, rule=op.rule + base[1])
            else:
                yield op

    def _add_rules(self, rules: Rules, spaces: dict[int, int]) -> tuple[int, int]:
        ledger = self._ledger
        tables, base = len(ledger.tables), (len(ledger.offsets), len(ledger.encodes))
        ledger.tables += [replace(table, space=spaces[table.space]) for table in rules.tables]
        ledger.offsets += [replace(rule, table=rule.table + tables) for rule in rules.offsets]
        ledger.encodes += [
            replace(rule, table=rule.table + tables, input=spaces[rule.input]) for rule in rules.encodes
        ]
        return base

    def _match_span(self, file: FileReader, span: Copy) -> Iterator[Op]:
        if span.length < _SMALL:
            yield from _split_zeros(file.pread(span.offset, span.length), span.offset)
            return
        window = WindowReader(file, span.offset, span.length)
        for op in self._index.match(window, UNMATCHED, rolling=span.length >= _ROLLING):
            if isinstance(op, Copy) and op.space == UNMATCHED:
                yield Copy(op.length, UNMATCHED, op.offset + span.offset)
            else:
                yield op

    def _store_unexplained(
        self, disk: _Disk, writer: PackWriter, residue: Residue
    ) -> tuple[dict[str, Any], int]:
        ops = list(self._index.match(disk.file, UNMATCHED))
        counts = _counts(ops)
        counts["stored"] = counts.pop("unmatched", 0)
        rung = "whole" if counts["stored"] == disk.file.size else "delta"
        if rung == "whole":
            disk.tried.append({"rung": "delta", "why": "nothing of it is stored already"})
        space = writer.add_recipe(residue.settle(ops, disk.file, UNMATCHED))
        return {"rung": rung, "format": "", "tried": disk.tried, "encoders": {}, "bytes": counts}, space

    def _finish_group(self, writer: PackWriter) -> int:
        packs = writer.finish()
        self._groups.append([pack.stored.file for pack in packs])
        return sum(pack.stored.size for pack in packs)

    # --- the manifest ------------------------------------------------------------------------

    def _artifact(self, disk: _Disk, how: dict[str, Any], space: int) -> Artifact:
        source, explanation = disk.source, disk.explanation
        measured, published = source.measured, source.published
        return Artifact(
            platform=source.named.platform,
            arch=source.named.arch,
            format=source.named.format,
            role=source.named.role,
            image=Form(source.name, measured.size, measured.sha256, space, measured.data),
            published=Form(source.path.name, published.size, published.sha256) if published else None,
            mtime=max(0, source.mtime),
            mode=source.mode,
            sparse=source.sparse,
            virtual_size=explanation.guest.size if explanation else 0,
            canonical=disk.canonical,
            how=how,
        )

    def _finish(self, artifacts: list[Artifact], sources: list[Source], given: bytes | None) -> Built:
        release = self._release(artifacts, sources, given)
        packs = [pack for pack in self._ledger.packs if pack]
        spaces = [space for space in self._ledger.spaces if space]
        made = Manifest(tuple(packs), tuple(spaces), self._ledger.rules(), self._answers(), (release,))
        data = manifest.encode(made)
        manifest.decode(data)
        (self._root / manifest.MANIFEST).write_bytes(data)
        groups = [*self._groups, [release.document.file, manifest.MANIFEST]]
        return Built(self._root, groups, made, data)

    def _release(self, artifacts: list[Artifact], sources: list[Source], given: bytes | None) -> Release:
        options = self._options
        named = [source.named for source in sources]
        name = options.name or next((each.name for each in named if each.name), options.directory.name)
        release = options.release or next((each.release for each in named if each.release), "unknown")
        stream = self._stream or "unknown"
        document = given or self._written_document(stream, release, artifacts)
        file = f"streams/{sha256_hex(document)[:16]}.json"
        (self._root / file).write_bytes(document)
        stored = StoredFile(file, len(document), sha256_hex(document))
        return Release(name, stream, release, stored, tuple(artifacts))

    def _written_document(self, stream: str, release: str, artifacts: list[Artifact]) -> bytes:
        described = [_described(artifact, release) for artifact in artifacts]
        return streams.write(stream, f"rehydrator {__version__}", described)

    def _answers(self) -> tuple[KnownAnswer, ...]:
        used = sorted({(rule.codec, rule.params) for rule in self._ledger.encodes})
        if not used:
            return ()
        assert self._sample is not None
        space, at, plain = self._sample
        return tuple(
            KnownAnswer(
                name,
                params,
                codec(name).version(),
                space,
                at,
                len(plain),
                sha256_hex(codec(name).encode(plain, dict(params))),
            )
            for name, params in used
        )


@contextmanager
def _workers(jobs: int) -> Iterator[Executor]:
    """A pool of threads; after an error what waits is dropped, and what runs (a frame at level
    19 takes seconds) is not waited for."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _only_arch(files: Sequence[Path]) -> str:
    """The architecture that all names by convention agree on, or ""."""
    arches = {parse_name(path.name).arch for path in files} - {""}
    return arches.pop() if len(arches) == 1 else ""


def _described(artifact: Artifact, release: str) -> Described:
    whole = artifact.published or artifact.image
    item = Published(
        name=whole.name,
        arch=artifact.arch,
        platform=artifact.platform,
        format=artifact.format,
        role=artifact.role,
        release=release,
        sha256=whole.sha256,
        uncompressed_sha256=artifact.image.sha256,
    )
    return Described(item, whole.size, artifact.image.size, artifact.mtime)


def _split_zeros(data: bytes, offset: int) -> Iterator[Op]:
    """Unmatched bytes with their longer runs of zeros taken out."""
    at = 0
    while at < len(data):
        start = data.find(bytes(64), at)
        if start < 0:
            break
        end = start + 64
        while end < len(data) and not data[end]:
            end += 1
        if start > at:
            yield Copy(start - at, UNMATCHED, offset + at)
        yield zeros(end - start)
        at = end
    if at < len(data):
        yield Copy(len(data) - at, UNMATCHED, offset + at)


def _is_unmatched(op: Op) -> bool:
    return isinstance(op, Copy) and op.space == UNMATCHED


def _counts(ops: Sequence[Op]) -> dict[str, int]:
    """Output bytes by where they come from."""
    counts: dict[str, int] = {}
    for op in ops:
        if _is_unmatched(op):
            kind = "unmatched"
        elif is_zeros(op):
            kind = "zeros"
        elif isinstance(op, Copy):
            kind = "copied"
        elif isinstance(op, Encode):
            kind = "encoded"
        else:
            kind = "tables"
        counts[kind] = counts.get(kind, 0) + op.length
    return counts


def _survey_of(disk: _Disk) -> Survey:
    assert disk.survey is not None
    return disk.survey
