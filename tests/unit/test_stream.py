"""Stream documents of every era are read, and one is written for files that came without."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.metadata.stream import Described, Published, parse, write


def data(file: dict[str, Any], **more: Any) -> bytes:
    platform = {"release": "1", "formats": {"qcow2.xz": {"disk": file}}}
    stream = {"stream": "stable", "architectures": {"x86_64": {"artifacts": {"qemu": platform}, **more}}}
    return json.dumps(stream).encode()


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("https://h/a/b.qcow2.xz", "b.qcow2.xz"),
        ("https://h/a/b.xz?sig=a/b#c/d", "b.xz"),
        ("b%20c", "b c"),
        ("../../etc/x", "x"),
        ("a%2Fb", "b"),
    ],
)
def test_names(location: str, name: str) -> None:
    """A file is called by the basename of its location's path, unquoted: never a path."""
    [file] = parse(data({"location": location}), "doc").files
    assert file.name == name


@pytest.mark.parametrize("digest", [None, "", "absent"])
def test_digests(digest: str | None) -> None:
    """Missing, empty and null digests mean the same; others are lower case."""
    given = {} if digest == "absent" else {"sha256": digest}
    [file] = parse(data({"location": "x", **given, "uncompressed-sha256": "AB"}), "doc").files
    assert (file.sha256, file.uncompressed_sha256) == ("", "ab")


def test_unknown_keys() -> None:
    """Keys that later eras added are passed over."""
    document = parse(data({"location": "x", "signature": None, "n": 1}, images={"aws": {}}), "doc")
    assert (document.stream, len(document.files)) == ("stable", 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"stream":"a","stream":"a","architectures":{}}', "twice"),
        (b'{"stream":"a"}', "architectures"),
        (b'{"stream":"a","architectures":{"a b":{}}}', "a b"),
        (data({}), "location"),
        (data({"location": 5}), "location"),
    ],
)
def test_refused(given: bytes, said: str) -> None:
    """What is no stream document is refused, and says where."""
    with pytest.raises(HostileInput, match=f"doc: .*{said}"):
        parse(given, "doc")


def test_written_document_reads_back() -> None:
    """A written document names the same files, with sizes as an extension and no clock in it."""
    packed = Published("a.xz", "x86_64", "qemu", "raw.xz", "disk", "1", "aa", "bb")
    plain = Published("b", "s390x", "metal", "raw", "disk", "1", "cc", "cc")
    written = write("s", "test", [Described(packed, 5, 9, 1_600_000_000), Described(plain, 7, 7, 0)])
    assert written == write("s", "test", [Described(packed, 5, 9, 1_600_000_000), Described(plain, 7, 7, 0)])
    found = {file.name: file for file in parse(written, "doc").files}
    assert found["a.xz"] == packed
    assert (found["b"].sha256, found["b"].uncompressed_sha256) == ("cc", "")
    assert json.loads(written)["metadata"]["last-modified"] == "2020-09-13T12:26:40Z"
