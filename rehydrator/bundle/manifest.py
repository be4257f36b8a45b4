"""bundle.json as values: what the signature covers (bundle/FORMAT.md, section 4).

Parsing is strict about what it knows and silent about keys that it does not, so that later
versions can add facts; what a reader *must* know to be exact is named in `requires`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from rehydrator.core import canonical_json
from rehydrator.core.digest import parse_sha256
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import (
    DecodeRule,
    EncodeRule,
    FrameField,
    Framing,
    OffsetRule,
    Rules,
    SizeTable,
    StreamRule,
    Term,
)
from rehydrator.core.pack import INDEX_HEADER, INDEX_RECORD, MAX_FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

MANIFEST = "bundle.json"
FORMAT = "rehydrator-bundle"
VERSION = 1
STREAMS = "streams"
PREFIX = "prefix"
KNOWN_FEATURES = frozenset({STREAMS, PREFIX})

MAX_MANIFEST = 16 << 20
MAX_PACKS = 1 << 13
MAX_INDEXES = MAX_PACKS * INDEX_HEADER + MAX_FRAMES * INDEX_RECORD
MAX_SPACES = 1 << 16
MAX_DOCUMENT = 32 << 20
MAX_DEPTH = 16
MAX_UNIT = 8 << 20
MAX_SIZE = 1 << 60
MAX_FILE_NAME = 255
PLAIN_DIGEST = 16
MAX_BOUNDARIES = 128
CHAIN_RECORD = 40

_PACK = re.compile(r"packs/[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")
_DOCUMENT = re.compile(r"streams/[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")
_NAME = re.compile(r"[^/\x00-\x1f\x7f-\x9f]{1,255}\Z")
_HOW_TEXTS = ("rung", "format")
_HOW_OBJECTS = ("facts", "encoders", "bytes")
_PLAIN = re.compile(r"(?:[0-9a-f]{32}){1,65536}\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2}){0,4096}\Z")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the bundle, pinned: its name below /bundle, its size in bytes, its SHA-256."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack file and where its index lies in it; `index_digest` is BLAKE2b-256 in hex. `plain` has
    the first 16 bytes of the BLAKE2b-256 of what each data frame decodes to, if it is there. `prefix`:
    frames stand behind its first one."""

    stored: StoredFile
    index_offset: int
    index_length: int
    index_digest: str
    plain: tuple[bytes, ...] = ()
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class PackSpace:
    """The plain bytes of a pack's data frames, in order."""

    pack: int
    size: int


@dataclass(frozen=True, slots=True)
class RecipeSpace:
    """What a recipe makes: chunks are the frames [first, first+count) of a pack.
    `inputs` are the spaces that its ops may name, all of lower numbers, and `streams` the stream
    rules: what has none needs no encoder that runs for minutes, and can be read anywhere."""

    pack: int
    first: int
    count: int
    size: int
    inputs: tuple[int, ...]
    streams: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """`length` bytes of `space` from `offset` through a codec have this SHA-256; `library`
    is what computed it."""

    codec: str
    params: tuple[tuple[str, int], ...]
    library: str
    space: int
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the chaining values of a form lie: `count` records (bundle/chain.py) in the pack space
    `space` from `offset`."""

    space: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an artifact; `space` is None where the bundle cannot give it back.
    `data` counts the bytes that are not in runs of zeros. `chain` is there where its parts can be
    made, and so checked, side by side."""

    name: str
    size: int
    sha256: str
    space: int | None = None
    data: int = 0
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One published file of a release. `format` is its stream-metadata format key ("qcow2.xz").

    `signature` is the detached GPG signature of the file as published, itself a file.
    `mtime` is in seconds, `mode` are the permission bits, `virtual_size` the guest disk's
    bytes (0: not a disk). `how` tells how it is stored, for `info`: rung, reasons, bytes.
    """

    platform: str
    arch: str
    format: str
    role: str
    image: Form
    published: Form | None
    mtime: int
    mode: int
    sparse: bool
    virtual_size: int
    canonical: bool
    how: dict[str, Any] = field(default_factory=dict)
    signature: Form | None = None

    def forms(self) -> list[Form]:
        """Every form that there is of it, its signature among them."""
        return [form for form in (self.image, self.published, self.signature) if form]

    @property
    def as_published(self) -> Form:
        """The form that the release publishes: the image itself where nothing is around it."""
        return self.published or self.image


@dataclass(frozen=True, slots=True)
class Output:
    """One file that a bundle can be asked for: a form of an artifact."""

    artifact: Artifact
    form: Form

    @property
    def sparse(self) -> bool:
        """Whether its zeros were holes: what is compressed has none."""
        return self.artifact.sparse and self.form is self.artifact.image


@dataclass(frozen=True, slots=True)
class Release:
    """A release: names, its artifacts, and the stream document as it was given."""

    name: str
    stream: str
    release: str
    document: StoredFile
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that bundle.json says."""

    packs: tuple[Pack, ...]
    spaces: tuple[PackSpace | RecipeSpace, ...]
    rules: Rules
    known_answers: tuple[KnownAnswer, ...]
    releases: tuple[Release, ...]

    def stored_files(self) -> list[StoredFile]:
        """Every file that the manifest pins."""
        packs = [pack.stored for pack in self.packs]
        return packs + [release.document for release in self.releases]

    def artifacts(self) -> list[Artifact]:
        """All artifacts of all releases."""
        return [artifact for release in self.releases for artifact in release.artifacts]

    def outputs(self) -> list[Output]:
        """Everything that the bundle can give back."""
        every = [Output(artifact, form) for artifact in self.artifacts() for form in artifact.forms()]
        return [output for output in every if output.form.space is not None]

    def streams_of(self, space: int) -> tuple[int, ...]:
        """The stream rules that the ops of a space name."""
        each = self.spaces[space]
        return each.streams if isinstance(each, RecipeSpace) else ()

    def depths(self) -> list[int]:
        """How many spaces each stands on, one above the other, itself included."""
        depths: list[int] = []
        for space in self.spaces:
            inputs = space.inputs if isinstance(space, RecipeSpace) else ()
            depths.append(1 + max((depths[each] for each in inputs), default=0))
        return depths

    def reach(self, space: int) -> set[int]:
        """The spaces that `space` stands on, itself included."""
        seen, left = set(), [space]
        while left:
            number = left.pop()
            if number not in seen:
                seen.add(number)
                each = self.spaces[number]
                left += each.inputs if isinstance(each, RecipeSpace) else ()
        return seen


def is_name(text: str) -> bool:
    """Whether a release, a stream or a platform may be called so."""
    return _NAME.match(text) is not None and not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_word(text: str) -> bool:
    """Whether an architecture or a role may be called so."""
    return _WORD.match(text) is not None


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes of bundle.json."""
    return canonical_json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "requires": [*sorted(_features(manifest))],
            "packs": [_pack_json(pack) for pack in manifest.packs],
            "spaces": [_space_json(space) for space in manifest.spaces],
            "rules": _rules_json(manifest.rules),
            "known_answers": [_known_answer_json(each) for each in manifest.known_answers],
            "releases": [_release_json(release) for release in manifest.releases],
        }
    )


def _features(manifest: Manifest) -> set[str]:
    """What a reader must know."""
    found = {STREAMS} if manifest.rules.streams else set()
    return found | {PREFIX} if any(pack.prefix for pack in manifest.packs) else found


def decode(data: bytes) -> Manifest:
    """The manifest in `data`, with every number and reference checked.

    Raises:
        HostileInput: not canonical, malformed, of another version, or inconsistent.
    """
    value = canonical_json.loads(data, MANIFEST, MAX_MANIFEST)
    top = Object(value, MANIFEST)
    if top.text("format") != FORMAT:
        raise HostileInput(f"{MANIFEST}: not a rehydrator bundle")
    if top.number("version") != VERSION:
        raise HostileInput(
            f"{MANIFEST}: format version {top.number('version')}; this program reads {VERSION}"
        )
    unknown: set[str] = set(top.texts("requires")) - KNOWN_FEATURES
    if unknown:
        raise HostileInput(f"{MANIFEST}: needs a newer program: {', '.join(sorted(unknown))}")
    if canonical_json.dumps(value) != data:
        raise HostileInput(f"{MANIFEST}: not in canonical form")
    manifest = Manifest(
        packs=top.each("packs", _pack, MAX_PACKS),
        spaces=top.each("spaces", _space, MAX_SPACES),
        rules=_rules(top.object("rules")),
        known_answers=top.each("known_answers", _known_answer),
        releases=top.each("releases", _release),
    )
    missing = _features(manifest) - set(top.texts("requires"))
    if missing:
        raise HostileInput(f"{MANIFEST}: what it requires lacks {', '.join(sorted(missing))}")
    _check(manifest)
    return manifest


class Object:
    """A JSON object whose values are taken out with their type checked."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise HostileInput(f"{where}: not an object")
        self._value, self.where = cast("dict[str, Any]", value), where

    def number(self, key: str, limit: int = MAX_SIZE) -> int:
        value = self._value.get(key)
        if type(value) is not int or not 0 <= value <= limit:
            raise HostileInput(f"{self.where}: {key} is not a number from 0 to {limit}")
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self._value.get(key)
        if not isinstance(value, str) or (pattern and not pattern.match(value)):
            raise HostileInput(f"{self.where}: {key} is missing or malformed: {value!r:.80}")
        return value

    def flag(self, key: str) -> bool:
        value = self._value.get(key)
        if not isinstance(value, bool):
            raise HostileInput(f"{self.where}: {key} is not true or false")
        return value

    def items(self, key: str, limit: int = 1 << 16) -> list[Any]:
        value = self._value.get(key)
        if not isinstance(value, list) or len(value) > limit:
            raise HostileInput(f"{self.where}: {key} is not a list of at most {limit}")
        return value

    def texts(self, key: str) -> list[str]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise HostileInput(f"{self.where}: {key} is not a list of strings")
        return values

    def numbers(self, key: str, limit: int) -> tuple[int, ...]:
        values = self.items(key)
        if not all(type(value) is int and 0 <= value < limit for value in values):
            raise HostileInput(f"{self.where}: {key} has a number outside of 0 to {limit - 1}")
        return tuple(values)

    def object(self, key: str) -> Object:
        return Object(self._value.get(key), f"{self.where}: {key}")

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def each(self, key: str, parse: Callable[[Object], T], limit: int = 1 << 16) -> tuple[T, ...]:
        return tuple(
            parse(Object(item, f"{self.where}: {key}[{number}]"))
            for number, item in enumerate(self.items(key, limit))
        )

    def signed(self) -> tuple[tuple[str, int], ...]:
        """All values, as integers of either sign (codec parameters such as wbits -12)."""
        for key, value in self._value.items():
            if type(value) is not int or abs(value) >= 1 << 32:
                raise HostileInput(f"{self.where}: {key} is not a small integer")
        return tuple(sorted(self._value.items()))

    def raw(self) -> dict[str, Any]:
        """The object as it is: for display only."""
        return self._value


def _stored(item: Object, name: re.Pattern[str], limit: int = MAX_SIZE) -> StoredFile:
    sha256 = parse_sha256(item.text("sha256"), item.where)
    return StoredFile(item.text("file", name), item.number("size", limit), sha256)


def _stored_json(stored: StoredFile) -> dict[str, Any]:
    return {"file": stored.file, "size": stored.size, "sha256": stored.sha256}


def _pack(item: Object) -> Pack:
    index = item.object("index")
    digest = parse_sha256(index.text("digest"), index.where)
    plain = bytes.fromhex(item.text("plain", _PLAIN)) if item.has("plain") else b""
    digests = tuple(plain[at : at + PLAIN_DIGEST] for at in range(0, len(plain), PLAIN_DIGEST))
    place = index.number("offset"), index.number("length")
    prefix = item.has("prefix") and item.flag("prefix")
    return Pack(_stored(item, _PACK), *place, digest, digests, prefix)


def _pack_json(pack: Pack) -> dict[str, Any]:
    index = {"offset": pack.index_offset, "length": pack.index_length, "digest": pack.index_digest}
    stated = {**_stored_json(pack.stored), "index": index}
    if pack.plain:
        stated["plain"] = b"".join(pack.plain).hex()
    return {**stated, "prefix": True} if pack.prefix else stated


def _space(item: Object) -> PackSpace | RecipeSpace:
    if not item.has("chunks"):
        return PackSpace(item.number("pack"), item.number("size"))
    chunks, inputs = item.object("chunks"), item.numbers("inputs", MAX_SPACES)
    streams = item.numbers("streams", MAX_SPACES) if item.has("streams") else ()
    if any(low >= high for numbers in (inputs, streams) for low, high in pairwise(numbers)):
        raise HostileInput(f"{item.where}: inputs or streams do not ascend")
    return RecipeSpace(
        item.number("pack"),
        chunks.number("first"),
        chunks.number("count"),
        item.number("size"),
        inputs,
        streams,
    )


def _space_json(space: PackSpace | RecipeSpace) -> dict[str, Any]:
    if isinstance(space, PackSpace):
        return {"pack": space.pack, "size": space.size}
    stated = {
        "pack": space.pack,
        "size": space.size,
        "chunks": {"first": space.first, "count": space.count},
        "inputs": list(space.inputs),
    }
    return {**stated, "streams": list(space.streams)} if space.streams else stated


def _rules(item: Object) -> Rules:
    return Rules(
        tables=item.each("tables", _table),
        offsets=item.each("offsets", _offset_rule),
        encodes=item.each("encodes", _encode_rule),
        decodes=item.each("decodes", _decode_rule),
        streams=item.each("streams", _stream_rule) if item.has("streams") else (),
    )


def _rules_json(rules: Rules) -> dict[str, Any]:
    stated = {
        "tables": [{"space": t.space, "width": t.width, "scale": t.scale} for t in rules.tables],
        "offsets": [_offset_rule_json(rule) for rule in rules.offsets],
        "encodes": [_encode_rule_json(rule) for rule in rules.encodes],
        "decodes": [_decode_rule_json(rule) for rule in rules.decodes],
    }
    streams = [_stream_rule_json(rule) for rule in rules.streams]
    return {**stated, "streams": streams} if streams else stated


def _one_of(item: Object, key: str, choices: Sequence[Any]) -> Any:
    value = item.raw().get(key)
    if value not in choices or isinstance(value, bool):
        raise HostileInput(f"{item.where}: {key} is none of {', '.join(map(str, choices))}")
    return value


def _table(item: Object) -> SizeTable:
    scale = item.number("scale", MAX_UNIT)
    return SizeTable(item.number("space", MAX_SPACES), _one_of(item, "width", (1, 2, 4)), scale)


def _offset_rule(item: Object) -> OffsetRule:
    return OffsetRule(
        table=item.number("table", MAX_SPACES),
        width=_one_of(item, "width", (1, 2, 4, 8)),
        endian=_one_of(item, "endian", ("little", "big")),
        constant=item.number("constant", (1 << 64) - 1),
        terms=item.each("terms", _term, 8),
    )


def _offset_rule_json(rule: OffsetRule) -> dict[str, Any]:
    terms = [
        {"quantity": t.quantity, "right": t.right, "left": t.left, "negative": t.negative} for t in rule.terms
    ]
    return {
        "table": rule.table,
        "width": rule.width,
        "endian": rule.endian,
        "constant": rule.constant,
        "terms": terms,
    }


def _term(item: Object) -> Term:
    quantity = _one_of(item, "quantity", ("start", "last", "size"))
    return Term(quantity, item.number("right", 63), item.number("left", 63), item.flag("negative"))


def _encode_rule(item: Object) -> EncodeRule:
    unit = item.number("unit", MAX_UNIT)
    if not unit:
        raise HostileInput(f"{item.where}: units of no bytes")
    return EncodeRule(
        codec=item.text("codec", _WORD),
        params=item.object("params").signed(),
        input=item.number("input", MAX_SPACES),
        unit=unit,
        table=item.number("table", MAX_SPACES),
        framing=_framing(item.object("framing")),
    )


def _encode_rule_json(rule: EncodeRule) -> dict[str, Any]:
    fields = [
        {"at": f.at, "width": f.width, "endian": f.endian, "quantity": f.quantity, "shift": f.shift}
        for f in rule.framing.fields
    ]
    framing = {"header": rule.framing.header.hex(), "fields": fields, "align": rule.framing.align}
    return {
        "codec": rule.codec,
        "params": dict(rule.params),
        "input": rule.input,
        "unit": rule.unit,
        "table": rule.table,
        "framing": framing,
    }


def _framing(item: Object) -> Framing:
    header = bytes.fromhex(item.text("header", _HEX))
    fields = item.each("fields", _frame_field, 8)
    align = item.number("align", 1 << 20)
    if not align or any(f.at + f.width > len(header) for f in fields):
        raise HostileInput(f"{item.where}: a field outside of its header, or no alignment")
    return Framing(header, fields, align)


def _frame_field(item: Object) -> FrameField:
    return FrameField(
        at=item.number("at", 4096),
        width=_one_of(item, "width", (1, 2, 4, 8)),
        endian=_one_of(item, "endian", ("little", "big")),
        quantity=_one_of(item, "quantity", ("source", "length")),
        shift=item.number("shift", 63),
    )


def _decode_rule(item: Object) -> DecodeRule:
    prefix = item.number("prefix", MAX_SPACES) if item.has("prefix") else None
    params = item.object("params").signed()
    return DecodeRule(item.text("codec", _WORD), params, item.number("input", MAX_SPACES), prefix)


def _decode_rule_json(rule: DecodeRule) -> dict[str, Any]:
    return {
        "codec": rule.codec,
        "params": dict(rule.params),
        "input": rule.input,
        "prefix": rule.prefix,
    }


def _stream_rule(item: Object) -> StreamRule:
    return StreamRule(
        item.text("codec", _WORD), item.object("params").signed(), item.number("input", MAX_SPACES)
    )


def _stream_rule_json(rule: StreamRule) -> dict[str, Any]:
    return {"codec": rule.codec, "params": dict(rule.params), "input": rule.input}


def _known_answer(item: Object) -> KnownAnswer:
    plain = item.object("plain")
    return KnownAnswer(
        codec=item.text("codec", _WORD),
        params=item.object("params").signed(),
        library=item.text("library", _NAME),
        space=plain.number("space", MAX_SPACES),
        offset=plain.number("offset"),
        length=plain.number("length", MAX_UNIT),
        sha256=parse_sha256(item.text("sha256"), item.where),
    )


def _known_answer_json(each: KnownAnswer) -> dict[str, Any]:
    return {
        "codec": each.codec,
        "params": dict(each.params),
        "library": each.library,
        "plain": {"space": each.space, "offset": each.offset, "length": each.length},
        "sha256": each.sha256,
    }


def _form(item: Object) -> Form:
    name, size = item.text("name", _NAME), item.number("size")
    if name in {".", ".."} or len(name.encode()) > MAX_FILE_NAME:
        raise HostileInput(f"{item.where}: {name!r} is no name for a file")
    sha256 = parse_sha256(item.text("sha256"), item.where)
    space = item.number("space", MAX_SPACES) if item.has("space") else None
    data = item.number("data", size) if item.has("data") else 0
    return Form(name, size, sha256, space, data, _chain(item.object("chain")) if item.has("chain") else None)


def _chain(item: Object) -> Chain:
    return Chain(
        item.number("space", MAX_SPACES), item.number("offset"), item.number("count", MAX_BOUNDARIES)
    )


def _form_json(form: Form) -> dict[str, Any]:
    stated = {"name": form.name, "size": form.size, "sha256": form.sha256, "data": form.data}
    if form.chain is not None:
        stated["chain"] = {
            "space": form.chain.space,
            "offset": form.chain.offset,
            "count": form.chain.count,
        }
    return stated if form.space is None else {**stated, "space": form.space}


def _artifact(item: Object) -> Artifact:
    forms = item.object("forms")
    return Artifact(
        platform=item.text("platform", _NAME),
        arch=item.text("arch", _WORD),
        format=item.text("format", _NAME),
        role=item.text("role", _WORD),
        image=_form(forms.object("image")),
        published=_form(forms.object("published")) if forms.has("published") else None,
        mtime=item.number("mtime", 1 << 40),
        mode=item.number("mode", 0o777),
        sparse=item.flag("sparse"),
        virtual_size=item.number("virtual_size"),
        canonical=item.flag("canonical"),
        how=_how(item.object("how")),
        signature=_form(forms.object("signature")) if forms.has("signature") else None,
    )


def _how(item: Object) -> dict[str, Any]:
    """For display only, and still what it is said to be: it may come from anybody."""
    for key in _HOW_TEXTS:
        if item.has(key):
            item.text(key)
    for key in _HOW_OBJECTS:
        if item.has(key):
            inner = item.object(key)
            for name in inner.raw():
                inner.number(name) if key == "bytes" else inner.text(name)
    for tried in item.each("tried", lambda each: each) if item.has("tried") else ():
        tried.text("rung"), tried.text("why")
    if item.has("cost"):
        item.number("cost")
    if item.has("published"):
        _how(item.object("published"))
    return item.raw()


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    forms = {"image": _form_json(artifact.image)}
    if artifact.published:
        forms["published"] = _form_json(artifact.published)
    if artifact.signature:
        forms["signature"] = _form_json(artifact.signature)
    return {
        "platform": artifact.platform,
        "arch": artifact.arch,
        "format": artifact.format,
        "role": artifact.role,
        "forms": forms,
        "mtime": artifact.mtime,
        "mode": artifact.mode,
        "sparse": artifact.sparse,
        "virtual_size": artifact.virtual_size,
        "canonical": artifact.canonical,
        "how": artifact.how,
    }


def _release(item: Object) -> Release:
    return Release(
        name=item.text("name", _NAME),
        stream=item.text("stream", _NAME),
        release=item.text("release", _NAME),
        document=_stored(item.object("document"), _DOCUMENT, MAX_DOCUMENT),
        artifacts=item.each("artifacts", _artifact),
    )


def _release_json(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "stream": release.stream,
        "release": release.release,
        "document": _stored_json(release.document),
        "artifacts": [_artifact_json(artifact) for artifact in release.artifacts],
    }


def _check(manifest: Manifest) -> None:
    names = [stored.file for stored in manifest.stored_files()]
    if len(set(names)) != len(names):
        raise HostileInput(f"{MANIFEST}: one file is named twice")
    _check_packs(manifest)
    _check_spaces(manifest)
    _check_rules(manifest)
    for artifact in manifest.artifacts():
        _check_artifact(manifest, artifact)
    for answer in manifest.known_answers:
        if not answer.length:
            raise HostileInput(f"{MANIFEST}: a known answer about no bytes")
        _space_size(manifest, answer.space, answer.offset + answer.length, "a known answer")
    names_of_files = [
        (form.name, artifact.arch) for artifact in manifest.artifacts() for form in artifact.forms()
    ]
    if len(set(names_of_files)) != len(names_of_files):
        raise HostileInput(f"{MANIFEST}: two artifacts have one name")


def _check_packs(manifest: Manifest) -> None:
    for pack in manifest.packs:
        if pack.index_offset + pack.index_length != pack.stored.size:
            raise HostileInput(f"{MANIFEST}: the index of {pack.stored.file} is not at its end")
    if sum(pack.index_length for pack in manifest.packs) > MAX_INDEXES:
        raise HostileInput(f"{MANIFEST}: more than {MAX_FRAMES} frames")


def _check_spaces(manifest: Manifest) -> None:
    for number, space in enumerate(manifest.spaces):
        if space.pack >= len(manifest.packs):
            raise HostileInput(f"{MANIFEST}: space {number} names pack {space.pack}, which does not exist")
        inputs = space.inputs if isinstance(space, RecipeSpace) else ()
        if any(each >= number for each in inputs):
            raise HostileInput(f"{MANIFEST}: space {number} stands on one that is not below it")
    if max(manifest.depths(), default=0) > MAX_DEPTH:
        raise HostileInput(f"{MANIFEST}: spaces stand more than {MAX_DEPTH} deep")


def _check_rules(manifest: Manifest) -> None:
    rules, spaces = manifest.rules, len(manifest.spaces)
    named = [table.space for table in rules.tables]
    named += [rule.input for rule in rules.encodes] + [rule.input for rule in rules.decodes]
    named += [rule.prefix for rule in rules.decodes if rule.prefix is not None]
    named += [rule.input for rule in rules.streams]
    streams = [each for space in manifest.spaces if isinstance(space, RecipeSpace) for each in space.streams]
    if any(each >= len(rules.streams) for each in streams):
        raise HostileInput(f"{MANIFEST}: a space names a stream rule that does not exist")
    tables = [rule.table for rule in rules.offsets] + [rule.table for rule in rules.encodes]
    if any(each >= spaces for each in named) or any(each >= len(rules.tables) for each in tables):
        raise HostileInput(f"{MANIFEST}: a rule names a space or table that does not exist")


def _check_artifact(manifest: Manifest, artifact: Artifact) -> None:
    if artifact.image.space is None:
        raise HostileInput(f"{MANIFEST}: {artifact.image.name} has no recipe")
    for form in artifact.forms():
        if form.space is not None:
            _space_size(manifest, form.space, form.size, form.name)
            if manifest.spaces[form.space].size != form.size:
                raise HostileInput(f"{MANIFEST}: the recipe of {form.name} is of another size")
        if form.chain is not None:
            _check_chain(manifest, form.chain, form.name)
    if artifact.signature and artifact.signature.space is None:
        raise HostileInput(f"{MANIFEST}: {artifact.signature.name} has no recipe")


def _check_chain(manifest: Manifest, chain: Chain, name: str) -> None:
    _space_size(manifest, chain.space, chain.offset + chain.count * CHAIN_RECORD, name)
    if not chain.count or not isinstance(manifest.spaces[chain.space], PackSpace):
        raise HostileInput(f"{MANIFEST}: {name} has no chaining values where it says")


def _space_size(manifest: Manifest, space: int, size: int, what: str) -> None:
    if space >= len(manifest.spaces) or manifest.spaces[space].size < size:
        raise HostileInput(f"{MANIFEST}: {what} names space {space}, which is missing or too small")
