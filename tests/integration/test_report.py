"""`report` as a user runs it: numbers that add up, a page that is safe whatever the bundle says, and
files that are written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.bundle import manifest
from rehydrator.cli import main
from rehydrator.core import canonical_json
from rehydrator.core.errors import HostileInput
from rehydrator.oci.reference import open_bundle, parse
from tests.conftest import ROOT
from tests.vectors.draft import write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Made, User

VECTORS = ROOT / "bundle" / "vectors"
GOOD = sorted(path.name for path in (VECTORS / "good").iterdir())
BROKEN = sorted(path.name for path in (VECTORS / "broken").iterdir())

# All that a page consists of. Nothing here loads or runs anything.
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "footer"),
    *("h1", "h2", "h3", "p", "a", "span", "strong", "code", "ul", "li", "dl", "dt", "dd", "div"),
    *("details", "summary", "table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "rect", "g", "line", "text"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "id", "href", "role", "scope", "tabindex"),
    *("aria-label", "aria-hidden", "data-label", "x", "y", "x1", "x2", "y1", "y2", "width", "height"),
    "text-anchor",
}
EMPTY = {"meta"}


class Page(HTMLParser):
    """A page taken apart: its elements and attributes, its text, and whether all is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str | None] = set()
        self.ids: set[str | None] = set()
        self.metas: dict[str | None, str | None] = {}
        self.styles: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        found = dict(attrs)
        if "href" in found:
            self.links.add(found["href"])
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "meta":
            self.metas[found.get("http-equiv") or found.get("name")] = found.get("content")
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self._open[-1:] == ["style"] else self.words).append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def bare(reference: str, work: Path, target: Path) -> str:
    """A reference to a copy of a bundle as files that a test may change."""
    with open_bundle(parse(reference), work) as files:
        tree = {name: files.open(name) for name in files.names()}
        write_tree(target, {name: reader.pread(0, reader.size) for name, reader in tree.items()})
    return f"dir:{target}"


@pytest.fixture(scope="module")
def found(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers about a small release of 13 files."""
    target = tmp_path_factory.mktemp("report") / "report.json"
    assert main(["report", made.reference, "--json", "-o", str(target)]) == 0
    report: dict[str, Any] = json.loads(target.read_text())
    return report


def test_every_class_and_total_adds_up(made: Made, found: dict[str, Any]) -> None:
    """The classes of each form sum to its size, and each disk's to its own; what is stored is what
    files add, what is shared, documents and the manifest, and these are the bytes of its files."""
    for file in found["files"]:
        for form in file["forms"].values():
            assert sum(form["origins"].values()) == form["size"]
    for disk in found["disks"]:
        assert sum(disk["origins"].values()) == disk["size"]
    for pack in found["packs"]:
        assert pack["data"] + pack["recipes"] + pack["index"] == pack["size"]
    totals = found["totals"]
    assert totals["added"] == sum(file["adds"] for file in found["files"])
    assert totals["stored"] == totals["added"] + totals["shared"] + totals["documents"] + totals["manifest"]
    with open_bundle(parse(made.reference), made.release) as files:
        kept = {name: files.open(name).size for name in files.names() if not name.startswith("signatures/")}
    assert totals["stored"] == sum(kept.values())
    assert totals["images"] == sum(path.stat().st_size for path in made.images.values())
    assert totals["published"] == sum(path.stat().st_size for path in made.release.iterdir())


def test_what_it_says_is_what_info_says(user: User, made: Made, found: dict[str, Any]) -> None:
    """What a file adds is what the build counted; forms, digests, encoders, seconds and memory are
    those of `info`; and what was stored for a raw sibling is what the build stored."""
    said = json.loads(user.run("info", made.reference, "--json").out)
    assert said["bundle"]["bytes stored"] == found["totals"]["stored"]
    shown = {each["file"]: each for each in found["files"]}
    assert set(shown) == {each["file"] for each in said["artifacts"]} == set(made.images)
    for each in said["artifacts"]:
        mine = shown[each["file"]]
        assert (mine["adds"], mine["how"]) == (each["how"]["cost"], each["how"])
        forms = {
            kind: {key: value for key, value in form.items() if key != "origins"}
            for kind, form in mine["forms"].items()
        }
        assert forms == each["forms"]
    whole = shown["demo-1.0.0-live.x86_64.iso"]
    assert whole["forms"]["image"]["origins"]["own"] == whole["how"]["bytes"]["stored"]


def test_map_of_siblings(found: dict[str, Any]) -> None:
    """The canonical file reads all data of its disk, stamped siblings all but their stamps, and a
    file that is no disk has no row."""
    disk, four_k = found["maps"]
    name_of = [each["file"] for each in found["files"]]
    names_of = [[name_of[place] for place in row["files"]] for row in four_k["rows"]]
    assert names_of == [["demo-1.0.0-metal4k.x86_64.raw"]]
    data = sum(column[3] for column in disk["columns"])
    read = {name_of[place]: sum(row["read"]) for row in disk["rows"] for place in row["files"]}
    assert read[name_of[found["disks"][0]["file"]]] == data
    names = {f"demo-1.0.0-{each}" for each in ("aws.x86_64.vmdk", "gcp.x86_64.tar", "azure.x86_64.vhd")}
    assert names <= set(read)
    assert all(data * 0.9 < read[name] <= data for name in names)
    assert "SHA256SUMS" not in read
    edges = [column[:2] for column in disk["columns"]]
    assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])]


def test_page_is_self_contained(user: User, made: Made, found: dict[str, Any]) -> None:
    """The page has every file with its digests, no script, no link that leaves it, and a policy
    that lets it load nothing and use its own style alone; -o - and -o FILE are the same bytes."""
    user.run("report", made.reference, "-o", "report.html")
    text = (user.home / "report.html").read_text()
    assert user.run("report", made.reference, "-o", "-").out == text.encode()
    assert user.run("report", "--bundle", made.reference).out == text.encode()
    page = Page(text)
    assert page.elements <= ELEMENTS
    assert page.attributes <= ATTRIBUTES
    assert page.links == {f"#{each}" for each in ("origins", "map", "added", "seconds", "files")}
    assert page.links <= {f"#{each}" for each in page.ids}
    [style] = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert page.metas["Content-Security-Policy"] == policy
    assert not re.search(r"url\(|@import|https?:", text)
    for file in found["files"]:
        for form in file["forms"].values():
            assert form["name"] in page.text
            assert form["sha256"] in page.text


def test_hostile_texts(user: User, made: Made) -> None:
    """Markup in any name or text of a bundle is text on the page, and letters that turn the
    direction of writing are spelt out."""
    reference = bare(made.reference, user.tmp, user.home / "bare")
    path = user.home / "bare" / manifest.MANIFEST
    value: Any = canonical_json.loads(path.read_bytes(), "bundle.json", manifest.MAX_MANIFEST)
    name = "<script>alert(1)<img src=x onerror='x'>\"&amp;\u202e"
    text = f"</script></style></title></svg>{name}"
    release = value["releases"][0]
    release.update(name=f"n{name}", stream=f"s{name}", release=f"r{name}")
    for number, each in enumerate(release["artifacts"]):
        each.update(platform=f"p{number}{name}", format=f"f{number}{name}")
        for kind, form in each["forms"].items():
            form["name"] = f"{kind[0]}{number}{name}"
        tried = [{"rung": f"t{number}{text}", "why": f"w{number}{text}"}]
        texts = {f"k{number}{text}": f"v{number}{text}"}
        inner = {"rung": f"g{number}{text}", "encoders": texts, "bytes": {f"b{number}{text}": 1}}
        each["how"] = {**inner, "format": f"x{number}{text}", "facts": texts, "tried": tried}
        each["how"]["published"] = inner
    for number, each in enumerate(value["known_answers"]):
        each["library"] = f"l{number}{name}"
    path.write_bytes(canonical_json.dumps(value))
    page = Page(user.run("report", reference).out.decode())
    assert page.elements <= ELEMENTS
    assert page.attributes <= ATTRIBUTES
    shown, shown_text = (each.replace("\u202e", "\\u202e") for each in (name, text))
    assert f"n{shown} r{shown}" in page.text
    assert f"Streams{shown}" in page.text
    for number, each in enumerate(release["artifacts"]):
        for kind in each["forms"]:
            assert f"{kind[0]}{number}{shown}" in page.text
        assert f"p{number}{shown}" in page.text
        for letter in ("t", "w", "k", "v", "g", "b", "x"):
            assert f"{letter}{number}{shown_text}" in page.text
    assert "\u202e" not in page.text


def test_files_are_written_whole_or_not_at_all(user: User, made: Made) -> None:
    """A page that is there already stays where the bundle is damaged, keeps its mode where it is
    replaced, and a directory or a missing one is refused."""
    reference = bare(made.reference, user.tmp, user.home / "bare")
    page = user.home / "page.html"
    page.write_text("old")
    page.chmod(0o640)
    user.run("report", reference, "-o", page)
    assert (page.stat().st_mode & 0o777, page.read_text()[:15]) == (0o640, "<!DOCTYPE html>")
    old = page.read_bytes()
    assert "is a directory" in user.run("report", reference, "-o", user.home, code=2).err
    assert "No such file" in user.run("report", reference, "-o", "none/page.html", code=1).err
    pack = user.home / "bare" / "packs" / "0.pack"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    assert "packs/0.pack" in user.run("report", reference, "-o", page, code=5).err
    assert page.read_bytes() == old


def test_key(user: User, made: Made) -> None:
    """With a key, nothing of a bundle that it did not sign is shown."""
    user.run("keygen", "other", "--no-password")
    assert b"demo 1.0.0" in user.run("report", made.reference, "--key", made.public).out
    assert user.run("report", made.reference, "--key", "other.pub", code=7).out == b""


def test_no_page_on_a_terminal(user: User, made: Made) -> None:
    """A terminal gets no page of hundreds of kilobytes, but the question where it should go."""
    ours, theirs = pty.openpty()
    command = user.command("report", made.reference)
    done = subprocess.run(
        command, env=user.environment(), stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=120
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"-o FILE" in done.stderr


def test_the_reader_in_the_container_has_it(user: User, made: Made) -> None:
    """The page needs nothing but what the container has: no numpy, pydantic, yaml or urllib3."""
    block = (
        "import sys; sys.modules.update(dict.fromkeys(('numpy', 'pydantic', 'yaml', 'urllib3', 'xxhash')));"
    )
    script = f"{block} from rehydrator.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, "report", made.reference],
        env=user.environment(), capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("name", GOOD)
def test_good_vectors(name: str, tmp_path: Path) -> None:
    """Every form of every golden bundle has classes that sum to its size, and there is a page."""
    reference = f"dir:{VECTORS / 'good' / name}"
    assert main(["report", reference, "--json", "-o", str(tmp_path / "json")]) == 0
    for file in json.loads((tmp_path / "json").read_text())["files"]:
        for form in file["forms"].values():
            assert sum(form.get("origins", {"": form["size"]}).values()) == form["size"]
    assert main(["report", reference, "-o", str(tmp_path / "page")]) == 0
    assert Page((tmp_path / "page").read_text()).elements <= ELEMENTS


def test_broken_vectors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A broken bundle gives a page where the breach is in bytes that a page does not need, and
    otherwise the refusal that it deserves, never a half page."""
    codes = {}
    for name in BROKEN:
        target = tmp_path / name
        codes[name] = main(["report", f"dir:{VECTORS / 'broken' / name}", "-o", str(target)])
        assert target.exists() == (codes[name] == 0)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert set(codes.values()) <= {0, 4, 5, 8, 9, 10}
    assert {name for name, code in codes.items() if code == HostileInput.exit_code} >= {
        name for name in BROKEN if name.startswith(("json-", "how-", "name-", "op-", "chunk-"))
    }
