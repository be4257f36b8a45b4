"""The format and its readers: golden vectors, good and broken, by both readers; the script that
made them; the schema; and bundles that were built a moment ago.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from rehydrator.bundle import manifest
from rehydrator.bundle.reader import Bundle, check_file
from rehydrator.bundle.rehydrate import Options, check
from rehydrator.codecs import streams
from rehydrator.core.errors import HostileInput, RehydratorError, ToolMissing
from rehydrator.host.filters import run_filter
from rehydrator.oci.reference import open_bundle, parse
from rehydrator.store.files import DirectoryFiles
from tests.conftest import rehydrated
from tests.vectors import second_reader
from tests.vectors.draft import read_tree, write_tree
from tests.vectors.schema import violations
from tests.vectors.siblings import make_published, make_siblings

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "bundle" / "vectors"
SCHEMA = json.loads((ROOT / "bundle" / "schema" / "bundle.schema.json").read_text())
FORMAT = (ROOT / "bundle" / "FORMAT.md").read_text()
KNOWN = {codec for family in streams.FAMILIES for codec in streams.codecs(family.name)}
GOOD = sorted(path.name for path in (VECTORS / "good").iterdir())
BROKEN: dict[str, Any] = json.loads((VECTORS / "broken.json").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of small siblings of every format, and of published files around two more, built by
    the command line, as a directory."""
    work = tmp_path_factory.mktemp("built")
    make_siblings(work / "release")
    make_published(work / "release", (work / "release" / "metal.raw").read_bytes()[: 5 << 18])
    target = f"oci:{work}/image:it"
    program = [sys.executable, "-m", "rehydrator", "build", str(work / "release"), "-o", target]
    options = ["--runtime", "none", "--level", "1"]
    subprocess.run([*program, *options], check=True, cwd=ROOT, capture_output=True)
    with open_bundle(parse(target), work) as files:
        write_tree(work / "bare", {name: _whole(files.open(name)) for name in files.names()})
    return work / "bare"


def _whole(reader: Any) -> bytes:
    data: bytes = reader.pread(0, reader.size)
    return data


def first_reader(directory: Path, output: Path) -> dict[str, str]:
    """Every pinned file checked and every form made, by rehydrator: SHA-256 by name and arch."""
    bundle = Bundle(DirectoryFiles(directory), run=run_filter)
    outputs = bundle.manifest.outputs()
    for each in outputs:
        output.joinpath(each.artifact.arch).mkdir(parents=True, exist_ok=True)
        rehydrated(bundle, each, output / each.artifact.arch, Options())
        check(bundle, each, 1, lambda _: None)
    for stored in bundle.manifest.stored_files():
        check_file(bundle.files, stored)
    return {f"{each.artifact.arch}/{each.form.name}": each.form.sha256 for each in outputs}


def second(directory: Path) -> list[str]:
    """The SHA-256 of every form, by the second reader."""
    bundle = second_reader.Bundle(directory)
    forms = bundle.outputs()
    for form in forms:
        assert sum(len(piece) for piece in bundle.made(form)) == form["size"]
    return [form["sha256"] for form in forms]


def stated(directory: Path) -> list[str]:
    """The SHA-256 of every form that has a recipe, as bundle.json states it."""
    document = json.loads((directory / "bundle.json").read_bytes())
    artifacts = [each for release in document["releases"] for each in release["artifacts"]]
    forms = [each["forms"].get(kind) for each in artifacts for kind in ("image", "published", "signature")]
    return [form["sha256"] for form in forms if form and "space" in form]


@pytest.mark.parametrize("name", GOOD)
def test_good_vector(name: str, tmp_path: Path) -> None:
    """Both readers regenerate every form of a good vector with the digest that it states."""
    expected = stated(VECTORS / "good" / name)
    assert expected == second(VECTORS / "good" / name)
    assert expected == list(first_reader(VECTORS / "good" / name, tmp_path).values())


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_vector(name: str, tmp_path: Path) -> None:
    """Both readers refuse a broken vector with the stated exit code, and leave no wrong file."""
    with pytest.raises(second_reader.Refusal) as theirs:
        second(VECTORS / "broken" / name)
    with pytest.raises(RehydratorError) as ours:
        first_reader(VECTORS / "broken" / name, tmp_path)
    expected = BROKEN[name]["exit"]
    assert (expected, expected) == (theirs.value.code, ours.value.exit_code)
    document = (VECTORS / "broken" / name / "bundle.json").read_text(errors="replace")
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert [data for data in left if hashlib.sha256(data).hexdigest() not in document] == []


def test_image_forms_wait_for_no_stream(tmp_path: Path) -> None:
    """Where no encoder here gives the published form, image form and signature are given."""
    directory = VECTORS / "broken" / "stream-known-answer-wrong"
    bundle = Bundle(DirectoryFiles(directory), run=run_filter)
    second = second_reader.Bundle(directory)
    image, published, signature = bundle.manifest.outputs()
    for each, form in zip((image, signature), second.outputs()[::2], strict=True):
        assert rehydrated(bundle, each, tmp_path, Options())
        assert sum(map(len, second.made(form))) == each.form.size
    with pytest.raises(ToolMissing, match=r"disk\.raw\.xz: .* or take disk\.raw by --form image"):
        bundle.open_form(published.artifact, published.form)


def test_stream_codecs_are_written_down() -> None:
    """FORMAT.md, section 8, names every stream codec."""
    section = FORMAT.partition("Codecs of stream rules")[2].partition("## 9.")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} >= KNOWN


@pytest.mark.parametrize("codec", sorted(KNOWN & second_reader.STREAM_CODECS.keys()))
def test_stream_parameters(codec: str) -> None:
    """A stream codec takes the lowest and highest value of each parameter, and none beyond."""
    ranges = second_reader.STREAM_CODECS[codec]
    usual = {name: low for name, (low, _) in ranges.items()}
    for name, (low, high) in ranges.items():
        for value in (low, high):
            assert streams.encoder(codec, usual | {name: value}).codec == codec
        for value in (low - 1, high + 1):
            with pytest.raises(HostileInput):
                streams.encoder(codec, usual | {name: value})


SAMPLE = b"".join(b"%d bytes of a sample. " % (k * k) for k in range(2000))


@pytest.mark.parametrize("codec", sorted(KNOWN & second_reader.STREAM_CODECS.keys()))
@pytest.mark.parametrize("plain", [SAMPLE, b"x"])
def test_stream_encoders_agree(codec: str, plain: bytes) -> None:
    """Both readers make the same stream of the same bytes, or both lack the encoder."""
    ranges = second_reader.STREAM_CODECS[codec]
    major, minor, release = zstd.zstd_version_info
    chosen = {"piece": 10_000, "dict_size": 1 << 16, "library": major * 10_000 + minor * 100 + release}
    for name, (_, high) in ranges.items():
        params = {each: chosen.get(each, low) for each, (low, _) in ranges.items()}
        params[name] = chosen.get(name, min(high, 9))
        theirs = _made(lambda: second_reader.stream(codec, params, plain))  # noqa: B023 - called at once
        ours = _made(lambda: b"".join(streams.encoder(codec, params, run_filter).encode([plain])))  # noqa: B023
        assert theirs == ours


def _made(make: Callable[[], bytes]) -> bytes | int:
    try:
        return make()
    except (second_reader.Library, ToolMissing):
        return second_reader.Library.code


def test_no_vector_without_a_statement() -> None:
    """broken.json and the directories name the same vectors."""
    assert sorted(BROKEN) == sorted(path.name for path in (VECTORS / "broken").iterdir())


def test_vectors_are_what_the_script_makes(tmp_path: Path) -> None:
    """make.py gives the committed bytes again."""
    runpy.run_path(str(VECTORS / "make.py"))["main"](tmp_path)
    committed = {name: data for name, data in read_tree(VECTORS).items() if not name.endswith(".py")}
    committed = {name: data for name, data in committed.items() if "__pycache__" not in name}
    assert committed == read_tree(tmp_path)
    assert sum(map(len, committed.values())) < 1 << 20


@pytest.mark.parametrize("name", GOOD)
def test_schema_accepts_good_vectors(name: str) -> None:
    """bundle.json of every good vector fits the schema."""
    document = json.loads((VECTORS / "good" / name / "bundle.json").read_bytes())
    assert violations(document, SCHEMA) == []


@pytest.mark.parametrize("name", GOOD)
def test_schema_accepts_what_is_encoded(name: str) -> None:
    """What manifest.encode writes fits the schema."""
    read = manifest.decode((VECTORS / "good" / name / "bundle.json").read_bytes())
    assert violations(json.loads(manifest.encode(read)), SCHEMA) == []


def test_schema_names_every_key_that_is_encoded(built: Path) -> None:
    """A built manifest has no key that the schema does not name."""
    closed = json.loads(json.dumps(SCHEMA).replace('"type": "object",', '"type": "object", "closed": true,'))
    assert violations(json.loads((built / "bundle.json").read_bytes()), closed) == []


@pytest.mark.parametrize(
    "name",
    [
        "another-format",
        "unknown-version",
        "unknown-requires",
        "file-dotdot",
        "chain-count-true",
        "chain-of-129",
        "chain-of-nothing",
        "chain-offset-text",
        "plain-empty",
        "plain-half",
        "plain-list",
        "plain-not-hex",
        "plain-odd",
        "plain-upper-case",
        "name-slash",
        "name-control",
        "digest-upper-case",
        "number-negative",
        "number-too-large",
        "number-is-true",
        "key-missing",
        "table-width",
        "unit-of-nothing",
        "mode-setuid",
        "how-cost-text",
        "how-tried-text",
        "how-published-text",
        "image-without-space",
        "signature-without-space",
        "stream-parameter-huge",
        "streams-not-a-list",
    ],
)
def test_schema_refuses(name: str) -> None:
    """The schema refuses what it can express."""
    document = json.loads((VECTORS / "broken" / name / "bundle.json").read_bytes())
    assert len(violations(document, SCHEMA)) == 1


def test_second_reader_imports_nothing_of_ours() -> None:
    """The second reader runs where rehydrator cannot be imported."""
    directory = VECTORS / "good" / "decodes"
    barred = "import runpy, sys; sys.modules['rehydrator'] = None; sys.argv = sys.argv[1:]; "
    code = barred + "runpy.run_path(sys.argv[0], run_name='__main__')"
    argv = [sys.executable, "-c", code, str(second_reader.__file__), str(directory)]
    done = subprocess.run(argv, check=True, cwd=VECTORS, capture_output=True, text=True)
    assert done.stdout == f"{stated(directory)[0]} decodes.raw\n"


def test_built_bundle(built: Path, tmp_path: Path) -> None:
    """Both readers give back siblings of every format that a build packed a moment ago."""
    expected = stated(built)
    assert expected == second(built)
    assert expected == list(first_reader(built, tmp_path).values())
    document = json.loads((built / "bundle.json").read_bytes())
    assert document["rules"]["encodes"]
    assert document["rules"]["offsets"]
    assert {rule["codec"] for rule in document["rules"]["streams"]} == {"lzma2", "deflate.zlib"}
