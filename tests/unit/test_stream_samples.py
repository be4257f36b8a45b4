"""Sample documents of every era, broken ones, and what the schema and the tools say of them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from rehydrator.cli.stream_validate import findings
from rehydrator.core.errors import HostileInput
from rehydrator.metadata import models
from rehydrator.metadata.document import Document
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

HOME = ROOT / "stream-metadata"
SCHEMA = HOME / "schema" / "stream.schema.json"
SAMPLES = sorted(path for path in (HOME / "samples").glob("*.json") if path.name != "broken.json")
BROKEN: dict[str, str] = json.loads((HOME / "samples" / "broken.json").read_text())
# JSON Schema sees values: neither the text nor the file name that a location ends in.
BEYOND_SCHEMA = {"location-dot-dot", "location-of-a-directory"}


def named(path: Path) -> str:
    return path.stem


def broken(name: str) -> Path:
    return HOME / "samples" / "broken" / f"{name}.json"


def test_schema_is_up_to_date() -> None:
    """The schema is what the models give; scripts/stream-schema writes it."""
    assert json.loads(SCHEMA.read_text()) == models.json_schema()
    assert SCHEMA.read_text() == json.dumps(models.json_schema(), indent=2) + "\n"


def test_schema_is_one() -> None:
    """The schema is one of draft 2020-12, and each of its members is described."""
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    plain = {"MarketplaceImage"}
    undescribed = [
        f"{name}.{member}"
        for name, each in [*schema["$defs"].items(), ("stream", schema)]
        for member, what in each["properties"].items()
        if "description" not in what and name not in plain
    ]
    assert undescribed == []


def test_schema_in_words() -> None:
    """SCHEMA.md speaks of every member that the schema has."""
    schema = json.loads(SCHEMA.read_text())
    words = (HOME / "SCHEMA.md").read_text()
    members = {member for each in [*schema["$defs"].values(), schema] for member in each["properties"]}
    spoken = set(re.findall(r"[A-Za-z0-9_-]+", " ".join(re.findall(r"`([^`]+)`", words))))
    assert members - spoken == set()


def test_samples_are_up_to_date() -> None:
    """The samples, good and broken, are what the script beside them makes."""
    spec = importlib.util.spec_from_file_location("samples", HOME / "samples" / "make.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    here = HOME / "samples"
    found = {str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*.json")}
    assert found == made.made()


@pytest.mark.parametrize("path", SAMPLES, ids=named)
def test_samples_are_documents(path: Path) -> None:
    """Each sample is a document by the schema, by the models and by the parser; edits that
    change nothing leave its bytes."""
    data = path.read_bytes()
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert [error.message for error in validator.iter_errors(json.loads(data))] == []
    assert findings(data, "x")[0] == []
    document = Document.parse(data, "x")
    assert document.relocated({file.key: (file.location, None) for file in document.files}).data == data
    assert document.only([file.key for file in document.files]).data == data


@pytest.mark.parametrize("name", BROKEN)
def test_broken_samples(name: str) -> None:
    """Each broken sample is refused for one reason, in the words that are written down for it;
    the parser refuses it at the same place, if it is about files at all."""
    data = broken(name).read_bytes()
    problems, notices = findings(data, "x")
    said = [f"{each.place}: {each.message}".removeprefix("x: ") for each in problems]
    assert (len(said), notices) == (1, [])
    assert said[0].startswith(BROKEN[name])
    if "images" not in said[0]:
        with pytest.raises(HostileInput, match="x: "):
            Document.parse(data, "x")


def test_schema_refuses_what_models_refuse() -> None:
    """Broken samples that are JSON do not fit the schema."""
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    refused = {
        name
        for name, said in BROKEN.items()
        if not said.startswith("not JSON") and not validator.is_valid(json.loads(broken(name).read_bytes()))
    }
    assert (
        refused == {name for name, said in BROKEN.items() if not said.startswith("not JSON")} - BEYOND_SCHEMA
    )


def test_census() -> None:
    """The 2026 sample names 60 files, 26 of them of x86_64, by 21 platforms."""
    files = Document.parse((HOME / "samples" / "fcos-2026.json").read_bytes(), "x").files
    counts = Counter(file.key.arch for file in files)
    assert counts == {"x86_64": 26, "aarch64": 15, "s390x": 10, "ppc64le": 9}
    assert len({file.key.platform for file in files if file.key.arch == "x86_64"}) == 21


def around(**file: Any) -> bytes:
    """A document of one file."""
    roles = {"disk": {"location": "https://h.example/a", "signature": "s", "sha256": "0" * 64, **file}}
    artifacts = {"aws": {"formats": {"vmdk.xz": roles}}}
    return json.dumps({"stream": "s", "architectures": {"x86_64": {"artifacts": artifacts}}}).encode()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({}, []),
        ({"signature": ""}, ["signature: is missing; coreos-installer needs it"]),
        ({"signature": None}, ["signature: is missing; coreos-installer needs it"]),
        ({"sha256": ""}, ["sha256: is missing; nothing says what the file must be"]),
        ({"sha256": "0" * 63}, ["sha256: is not 64 hexadecimal digits"]),
        ({"uncompressed-sha256": "g" * 64}, ["uncompressed-sha256: is not 64 hexadecimal digits"]),
        ({"uncompressed-sha256": "A" * 64}, []),
        ({"location": "a"}, ["location: is not an https URL"]),
    ],
)
def test_notices(file: dict[str, Any], said: list[str]) -> None:
    """What installers need is a notice where it is missing, with its place."""
    problems, notices = findings(around(**file), "x")
    place = "x86_64.artifacts.aws.formats.vmdk.xz.disk."
    assert [f"{each.place}: {each.message}" for each in notices] == [place + each for each in said]
    assert problems == []


@pytest.mark.parametrize("arch", [{}, {"media": {"qemu": {"artifacts": {"raw": {"disk": {}}}}}}])
def test_no_files(arch: dict[str, Any]) -> None:
    """A document without files, as release.json seems to be one, is a notice."""
    given = json.dumps({"stream": "s", "architectures": {"x86_64": arch}}).encode()
    problems, notices = findings(given, "x")
    assert problems == []
    assert [(each.place, each.message[:14]) for each in notices] == [("architectures", "names no files")]


def test_all_problems_at_once() -> None:
    """Every problem of a document is told, each with its place."""
    given = {"stream": 1, "architectures": {"x": {"artifacts": {"aws": {"release": []}, "a/b": {}}}}}
    problems = findings(json.dumps(given).encode(), "x")[0]
    assert [each.place for each in problems] == ["stream", "x.artifacts.aws.release", "x.artifacts.a/b"]
