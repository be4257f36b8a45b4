"""The verbs of `stream`: data on stdout, talk on stderr, exit codes, and never a traceback."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.cli import main
from rehydrator.cli.stream import VERBS
from rehydrator.metadata import json_text
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = ROOT / "stream-metadata" / "samples"
FCOS, RHCOS, NULLS = (
    str(SAMPLES / f"{name}.json") for name in ("fcos-2026", "rhcos-4.11", "nulls-and-empties")
)
BASE = "https://builds.example.com/prod/streams/stable/builds/44.20260707.3.1"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is x86_64, and names no bundle."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("REHYDRATOR_BUNDLE", raising=False)


class Program:
    """Runs `rehydrator stream` in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints; what it says is in `said`."""
        found = main(["stream", *arguments])
        out, self.said = self._capfd.readouterr()
        assert code == found, self.said
        return out


@pytest.fixture
def stream(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--platform", "metal"], f"{BASE}/x86_64/example-coreos-44.20260707.3.1-metal.x86_64.raw.xz"),
        (["--platform", "metal", "name"], "example-coreos-44.20260707.3.1-metal.x86_64.raw.xz"),
        (["--platform", "metal", "release"], "44.20260707.3.1"),
        (
            ["--platform", "metal", "--format", "4k.raw", "name"],
            "example-coreos-44.20260707.3.1-metal4k.x86_64.raw.xz",
        ),
        (
            ["--platform", "metal", "--format", "iso", "name"],
            "example-coreos-44.20260707.3.1-live-iso.x86_64.iso",
        ),
        (
            ["--platform", "metal", "--format", "pxe", "--role", "rootfs", "name"],
            "example-coreos-44.20260707.3.1-live-rootfs.x86_64.img",
        ),
        (
            ["--platform", "gcp", "--format", "tar.gz", "name"],
            "example-coreos-44.20260707.3.1-gcp.x86_64.tar.gz",
        ),
        (
            ["--platform", "hyperv", "--format", "vhdx", "name"],
            "example-coreos-44.20260707.3.1-hyperv.x86_64.vhdx.zip",
        ),
        (
            ["--platform", "qemu", "--arch", "ppc64le", "signature"],
            f"{BASE}/ppc64le/example-coreos-44.20260707.3.1-qemu.ppc64le.qcow2.xz.sig",
        ),
        (["--platform", "powervs", "release"], "44.20260707.3.1"),
        (["--image", "gcp"], "example-1-x86_64"),
        (["--image", "gcp", "project"], "example-cloud"),
        (["--image", "kubevirt"], "registry.example.com/kubevirt:stable"),
        (["--image", "aws", "--region", "us-east-1", "release"], "44.20260707.3.1"),
    ],
)
def test_get(stream: Program, arguments: list[str], expected: str) -> None:
    """`get` prints one value and a newline, and says nothing."""
    assert stream("get", FCOS, *arguments) == expected + "\n"
    assert stream.said == ""


@pytest.mark.parametrize(
    ("source", "arguments", "code", "said"),
    [
        (FCOS, ["--platform", "none"], 4, "it has aliyun, applehv, aws"),
        (FCOS, ["--platform", "qemu", "--arch", "z80"], 4, "there is aarch64, ppc64le, s390x, x86_64"),
        (FCOS, ["--platform", "metal", "--format", "ova"], 4, "there is 4k.raw.xz, iso, pxe, raw.xz"),
        (
            FCOS,
            ["--platform", "metal", "--format", "pxe"],
            4,
            "initramfs, kernel, rootfs (name one with --role)",
        ),
        (FCOS, ["--platform", "metal", "--role", "kernel"], 4, "there is disk"),
        (
            FCOS,
            ["--platform", "gcp", "uncompressed-sha256"],
            4,
            "there is location, name, release, sha256, signature",
        ),
        (FCOS, ["--platform", "gcp", "size"], 4, "there is location"),
        (RHCOS, ["--platform", "qemu", "signature"], 4, "there is location"),
        (NULLS, ["--platform", "qemu", "sha256"], 4, "there is location, name"),
        (NULLS, ["--platform", "qemu", "release"], 4, "there is location, name"),
        (NULLS, ["--platform", "qemu", "x-more"], 4, "there is location, name"),
        (FCOS, ["--platform", "qemu", ""], 4, "there is location, name"),
        (FCOS, ["--image", "azure"], 4, "it has aws, gcp, kubevirt"),
        (FCOS, ["--image", "aws", "--region", "moon"], 4, "af-south-1, eu-north-1, us-east-1"),
        (FCOS, ["--image", "gcp", "--region", "moon"], 4, "leave --region out"),
        (FCOS, ["--image", "aws"], 2, "--region: af-south-1, eu-north-1, us-east-1"),
        (FCOS, ["--image", ""], 4, "it has aws, gcp, kubevirt"),
        (FCOS, ["--image", "aws", "--region", ""], 4, "af-south-1, eu-north-1, us-east-1"),
        (FCOS, ["--image", "gcp", "--region", ""], 4, "leave --region out"),
        (FCOS, ["--platform", ""], 4, "it has aliyun, applehv, aws"),
        (FCOS, ["--platform", "qemu", "--arch", ""], 4, "there is aarch64, ppc64le, s390x, x86_64"),
        (FCOS, ["--platform", "metal", "--format", ""], 4, "there is 4k.raw.xz, iso, pxe, raw.xz"),
        (FCOS, ["--platform", "qemu", "--role", ""], 4, "there is disk"),
        ("", ["--platform", "qemu"], 2, "SRC is empty"),
        (FCOS, [], 2, "--platform"),
        (FCOS, ["--platform", "qemu", "--image", "aws"], 2, "--platform"),
        (FCOS, ["--platform", "qemu", "--region", "r"], 2, "--region goes with --image"),
        (FCOS, ["--image", "aws", "--role", "disk"], 2, "go with --platform"),
        (FCOS, ["--platform", "qemu", "sha256", "more"], 2, "more than SRC and FIELD"),
        (FCOS, ["--platform", "qemu", "--bundle", "dir:x", "sha256"], 2, "both SRC and --bundle"),
        (FCOS, ["--platform", "qemu", "--release", "x"], 2, "go with a bundle"),
    ],
)
def test_get_refuses(stream: Program, source: str, arguments: list[str], code: int, said: str) -> None:
    """What is not there is exit 4 with a list of what is; what makes no sense is exit 2. A name
    that is empty (a script's unset variable) is no default."""
    assert stream("get", source, *arguments, code=code) == ""
    assert said in stream.said


def test_get_arch(stream: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture is the only one, else the machine's, else a question."""
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert ".aarch64." in stream("get", FCOS, "--platform", "qemu", "name")
    assert ".ppc64le." in stream("get", FCOS, "--platform", "powervs", "name")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert stream("get", FCOS, "--platform", "qemu", code=2) == ""
    assert "--arch; there are aarch64, ppc64le, s390x, x86_64" in stream.said


def test_get_json(stream: Program) -> None:
    """With --json it is the whole file, unknown members and all."""
    found = json.loads(stream("get", NULLS, "--platform", "qemu", "--json"))
    assert found["x-more"] == [1.5, 1000.0, {"a": 0}]
    assert stream("get", NULLS, "--platform", "qemu", "name") == "a b-qemu.x86_64.qcow2\n"


def test_get_json_field(stream: Program) -> None:
    """With --json a field is its value in JSON; what is missing stays an error."""
    assert stream("get", NULLS, "--platform", "gcp", "size", "--json") == "12\n"
    assert stream("get", NULLS, "--platform", "gcp", "name", "--json") == '"plain.raw"\n'
    assert stream("get", FCOS, "--image", "gcp", "project", "--json") == '"example-cloud"\n'
    assert stream("get", NULLS, "--platform", "gcp", "sha256", "--json", code=4) == ""
    assert "there is location, name, release, size" in json.loads(stream.said)["message"]


def test_get_lists_only_some(stream: Program, tmp_path: Path) -> None:
    """A message names 64 of a document's thousands of platforms."""
    (tmp_path / "s").write_text(one("a.raw", **{f"p{number:04}": f"{number}.raw" for number in range(1000)}))
    assert stream("get", str(tmp_path / "s"), "--platform", "none", code=4) == ""
    assert stream.said.endswith(", p0063 and 937 more\n")


def test_get_several_formats(stream: Program, tmp_path: Path) -> None:
    """Where none of several formats is a raw disk, one must be named."""
    formats = {key: {"disk": {"location": key}} for key in ("ova", "vmdk.xz")}
    text = {"stream": "s", "architectures": {"x86_64": {"artifacts": {"vm": {"formats": formats}}}}}
    (tmp_path / "s").write_text(json.dumps(text))
    assert stream("get", str(tmp_path / "s"), "--platform", "vm", code=2) == ""
    assert "--format: ova, vmdk.xz" in stream.said
    assert stream("get", str(tmp_path / "s"), "--platform", "vm", "--format", "vmdk") == "vmdk.xz\n"


def test_show(stream: Program) -> None:
    """`show` is a table, one line a file."""
    lines = stream("show", FCOS).splitlines()
    assert lines[0].split() == ["ARCH", "PLATFORM", "FORMAT", "ROLE", "RELEASE", "NAME"]
    assert len(lines) == 61
    assert len(stream("show", FCOS, "--arch", "ppc64le").splitlines()) == 10
    images = stream("show", RHCOS, "--images", "--arch", "ppc64le").split("\n\n")[1].splitlines()
    assert [line.split()[:3] for line in images] == [
        ["ARCH", "CLOUD", "REGION"],
        ["ppc64le", "powervs", "eu-de"],
        ["ppc64le", "powervs", "us-south"],
    ]
    assert stream("show", FCOS, "--arch", "z80", code=4) == ""
    assert "it has aarch64, ppc64le, s390x, x86_64" in stream.said


def test_show_only_images(stream: Program, tmp_path: Path) -> None:
    """An architecture that has only images is one; a role tells the files of `pxe` apart."""
    arches = {"x86_64": {}, "s390x": {"images": {"gcp": {"project": "p", "name": "n"}}}}
    (tmp_path / "s").write_text(json.dumps({"stream": "s", "architectures": arches}))
    assert stream("show", str(tmp_path / "s"), "--arch", "s390x", "--images").splitlines()[-1].split() == [
        "s390x",
        "gcp",
        "n",
    ]
    stream("show", str(tmp_path / "s"), "--arch", "x86_64", code=4)
    assert "it has s390x" in stream.said
    rows = [line.split() for line in stream("show", FCOS, "--arch", "x86_64").splitlines()]
    roles = [row[3] for row in rows if row[2] == "pxe"]
    assert roles == ["kernel", "initramfs", "rootfs"]


def test_show_json(stream: Program) -> None:
    """With --json each file has everything that the document says of it."""
    found = json.loads(stream("show", NULLS, "--json", "--images"))
    assert found["images"] == []
    assert found["files"][1] == {
        "arch": "x86_64",
        "platform": "gcp",
        "format": "raw",
        "role": "disk",
        "release": "7",
        "name": "plain.raw",
        "location": "plain.raw",
        "signature": "",
        "sha256": "",
        "uncompressed_sha256": "",
        "size": 12,
        "uncompressed_size": None,
    }


def test_validate(stream: Program, tmp_path: Path) -> None:
    """Problems are lines on stdout and exit 8; notices are on stderr and, with --strict, problems."""
    assert (stream("validate", FCOS), stream.said) == ("", "")
    assert stream("validate", RHCOS) == ""
    assert len(stream.said.splitlines()) == 43
    assert stream.said.startswith(
        "notice: x86_64.artifacts.aliyun.formats.qcow2.gz.disk.signature: is missing"
    )
    assert len(stream("validate", RHCOS, "--strict", code=8).splitlines()) == 43
    bad = tmp_path / "bad"
    bad.write_text('{"stream":1,"architectures":{"a/b":{}}}')
    lines = stream("validate", str(bad), code=8).splitlines()
    assert lines[0] == "stream: is not a string"
    assert lines[1].startswith("a/b: the key has characters")
    report = json.loads(stream("validate", str(bad), "--json", code=8))
    assert (report["valid"], len(report["problems"]), report["notices"]) == (False, 2, [])
    bad.write_text("{")
    assert stream("validate", str(bad), code=8) == f"{bad}: not JSON: line 1, column 2: no string\n"


def test_standard_input(stream: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """- is standard input."""
    data = Path(FCOS).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert stream("rewrite", "-", "--base-url", "x").count('"x/example-') == 120


@pytest.mark.parametrize(
    "verb", [["validate"], ["show"], ["get", "--platform", "qemu"], ["rewrite", "--base-url", "x"]]
)
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("/nonexistent", 1, "/nonexistent: cannot be read: No such file"),
        ("/", 1, "/: cannot be read: Is a directory"),
        ("a\0b", 2, "null byte"),
        ("https://", 8, ""),
    ],
)
def test_unreadable(stream: Program, verb: list[str], source: str, code: int, said: str) -> None:
    """A document that cannot be read is an error in words."""
    assert stream(verb[0], source, *verb[1:], code=code) == ""
    assert said in stream.said


def test_closed_standard_input(stream: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input may be closed."""
    monkeypatch.setattr("sys.stdin", None)
    assert stream("show", "-", code=1) == ""
    assert "standard input is closed" in stream.said


def test_no_source(stream: Program) -> None:
    """Without SRC, bundle and container the question is what to read."""
    assert stream("show", code=2) == ""
    assert "SRC is a file, a URL or -" in stream.said


def test_huge(stream: Program, tmp_path: Path) -> None:
    """What is larger than any stream document is not read to its end."""
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    assert stream("show", str(huge), code=8) == ""
    assert f"more than {json_text.MAX_BYTES} bytes" in stream.said


def test_rewrite(stream: Program, tmp_path: Path) -> None:
    """Locations and signatures lie below the URL; every other byte is as it was."""
    text = Path(FCOS).read_text()
    expected = "\n".join(
        line[: line.index("https:")] + "http://mirror:8080/a%20b/" + line.rsplit("/", 1)[1]
        if '"location"' in line or '"signature"' in line
        else line
        for line in text.split("\n")
    )
    assert stream("rewrite", FCOS, "--base-url", "http://mirror:8080/a b") == expected
    out = tmp_path / "out.json"
    out.write_text("old")
    out.chmod(0o640)
    stream("rewrite", FCOS, "--base-url", "http://mirror:8080/a%20b/", "-o", str(out))
    assert out.read_text() == expected
    assert out.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_rewrite_keeps_spelling(stream: Program) -> None:
    """Absent, null and empty signatures stay; so does every odd byte."""
    text = Path(NULLS).read_text()
    expected = text.replace("https:\\/\\/h\\u006fst.example.com\\/a%20b-qemu", "file:///m/a%20b-qemu")
    expected = expected.replace('"plain.raw"', '"file:///m/plain.raw"')
    assert stream("rewrite", NULLS, "--base-url", "file:///m") == expected


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("", "b.raw"),
        (".", "./b.raw"),
        ("x/../y/", "x/../y/b.raw"),
        ("http://h", "http://h/b.raw"),
        ("http://me:p%40ss@h-1.example:80", "http://me:p%40ss@h-1.example:80/b.raw"),
        ("https://h:8443//", "https://h:8443/b.raw"),
        ("http://[::1]/\xe9%zz%20", "http://[::1]/%C3%A9%25zz%20/b.raw"),
        ("file:///a b", "file:///a%20b/b.raw"),
        ("/srv", "/srv/b.raw"),
        ("HTTP://h", "http://h/b.raw"),
    ],
)
def test_base_urls(stream: Program, tmp_path: Path, url: str, location: str) -> None:
    """http, https, file and relative paths are quoted where they must be."""
    (tmp_path / "s").write_text(one("https://a/b.raw"))
    assert stream("rewrite", str(tmp_path / "s"), "--base-url", url) == one(location)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "http:a",
        "http://h?q",
        "http://h#f",
        "//h/a",
        "file:a",
        "c:\\a",
        "http://h:x",
        "http://a b/",
        "http://h\n",
        "http://[",
        "http://\xe9/",
        "http://h\\a",
        'http://"h"/',
    ],
)
def test_base_urls_refused(stream: Program, url: str) -> None:
    """What is no base URL is exit 2, before anything is read."""
    assert stream("rewrite", "/nonexistent", "--base-url", url, code=2) == ""
    assert "rehydrator: '" in stream.said


def one(location: str, **more: str) -> str:
    """A document of one file; more of them by platform."""
    files = {"qemu": {"location": location}} | {name: {"location": each} for name, each in more.items()}
    artifacts: dict[str, Any] = {name: {"formats": {"raw": {"disk": file}}} for name, file in files.items()}
    return json.dumps({"stream": "s", "architectures": {"x86_64": {"artifacts": artifacts}}})


def test_rewrite_clash(stream: Program, tmp_path: Path) -> None:
    """Two files of one name are refused, by their places, and nothing is written; one file that
    two platforms name is one."""
    source, out = tmp_path / "s", tmp_path / "out"
    source.write_text(one("https://a/x/b.raw", aws="https://a/y/b.raw"))
    stream("rewrite", str(source), "--base-url", "x", "-o", str(out), code=8)
    assert "x86_64.artifacts.qemu.formats.raw.disk.location and x86_64.artifacts.aws" in stream.said
    assert not out.exists()
    source.write_text(one("https://a/x/b.raw", aws="https://a/x/b.raw"))
    assert stream("rewrite", str(source), "--base-url", "x").count('"x/b.raw"') == 2


def test_rewrite_into_nowhere(stream: Program, tmp_path: Path) -> None:
    """A file that cannot be written is an error with its name."""
    for target in (tmp_path / "no" / "out", Path("/dev/full/out")):
        assert stream("rewrite", FCOS, "--base-url", "x", "-o", str(target), code=1) == ""
        assert f"{target}: cannot be written" in stream.said


def test_rewrite_into_what_is_no_file(stream: Program, tmp_path: Path) -> None:
    """A link stays a link, a pipe (and so a device) is written to; a circle of links is an error."""
    real, link, circle = tmp_path / "real", tmp_path / "link", tmp_path / "circle"
    link.symlink_to(real)
    circle.symlink_to(circle)
    stream("rewrite", NULLS, "--base-url", "x", "-o", str(link))
    assert link.is_symlink()
    assert real.read_text().count('"x/') == 2
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    stream("rewrite", NULLS, "--base-url", "x", "-o", str(pipe))
    assert os.read(reader, 1 << 16) == real.read_bytes()
    os.close(reader)
    assert pipe.is_fifo()
    stream("rewrite", NULLS, "--base-url", "x", "-o", str(circle), code=1)
    assert "circle: cannot be written" in stream.said


def test_mutations(stream: Program, tmp_path: Path) -> None:
    """Whatever a document is damaged to, every verb ends with exit 0, 2, 4 or 8."""
    random_ = random.Random(5)
    source = tmp_path / "s"
    texts = [Path(FCOS).read_bytes()[:3000] + b"}" * 9, Path(NULLS).read_bytes()]
    odd = [
        b"null",
        b"[]",
        b"{}",
        b"1",
        b'""',
        b"true",
        b"\\ud800",
        b"\xff",
        b"\0",
        b"\n",
        b'"',
        b"NaN",
        b"[" * 99,
    ]
    codes = set()
    for number in range(150):
        data = bytearray(texts[1] if number % 4 else texts[0])
        for _ in range(random_.randint(1, 2)):
            at = random_.randrange(len(data))
            data[at : at + random_.randint(0, 4)] = random_.choice([*odd, random_.randbytes(2)])
        source.write_bytes(data[: random_.choice([None, random_.randrange(len(data))])])
        for verb in (
            ["validate"],
            ["show", "--images"],
            ["get", "--platform", "qemu"],
            ["rewrite", "--base-url", "x"],
        ):
            codes.add(main(["stream", verb[0], str(source), *verb[1:]]))
    stream("show", FCOS)
    assert codes <= {0, 2, 4, 8}
    assert codes >= {0, 8}


def wrong_types(value: Any) -> Iterator[Any]:
    """A document again and again, each time with one place of another type."""
    for other in (None, 5, -0.5, "x", "", [], {}, True, [None], {"a": None}):
        if other != value:
            yield other
    if isinstance(value, dict):
        for key, each in value.items():
            for wrong in wrong_types(each):
                yield {**value, key: wrong}


def test_wrong_types(stream: Program, tmp_path: Path) -> None:
    """A wrong type at any place is exit 0, 2, 4 or 8, and what `validate` passes `show` reads."""
    source = tmp_path / "s"
    image = {"regions": {"r": {"release": "1", "image": "ami"}}}
    file = {"location": "a", "signature": "s", "sha256": "0", "uncompressed-sha256": "1", "size": 1}
    arch = {
        "artifacts": {"qemu": {"release": "1", "formats": {"raw": {"disk": file}}}},
        "images": {"aws": image, "gcp": {"project": "p", "name": "n"}},
        "rhel-coreos-extensions": {"azure-disk": {"release": "1", "url": "u"}},
    }
    document = {"stream": "s", "metadata": {"last-modified": "x"}, "architectures": {"x86_64": arch}}
    for wrong in wrong_types(document):
        source.write_text(json.dumps(wrong))
        valid = main(["stream", "validate", str(source)])
        shown = main(["stream", "show", str(source), "--images"])
        got = main(["stream", "get", str(source), "--image", "aws"])
        gone = main(["stream", "get", str(source), "--platform", "qemu"])
        assert (valid, shown) in {(0, 0), (8, 8), (8, 0)}
        assert {got, gone} <= {0, 2, 4, 8}
    stream("show", FCOS)


def test_help(stream: Program) -> None:
    """Every verb has help, and the group lists them all."""
    listed = stream("--help")
    for verb in VERBS:
        assert f"  {verb} " in listed
        assert "Exit status" in stream(verb, "--help")


def test_light() -> None:
    """show, get and rewrite need neither pydantic nor an HTTP client: a bundle's container has
    none. validate says so."""
    code = (
        "import sys; sys.modules.update(pydantic=None, urllib3=None, numpy=None, yaml=None)\n"
        "from rehydrator.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    for arguments, expected in (
        (["show", FCOS], 0),
        (["get", FCOS, "--platform", "qemu"], 0),
        (["rewrite", FCOS, "--base-url", "x"], 0),
        (["validate", FCOS], 10),
        (["show", "https://h.example/s"], 10),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "stream", *arguments], capture_output=True, check=False, cwd=ROOT
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (expected, False), done.stderr
