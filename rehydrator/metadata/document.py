"""A stream document that keeps its text: what it says of files as plain values, and edits that
leave every byte that they are not about (order, indentation, escapes, unknown members).

    stream                                                 the stream's name
    metadata {last-modified, generator}
    architectures.ARCH.artifacts.PLATFORM.release          a release for each platform
    architectures.ARCH.artifacts.PLATFORM.formats.FORMAT.ROLE
        {location, signature, sha256, uncompressed-sha256}     one published file
    architectures.ARCH.images, …                           kept, not read here

stream-metadata/SCHEMA.md describes all of it. Documents of every era are read: signatures,
digests and releases that are missing, empty or null mean the same; so do artifacts and formats.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from rehydrator.core.errors import HostileInput
from rehydrator.metadata import json_text
from rehydrator.metadata.json_text import Edit, Node, Whole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
# What a bundle's manifest can hold (bundle/FORMAT.md, section 4); said here, where the document has a name.
TEXT = rf"^[^/{_CONTROLS}]{{0,255}}$"
NAME = rf"^[^/{_CONTROLS}]{{1,255}}$"
WORD = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$"
LINE = rf"^[^{_CONTROLS}]*$"
_MAX_FILE_NAME = 255


class FileKey(NamedTuple):
    """Where a file stands in a document."""

    arch: str
    platform: str
    format: str
    role: str = "disk"

    def __str__(self) -> str:
        return f"{self.arch}.artifacts.{self.platform}.formats.{self.format}.{self.role}"


@dataclass(frozen=True, slots=True)
class File:
    """One published file. `signature` and digests (lower case) are "" where the document has
    none; sizes in bytes are an extension of ours, None where it has none. `name` is the
    basename of the location's path, unquoted, fit to be a file's name."""

    key: FileKey
    location: str
    signature: str
    sha256: str
    uncompressed_sha256: str
    release: str
    name: str
    size: int | None = None
    uncompressed_size: int | None = None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to add or replace; `members` are spelt as the document spells them ("location",
    "sha256", "uncompressed-sha256", "signature", "size", …)."""

    key: FileKey
    release: str
    members: Mapping[str, str | int]


def file_name(location: str) -> str:
    """The file's name that a location ends in: its path's basename, unquoted, never a path.

    Raises:
        ValueError: it ends in none; says why.
    """
    try:
        name = unquote(urlsplit(location).path).rsplit("/", 1)[-1]
    except ValueError as error:
        raise ValueError(f"{location!r:.200} is no URL: {error}") from None
    if name in {"", ".", ".."} or not re.fullmatch(LINE, name):
        raise ValueError(f"{location!r:.200} ends in no file name")
    if len(name.encode()) > _MAX_FILE_NAME:
        raise ValueError(f"a file name of more than {_MAX_FILE_NAME} bytes: {name!r:.80}")
    return name


def quoted(name: str) -> str:
    """A file's name as the end of a URL, or as a relative URL by itself: its basename is that
    name again (RFC 3986, section 3.3)."""
    return quote(name, safe="+@,=!()")


@dataclass(frozen=True)
class Document:
    """A parsed stream document and its bytes, as they were given."""

    data: bytes
    stream: str = field(compare=False)
    files: tuple[File, ...] = field(compare=False)
    _text: str = field(repr=False, compare=False)
    _top: Node = field(repr=False, compare=False)

    @classmethod
    def parse(cls, data: bytes, what: str) -> Document:
        """The document in `data`, which `what` names in messages.

        Raises:
            HostileInput: it is no stream document; says where.
        """
        text, top = json_text.scan(data, what)
        try:
            return cls(data, _stream(top), tuple(_files(top)), text, top)
        except _WrongError as error:
            raise HostileInput(f"{what}: {error}") from None

    @classmethod
    def new(cls, stream: str) -> Document:
        """A document without files, for `updated` to fill."""
        value: dict[str, Any] = {"architectures": {}, "metadata": {}, "stream": stream}
        text = json.dumps(value, indent=4, ensure_ascii=False) + "\n"
        return cls.parse(_encoded(text), "the new stream document")

    @property
    def value(self) -> dict[str, Any]:
        """All of the document as the json module gives it."""
        found: dict[str, Any] = self._top.plain
        return found

    def members(self, key: FileKey) -> dict[str, Any]:
        """All members of one file, known or not, as the json module gives them.

        Raises:
            KeyError: the document has no such file.
        """
        found: dict[str, Any] = self._node(key).plain
        return found

    def relocated(self, moved: Mapping[FileKey, tuple[str, str | None]]) -> Document:
        """With a new location and signature for some files. A signature that is None stays as it
        is; a file without a signature member gets none.

        Raises:
            KeyError: the document has no such file.
        """
        edits = []
        for key, (location, signature) in moved.items():
            members = self._node(key).content
            assert isinstance(members, dict)
            edits += json_text.replaced(members["location"], location)
            if signature is not None and "signature" in members:
                edits += json_text.replaced(members["signature"], signature)
        return self._edited(edits)

    def only(self, keys: Collection[FileKey]) -> Document:
        """Without the other files, and without the formats, platforms and architectures that
        thereby lose their last file (an architecture goes with its images). The rest stays.
        """
        return self._edited(_cut_files(self._top, {each.key for each in self.files}, set(keys)))

    def updated(
        self, files: Sequence[NewFile], *, last_modified: str | None = None, generator: str | None = None
    ) -> Document:
        """With some files added, or replaced where their keys are there already. A platform has
        one release: where the one that is there has another, its older files go. In a document
        whose keys are sorted, the order of updates makes no difference.

        Raises:
            HostileInput: a new file is nothing that a stream document can hold.
        """
        said = {"last-modified": last_modified, "generator": generator}
        metadata = {key: value for key, value in said.items() if value is not None}
        wanted: dict[str, Any] = {"architectures": self._wanted(files)}
        if metadata:
            wanted["metadata"] = metadata
        return self._edited(json_text.merged(self._text, self._top, wanted))

    def _wanted(self, files: Sequence[NewFile]) -> dict[str, Any]:
        releases = {(each.key.arch, each.key.platform): each.release for each in self.files}
        arches: dict[str, Any] = {}
        for each in files:
            arch, platform, key, role = each.key
            artifacts = arches.setdefault(arch, {"artifacts": {}})["artifacts"]
            here = artifacts.setdefault(platform, {"release": each.release, "formats": {}})
            here["formats"].setdefault(key, {})[role] = Whole(dict(each.members))
        for arch, wanted in arches.items():
            artifacts = wanted["artifacts"]
            for platform, here in artifacts.items():
                if releases.get((arch, platform), here["release"]) != here["release"]:
                    artifacts[platform] = Whole(here)
        return arches

    def _node(self, key: FileKey) -> Node:
        node = self._top
        for name in ("architectures", key.arch, "artifacts", key.platform, "formats", key.format, key.role):
            if not isinstance(node.content, dict) or name not in node.content:
                raise KeyError(key)
            node = node.content[name]
        return node

    def _edited(self, edits: Sequence[Edit]) -> Document:
        if not edits:
            return self
        text = json_text.spliced(self._text, edits)
        return Document.parse(_encoded(text), "the edited stream document")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise HostileInput("a stream document cannot hold half of a surrogate pair") from None


class _WrongError(Exception):
    """A place, and what is wrong there."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place or 'the document'}: {problem}")


def _stream(top: Node) -> str:
    stream = _string(_members(top, ""), "stream", "", TEXT)
    if stream is None:
        raise _WrongError("stream", "is missing")
    return stream


def _files(top: Node) -> Iterator[File]:
    architectures = _members(top, "").get("architectures")
    if architectures is None:
        raise _WrongError("architectures", "is missing")
    for arch, arch_node in _members(architectures, "architectures").items():
        _check_key(arch, WORD, "architectures", "an architecture")
        for platform, platform_node in _children(arch_node, "artifacts", f"{arch}.artifacts"):
            _check_key(platform, NAME, f"{arch}.artifacts", "a platform")
            place = f"{arch}.artifacts.{platform}"
            release = _string(_members(platform_node, place), "release", place, TEXT) or ""
            for key, format_node in _children(platform_node, "formats", f"{place}.formats"):
                _check_key(key, NAME, f"{place}.formats", "a format")
                for role, node in _members(format_node, f"{place}.formats.{key}").items():
                    _check_key(role, WORD, f"{place}.formats.{key}", "a role")
                    yield _file(FileKey(arch, platform, key, role), release, node)


def _file(key: FileKey, release: str, node: Node) -> File:
    members, place = _members(node, str(key)), str(key)
    location = _string(members, "location", place, LINE)
    if not location:
        raise _WrongError(f"{place}.location", "is missing; it says where the file is")
    return File(
        key=key,
        location=location,
        signature=_string(members, "signature", place, LINE) or "",
        sha256=(_string(members, "sha256", place, LINE) or "").lower(),
        uncompressed_sha256=(_string(members, "uncompressed-sha256", place, LINE) or "").lower(),
        release=release,
        name=_file_name(location, f"{place}.location"),
        size=_size(members, "size", place),
        uncompressed_size=_size(members, "uncompressed-size", place),
    )


def _file_name(location: str, place: str) -> str:
    try:
        return file_name(location)
    except ValueError as error:
        raise _WrongError(place, str(error)) from None


def _members(node: Node, place: str) -> dict[str, Node]:
    if not isinstance(node.content, dict):
        raise _WrongError(place, "is not an object")
    return node.content


def _children(node: Node, name: str, place: str) -> Iterator[tuple[str, Node]]:
    """The members of an object's object `name`, which may be missing or null."""
    parent = place.removesuffix(name).removesuffix(".")
    child = _members(node, parent).get(name)
    if child is not None and child.content is not None:
        yield from _members(child, place).items()


def _string(members: Mapping[str, Node], name: str, place: str, pattern: str) -> str | None:
    """A string, or None where it is missing or null."""
    node = members.get(name)
    if node is None or node.content is None:
        return None
    place = f"{place}.{name}" if place else name
    if not isinstance(node.content, str):
        raise _WrongError(place, "is not a string")
    if not re.fullmatch(pattern, node.content):
        raise _WrongError(place, f"{node.content!r:.80} has characters, or a length, that it must not have")
    return node.content


def _size(members: Mapping[str, Node], name: str, place: str) -> int | None:
    node = members.get(name)
    if node is None or node.content is None:
        return None
    if not isinstance(node.content, int) or isinstance(node.content, bool) or node.content < 0:
        raise _WrongError(f"{place}.{name}", "is not a number of bytes")
    return node.content


def _check_key(name: str, pattern: str, place: str, what: str) -> None:
    if not re.fullmatch(pattern, name):
        raise _WrongError(place, f"{name!r:.80} is no name of {what}")


def _cut_files(top: Node, there: set[FileKey], kept: set[FileKey]) -> list[Edit]:
    """Level by level: members that lose all their files are cut; in those that lose some, the
    search goes on."""
    steps = ("architectures", None, "artifacts", None, "formats", None, None)
    return _cut_below(top, steps, (), _beginnings(there) - _beginnings(kept))


def _beginnings(keys: set[FileKey]) -> set[tuple[str, ...]]:
    return {key[:depth] for key in keys for depth in range(1, len(key) + 1)}


def _cut_below(
    node: Node, steps: tuple[str | None, ...], key: tuple[str, ...], gone: set[tuple[str, ...]]
) -> list[Edit]:
    if not steps or not isinstance(node.content, dict):
        return []
    if steps[0] is not None:
        child = node.content.get(steps[0])
        return _cut_below(child, steps[1:], key, gone) if child else []
    names = {name for name in node.content if (*key, name) in gone}
    edits = json_text.cut(node, names) if names else []
    for name, child in node.content.items():
        if name not in names:
            edits += _cut_below(child, steps[1:], (*key, name), gone)
    return edits
