"""A stream document's text survives every edit that is not about it, however it is spelt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rehydrator.core.errors import HostileInput
from rehydrator.metadata import json_text, models
from rehydrator.metadata.document import Document, FileKey, NewFile, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICKLY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SPACE = st.text(" \t\r\n", max_size=3)
DIGESTS = st.none() | st.just("") | st.just("0123456789abcdef" * 4)
NAMES = st.sampled_from(["aws", "metal", "qemu", "nutanix"])
KEYS = st.sampled_from(["raw.xz", "4k.raw.xz", "qcow2", "pxe"])
FILES = st.builds(
    lambda name, more, known: {**more, "location": f"https://h.example/{quoted(name)}", **known},
    st.text("abc é/%?#\U0001f600", min_size=1, max_size=6).filter(lambda name: not name.endswith("/")),
    st.dictionaries(TEXT.filter(lambda name: name not in {"size", "uncompressed-size"}), VALUES, max_size=2),
    st.fixed_dictionaries(
        {}, optional={"sha256": DIGESTS, "signature": DIGESTS, "uncompressed-sha256": DIGESTS}
    ),
)
FILE_KEYS = st.builds(FileKey, st.sampled_from(["x86_64", "s390x"]), NAMES, KEYS, st.just("disk"))
PLATFORMS = st.fixed_dictionaries(
    {},
    optional={
        "release": st.sampled_from(["1", "2", "", None]),
        "formats": st.dictionaries(
            KEYS, st.dictionaries(st.sampled_from(["disk", "kernel"]), FILES, max_size=2)
        ),
        "x": VALUES,
    },
)
ARCHES = st.fixed_dictionaries(
    {}, optional={"artifacts": st.none() | st.dictionaries(NAMES, PLATFORMS, max_size=3), "images": VALUES}
)
STREAMS = st.fixed_dictionaries(
    {"stream": st.just("s"), "architectures": st.dictionaries(st.sampled_from(["x86_64", "s390x"]), ARCHES)},
    optional={"metadata": st.dictionaries(TEXT, VALUES, max_size=2), "": VALUES},
)


@st.composite
def spelt(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> tuple[Any, str]:
    """A value, and one of its spellings: any white space, any escapes, any order."""
    value = draw(values)
    return value, _spelt(draw, value)


def _spelt(draw: st.DrawFn, value: Any) -> str:
    before, behind = draw(SPACE), draw(SPACE)
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        members = [f"{_spelt(draw, key)}:{_spelt(draw, item)}" for key, item in items]
        text = "{" + (",".join(members) or draw(SPACE)) + "}"
    elif isinstance(value, list):
        text = "[" + (",".join(_spelt(draw, item) for item in value) or draw(SPACE)) + "]"
    elif isinstance(value, str):
        text = json.dumps(value, ensure_ascii=draw(st.booleans())).replace(
            "/", draw(st.sampled_from(["/", "\\/"]))
        )
    else:
        text = json.dumps(value)
    return before + text + behind


@QUICKLY
@given(spelt(VALUES))
def test_values_are_those_of_the_json_module(case: tuple[Any, str]) -> None:
    """Whatever JSON is read, its value is what the json module says."""
    value, text = case
    found = json_text.scan(text.encode(), "x")[1].plain
    assert found == json.loads(text) == value
    assert json.dumps(found) == json.dumps(json.loads(text))


@QUICKLY
@given(st.text('{}[]",:\\u0dfe1-.+ \ntrufalsn', max_size=12))
def test_what_the_json_module_refuses_is_refused(text: str) -> None:
    """Nothing is read that the json module would not read, and read alike."""
    try:
        found = json_text.scan(text.encode(), "x")[1].plain
    except HostileInput:
        return
    assert found == json.loads(text)


@QUICKLY
@given(st.binary(max_size=40) | spelt(VALUES).map(lambda case: case[1].encode()))
def test_anything_is_a_document_or_hostile(data: bytes) -> None:
    """Bytes are a stream document or HostileInput, and nothing else."""
    try:
        found = Document.parse(data, "x").data
    except HostileInput:
        return
    assert found == data


@QUICKLY
@given(spelt(STREAMS))
def test_identical_values_leave_identical_bytes(case: tuple[Any, str]) -> None:
    """Relocating to the locations that are there, keeping every file and adding the files that
    are there changes no byte."""
    data = case[1].encode()
    document = Document.parse(data, "x")
    there = {file.key: (file.location, file.signature or None) for file in document.files}
    assert document.relocated(there).data == data
    assert document.only(there).data == data
    assert document.updated([]).data == data


@QUICKLY
@given(spelt(STREAMS))
def test_only_locations_and_signatures_move(case: tuple[Any, str]) -> None:
    """Relocating changes the locations, and the signatures that are members; nothing else."""
    value, text = case
    document = Document.parse(text.encode(), "x")
    moved = document.relocated({file.key: ('new/"\xe9"', "sig") for file in document.files})
    for file in document.files:
        member = _file(value, file.key)
        member["location"] = 'new/"\xe9"'
        if "signature" in member:
            member["signature"] = "sig"
    assert moved.value == value


@QUICKLY
@given(spelt(STREAMS), st.randoms(use_true_random=False))
def test_only(case: tuple[Any, str], random: Any) -> None:
    """The files that are asked for stay, the others and what they leave empty go, and what had
    no files before stays as it was."""
    value, text = case
    document = Document.parse(text.encode(), "x")
    keys = {file.key for file in document.files if random.random() < 0.5}
    found = document.only(keys)
    assert {file.key for file in found.files} == keys
    for depth in (1, 2, 3, 4):
        kept = {key[:depth] for key in keys}
        for gone in {file.key[:depth] for file in document.files} - kept:
            _remove(value, gone)
    assert found.value == value


@QUICKLY
@given(
    spelt(STREAMS),
    st.lists(FILE_KEYS, max_size=4),
)
def test_updated(case: tuple[Any, str], keys: list[FileKey]) -> None:
    """New files are there as they were given, older ones of platforms with another release are
    not, all others are as before; a second time changes nothing."""
    document = Document.parse(case[1].encode(), "x")
    found = document.updated([NewFile(key, "2", {"location": "n", "size": 5}) for key in keys])
    added = {file.key for file in found.files if file.location == "n"}
    assert added == set(keys)
    platforms = {(key.arch, key.platform) for key in keys}
    kept = [
        file
        for file in document.files
        if file.key not in added and (file.release == "2" or file.key[:2] not in platforms)
    ]
    assert {file for file in found.files if file.key not in added} == set(kept)
    again = found.updated([NewFile(key, "2", {"location": "n", "size": 5}) for key in keys])
    assert again.data == found.data


@QUICKLY
@given(
    st.lists(FILE_KEYS, unique=True),
    st.integers(0, 9),
)
def test_updated_in_steps(keys: list[FileKey], half: int) -> None:
    """A document made in two runs, in either order, is the one that one run makes, and what
    json.dumps with sorted keys writes."""
    files = [NewFile(key, "2", {"location": "n", "sha256": "aa"}) for key in keys]
    whole = Document.new("s").updated(files)
    assert Document.new("s").updated(files[:half]).updated(files[half:]).data == whole.data
    assert Document.new("s").updated(files[half:]).updated(files[:half]).data == whole.data
    assert whole.data.decode() == json.dumps(whole.value, indent=4, sort_keys=True) + "\n"


def _file(value: Any, key: FileKey) -> Any:
    return value["architectures"][key.arch]["artifacts"][key.platform]["formats"][key.format][key.role]


def _remove(value: Any, key: tuple[str, ...]) -> None:
    """Take a file, or what held files, out of a plain document, unless it is gone already."""
    names = ("architectures", "artifacts", "formats")
    steps = [step for pair in zip(names, key, strict=False) for step in pair] + list(key[3:])
    for step in steps[:-1]:
        value = value.get(step, {})
    value.pop(steps[-1], None)


@pytest.mark.parametrize("name", ["a b", "a?b", "a#b", "50%25", "a:b", "\xe9", "a+b", "%2F"])
def test_quoted(name: str) -> None:
    """A quoted name's basename is the name again, whatever stands before it."""
    for location in (quoted(name), f"https://h/{quoted(name)}"):
        file = NewFile(FileKey("x86_64", "qemu", "raw"), "1", {"location": location})
        [found] = Document.new("s").updated([file]).files
        assert found.name == name


@QUICKLY
@given(st.data(), spelt(STREAMS))
def test_models_and_parser_agree(data: st.DataObject, case: tuple[Any, str]) -> None:
    """With any one value of a document exchanged, the models find nothing wrong with what they
    are about exactly where the parser reads it."""
    value = json.loads(case[1])
    for arch in value["architectures"].values():
        arch.pop("images", None)
    places = list(_places(value))
    holder, name = data.draw(st.sampled_from(places))
    holder[name] = data.draw(VALUES | st.sampled_from(["", "a/b", "..", "https://[", "x" * 300, "a\n"]))
    try:
        Document.parse(json.dumps(value).encode(), "x")
    except HostileInput:
        assert models.problems(value) != []
    else:
        cloudy = ("images", "rhel-coreos-extensions", "metadata")
        assert [each for each in models.problems(value) if not _is_about(each, cloudy)] == []


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member and item of a document, by what holds it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        yield value, name
        yield from _places(each)


def _is_about(finding: models.Finding, names: tuple[str, ...]) -> bool:
    return any(name in finding.place.split(".")[:2] for name in names)
