"""bundle.json: what is written reads back, and every lie in it is refused with its place."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.bundle.manifest import (
    Artifact,
    Chain,
    Form,
    KnownAnswer,
    Manifest,
    Pack,
    PackSpace,
    RecipeSpace,
    Release,
    StoredFile,
    decode,
    encode,
    is_name,
    is_word,
)
from rehydrator.core import canonical_json
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

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = "0123456789abcdef" * 4


def form(name: str, size: int = 10, space: int | None = 2) -> Form:
    return Form(name, size, DIGEST, space, size // 2)


def artifact(name: str, arch: str = "x86_64") -> Artifact:
    how = {"rung": "explained", "cost": 5, "bytes": {"copied": 9}}
    published, signature = form(f"{name}.xz", 7, 3), form(f"{name}.xz.sig", 50, 1)
    facts = ("qemu", arch, "raw.xz", "disk")
    image = replace(form(name), chain=Chain(0, 20, 22))
    return Artifact(*facts, image, published, 1_600_000_000, 0o644, True, 9, True, how, signature)


def made() -> Manifest:
    """A manifest that has one of everything."""
    framing = Framing(bytes(12), (FrameField(0, 8, "little", "source", 9),), 512)
    return Manifest(
        packs=(Pack(StoredFile("packs/0.pack", 500, DIGEST), 400, 100, DIGEST),),
        spaces=(
            PackSpace(0, 900),
            PackSpace(0, 50),
            RecipeSpace(0, 1, 2, 10, (0, 1)),
            RecipeSpace(0, 3, 1, 7, (0, 2), (0, 1)),
        ),
        rules=Rules(
            (SizeTable(1, 2, 512),),
            (OffsetRule(0, 8, "big", 1 << 62, (Term("start", 0, 0), Term("size", 9, 54, True))),),
            (EncodeRule("zlib", (("level", 6), ("wbits", -12)), 0, 65_536, 0, framing),),
            (DecodeRule("zstd", (), 0, 1), DecodeRule("zstd", (), 0)),
            (StreamRule("lzma2", (("stored", 1),), 2), StreamRule("bzip2", (("level", 9),), 2)),
        ),
        known_answers=(KnownAnswer("zlib", (("level", 6),), "zlib 1.3", 0, 800, 100, DIGEST),),
        releases=(
            Release(
                "demo",
                "stable",
                "1.0",
                StoredFile("streams/a.json", 5, DIGEST),
                (artifact("a"), artifact("a", "s390x"), artifact("é\N{SNOWMAN} -")),
            ),
        ),
    )


def test_round_trip() -> None:
    """Every field reads back; the bytes are canonical."""
    data = encode(made())
    assert decode(data) == made()
    assert encode(decode(data)) == data
    assert [each.file for each in made().stored_files()] == ["packs/0.pack", "streams/a.json"]
    assert made().reach(2) == {0, 1, 2}
    assert [made().streams_of(space) for space in range(4)] == [(), (), (), (0, 1)]


def test_forms() -> None:
    """Forms with a space can be given back; only an image has holes; the signature is the last."""
    outputs = made().outputs()
    assert [output.form.name for output in outputs[:3]] == ["a", "a.xz", "a.xz.sig"]
    assert [output.sparse for output in outputs[:3]] == [True, False, False]
    known = replace(artifact("b"), published=Form("b.xz", 7, DIGEST), signature=None)
    manifest = replace(made(), releases=(replace(made().releases[0], artifacts=(known,)),))
    assert decode(encode(manifest)) == manifest
    assert [output.form.name for output in manifest.outputs()] == ["b"]
    assert [known.as_published.name, replace(known, published=None).as_published.name] == ["b.xz", "b"]


def test_chaining_values_in_a_recipe() -> None:
    """They lie in a pack's space, however large a recipe's is."""
    spaces = (*made().spaces[:2], RecipeSpace(0, 1, 2, 40, (0, 1)), made().spaces[3])
    sized = replace(artifact("a"), image=Form("a", 40, DIGEST, 2, 5, Chain(2, 0, 1)))
    manifest = replace(made(), spaces=spaces, releases=(replace(made().releases[0], artifacts=(sized,)),))
    with pytest.raises(HostileInput, match=r"bundle\.json: a has no chaining values"):
        decode(encode(manifest))
    other = replace(sized, image=replace(sized.image, chain=Chain(1, 10, 1)))
    good = replace(manifest, releases=(replace(made().releases[0], artifacts=(other,)),))
    assert decode(encode(good)) == good


def test_what_is_required() -> None:
    """A bundle with stream rules says that it needs them, any other needs nothing."""
    value: Any = canonical_json.loads(encode(made()), "doc", 1 << 20)
    assert value["requires"] == ["streams"]
    plain = Manifest(made().packs, made().spaces[:3], Rules(), (), ())
    value = canonical_json.loads(encode(plain), "doc", 1 << 20)
    assert value["requires"] == []
    assert "streams" not in value["rules"]
    assert ["streams" in space for space in value["spaces"]] == [False] * 3
    assert "prefix" not in value["packs"][0]
    behind = replace(made(), packs=(replace(made().packs[0], prefix=True),))
    value = canonical_json.loads(encode(behind), "doc", 1 << 20)
    assert (value["requires"], value["packs"][0]["prefix"]) == (["prefix", "streams"], True)
    assert decode(encode(behind)) == behind


def test_unknown_keys_are_passed_over() -> None:
    """Later versions may add facts; what a reader must know stands in `requires`."""
    value: Any = canonical_json.loads(encode(made()), "doc", 1 << 20)
    value["later"] = {"x": [1]}
    value["releases"][0]["artifacts"][0]["later"] = "y"
    assert decode(canonical_json.dumps(value)) == made()


@pytest.mark.parametrize("spelling", [b" ", b"\n", b"\xef\xbb\xbf"])
def test_one_spelling_only(spelling: bytes) -> None:
    """The same facts in another spelling are refused."""
    data = encode(made())
    for other in (data + spelling, spelling + data, data.rstrip(b"\n"), data.replace(b":", b": ", 1)):
        with pytest.raises(HostileInput, match=r"bundle\.json"):
            decode(other)


def setter(*path: Any) -> Callable[[Any], None]:
    """Sets the last element at the place that the others name."""
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change


FILE = ("releases", 0, "artifacts", 0)
FORMS = (*FILE, "forms")
IMAGE = (*FORMS, "image")

LIES: dict[str, Callable[[Any], None]] = {
    "another format": setter("format", "x"),
    "a later version": setter("version", 2),
    "a feature of a newer program": setter("requires", ["x"]),
    "a pack outside": setter("packs", 0, "file", "packs/../../etc/passwd"),
    "an absolute pack": setter("packs", 0, "file", "/packs/0"),
    "a pack that is bundle.json": setter("packs", 0, "file", "bundle.json"),
    "a negative size": setter("packs", 0, "size", -1),
    "a size above all": setter("packs", 0, "size", 1 << 61),
    "a size that is true": setter("packs", 0, "size", True),
    "an index not at the end": setter("packs", 0, "index", "offset", 399),
    "a short digest": setter("packs", 0, "sha256", "00"),
    "an upper-case digest": setter("packs", 0, "sha256", DIGEST.upper()),
    "a document outside": setter("releases", 0, "document", "file", "streams/../x"),
    "a document too large": setter("releases", 0, "document", "size", 1 << 40),
    "a space of no pack": setter("spaces", 0, "pack", 1),
    "a space on itself": setter("spaces", 2, "inputs", [2]),
    "a space on a later one": setter("spaces", 2, "inputs", [3]),
    "inputs out of order": setter("spaces", 2, "inputs", [1, 0]),
    "inputs twice": setter("spaces", 2, "inputs", [0, 0]),
    "a table of no space": setter("rules", "tables", 0, "space", 4),
    "a width of 3": setter("rules", "tables", 0, "width", 3),
    "a width of true": setter("rules", "tables", 0, "width", True),
    "an offset of no table": setter("rules", "offsets", 0, "table", 1),
    "a shift of 64": setter("rules", "offsets", 0, "terms", 0, "right", 64),
    "an unknown quantity": setter("rules", "offsets", 0, "terms", 0, "quantity", "x"),
    "middle endian": setter("rules", "offsets", 0, "endian", "middle"),
    "units of no bytes": setter("rules", "encodes", 0, "unit", 0),
    "units above the limit": setter("rules", "encodes", 0, "unit", 1 << 30),
    "a field outside of its header": setter("rules", "encodes", 0, "framing", "fields", 0, "at", 5),
    "alignment to nothing": setter("rules", "encodes", 0, "framing", "align", 0),
    "half a byte": setter("rules", "encodes", 0, "framing", "header", "0"),
    "a huge parameter": setter("rules", "encodes", 0, "params", "level", 1 << 40),
    "a codec with a slash": setter("rules", "encodes", 0, "codec", "a/b"),
    "a decode of no space": setter("rules", "decodes", 0, "input", 9),
    "a prefix of no space": setter("rules", "decodes", 0, "prefix", 9),
    "streams that are not required": setter("requires", []),
    "a prefix that is not required": setter("packs", 0, "prefix", True),
    "a prefix in words": setter("packs", 0, "prefix", "yes"),
    "a stream of no space": setter("rules", "streams", 0, "input", 9),
    "a stream codec with a slash": setter("rules", "streams", 1, "codec", "../sh"),
    "a stream parameter in words": setter("rules", "streams", 1, "params", "level", "9; sh"),
    "stream rules that are no list": setter("rules", "streams", {}),
    "streams out of order": setter("spaces", 3, "streams", [1, 0]),
    "streams twice": setter("spaces", 3, "streams", [1, 1]),
    "streams that do not exist": setter("spaces", 3, "streams", [0, 2]),
    "a published form of another size": setter(*FORMS, "published", "size", 8),
    "a published form of no space": setter(*FORMS, "published", "space", 9),
    "a published form outside": setter(*FORMS, "published", "name", "../x.xz"),
    "a signature without a space": setter(*FORMS, "signature", "space", None),
    "a signature of another size": setter(*FORMS, "signature", "size", 51),
    "two forms of one name": setter(*FORMS, "signature", "name", "a.xz"),
    "an answer outside": setter("known_answers", 0, "plain", "offset", 801),
    "an answer about nothing": setter("known_answers", 0, "plain", "length", 0),
    "a name with a slash": setter(*IMAGE, "name", "../x"),
    "a name with NUL": setter(*IMAGE, "name", "a\0b"),
    "a name with a newline": setter(*IMAGE, "name", "a\nb"),
    "a name with an escape": setter(*IMAGE, "name", "a\x9bb"),
    "no name": setter(*IMAGE, "name", ""),
    "dot": setter(*IMAGE, "name", "."),
    "dot dot": setter(*IMAGE, "name", ".."),
    "a name too long in bytes": setter(*IMAGE, "name", "é" * 128),
    "a platform with a slash": setter(*FILE, "platform", "a/b"),
    "a set-user-id mode": setter(*FILE, "mode", 0o4755),
    "a time beyond all": setter(*FILE, "mtime", 1 << 50),
    "sparse by number": setter(*FILE, "sparse", 1),
    "no recipe": setter(*IMAGE, "space", None),
    "a recipe that does not exist": setter(*IMAGE, "space", 4),
    "a recipe of another size": setter(*IMAGE, "size", 9),
    "more data than size": setter(*IMAGE, "data", 11),
    "no chaining values": setter(*IMAGE, "chain", "count", 0),
    "a chaining value more than there is": setter(*IMAGE, "chain", "count", 23),
    "129 chaining values": setter(*IMAGE, "chain", {"space": 0, "offset": 0, "count": 129}),
    "chaining values that end a byte behind": setter(*IMAGE, "chain", "offset", 21),
    "chaining values at the end of all": setter(*IMAGE, "chain", "offset", 1 << 60),
    "chaining values in words": setter(*IMAGE, "chain", "offset", "0"),
    "as many chaining values as true": setter(*IMAGE, "chain", "count", True),
    "chaining values of a recipe": setter(*IMAGE, "chain", {"space": 2, "offset": 0, "count": 0}),
    "chaining values of no space": setter(*IMAGE, "chain", "space", 4),
    "chaining values of nowhere": setter(*IMAGE, "chain", {"offset": 0, "count": 1}),
    "chaining values in a list": setter(*IMAGE, "chain", [0, 20, 22]),
    "chaining values of a published form outside": setter(
        *FORMS, "published", "chain", {"space": 1, "offset": 11, "count": 1}
    ),
    "a cost in words": setter(*FILE, "how", "cost", "much"),
    "a published cost in words": setter(*FILE, "how", "published", {"cost": "much"}),
    "two of one name": setter("releases", 0, "artifacts", 1, "arch", "x86_64"),
    "a list for an object": setter("rules", []),
    "an object for a list": setter("packs", {}),
    "a number for a list": setter("releases", 0, "artifacts", 5),
    "nothing at all": lambda document: document.clear(),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    """Every number and name out of its bounds is refused, and bundle.json is named."""
    value: Any = copy.deepcopy(canonical_json.loads(encode(made()), "doc", 1 << 20))
    LIES[lie](value)
    with pytest.raises(HostileInput, match=r"bundle\.json"):
        decode(canonical_json.dumps(value))


def test_depth() -> None:
    """Spaces stand on each other to a limited depth."""

    def tower(height: int) -> bytes:
        value: Any = canonical_json.loads(encode(made()), "doc", 1 << 20)
        chunks = {"first": 0, "count": 1}
        for number in range(4, 4 + height):
            value["spaces"].append({"pack": 0, "size": 1, "chunks": chunks, "inputs": [number - 1]})
        return canonical_json.dumps(value)

    decode(tower(13))
    with pytest.raises(HostileInput, match="deep"):
        decode(tower(14))


def test_what_may_be_called_so() -> None:
    """Names are any text of one line without slashes, words are plain."""
    assert [is_name(text) for text in ("a b", "é", "", "a/b", "a\n", "\ud800", "x" * 256)] == [
        *(True, True),
        *[False] * 5,
    ]
    assert [is_word(text) for text in ("x86_64", "a b", "", "-a", "x\n")] == [True, *[False] * 4]
