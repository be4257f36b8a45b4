"""One canonical image into the files of every platform."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from rehydrator import host
from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, UsageError
from rehydrator.host import gpg
from rehydrator.host.guest import open_guests
from rehydrator.host.guest_volumes import BIG_SECTOR, SECTOR, sector_size
from rehydrator.metadata.names import SIGNATURE_SUFFIX
from rehydrator.variants import stamp as stamps
from rehydrator.variants.compress import compress
from rehydrator.variants.convert import convert
from rehydrator.variants.image import make_image
from rehydrator.variants.tools import Measured, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rehydrator.variants.plan import Base, Options, Plan, Variant

_T = TypeVar("_T")

# What one conversion, compression or signature may take: a disk of 100 GiB through xz -9 on one core.
_LONGEST = 24 * 3600
# xz -9 with two threads (xz -vv says 1,250 MiB), and with each one more.
_XZ_MEMORY = 1_300 << 20
_XZ_THREAD = _XZ_MEMORY // 2
# Our copy of the base with sectors of so many bytes.
_RAW = {SECTOR: "base.raw", BIG_SECTOR: "base4k.raw"}


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
    """Makes the variants of a plan. `scratch` is a private directory, `staging` another, on the
    file system of the release."""

    def __init__(
        self, options: Options, plan: Plan, reporter: Reporter, scratch: Path, staging: Path
    ) -> None:
        self._options, self._plan, self._reporter = options, plan, reporter
        self._scratch, self._staging = scratch, staging

    def make(self) -> list[Outcome]:
        """Make them; each that fails is reported in its outcome, and the others go on.

        Raises:
            RehydratorError: what concerns them all: the base, the appliance, no space at all.
        """
        outcomes, ready = self._stamped()
        for outcome in outcomes:
            self._reporter.done(outcome)
        at_once, threads = side_by_side(self._options, len(ready))
        pool = ThreadPoolExecutor(at_once)
        try:
            with host.uninterrupted():
                making = [pool.submit(self._make, each, disk, threads) for each, disk in ready]
            for outcome in host.as_they_end(making):
                self._reporter.done(outcome)
                outcomes.append(outcome)
        except BaseException:
            host.stop_all()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        order = {each.platform: number for number, each in enumerate(self._plan.variants)}
        return sorted(outcomes, key=lambda outcome: order[outcome.variant.platform])

    def _stamped(self) -> tuple[list[Outcome], list[tuple[Variant, Path]]]:
        """Each platform's disk as an overlay over its base, edited."""
        failed: list[Outcome] = []
        disks: list[tuple[Variant, Path]] = []
        self._check_space()
        for base in self._plan.bases:
            disks += self._stamped_on(base, failed)
        lost = {outcome.variant.platform for outcome in failed}
        return failed, [(each, disk) for each, disk in disks if each.platform not in lost]

    def _stamped_on(self, base: Base, failed: list[Outcome]) -> list[tuple[Variant, Path]]:
        """The disks of one base, of which some may have failed."""
        disks: list[tuple[Variant, Path]] = []
        raw = self._scratch / _RAW[base.sectors]
        self._reporter.step("", f"unpacking {base.path.name}")
        convert(base.path, base.format, "raw", (), raw, self._options.identity(""), _LONGEST)
        _check_sectors(base, raw)
        for each in self._plan.variants:
            if each.derivation.sectors == base.sectors:
                with self._reported(each, "grow", failed):
                    disks.append((each, self._overlay(base, raw, each)))
        if any(self._touches(each) for each, _ in disks):
            with self._user_names(base):
                self._edit(base, raw, disks, failed)
        return disks

    def _overlay(self, base: Base, raw: Path, variant: Variant) -> Path:
        if variant.size < base.size:
            raise UsageError(
                f"{base.path}: its disk of {base.size} bytes is too large for "
                f"{variant.platform}, whose size is {variant.size}; give a larger `size` with --derivations"
            )
        overlay = self._scratch / f"{variant.platform}.overlay"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw"]
        done = host.run([*argv, str(overlay), str(variant.size)], 60)
        if done.status:
            raise RehydratorError(f"qemu-img create: {done.said}")
        return overlay

    def _edit(self, base: Base, raw: Path, disks: list[tuple[Variant, Path]], failed: list[Outcome]) -> None:
        options, name = self._options, str(base.path)
        paths = [path for each, _ in disks for path in each.derivation.files]
        root_too = any(not path.startswith(stamps.BOOT) for path in paths)
        self._reporter.step("", "opening the guests")
        with open_guests(
            raw,
            [disk for _, disk in disks],
            options.editor,
            options.epoch,
            self._scratch,
            lambda text: self._reporter.note(self._user_named(text, base)),
            root_too=root_too,
        ) as guests:
            boot = stamps.read_boot(guests, name)
            words = {"release": options.release, "name": options.name, "arch": options.arch}
            for each, disk in disks:
                with self._reported(each, "stamp", failed), self._user_names(base):
                    self._reporter.step("", f"stamping {each.platform}")
                    files = stamps.stamped(boot, each.derivation, self._plan.consoles, words, name)
                    if files:
                        guests.write(disk, files)

    def _touches(self, variant: Variant) -> bool:
        derivation = variant.derivation
        return bool(derivation.files) or stamps.touches_boot(derivation, self._plan.consoles)

    @contextmanager
    def _reported(self, variant: Variant, what: str, failed: list[Outcome]) -> Iterator[None]:
        """A failure inside is this variant's alone."""
        try:
            yield
        except (RehydratorError, OSError) as error:
            failed.append(Outcome(variant, error=_as_ours(error, what)))

    @contextmanager
    def _user_names(self, base: Base) -> Iterator[None]:
        """Errors inside name the base as the user did, not our copies of it."""
        try:
            yield
        except RehydratorError as error:
            raise type(error)(self._user_named(str(error), base)) from None

    def _user_named(self, text: str, base: Base) -> str:
        ours = rf"{re.escape(str(self._scratch))}/({re.escape(_RAW[base.sectors])}|[a-z0-9_-]+\.overlay)"
        return re.sub(ours, lambda _: str(base.path), text)

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
            image = step("convert", lambda: make_image(self._options, variant, disk, work, _LONGEST))
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
        """Publish a file that is there already (check_added() had a look at its name): live media,
        or a disk that no derivation makes.

        Raises:
            RehydratorError: it cannot be read, or the disk is full.
        """
        self._reporter.step("", f"adding {path.name}")
        target = self._staging / path.name
        try:
            shutil.copyfile(path, target)
            return self._publish(target, measure(target), None)
        except OSError as error:
            raise _as_ours(error, path.name) from None

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

    def _packed(
        self, variant: Variant, image: Path, target: Path, threads: int
    ) -> tuple[Measured, Measured | None]:
        os.utime(image, (self._options.epoch, self._options.epoch))
        if variant.method == "none":
            measured = measure(image)
            image.replace(target)
            return measured, None
        compressed = compress(variant.method, image, target, threads, _LONGEST, self._options.level)
        return compressed.packed, compressed.plain

    def _signature(self, target: Path) -> Path:
        signature = target.with_name(target.name + SIGNATURE_SUFFIX)
        gpg.detach_sign(target, self._options.gpg_key, signature)
        return signature

    def _check_space(self) -> None:
        """The raw bases, and one more copy in work."""
        held = sum(base.path.stat().st_blocks * 512 for base in self._plan.bases)
        free = shutil.disk_usage(self._scratch).free
        if free < 2 * held:
            raise LimitExceeded(
                f"{self._scratch.parent}: the variants need at least {2 * held} bytes for work and "
                f"{free} are free; free some space, or name another place with --tmpdir"
            )


def side_by_side(options: Options, count: int) -> tuple[int, int]:
    """How many of `count` platforms at a time, and threads of xz for each: a core, and memory, for
    each."""
    room = _free_memory() if options.compress else count * _XZ_MEMORY
    at_once = max(1, min(options.jobs, count, room // _XZ_MEMORY))
    return at_once, max(2, min(options.jobs // at_once, room // at_once // _XZ_THREAD))


def _check_sectors(base: Base, raw: Path) -> None:
    """Raise HostileInput where a base's partition table counts other sectors than it should."""
    found = sector_size(raw)
    if found != base.sectors:
        raise HostileInput(
            f"{base.path}: its disk is for sectors of {found:,} bytes, not {base.sectors:,}; BASE is a "
            f"disk for sectors of {SECTOR} bytes, --base-4k one for sectors of {BIG_SECTOR:,}"
        )


def _free_memory() -> int:
    """Bytes of memory that programs may take: free, or a cache's (Linux, proc(5), MemAvailable)."""
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - no file of anybody's
            words = {line.split(":")[0]: line.split() for line in file}
        return int(words["MemAvailable"][1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _as_ours(error: RehydratorError | OSError, what: str) -> RehydratorError:
    if isinstance(error, RehydratorError):
        return error
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LimitExceeded(f"{what}: {error.strerror}; free some space, or see --tmpdir")
    return RehydratorError(f"{error.filename2 or error.filename or what}: {error.strerror or error}")
