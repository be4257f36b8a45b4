"""What makes a disk that of one platform: the texts of its boot partition, edited.

The rules are those of coreos-assembler (gf-set-platform and osbuild's org.osbuild.coreos.platform):
every boot loader entry names the platform and has its kernel arguments, GRUB's console settings
are the platform's, and /boot/coreos/platforms.json holds the table for whoever changes it later.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rehydrator.variants.derivations import Consoles, Derivation

# An ostree system has loader.0 or loader.1, and `loader` is a link to it.
ENTRIES = ("/boot/loader.[01]/entries/*.conf", "/boot/loader/entries/*.conf")
CONSOLE = "/boot/grub2/console.cfg"
GRUB = "/boot/grub2/grub.cfg"
TABLE = "/boot/coreos/platforms.json"
BOOT = "/boot/"

_START, _END = "# CONSOLE-SETTINGS-START", "# CONSOLE-SETTINGS-END"
_SETTINGS = re.compile(rf"(?m)^{_START}$\n(?s:.*?)^{_END}$")
_OPTIONS = re.compile(r"(?m)^(options[ \t]+)(.*)$")


class Guest(Protocol):
    """A disk whose files can be looked up by the guest's paths."""

    def find(self, pattern: str) -> list[str]:
        """Paths of regular files that match a shell pattern."""
        ...

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class BootTexts:
    """The texts that stamping changes, as the base has them; None where there is no such file."""

    entries: Mapping[str, str]
    console: str | None
    grub: str | None
    table: Mapping[str, Any] = field(default_factory=dict)


def read_boot(guest: Guest, base: str) -> BootTexts:
    """The boot texts of a disk; `base` names it in messages.

    Raises:
        HostileInput: there is no boot loader entry with an `options` line, or no text.
    """
    paths: list[str] = []
    for pattern in ENTRIES:
        paths = paths or guest.find(pattern)
    texts = {path: _text(guest, path, base) or "" for path in paths}
    found = {path: text for path, text in texts.items() if _OPTIONS.search(text)}
    if not found:
        looked = "has none" if not paths else f"has {', '.join(paths)}, without an `options` line"
        raise HostileInput(
            f"{base}: stamping edits boot loader entries, /boot/loader/entries/*.conf with an `options` "
            f"line; this disk {looked}; add them, or give a derivation without stamp and kernel arguments"
        )
    return BootTexts(found, _text(guest, CONSOLE, base), _text(guest, GRUB, base), _table(guest, base))


def stamped(
    boot: BootTexts, derivation: Derivation, consoles: Consoles, words: Mapping[str, str], base: str
) -> dict[str, bytes]:
    """The files of one platform's disk that differ from the base, by path. `words` are what
    placeholders in a derivation's files become.

    Raises:
        HostileInput: GRUB's console is to be set, and the disk has no place for it.
    """
    platform = derivation.platform
    own = consoles.platforms.get(platform)
    arguments = [*(own.kernel_arguments if own else ()), *derivation.kernel_arguments]
    commands = [*(own.grub_commands if own else ()), *derivation.grub_commands]
    stamp = derivation.stamp.replace("{platform}", platform)
    changed: dict[str, str] = {
        path: _entry(text, boot, consoles, stamp, arguments) for path, text in boot.entries.items()
    }
    changed |= _console(boot, commands, base)
    if consoles.document:
        changed[TABLE] = _json(consoles.document)
    places = {"platform": platform, "kernel_arguments": " ".join(arguments), **words}
    changed |= {path: _filled(text, places) for path, text in derivation.files.items()}
    old = {**boot.entries, CONSOLE: boot.console, GRUB: boot.grub}
    if boot.table == consoles.document:
        changed.pop(TABLE, None)
    return {path: text.encode() for path, text in changed.items() if text != old.get(path)}


def touches_boot(derivation: Derivation, consoles: Consoles) -> bool:
    """Whether the boot loader's files need a change at all for this platform."""
    own = consoles.platforms.get(derivation.platform)
    return bool(own or derivation.stamp or derivation.kernel_arguments or derivation.grub_commands)


def _entry(text: str, boot: BootTexts, consoles: Consoles, stamp: str, arguments: Sequence[str]) -> str:
    """A boot loader entry (Boot Loader Specification, type 1) with another platform's arguments."""

    def edit(found: re.Match[str]) -> str:
        kept = _without_old(found[2].split(), boot, consoles, stamp)
        return found[1] + " ".join([*kept, *([stamp] if stamp else []), *arguments])

    return _OPTIONS.sub(edit, text)


def _without_old(tokens: list[str], boot: BootTexts, consoles: Consoles, stamp: str) -> list[str]:
    """Kernel arguments without the name of the base's own platform and what that brought."""
    key = stamp.partition("=")[0] + "="
    kept: list[str] = []
    gone: list[str] = []
    for token in tokens:
        is_old = stamp and token.startswith(key)
        (gone if is_old else kept).append(token)
    for token in gone:
        for argument in _arguments_of(token.removeprefix(key), boot, consoles):
            if argument in kept:
                kept.remove(argument)
    return kept


def _arguments_of(platform: str, boot: BootTexts, consoles: Consoles) -> list[str]:
    """What the base was given for its platform: its own table says it, else ours."""
    own = boot.table.get(platform)
    if isinstance(own, dict) and isinstance(own.get("kernel_arguments"), list):
        return [str(argument) for argument in own["kernel_arguments"]]
    known = consoles.platforms.get(platform)
    return list(known.kernel_arguments) if known else []


def _console(boot: BootTexts, commands: Sequence[str], base: str) -> dict[str, str]:
    """GRUB's console settings: between the marks, or the whole of console.cfg."""
    lines = "".join(f"{command}\n" for command in commands)
    for path, text in ((CONSOLE, boot.console), (GRUB, boot.grub)):
        if text is not None and _SETTINGS.search(text):
            block = f"{_START}\n{lines}{_END}"
            return {path: _SETTINGS.sub(lambda _: block, text, count=1)}  # noqa: B023 - used at once
    if boot.console is not None:
        return {CONSOLE: lines}
    if commands:
        raise HostileInput(
            f"{base}: the platform sets GRUB's console, and this disk has neither {CONSOLE} nor "
            f"{_START} in {GRUB}; make {CONSOLE} part of the base"
        )
    return {}


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _table(guest: Guest, base: str) -> Mapping[str, Any]:
    text = _text(guest, TABLE, base)
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise HostileInput(f"{base}: {TABLE}: not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _text(guest: Guest, path: str, base: str) -> str | None:
    data = guest.read(path)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise HostileInput(f"{base}: {path}: not UTF-8 text") from None
