"""What is to be made: everything that can be wrong with a request is said here, before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rehydrator import host
from rehydrator.core.errors import ToolMissing, UsageError
from rehydrator.metadata.document import WORD
from rehydrator.metadata.names import SIGNATURE_SUFFIX, image_name, parse_name
from rehydrator.variants import wrap
from rehydrator.variants.compress import COMPRESSORS
from rehydrator.variants.convert import inspect
from rehydrator.variants.derivations import Consoles, Derivation, load_derivations, load_platforms
from rehydrator.variants.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_FORMATS = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}


@dataclass(frozen=True, slots=True)
class Options:
    """What to make. `platforms` empty: all of the architecture; `epoch` in seconds since 1970;
    `level` of the outer compression, 0 for upstream's."""

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
    base_4k: Path | None = None
    level: int = 0

    def __post_init__(self) -> None:
        for option, word in (("--name", self.name), ("--stream", self.stream), ("--release", self.release)):
            if not re.fullmatch(WORD, word):
                raise UsageError(f"{option} {word!r:.80}: up to 128 letters, digits and . _ + - are expected")

    @property
    def bases(self) -> dict[int, Path]:
        """The canonical images that were given, by the size in bytes of their disks' sectors."""
        return {512: self.base} | ({4096: self.base_4k} if self.base_4k else {})

    def identity(self, platform: str) -> Identity:
        """What the identifiers and times of one platform's file follow from."""
        return Identity(f"{self.name} {self.release} {self.arch} {platform}", self.epoch)


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
class Base:
    """A canonical image; virtual size, and size of its disk's sectors, in bytes."""

    path: Path
    format: str
    size: int
    sectors: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The variants to make, and the bases that they need."""

    variants: tuple[Variant, ...]
    consoles: Consoles
    bases: tuple[Base, ...]


def make_plan(options: Options, note: Callable[[str], None]) -> Plan:
    """What the options ask for, checked; `note` hears of platforms that are left out.

    Raises:
        UsageError: an unknown platform, one that this program cannot make, a table, template or
            key that is not what it should be.
        HostileInput: the base is not what its name says.
        ToolMissing: a program that will be needed is not installed.
    """
    consoles = load_platforms(options.platforms_file, options.arch)
    table = load_derivations(options.derivations)
    wanted = _selected(options, table, note)
    needed = {table[name].sectors for name in wanted}
    bases = {size: _base(path, size) for size, path in options.bases.items() if size in needed}
    found = tuple(_variant(options, table[name], bases) for name in wanted)
    if options.gpg_key:
        _check_key(options.gpg_key)
    for each in found:
        for path in options.bases.values():
            if (options.directory / each.file).resolve() == path.resolve():
                raise UsageError(f"{path}: is itself the file of {each.platform}; write elsewhere")
    return Plan(found, consoles, tuple(bases.values()))


def check_added(options: Options, paths: Sequence[Path], variants: Sequence[Variant]) -> None:
    """Raise UsageError unless the names of files to add are of this release, uncompressed, and no
    two, nor one that is made, are the same."""
    taken = {each.file: f"the file of {each.platform}" for each in variants}
    for path in paths:
        _check_name(options, path)
        if path.name in taken:
            raise UsageError(f"{path}: {path.name} is {taken[path.name]} already; leave one of them out")
        taken[path.name] = str(path)


def _selected(options: Options, table: Mapping[str, Derivation], note: Callable[[str], None]) -> list[str]:
    here = {name: each for name, each in sorted(table.items()) if options.arch in each.arches}
    needs = {name: need for name, each in here.items() if (need := _need(options, each))}
    for name in options.platforms:
        if name not in here:
            raise UsageError(
                f"no platform {name!r} for {options.arch}; there are {', '.join(here)}; "
                "a new one is a stanza in a file for --derivations"
            )
        if name in needs:
            raise UsageError(f"{name} on {options.arch} needs {needs[name]}")
    if options.platforms:
        return list(dict.fromkeys(options.platforms))
    for name, need in needs.items():
        note(f"{name}: left out, needs {need}")
    found = [name for name in here if name not in needs]
    if not found:
        raise UsageError(f"no platform of {options.arch} can be made")
    return found


def _need(options: Options, derivation: Derivation) -> str:
    """What is missing for a platform, "" if nothing is."""
    if options.arch in derivation.needs:
        return derivation.needs[options.arch]
    if derivation.sectors not in options.bases:
        return f"a base of its own, with sectors of {derivation.sectors:,} bytes: give it with --base-4k"
    return ""


def _base(path: Path, sectors: int) -> Base:
    format_name = _format_of(path)
    return Base(path, format_name, inspect(path, format_name).virtual_size, sectors)


def _variant(options: Options, derivation: Derivation, bases: Mapping[int, Base]) -> Variant:
    method = derivation.compress if options.compress else "none"
    stem = f"{options.name}-{options.release}-{derivation.platform}.{options.arch}"
    image = f"{stem}.{derivation.extension}"
    file = image + (COMPRESSORS[method].suffix if method != "none" else "")
    named = parse_name(file, options.name, options.release)
    if named.arch != options.arch or not named.release:
        raise UsageError(f"{file}: name, release and platform do not make a file name of the convention")
    _check_programs(options, derivation, method)
    template = _template(options, derivation) if derivation.template else None
    size = derivation.size or bases[derivation.sectors].size
    return Variant(derivation, file, image, size, method, template)


def _template(options: Options, derivation: Derivation) -> wrap.Template:
    table = options.derivations
    try:
        return wrap.load_template(derivation.template, table.parent if table else None)
    except UsageError as error:
        raise UsageError(f"{derivation.platform}: {error}") from None


def _check_programs(options: Options, derivation: Derivation, method: str) -> None:
    """Raise ToolMissing now, not after an hour, where a program that is needed is not here."""
    programs = [*wrap.PROGRAMS.get(derivation.wrap, ())]
    if method != "none":
        programs += [COMPRESSORS[method].pack[0], COMPRESSORS[method].unpack[0]]
    if options.gpg_key:
        programs.append("gpg")
    try:
        for program in programs:
            host.find(program)
    except ToolMissing as error:
        raise ToolMissing(f"{derivation.platform}: {error}") from None


def _check_key(key_id: str) -> None:
    """Raise UsageError where gpg has no such secret key: the first signature comes after an hour."""
    if host.run(["gpg", "--batch", "--no-tty", "--list-secret-keys", "--", key_id], 60).status:
        raise UsageError(f"gpg has no secret key {key_id}; list yours with gpg -K")


def _check_name(options: Options, path: Path) -> None:
    if path.name.endswith(SIGNATURE_SUFFIX):
        raise UsageError(f"{path.name}: signatures are made with --gpg-key, not added")
    named = parse_name(path.name, options.name, options.release)
    if (named.name, named.release, named.arch) != (options.name, options.release, options.arch):
        raise UsageError(
            f"{path.name}: a file to add is named {options.name}-{options.release}-ROLE.{options.arch}.EXT"
        )
    if image_name(path.name) != path.name:
        raise UsageError(f"{path.name}: add what is inside of it, or live media; not compressed files")


def _format_of(base: Path) -> str:
    """The format that the base's name says."""
    if base.suffix not in _FORMATS:
        raise UsageError(
            f"{base}: a base is named .qcow2 or .raw; decompress it, or convert it with qemu-img, first"
        )
    return _FORMATS[base.suffix]
