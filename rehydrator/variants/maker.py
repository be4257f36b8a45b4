"""One canonical image into the files of every platform."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from rehydrator import host
from rehydrator.core.errors import LimitExceeded, RehydratorError, ToolMissing, UsageError
from rehydrator.host import gpg
from rehydrator.host.guest import open_guests
from rehydrator.metadata.document import WORD
from rehydrator.metadata.names import SIGNATURE_SUFFIX, image_name, parse_name
from rehydrator.variants import stamp as stamps
from rehydrator.variants import wrap
from rehydrator.variants.compress import COMPRESSORS, compress
from rehydrator.variants.convert import convert, inspect
from rehydrator.variants.derivations import load_derivations, load_platforms
from rehydrator.variants.identity import Identity
from rehydrator.variants.tools import Measured, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rehydrator.variants.derivations import Consoles, Derivation

_T = TypeVar("_T")

# What one conversion, compression or signature may take: a disk of 100 GiB through xz -9 on one core.
_LONGEST = 24 * 3600
# xz -9 with two threads (xz -vv says 1,250 MiB), and with each one more.
_XZ_MEMORY = 1_300 << 20
_XZ_THREAD = _XZ_MEMORY // 2
# The programs that wrapping takes.
_WRAPPERS = {
    "ova": ("tar",),
    "powervs-ova": ("fallocate", "tar"),
    "gcp-tar": ("fallocate", "tar"),
    "ociarchive": ("gzip", "tar"),
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Reporter(Protocol):
    """Who hears how it goes."""

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...

    def step(self, platform: str, what: str) -> None:
        """A platform's file is at a step now; several may be."""
        ...

    def done(self, outcome: Outcome) -> None:
        """A platform is through."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What to make. `platforms` empty: all of the architecture; `epoch` in seconds since 1970."""

    base: Path
    directory: Path
    platforms_file: Path
    name: str
    stream: str
    release: str
    arch: str
    epoch: int
    platforms: tuple[str, ...] = ()
    compress: bool = True
    derivations: Path | None = None
    gpg_key: str = ""
    editor: str = "auto"
    jobs: int = 1

    def __post_init__(self) -> None:
        for option, word in (("--name", self.name), ("--stream", self.stream), ("--release", self.release)):
            if not re.fullmatch(WORD, word):
                raise UsageError(f"{option} {word!r:.80}: up to 128 letters, digits and . _ + - are expected")


@dataclass(frozen=True, slots=True)
class Variant:
    """One platform's file to be: its name as published, without the outer compression, and the
    virtual size of its disk in bytes."""

    derivation: Derivation
    file: str
    image: str
    size: int
    method: str
    template: wrap.Template | None = None

    @property
    def platform(self) -> str:
        return self.derivation.platform


@dataclass(frozen=True, slots=True)
class Written:
    """A published file: its name, its digest, that of what is inside the outer compression
    (where there is one), and whether a signature lies beside it."""

    file: str
    packed: Measured
    plain: Measured | None
    signed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one platform ended: what was written, or why not. Seconds by step."""

    variant: Variant
    written: Written | None = None
    error: RehydratorError | None = None
    seconds: tuple[tuple[str, float], ...] = ()


class Maker:
    """Plans and makes the variants of one base."""

    def __init__(self, options: Options, reporter: Reporter) -> None:
        self._options, self._reporter = options, reporter
        self._consoles: Consoles = load_platforms(options.platforms_file, options.arch)
        self._base_size = 0
        self._scratch = self._staging = options.directory

    def plan(self) -> list[Variant]:
        """The variants to make, by platform.

        Raises:
            UsageError: an unknown platform, or one that this program cannot make.
            HostileInput: the base is not what its name says.
        """
        options = self._options
        table = load_derivations(options.derivations)
        wanted = self._selected(table)
        self._base_size = inspect(options.base, _format_of(options.base)).virtual_size
        found = [self._variant(table[name]) for name in wanted]
        if options.gpg_key:
            _check_key(options.gpg_key)
        for each in found:
            if (options.directory / each.file).resolve() == options.base.resolve():
                raise UsageError(f"{options.base}: is itself the file of {each.platform}; write elsewhere")
        return found

    def make(self, variants: Sequence[Variant], scratch: Path, staging: Path) -> list[Outcome]:
        """Make them; each that fails is reported in its outcome, and the others go on. `scratch`
        is a private directory, `staging` another, on the file system of the release.

        Raises:
            RehydratorError: what concerns them all: the base, the appliance, no space at all.
        """
        self._scratch, self._staging = scratch, staging
        outcomes, ready = self._stamped(variants)
        for outcome in outcomes:
            self._reporter.done(outcome)
        at_once, threads = self._at_once(len(ready))
        pool = ThreadPoolExecutor(at_once)
        try:
            waiting = {pool.submit(self._make, each, disk, threads) for each, disk in ready}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                outcomes += [self._finished(future) for future in done]
        except BaseException:
            host.stop_all()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        order = {each.platform: number for number, each in enumerate(variants)}
        return sorted(outcomes, key=lambda outcome: order[outcome.variant.platform])

    def _selected(self, table: Mapping[str, Derivation]) -> list[str]:
        options = self._options
        here = {name: each for name, each in table.items() if options.arch in each.arches}
        for name in options.platforms:
            if name not in here:
                raise UsageError(
                    f"no platform {name!r} for {options.arch}; there are {', '.join(sorted(here))}; "
                    "a new one is a stanza in a file for --derivations"
                )
            if need := here[name].needs.get(options.arch):
                raise UsageError(f"{name} on {options.arch} needs {need}: this program cannot make it")
        if options.platforms:
            return list(dict.fromkeys(options.platforms))
        for name, each in sorted(here.items()):
            if need := each.needs.get(options.arch):
                self._reporter.note(f"{name}: left out, needs {need}")
        found = sorted(name for name, each in here.items() if options.arch not in each.needs)
        if not found:
            raise UsageError(f"no platform of {options.arch} can be made")
        return found

    def _variant(self, derivation: Derivation) -> Variant:
        options = self._options
        method = derivation.compress if options.compress else "none"
        stem = f"{options.name}-{options.release}-{derivation.platform}.{options.arch}"
        image = f"{stem}.{derivation.extension}"
        file = image + (COMPRESSORS[method].suffix if method != "none" else "")
        named = parse_name(file, options.name, options.release)
        if named.arch != options.arch or not named.release:
            raise UsageError(f"{file}: name, release and platform do not make a file name of the convention")
        self._check_programs(derivation, method)
        template = self._template(derivation) if derivation.template else None
        return Variant(derivation, file, image, derivation.size or self._base_size, method, template)

    def _template(self, derivation: Derivation) -> wrap.Template:
        table = self._options.derivations
        try:
            return wrap.load_template(derivation.template, table.parent if table else None)
        except UsageError as error:
            raise UsageError(f"{derivation.platform}: {error}") from None

    def _check_programs(self, derivation: Derivation, method: str) -> None:
        """Raise ToolMissing now, not after an hour, where a program that is needed is not here."""
        programs = [*_WRAPPERS.get(derivation.wrap, ())]
        if method != "none":
            programs += [COMPRESSORS[method].pack[0], COMPRESSORS[method].unpack[0]]
        if self._options.gpg_key:
            programs.append("gpg")
        try:
            for program in programs:
                host.find(program)
        except ToolMissing as error:
            raise ToolMissing(f"{derivation.platform}: {error}") from None

    def _at_once(self, count: int) -> tuple[int, int]:
        """How many platforms at a time, and threads of xz for each: a core, and memory, for each."""
        jobs = self._options.jobs
        room = _free_memory() if self._options.compress else count * _XZ_MEMORY
        at_once = max(1, min(jobs, count, room // _XZ_MEMORY))
        return at_once, max(2, min(jobs // at_once, room // at_once // _XZ_THREAD))

    def _stamped(self, variants: Sequence[Variant]) -> tuple[list[Outcome], list[tuple[Variant, Path]]]:
        """Each platform's disk as an overlay over the base, edited."""
        options = self._options
        failed: list[Outcome] = []
        disks: list[tuple[Variant, Path]] = []
        base = self._scratch / "base.raw"
        self._check_space()
        self._reporter.step("", "unpacking the base")
        identity = Identity("", options.epoch)
        convert(options.base, _format_of(options.base), "raw", (), base, identity, _LONGEST)
        for each in variants:
            with self._reported(each, "grow", failed):
                disks.append((each, self._overlay(base, each)))
        if any(self._touches(each) for each, _ in disks):
            with self._user_names():
                self._edit(base, disks, failed)
        lost = {outcome.variant.platform for outcome in failed}
        return failed, [(each, disk) for each, disk in disks if each.platform not in lost]

    def _overlay(self, base: Path, variant: Variant) -> Path:
        if variant.size < self._base_size:
            raise UsageError(
                f"{self._options.base}: its disk of {self._base_size} bytes is too large for "
                f"{variant.platform}, whose size is {variant.size}; give a larger `size` with --derivations"
            )
        overlay = self._scratch / f"{variant.platform}.overlay"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw"]
        done = host.run([*argv, str(overlay), str(variant.size)], 60)
        if done.status:
            raise RehydratorError(f"qemu-img create: {done.said}")
        return overlay

    def _edit(self, base: Path, disks: list[tuple[Variant, Path]], failed: list[Outcome]) -> None:
        options, name = self._options, str(self._options.base)
        paths = [path for each, _ in disks for path in each.derivation.files]
        root_too = any(not path.startswith(stamps.BOOT) for path in paths)
        self._reporter.step("", "opening the guests")
        with open_guests(
            base,
            [disk for _, disk in disks],
            options.editor,
            options.epoch,
            self._scratch,
            lambda text: self._reporter.note(self._user_named(text)),
            root_too=root_too,
        ) as guests:
            boot = stamps.read_boot(guests, name)
            words = {"release": options.release, "name": options.name, "arch": options.arch}
            for each, disk in disks:
                with self._reported(each, "stamp", failed), self._user_names():
                    self._reporter.step(each.platform, "stamp")
                    files = stamps.stamped(boot, each.derivation, self._consoles, words, name)
                    if files:
                        guests.write(disk, files)

    def _touches(self, variant: Variant) -> bool:
        derivation = variant.derivation
        return bool(derivation.files) or stamps.touches_boot(derivation, self._consoles)

    @contextmanager
    def _reported(self, variant: Variant, what: str, failed: list[Outcome]) -> Iterator[None]:
        """A failure inside is this variant's alone."""
        try:
            yield
        except (RehydratorError, OSError) as error:
            failed.append(Outcome(variant, error=_as_ours(error, what)))

    @contextmanager
    def _user_names(self) -> Iterator[None]:
        """Errors inside name the base as the user did, not our copies of it."""
        try:
            yield
        except RehydratorError as error:
            raise type(error)(self._user_named(str(error))) from None

    def _user_named(self, text: str) -> str:
        ours = rf"{re.escape(str(self._scratch))}/(base\.raw|[a-z0-9_-]+\.overlay)"
        return re.sub(ours, lambda _: str(self._options.base), text)

    def _finished(self, future: Future[Outcome]) -> Outcome:
        outcome = future.result()
        self._reporter.done(outcome)
        return outcome

    def _make(self, variant: Variant, disk: Path, threads: int) -> Outcome:
        """The file of one platform, under its final name."""
        # What is not compressed is renamed into place, and never copied with its holes filled.
        work = (self._staging if variant.method == "none" else self._scratch) / f"{variant.platform}.d"
        seconds: dict[str, float] = {}

        def step(what: str, action: Callable[[], _T]) -> _T:
            self._reporter.step(variant.platform, what)
            started = time.monotonic()
            try:
                return action()
            finally:
                seconds[what] = time.monotonic() - started

        try:
            work.mkdir()
            image = step("convert", lambda: self._image(variant, disk, work))
            target = self._staging / variant.file
            what = "hash" if variant.method == "none" else "compress"
            packed, plain = step(what, lambda: self._packed(variant, image, target, threads))
            written = self._publish(target, packed, plain)
        except (RehydratorError, OSError) as error:
            return Outcome(variant, error=_as_ours(error, variant.file), seconds=tuple(seconds.items()))
        finally:
            shutil.rmtree(work, ignore_errors=True)
            disk.unlink(missing_ok=True)
        return Outcome(variant, written, None, tuple(seconds.items()))

    def add(self, path: Path) -> Written:
        """Publish a file that is there already: live media, or a disk that no derivation makes.

        Raises:
            UsageError: its name is not one of this release.
        """
        self._reporter.step("", f"adding {path.name}")
        target = self._staging / path.name
        try:
            shutil.copyfile(path, target)
            return self._publish(target, measure(target), None)
        except OSError as error:
            raise _as_ours(error, path.name) from None

    def check_added(self, paths: Sequence[Path], variants: Sequence[Variant]) -> None:
        """Raise UsageError unless the files' names are of this release, uncompressed, and no two,
        nor one that is made, are the same."""
        taken = {each.file: f"the file of {each.platform}" for each in variants}
        for path in paths:
            self._check_name(path)
            if path.name in taken:
                raise UsageError(f"{path}: {path.name} is {taken[path.name]} already; leave one of them out")
            taken[path.name] = str(path)

    def _check_name(self, path: Path) -> None:
        options = self._options
        if path.name.endswith(SIGNATURE_SUFFIX):
            raise UsageError(f"{path.name}: signatures are made with --gpg-key, not added")
        named = parse_name(path.name, options.name, options.release)
        if (named.name, named.release, named.arch) != (options.name, options.release, options.arch):
            raise UsageError(
                f"{path.name}: a file to add is named "
                f"{options.name}-{options.release}-ROLE.{options.arch}.EXT"
            )
        if image_name(path.name) != path.name:
            raise UsageError(f"{path.name}: add what is inside of it, or live media; not compressed files")

    def _publish(self, target: Path, packed: Measured, plain: Measured | None) -> Written:
        """Sign a finished file and give it its name."""
        # A bundle keeps the times of its files, so that it, too, is the same after two runs.
        os.utime(target, (self._options.epoch, self._options.epoch))
        signature = self._signature(target) if self._options.gpg_key else None
        if signature is None:
            self._drop_signature(target.name, packed)
        for path in (signature, target):
            if path is not None:
                path.replace(self._options.directory / path.name)
        return Written(target.name, packed, plain, signature is not None)

    def _drop_signature(self, name: str, packed: Measured) -> None:
        """Remove an earlier run's signature, unless the file that it signs stays the same."""
        old, signature = self._options.directory / name, self._options.directory / f"{name}{SIGNATURE_SUFFIX}"
        if signature.exists() and not (old.is_file() and measure(old) == packed):
            signature.unlink()
            self._reporter.note(f"{signature.name}: removed, because {name} is another one now")

    def _identity(self, variant: Variant) -> Identity:
        options = self._options
        return Identity(f"{options.name} {options.release} {options.arch} {variant.platform}", options.epoch)

    def _image(self, variant: Variant, disk: Path, work: Path) -> Path:
        """The image form: converted and wrapped."""
        derivation, identity = variant.derivation, self._identity(variant)
        target = work / variant.image
        inner = {
            "ova": "disk.vmdk",
            "gcp-tar": "disk.raw",
            "powervs-ova": f"{self._options.name}-disk.raw",
            "ociarchive": f"{variant.image.removesuffix('.ociarchive')}.qcow2",
        }.get(derivation.wrap, variant.image)
        converted = work / inner
        convert(disk, "qcow2", derivation.format, derivation.arguments, converted, identity, _LONGEST)
        match derivation.wrap:
            case "":
                return converted
            case "gcp-tar":
                wrap.gcp_tar(converted, target, identity)
            case "ociarchive":
                self._ociarchive(variant, converted, target, identity)
            case _:
                self._ova(variant, converted, target, identity)
        converted.unlink()
        return target

    def _ociarchive(self, variant: Variant, disk: Path, target: Path, identity: Identity) -> None:
        options = self._options
        architecture = _ARCHITECTURES.get(options.arch, options.arch)
        member = f"disk/{disk.name}"
        wrap.ociarchive(
            disk, target, architecture, options.release, member, identity, compressed=options.compress
        )

    def _ova(self, variant: Variant, disk: Path, target: Path, identity: Identity) -> None:
        options = self._options
        values = {
            "vsphere_image_name": target.stem,
            "vsphere_product_name": options.name,
            "vsphere_product_vendor_name": options.name,
            "vsphere_product_version": options.release,
            **variant.derivation.values,
        }
        assert variant.template
        if variant.derivation.wrap == "powervs-ova":
            wrap.powervs_ova(disk, target, variant.template, values, identity, disk_name=disk.name)
        else:
            wrap.ova(disk, variant.size, target, variant.template, values, identity)

    def _packed(
        self, variant: Variant, image: Path, target: Path, threads: int
    ) -> tuple[Measured, Measured | None]:
        os.utime(image, (self._options.epoch, self._options.epoch))
        if variant.method == "none":
            measured = measure(image)
            image.replace(target)
            return measured, None
        compressed = compress(variant.method, image, target, threads, _LONGEST)
        return compressed.packed, compressed.plain

    def _signature(self, target: Path) -> Path:
        signature = target.with_name(target.name + SIGNATURE_SUFFIX)
        gpg.detach_sign(target, self._options.gpg_key, signature)
        return signature

    def _check_space(self) -> None:
        """The raw base, and one more copy in work."""
        options = self._options
        held = options.base.stat().st_blocks * 512
        free = shutil.disk_usage(self._scratch).free
        if free < 2 * held:
            raise LimitExceeded(
                f"{self._scratch.parent}: the variants need at least {2 * held} bytes for work and "
                f"{free} are free; free some space, or name another place with --tmpdir"
            )


def _check_key(key_id: str) -> None:
    """Raise UsageError where gpg has no such secret key: the first signature comes after an hour."""
    if host.run(["gpg", "--batch", "--no-tty", "--list-secret-keys", "--", key_id], 60).status:
        raise UsageError(f"gpg has no secret key {key_id}; list yours with gpg -K")


def _free_memory() -> int:
    """Bytes of memory that programs may take: free, or a cache's (Linux, proc(5), MemAvailable)."""
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - no file of anybody's
            words = {line.split(":")[0]: line.split() for line in file}
        return int(words["MemAvailable"][1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _format_of(base: Path) -> str:
    """The format that the base's name says: qcow2 or raw."""
    formats = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}
    if base.suffix not in formats:
        raise UsageError(
            f"{base}: a base is named .qcow2 or .raw; decompress it, or convert it with qemu-img, first"
        )
    return formats[base.suffix]


def _as_ours(error: RehydratorError | OSError, what: str) -> RehydratorError:
    if isinstance(error, RehydratorError):
        return error
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"{what}: {error.strerror}; free some space, or see --tmpdir")
    return RehydratorError(f"{error.filename2 or error.filename or what}: {error.strerror or error}")
