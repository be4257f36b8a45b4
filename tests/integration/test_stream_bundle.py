"""A bundle's own stream document: the bytes that were given, and what `stream` says of them."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

from tests.conftest import ROOT

if TYPE_CHECKING:
    from tests.conftest import User

ODD = ROOT / "stream-metadata" / "samples" / "nulls-and-empties.json"


def test_document_of_odd_spelling(user: User) -> None:
    """print-stream-json prints exactly the bytes that build was given, whatever their order,
    spaces, escapes and numbers; the verbs of `stream` read the same document from the bundle."""
    release = user.home / "release"
    release.mkdir()
    (release / "a b-qemu.x86_64.qcow2").write_bytes(b"no qcow2" * 999)
    (release / "plain.raw").write_bytes(b"raw" * 999)
    given = ODD.read_bytes()
    (release / "stream.json").write_bytes(given)
    options = ["-o", "oci:out", "--runtime", "none", "--level", 1, "--stream-json", "release/stream.json"]
    user.run("build", "release", *options)
    assert user.run("print-stream-json", "oci:out").out == given
    assert user.run("stream", "get", "--bundle", "oci:out", "--platform", "qemu", "name").out == (
        b"a b-qemu.x86_64.qcow2\n"
    )
    rewritten = user.run("stream", "rewrite", "--bundle", "oci:out", "--base-url", "http://h/").out
    assert rewritten == user.run("stream", "rewrite", ODD, "--base-url", "http://h/").out
    assert user.run("stream", "rewrite", "-", "--base-url", "http://h/", stdin=given).out == rewritten


def test_document_that_build_wrote(user: User) -> None:
    """The document that a build writes itself is one: nothing is wrong with it, its sizes are
    those of the files, names are quoted in it, and a key guards it."""
    release = user.home / "release"
    release.mkdir()
    (release / "demo-1-metal.x86_64.raw").write_bytes(b"metal" * 999)
    packed = release / "demo-1-openstack.x86_64.raw.gz"
    packed.write_bytes(gzip.compress(b"stack" * 999))
    (release / "50% a#b?c:d").write_bytes(b"x")
    user.run("keygen", "demo", "--no-password")
    user.run("keygen", "other", "--no-password")
    user.run("build", "release", "-o", "oci:out", "--runtime", "none", "--level", 1, "--key", "demo.key")
    arguments = ["--bundle", "oci:out", "--key", "demo.pub"]
    report = json.loads(user.run("stream", "validate", *arguments, "--json").out)
    assert (report["valid"], report["problems"]) == (True, [])
    files = json.loads(user.run("stream", "show", *arguments, "--json").out)["files"]
    sizes = {path.name: path.stat().st_size for path in release.iterdir()}
    assert {each["name"]: each["size"] for each in files} == sizes
    environment = {"REHYDRATOR_BUNDLE": "oci:out"}
    found = user.run("stream", "get", "--platform", "openstack", "size", env=environment).out
    assert int(found) == packed.stat().st_size
    user.run("stream", "show", "--bundle", "oci:out", "--key", "other.pub", code=7)
