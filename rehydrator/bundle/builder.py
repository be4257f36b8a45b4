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

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from rehydrator import __version__
from rehydrator.bundle import intake, manifest, published_canonical
from rehydrator.bundle import live as live_system
from rehydrator.bundle.manifest import Artifact, Form, Manifest, Release, StoredFile
from rehydrator.bundle.matching import Wanted
from rehydrator.bundle.packing import FRAME_SIZE
from rehydrator.bundle.prediction import check_prediction
from rehydrator.bundle.recovery import Recovery
from rehydrator.bundle.storing import Beside, Storage
from rehydrator.bundle.survey import SIBLING_SHARE, Survey, survey
from rehydrator.core.digest import sha256_hex
from rehydrator.core.errors import HostileInput, NotInBundle, Unexplained, UsageError
from rehydrator.formats import containers, explain, recognise
from rehydrator.formats.explanation import Unpacked
from rehydrator.formats.layered import explain_initramfs
from rehydrator.metadata import stream as streams
from rehydrator.metadata.names import SIGNATURE_SUFFIX, STREAM_DOCUMENT, image_name, parse_name
from rehydrator.metadata.stream import Described, Published
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.bundle.intake import Source
    from rehydrator.bundle.live import Live
    from rehydrator.bundle.proven import Comparison
    from rehydrator.bundle.recovery import Recovered, Running
    from rehydrator.bundle.storing import Stored
    from rehydrator.codecs.streams import Filter
    from rehydrator.core.reader import Reader, SparseReader
    from rehydrator.formats.explanation import Explanation
    from rehydrator.formats.streams import Layout


AUTO, ALWAYS, NEVER = "auto", "always", "never"
STORED, ENCODED = "stored", "encoded"
IMAGE, PUBLISHED = "image", "published"

_EXPLAINED_AT_ONCE = 2

# An initramfs is taken apart for so many bytes that are not stored yet, where so many percent of
# what its archives hold are. Its encoder then runs whenever it is given back.
_WORTH_UNPACKING, _KNOWN_PERCENT = 1 << 20, 50

# What of the live media lies in the disks' /boot as well.
_IN_BOOT = {"kernel", "initramfs"}
_LIVE = _IN_BOOT | {"rootfs"}

# With AUTO, compressed bytes that no encoder gives are kept where they are few: corrections.
_FEW_BYTES, _FEW_PERCENT = 1 << 20, 5


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked for; sizes in bytes. `keep_published` says what becomes of compressed
    files that no encoder gives back: kept ("always"), left to their image form ("never", which
    looks for no encoder at all), or kept where few bytes are missing ("auto"). `live` says whether
    a live root file system is "stored" and the disks are made from it, or "encoded" again from
    the disks; "auto": what is smaller. With a `canonical_form` of
    "published" one compressed file of each group of siblings is the canonical disk. `initramfs` says
    whether an initramfs, which stands in the disks too, is "stored" or "encoded" again, by its
    program, from the files that its archives have in common with the disks. `run` runs the
    programs that encode. `target` is the directory that the image will lie in, where that is known.
    Without `stream_json` the directory's own is taken, unless `ignore_stream_json` says no."""

    directory: Path
    work: Path
    target: Path | None = None
    stream_json: Path | None = None
    ignore_stream_json: bool = False
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
    keep_published: str = AUTO
    live: str = AUTO
    canonical_form: str = IMAGE
    initramfs: str = STORED
    run: Filter | None = None


class Reporter(Protocol):
    """What a build says while it runs; the command line shows it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...

    def phase(self, title: str, total: int) -> None:
        """A new phase of `total` bytes begins; 0: nobody knows how many."""
        ...

    def advance(self, steps: int, detail: str = "") -> None:
        """Some bytes of the phase are done."""
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
    packed: FileReader | None = None
    running: Running | None = None


@dataclass(frozen=True)
class Built:
    """A bundle's directory tree, not sealed: groups of files in layer order, and the manifest."""

    root: Path
    groups: list[list[str]]
    manifest: Manifest
    signed_bytes: bytes
    compared: tuple[Comparison, ...] = ()


class Builder:
    """One build."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._root = options.work / "bundle"
        self._stream = options.stream

    def build(self) -> Built:
        """Write the bundle's tree below the work directory.

        Raises:
            RehydratorError: see the intake; nothing outside of the work directory was written.
        """
        options = self._options
        with _workers(options.jobs) as pool, _workers(options.jobs) as encoders:
            sources, document = self._take_in(pool)
            recovery = Recovery(encoders, options.run)
            unpacker = _Unpacker(options, recovery)
            with self._explained(sources, pool, unpacker) as disks:
                self._survey(disks, pool)
                groups = self._group(disks)
                kept = {disk.source.name for group in groups if (disk := self._as_published(group))}
                for disk in disks:
                    if disk.source.name not in kept:
                        self._recover(disk, recovery)
                storage = Storage(
                    self._root, options.level, options.frame_size, options.jobs, pool, options.run
                )
                artifacts = self._store(disks, groups, kept, storage, pool, unpacker)
        return self._finish(artifacts, storage, sources, document, recovery)

    def plan(self) -> list[dict[str, Any]]:
        """What a build would do, without writing a bundle: every file and its rung."""
        with _workers(self._options.jobs) as pool, _workers(self._options.jobs) as encoders:
            sources, _ = self._take_in(pool)
            unpacker = _Unpacker(self._options, Recovery(encoders, self._options.run))
            with self._explained(sources, pool, unpacker) as disks:
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
        return planned

    # --- taking in ---------------------------------------------------------------------------

    def _take_in(self, pool: Executor) -> tuple[list[Source], bytes | None]:
        options, note = self._options, self._reporter.note
        _check_options(options)
        listed = intake.list_files(options.directory, note)
        files = [path for path in listed if path.name != STREAM_DOCUMENT]
        document, named = self._document(files, self._document_path(listed))
        chosen = sorted(named) if named is not None else files
        if not chosen and named is None:
            raise HostileInput(f"{options.directory}: no files but {STREAM_DOCUMENT}; put the images there")
        if not chosen:
            raise NotInBundle(f"{options.directory}: none of its files is in the stream document")
        known = {name for path in chosen for name in (path.name, image_name(path.name))}
        for name in options.canonicals:
            if name not in known:
                raise UsageError(f"--canonical {name}: no such file; there are {', '.join(sorted(known))}")
        work, stored = intake.estimated_need(chosen)
        at_target = [(options.target, stored)] if options.target else []
        intake.check_free_space([(options.work, work), *at_target])
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

    def _document_path(self, listed: Sequence[Path]) -> Path | None:
        """The stream document: the one that was given, else the directory's own."""
        options, note = self._options, self._reporter.note
        beside = next((path for path in listed if path.name == STREAM_DOCUMENT), None)
        if beside and not options.stream_json and not options.ignore_stream_json:
            note(f"{beside}: taken as the release's stream document; --stream-json none ignores it")
            return beside
        if beside and not (options.stream_json and beside.samefile(options.stream_json)):
            note(f"{STREAM_DOCUMENT}: left out, as --stream-json says")
        return options.stream_json

    def _document(
        self, files: Sequence[Path], path: Path | None
    ) -> tuple[bytes | None, dict[Path, Published] | None]:
        if path is None:
            return None, None
        if path.stat().st_size > manifest.MAX_DOCUMENT:
            raise HostileInput(f"{path}: {path.stat().st_size} bytes are no stream document")
        data = path.read_bytes()
        try:
            parsed = streams.parse(data, str(path))
        except HostileInput as error:
            hint = "" if self._options.stream_json else "; correct it, or ignore it with --stream-json none"
            raise HostileInput(f"{error}{hint}") from None
        self._stream = self._stream or parsed.stream
        candidates = [each for each in files if not each.samefile(path)]
        found = intake.select_files(candidates, parsed, self._options.allow_missing, self._reporter.note)
        return data, found

    # --- explaining --------------------------------------------------------------------------

    @contextmanager
    def _explained(
        self, sources: Sequence[Source], pool: Executor, unpacker: _Unpacker
    ) -> Iterator[list[_Disk]]:
        """Every file explained, two at a time: what is compressed in one of them is encoded by
        one thread."""
        disks: list[_Disk] = []
        try:
            self._reporter.phase("explaining", sum(source.measured.data for source in sources))
            with _workers(min(self._options.jobs, _EXPLAINED_AT_ONCE)) as outer:
                for disk in outer.map(lambda source: self._explain(source, pool, unpacker), sources):
                    disks.append(disk)
                    self._reporter.advance(disk.source.measured.data, disk.source.name)
            yield disks
        finally:
            for disk in disks:
                disk.file.close()
                if disk.packed:
                    disk.packed.close()

    def _explain(self, source: Source, pool: Executor, unpacker: _Unpacker) -> _Disk:
        file = FileReader(source.image)
        try:
            explanation = explain(file, pool.map, unpacker.within(source.name, disks=True))
            check_prediction(explanation, file)
            return _Disk(source, file, explanation)
        except Unexplained as error:
            return _Disk(source, file, None, [{"rung": "explained", "why": str(error)}])

    def _recover(self, disk: _Disk, recovery: Recovery) -> None:
        """Begin to look for the encoders of the compressed file around an image."""
        layout = disk.source.layout
        if layout is not None and self._options.keep_published != NEVER:
            disk.packed = FileReader(disk.source.path)
            disk.running = recovery.begin(disk.packed, layout, disk.file)

    def _beside(self, disk: _Disk) -> Beside:
        """What is stored with an image, once its encoders are known."""
        recovered = disk.running.result() if disk.running else None
        if recovered is None or not self._is_kept(disk, recovered):
            return _alone(disk)
        return replace(_alone(disk), file=disk.packed, recovered=recovered, plain=disk.file)

    def _is_kept(self, disk: _Disk, recovered: Recovered) -> bool:
        if not recovered.kept:
            return True
        name, kept = disk.source.path.name, recovered.kept
        few = kept <= max(_FEW_BYTES, (kept + recovered.reproduced) * _FEW_PERCENT // 100)
        if self._options.keep_published == ALWAYS or few:
            how = "kept as corrections" if recovered.reproduced else "kept as they are"
            self._reporter.note(f"{name}: no encoder here gives {kept} of its bytes; {how}")
            return True
        self._reporter.note(
            f"{name}: no encoder here gives {kept} of its {disk.source.path.stat().st_size} bytes; "
            f"{disk.source.name} is there in its image form alone (--keep-published always keeps both)"
        )
        return False

    def _survey(self, disks: Sequence[_Disk], pool: Executor) -> None:
        explained = [disk for disk in disks if disk.explanation]
        self._reporter.phase("surveying", sum(disk.source.measured.data for disk in explained))
        surveys = pool.map(lambda disk: survey(disk.explanation.guest), explained)
        for disk, found in zip(explained, surveys, strict=True):
            disk.survey = found
            self._reporter.advance(disk.source.measured.data, disk.source.name)

    def _group(self, disks: Sequence[_Disk]) -> list[list[_Disk]]:
        """Groups of siblings, each with its canonical disk first."""
        explained = [disk for disk in disks if disk.survey]
        named = [self._forced(name, explained) for name in self._options.canonicals]
        forced = list({id(disk): disk for disk in named}.values())
        rest = [disk for disk in explained if all(disk is not each for each in forced)]
        rest.sort(key=lambda disk: (-_survey_of(disk).data, _is_packed(disk), disk.source.name))
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
        raise UsageError(f"--canonical {name}: no disk that could be explained (see --dry-run --json)")

    # --- storing -----------------------------------------------------------------------------

    def _store(
        self,
        disks: Sequence[_Disk],
        groups: list[list[_Disk]],
        kept: set[str],
        storage: Storage,
        pool: Executor,
        unpacker: _Unpacker,
    ) -> list[Artifact]:
        """Everything; `kept` are the compressed files that are canonical disks themselves."""
        live = self._find_live(disks)
        artifacts: dict[str, Artifact] = {}
        if self._options.initramfs == ENCODED:
            artifacts |= self._store_archives(disks, storage, unpacker)
        if live is not None:
            owner = next(disk for disk in disks if disk.source.name == live.owner)
            owner.explanation = self._encoded_again(live, groups[0][0], pool)
            if owner.explanation is None:
                artifacts |= self._store_live(live, disks, storage)
        for group in groups:
            first = group[0]
            assert first.explanation is not None
            found = _survey_of(first)
            self._reporter.phase(f"storing the disk of {first.source.name}", found.data)
            as_published = next((disk for disk in group if disk.source.name in kept), None)
            if as_published:
                space = self._store_as_published(as_published, storage, artifacts)
            else:
                space = storage.canonical(first.explanation.guest, found, self._reporter.advance)
                first.canonical = True
            for disk in group:
                disk.guest_space = space
        self._reporter.phase("matching", sum(disk.source.measured.data for disk in disks))
        left = [disk for disk in _in_order(disks) if disk.source.name not in artifacts]
        siblings = [disk for disk in left if disk.explanation and not disk.canonical]
        storage.matches.plan(Wanted(_guest(disk), disk.guest_space) for disk in siblings)
        for disk in _in_order(disks):
            if disk.source.name not in artifacts:
                self._explain_archive(disk, storage, unpacker)
                stored = _stored(disk, storage, self._beside(disk))
                artifacts[disk.source.name] = _artifact(disk, stored)
            self._reporter.advance(disk.source.measured.data, disk.source.name)
        return [artifacts[disk.source.name] for disk in disks]

    def _store_archives(
        self, disks: Sequence[_Disk], storage: Storage, unpacker: _Unpacker
    ) -> dict[str, Artifact]:
        """Store what the archives of an initramfs hold before the disks, which have most of it."""
        artifacts = {}
        for disk in disks:
            if disk.explanation is None and disk.source.named.role == "initramfs":
                self._reporter.phase(f"storing {disk.source.name}", 0)
                try:
                    within = unpacker.within(disk.source.name, disks=False)
                    disk.explanation = explain_initramfs(disk.file, within)
                except Unexplained as error:
                    self._reporter.note(f"{disk.source.name}: stored as it is: {error}")
                    continue
                artifacts[disk.source.name] = _artifact(disk, _stored(disk, storage, self._beside(disk)))
        return artifacts

    def _explain_archive(self, disk: _Disk, storage: Storage, unpacker: _Unpacker) -> None:
        """Explain an initramfs by what its archives hold, where much of that is stored already
        and little of the file itself is."""
        if disk.explanation is not None or disk.source.named.role != "initramfs":
            return
        missing = disk.file.size - storage.known(disk.file)
        if missing < _WORTH_UNPACKING:
            return
        try:
            found = explain_initramfs(disk.file, unpacker.within(disk.source.name, disks=False))
        except Unexplained as error:
            disk.tried.append({"rung": "archives", "why": str(error)})
            return
        held = storage.known(found.guest)
        if held * 100 < found.guest.size * _KNOWN_PERCENT:
            why = f"{held} of the {found.guest.size} bytes in it are stored already"
            disk.tried.append({"rung": "archives", "why": why})
            return
        disk.explanation = found

    def _store_as_published(self, disk: _Disk, storage: Storage, artifacts: dict[str, Artifact]) -> int:
        """Store a group's disk as a compressed file of it."""
        assert disk.source.layout is not None
        assert disk.explanation is not None
        disk.packed = FileReader(disk.source.path)
        files = (disk.packed, disk.file, disk.explanation, disk.source.layout)
        space, stored = storage.canonical_published(*files, _alone(disk))
        disk.canonical = True
        artifacts[disk.source.name] = _artifact(disk, stored)
        return space

    def _as_published(self, group: Sequence[_Disk]) -> _Disk | None:
        """The first of a group whose compressed file can be its canonical disk, where that is
        wanted."""
        if self._options.canonical_form != PUBLISHED:
            return None
        why = "no file of its group is compressed"
        for disk in group:
            if disk.source.layout is not None and disk.explanation is not None:
                try:
                    published_canonical.check(disk.source.layout, disk.explanation)
                except Unexplained as error:
                    why = f"{disk.source.path.name}: {error}"
                else:
                    return disk
        self._reporter.note(f"{group[0].source.name}: its disk is stored in its image form: {why}")
        return None

    def _find_live(self, disks: Sequence[_Disk]) -> Live | None:
        """The live root file system that holds what the disks hold, if there are both."""
        if not any(disk.explanation for disk in disks):
            return None
        files = [(disk.source.name, disk.file) for disk in disks if not disk.explanation]
        live, declined = live_system.find(files)
        for name, why in declined:
            self._reporter.note(f"{name}: its file system is not taken apart: {why}")
        return live

    def _encoded_again(self, live: Live, first: _Disk, pool: Executor) -> Explanation | None:
        """The live root file system explained by the disks' files, where that is smaller than
        the disks made from it, or wanted."""
        wanted, level = self._options.live, self._options.level
        if wanted == STORED:
            return None
        self._reporter.phase(f"explaining {live.owner}", 0)
        assert first.explanation is not None
        whole = live_system.compressed_size(first.explanation.guest, _survey_of(first), level, pool.map)
        if wanted == AUTO and whole > live.file.size:
            return None
        try:
            explanation = live.explain(pool.map)
            check_prediction(explanation, live.file)
        except Unexplained as error:
            self._reporter.note(f"{live.owner}: cannot be made from the disks: {error}")
            return None
        self._reporter.note(
            f"{live.owner}: made from the files of {first.source.name}, each block encoded again "
            f"(it has {live.file.size} bytes, and the disk about {whole} when it is compressed)"
        )
        return explanation

    def _store_live(self, live: Live, disks: Sequence[_Disk], storage: Storage) -> dict[str, Artifact]:
        """Store a live root file system before the disks, which are derived from it; kernel and
        initramfs too, which stand in /boot."""
        self._reporter.phase(f"storing {live.owner}", 0)
        chosen = [
            disk
            for disk in disks
            if disk.source.name == live.owner or (not disk.explanation and disk.source.named.role in _IN_BOOT)
        ]
        chosen.sort(key=lambda disk: (disk.source.name != live.owner, disk.source.name))
        artifacts = {}
        for disk in chosen:
            is_owner = disk.source.name == live.owner
            stored = _stored(disk, storage, self._beside(disk), scattered=is_owner)
            artifacts[disk.source.name] = _artifact(disk, stored)
            if is_owner:
                self._open_live(live, stored.space, storage)
        return artifacts

    def _open_live(self, live: Live, space: int, storage: Storage) -> None:
        try:
            storage.contents(live, space)
        except Unexplained as error:
            self._reporter.note(f"{live.owner}: no disk is derived from its {live.system.kind}: {error}")
            return
        self._reporter.note(
            f"{live.owner}: stored as it is; the disks are derived from the files of its {live.system.kind}"
        )

    # --- the manifest ------------------------------------------------------------------------

    def _finish(
        self,
        artifacts: list[Artifact],
        storage: Storage,
        sources: list[Source],
        given: bytes | None,
        recovery: Recovery,
    ) -> Built:
        release = self._release(artifacts, sources, given)
        ledger = storage.ledger
        packs = tuple(pack for pack in ledger.packs if pack)
        spaces = tuple(space for space in ledger.spaces if space)
        made = Manifest(packs, spaces, ledger.rules(), storage.known_answers(), (release,))
        data = manifest.encode(made)
        manifest.decode(data)
        (self._root / manifest.MANIFEST).write_bytes(data)
        groups = [*storage.groups, [release.document.file, manifest.MANIFEST]]
        return Built(self._root, groups, made, data, tuple(recovery.compared))

    def _release(self, artifacts: list[Artifact], sources: list[Source], given: bytes | None) -> Release:
        options = self._options
        named = [source.named for source in sources]
        name = options.name or next((each.name for each in named if each.name), _called(options.directory))
        release = options.release or next((each.release for each in named if each.release), "unknown")
        stream = self._stream or "unknown"
        document = given or self._written_document(stream, release, artifacts)
        file = f"streams/{sha256_hex(document)[:16]}.json"
        (self._root / file).write_bytes(document)
        stored = StoredFile(file, len(document), sha256_hex(document))
        return Release(name, stream, release, stored, tuple(artifacts))

    def _written_document(self, stream: str, release: str, artifacts: list[Artifact]) -> bytes:
        named: dict[tuple[str, ...], str] = {}
        for each in artifacts:
            key = (each.arch, each.platform, each.format, each.role)
            if key in named:
                self._reporter.note(
                    f"{named[key]}, {each.image.name}: both are {each.platform} {each.format} "
                    f"for {each.arch}; the stream document names the last, and only --file tells them apart"
                )
            named[key] = each.image.name
        described = [_described(artifact, release) for artifact in artifacts]
        return streams.write(stream, f"rehydrator {__version__}", described)


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


def _check_options(options: BuildOptions) -> None:
    given = {"--name": options.name, "--stream": options.stream, "--release": options.release}
    for option, text in given.items():
        if text and not manifest.is_name(text):
            raise UsageError(f"{option} {text!r:.80}: no slash, no control characters, at most 255 letters")
    if options.arch and not manifest.is_word(options.arch):
        raise UsageError(f"--arch {options.arch!r:.80}: not an architecture's name")


def _called(directory: Path) -> str:
    """What a release is called that neither an option nor its files name."""
    name = directory.resolve().name
    return name if manifest.is_name(name) and name.isprintable() else "release"


def _only_arch(files: Sequence[Path]) -> str:
    """The architecture that all names by convention agree on, or ""."""
    arches = {parse_name(path.name).arch for path in files} - {""}
    return arches.pop() if len(arches) == 1 else ""


class _Unpacker:
    """Takes apart what is compressed inside of images."""

    def __init__(self, options: BuildOptions, recovery: Recovery) -> None:
        self._directory, self._limit = options.work / "images", options.max_image_size
        self._recovery = recovery
        self._lock = threading.Lock()
        self._count = 0

    def within(self, name: str, *, disks: bool) -> Callable[[Reader], Unpacked | None]:
        """What takes the file called `name` apart. All that is compressed in it comes to no more
        than one image may have. Where only `disks` are of use, no encoder is looked for around
        anything else: a tar may hold thousands of compressed manual pages."""
        left = self._limit

        def unpack(file: Reader) -> Unpacked | None:
            nonlocal left
            container = containers.recognise(file)
            if not container:
                return None
            plain, layout = self._unpack(file, f"{name}, {container} in it", left)
            left -= plain.size
            if disks and not (recognise(plain) or containers.recognise(plain)):
                return None
            return self._recovered(container, file, plain, layout)

        return unpack

    def _unpack(self, file: Reader, name: str, limit: int) -> tuple[FileReader, Layout]:
        with self._lock:
            self._count += 1
            target = self._directory / f".layer-{self._count}"
        _, layout = intake.unpack(file, name, target, limit)
        plain = FileReader(target)
        target.unlink()  # it takes room and a descriptor for as long as somebody reads it
        return plain, layout

    def _recovered(self, container: str, file: Reader, plain: FileReader, layout: Layout) -> Unpacked:
        found = self._recovery.begin(file, layout, plain).result()
        if found.kept > _FEW_BYTES and found.kept > found.reproduced * _FEW_PERCENT // 100:
            raise Unexplained(f"no encoder here gives the bytes of its {container}")
        return Unpacked(container, plain, found.ops, found.streams, found.encoders)


def _alone(disk: _Disk) -> Beside:
    """What is stored with an image where no encoder gives the file around it."""
    return Beside(signature=disk.source.signature, boundaries=disk.source.measured.boundaries)


def _stored(disk: _Disk, storage: Storage, beside: Beside, *, scattered: bool = False) -> Stored:
    if disk.explanation is None:
        return storage.unexplained(disk.file, disk.tried, beside, scattered=scattered)
    space = disk.guest_space
    return storage.explained(disk.file, disk.explanation, space, beside, is_canonical=disk.canonical)


def _in_order(disks: Sequence[_Disk]) -> list[_Disk]:
    """The order in which files are stored: disks, then live media before the ISO that has them
    too, then what is left, the largest first."""

    def key(disk: _Disk) -> tuple[bool, bool, int, str]:
        is_disk = disk.guest_space is not None
        is_live = disk.source.named.role in _LIVE
        return not is_disk, not is_live, 0 if is_disk else -disk.source.measured.size, disk.source.name

    return sorted(disks, key=key)


def _artifact(disk: _Disk, stored: Stored) -> Artifact:
    source, explanation = disk.source, disk.explanation
    measured, published, signature = source.measured, source.published, source.signature
    return Artifact(
        platform=source.named.platform,
        arch=source.named.arch,
        format=source.named.format,
        role=source.named.role,
        image=Form(source.name, measured.size, measured.sha256, stored.space, measured.data, stored.chain),
        published=Form(source.path.name, published.size, published.sha256, stored.published, published.data)
        if published
        else None,
        mtime=max(0, source.mtime),
        mode=source.mode,
        sparse=source.sparse,
        virtual_size=explanation.guest.size if explanation and disk.survey else 0,
        canonical=disk.canonical,
        how=stored.how,
        signature=Form(
            source.path.name + SIGNATURE_SUFFIX,
            len(signature),
            sha256_hex(signature),
            stored.signature,
            len(signature),
        )
        if signature
        else None,
    )


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


def _guest(disk: _Disk) -> SparseReader:
    assert disk.explanation is not None
    return disk.explanation.guest


def _is_packed(disk: _Disk) -> bool:
    """Whether a file's disk is decoded whenever it is read; of a canonical disk that is once for
    each of its siblings."""
    return disk.explanation is not None and bool(disk.explanation.rules.encodes)


def _survey_of(disk: _Disk) -> Survey:
    assert disk.survey is not None
    return disk.survey
