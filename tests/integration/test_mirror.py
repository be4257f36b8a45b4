"""`stream mirror` as a user runs it: against servers good and bad, from documents good and bad, and
on to a build."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator import mirror
from rehydrator.cli import main
from rehydrator.core.errors import HostileInput, UsageError
from rehydrator.host import fetch
from rehydrator.metadata.document import Document
from tests import hostile_server as hostile
from tests.conftest import NAME, Ran, User, leftovers, names_in, sha256
from tests.gpg_keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = {
    platform: random.Random(platform).randbytes(60_000 + number)
    for number, platform in enumerate(("aws", "metal", "qemu"))
}
FILE = {platform: NAME.format(platform, "raw") for platform in DATA}
SIGNATURES = [f"{name}.sig" for name in FILE.values()]
QUICK = ("--timeout", 20, "--retries", 2)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    """The keys `release` and `other`, each in a keyring of its own (release.gpg, other.gpg)."""
    base = tmp_path_factory.mktemp("gpg")
    keys = Keys(base / "h", base / "file")
    keys.home.mkdir(mode=0o700)
    for name in ("release", "other"):
        keys.make(name)
        (base / f"{name}.gpg").write_bytes(keys.export(name, more=("--armor",)))
    yield keys
    keys.stop()


@pytest.fixture(scope="module")
def signatures(keys: Keys) -> dict[str, bytes]:
    """The key release's signatures of DATA; made once, as gpg takes its time on a busy machine."""
    return {platform: signed(keys, data) for platform, data in DATA.items()}


def signed(keys: Keys, data: bytes) -> bytes:
    keys.file.write_bytes(data)
    return keys.sign("release")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's key and its own certificate."""
    return hostile.certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.fixture
def user(user: User, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user without proxies and certificate authorities of this machine's own."""
    own = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *own):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return user


@dataclass
class Release:
    """A release on a server, and its user; `document` is what stream.json says, to be changed."""

    server: hostile.Server
    user: User
    document: dict[str, Any]
    ring: Path
    output: pytest.CaptureFixture[str]

    def file(self, platform: str, arch: str = "x86_64") -> dict[str, Any]:
        found: dict[str, Any] = self.document["architectures"][arch]["artifacts"][platform]["formats"]["raw"]
        return found["disk"]  # type: ignore[no-any-return]

    def behave(self, platform: str, behaviour: hostile.Behaviour, content: bytes | None = None) -> str:
        """How the server answers for a platform's file from now on; its URL."""
        content = DATA[platform] if content is None else content
        return self.server.serve(f"/{FILE[platform]}", content, behaviour)

    def mirror(self, *more: object, code: int = 0, source: object = None, **run: Any) -> Ran:
        url = self.server.serve("/stream.json", json.dumps(self.document, indent=1).encode())
        arguments = ("stream", "mirror", source or url, "mirror", *QUICK, *more)
        return self.user.run(*arguments, code=code, **run) if run else self.run_here(*arguments, code=code)

    def run_here(self, *arguments: object, code: int) -> Ran:
        """As User.run, in this process: a hundred times Python's start take their time."""
        found = main([*map(str, arguments)])
        out, err = self.output.readouterr()
        assert code == found, f"{arguments}: {found}\n{err}"
        assert leftovers(self.user.home) == []
        return Ran(found, out.encode(), err)

    @property
    def place(self) -> Path:
        return self.user.home / "mirror"

    @property
    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.place / "stream.json").read_bytes())
        return found

    def asked(self, platform: str) -> list[dict[str, str]]:
        return self.server.asked(f"/{FILE[platform]}")


@pytest.fixture
def release(
    user: User,
    keys: Keys,
    signatures: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Release]:
    """Three platforms' files, signed, on a server."""
    monkeypatch.chdir(user.home)
    monkeypatch.setattr(tempfile, "tempdir", str(user.tmp))
    with hostile.running() as server:
        artifacts = {}
        for platform, data in DATA.items():
            location = server.serve(f"/{FILE[platform]}", data)
            signature = server.serve(f"/{FILE[platform]}.sig", signatures[platform])
            disk = {
                "location": location,
                "signature": signature,
                "sha256": hashlib.sha256(data).hexdigest(),
                "x-unknown": [platform],
            }
            artifacts[platform] = {"release": "1.0.0", "formats": {"raw": {"disk": disk}}}
        document = {
            "stream": "stable",
            "metadata": {"last-modified": "2026-11-21T00:00:00Z"},
            "architectures": {"x86_64": {"artifacts": artifacts, "images": {"aws": {"regions": {}}}}},
        }
        yield Release(server, user, document, keys.file.with_name("release.gpg"), capfd)


def complete(release: Release) -> None:
    """The mirror holds every file, and the document of them."""
    assert names_in(release.place) == sorted([*FILE.values(), *SIGNATURES, "stream.json"])
    for platform, name in FILE.items():
        assert (release.place / name).read_bytes() == DATA[platform]


# ---- what it does


def test_mirror(release: Release) -> None:
    """Files and signatures beside one another, the document with relative locations and all else as
    it was; its path is what stdout has."""
    ran = release.mirror("--keyring", release.ring)
    complete(release)
    assert ran.out == b"mirror/stream.json\n"
    assert "3 files: 3 downloaded (175.8 KiB); 3 signatures good\n" in ran.err
    for platform, name in FILE.items():
        release.file(platform).update(location=name, signature=f"{name}.sig")
    assert release.written == release.document


def test_base_url(release: Release) -> None:
    """Locations are rewritten to where the mirror will be served."""
    release.mirror("--base-url", "https://mirror.example/fcos os")
    for platform, name in FILE.items():
        url = f"https://mirror.example/fcos%20os/{name}"
        release.file(platform).update(location=url, signature=f"{url}.sig")
    assert release.written == release.document


def test_again(release: Release) -> None:
    """A second run downloads no file once more, and notices one that is damaged."""
    release.mirror()
    (release.place / FILE["aws"]).write_bytes(b"damaged")
    release.server.requests.clear()
    report = json.loads(release.mirror("--json").out)
    assert [each["state"] for each in report["files"]] == ["downloaded", "already there", "already there"]
    assert [len(release.asked(platform)) for platform in DATA] == [1, 0, 0]
    complete(release)


def test_mirror_of_a_mirror(release: Release) -> None:
    """What was written can be mirrored on: from its path, by file: URL, from standard input."""
    release.mirror()
    shutil.move(release.place, release.user.home / "first")
    first = release.user.home / "first" / "stream.json"
    for source in ("first/stream.json", first, f"file://{first}"):
        release.mirror(source=source)
        complete(release)
        assert (release.place / "stream.json").read_bytes() == first.read_bytes()
        shutil.rmtree(release.place)
    ran = release.user.run("stream", "mirror", "/dev/stdin", "mirror", "--dry-run", stdin=first.read_bytes())
    assert ran.out.decode().count("to download") == 3
    release.server.requests.clear()
    for name in names_in(first.parent):
        shutil.copy(first.parent / name, release.user.home)
    release.mirror(source="-", stdin=first.read_bytes())
    complete(release)


def test_selection(release: Release) -> None:
    """--platform and --arch cut the document to what was mirrored."""
    release.document["architectures"]["aarch64"] = {"artifacts": {}}
    release.mirror("--platform", "aws", "--platform", "qemu", "--arch", "x86_64")
    artifacts = release.written["architectures"]["x86_64"]["artifacts"]
    assert sorted(artifacts) == ["aws", "qemu"]
    assert FILE["metal"] not in names_in(release.place)
    for option, name in (("--platform", "azure"), ("--arch", "s390x")):
        assert name in release.mirror(option, name, code=4).err


def test_two_selections(release: Release) -> None:
    """Two runs with different platforms do not add up: the second says what stream.json has no more;
    the files stay. One run with both has them all, and downloads nothing again."""
    release.mirror("--platform", "aws", "--platform", "metal")
    ran = release.mirror("--platform", "qemu", "--json")
    names = [FILE["aws"], FILE["metal"]]
    assert f"stream.json does not name {names[0]}, {names[1]} any more; the files stay" in ran.err
    assert json.loads(ran.out)["left_out"] == names
    assert list(release.written["architectures"]["x86_64"]["artifacts"]) == ["qemu"]
    assert set(names) < set(names_in(release.place))
    release.server.requests.clear()
    assert "any more" not in release.mirror().err
    complete(release)
    assert [release.asked(platform) for platform in DATA] == [[], [], []]


def test_document_in_the_mirror(release: Release) -> None:
    """A document that was put into DEST first is replaced by what was mirrored of it, but never by a
    part of it (2): the rest would be lost."""
    release.place.mkdir()
    document = release.place / "stream.json"
    document.write_text(json.dumps(release.document))
    said = release.mirror("--platform", "aws", source="mirror/stream.json", code=2).err
    assert "name another DEST" in said
    assert json.loads(document.read_bytes()) == release.document
    release.mirror(source="mirror/stream.json")
    complete(release)
    assert "name another DEST" in release.mirror("--platform", "aws", source=document, code=2).err


def test_dry_run(release: Release) -> None:
    """--dry-run asks for the document only, and writes nothing; digests of what is there are real."""
    ran = release.mirror("--dry-run")
    assert ran.out.decode().count("to download") == 3
    assert not release.place.exists()
    assert {path for path, _ in release.server.requests} == {"/stream.json"}
    release.place.mkdir()
    (release.place / FILE["aws"]).write_bytes(DATA["aws"])
    (release.place / FILE["qemu"]).write_bytes(DATA["aws"])
    plan = json.loads(release.mirror("--dry-run", "--json").out)
    assert [each["state"] for each in plan] == ["already there", "to download", "to download"]


def test_json(release: Release) -> None:
    """--json: one report on stdout, with what is needed to go on."""
    report = json.loads(release.mirror("--json", "--keyring", release.ring, "--platform", "qemu").out)
    assert report["stream_json"] == "mirror/stream.json"
    [file] = report["files"]
    assert len(file.pop("signed_by")) == 40
    assert file == {
        "file": FILE["qemu"],
        "location": release.file("qemu")["location"],
        "state": "downloaded",
        "is": [{"arch": "x86_64", "platform": "qemu", "format": "raw", "role": "disk"}],
        "size": len(DATA["qemu"]),
        "sha256": hashlib.sha256(DATA["qemu"]).hexdigest(),
        "signature": "good",
        "exit_code": 0,
    }


# ---- servers


BEHAVIOURS = {
    "truncates": hostile.truncating(1000),
    "stalls": hostile.stalling(1000),
    "resets": hostile.resetting(1000),
    "ignores ranges": hostile.truncating(1000, then=hostile.no_ranges),
    "503, Retry-After": hostile.status(503, {"Retry-After": "1"}, times=1),
    "wrong range": hostile.wrong_range,
    "wrong bytes after a resume": hostile.spoilt_after_resume(1),
    "broken chunks": hostile.chunked(50_000),
    "other file between parts": hostile.truncating(1000, headers={"ETag": '"old"'}),
    "slow": hostile.slow(3, 0.3),
}


def test_servers_that_pass(release: Release) -> None:
    """What passes ends well, each kind of trouble with a file of its own."""
    artifacts = {}
    for number, behaviour in enumerate(BEHAVIOURS.values()):
        url = release.server.serve(f"/{number}.raw", DATA["qemu"], behaviour)
        disk = {"location": url, "sha256": hashlib.sha256(DATA["qemu"]).hexdigest()}
        artifacts[f"p{number}"] = {"formats": {"raw": {"disk": disk}}}
    release.document["architectures"] = {"x86_64": {"artifacts": artifacts}}
    # Short, as one of them stalls; on a busy machine others may seem to.
    release.mirror("--jobs", len(BEHAVIOURS), "--timeout", 1, "--retries", 9)
    names = [f"{number}.raw" for number in range(len(BEHAVIOURS))]
    assert names_in(release.place) == [*names, "stream.json"]
    assert {sha256(release.place / name) for name in names} == {hashlib.sha256(DATA["qemu"]).hexdigest()}


def test_servers_that_do_not(release: Release) -> None:
    """One bad file does not stop the others; the worst says the exit code, and stream.json is not
    written."""
    release.behave("aws", hostile.status(404))
    ran = release.mirror(code=3)
    assert f"{release.file('aws')['location']}: the server answers 404" in ran.err
    assert "3 files: 2 downloaded (117.2 KiB), 1 failed\n" in ran.err
    assert "mirror/stream.json was not written" in ran.err
    assert ran.out == b""
    assert [name for name in names_in(release.place) if not name.endswith(".sig")] == sorted(
        [FILE["metal"], FILE["qemu"]]
    )
    release.behave("qemu", hostile.good, bytes(60_002))
    (release.place / FILE["qemu"]).unlink()
    report = json.loads(release.mirror("--json", code=5).out)
    assert report["stream_json"] is None
    assert [each["exit_code"] for each in report["files"]] == [12, 0, 5]


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (hostile.gzipped, 12),
        (hostile.lying(1000), 5),
        (hostile.endless, 9),
        (hostile.status(403), 12),
        (hostile.redirecting("/loop"), 12),
    ],
    ids=["gzip", "lies", "endless", "403", "redirect"],
)
def test_one_bad_file(release: Release, behaviour: hostile.Behaviour, code: int) -> None:
    """One file: its own exit code, nothing of it left."""
    release.server.serve("/loop", b"", hostile.redirecting("/loop"))
    release.behave("aws", behaviour)
    release.mirror("--platform", "aws", "--max-size", 100_000, code=code)
    assert names_in(release.place) == []


def test_old_document_stays(release: Release) -> None:
    """A run that fails leaves the document of the one before, and says so."""
    release.mirror()
    before = (release.place / "stream.json").read_bytes()
    (release.place / FILE["aws"]).unlink()
    release.behave("aws", hostile.status(404))
    assert "the old one stays" in release.mirror("--base-url", "https://new.example", code=3).err
    assert (release.place / "stream.json").read_bytes() == before


def test_resumes_the_next_time(release: Release) -> None:
    """What one run did not finish, the next one goes on with."""
    url = release.behave("aws", hostile.truncating(1000, times=99, headers={"ETag": '"same"'}))
    release.mirror("--platform", "aws", "--retries", 0, code=12)
    part = fetch.part_of(url, release.place / FILE["aws"])
    assert part.read_bytes() == DATA["aws"][:1000]
    release.behave("aws", hostile.truncating(99_999, times=99, headers={"ETag": '"same"'}))
    release.mirror()
    assert release.asked("aws")[-1]["range"] == "bytes=1000-"
    complete(release)


def test_interrupt(release: Release) -> None:
    """Ctrl-C ends it at once with 130, in the middle of a stalled download too; the next run goes on."""
    for platform in DATA:
        release.behave(platform, hostile.stalling(1000, times=1))
    url = release.server.serve("/stream.json", json.dumps(release.document).encode())
    command = release.user.command("stream", "mirror", url, "mirror")
    running = subprocess.Popen(
        command, cwd=release.user.home, env=release.user.environment(), stderr=subprocess.PIPE
    )
    parts = [fetch.part_of(release.file(each)["location"], release.place / FILE[each]) for each in DATA]
    deadline = time.monotonic() + 30
    while not all(part.exists() and part.stat().st_size == 1000 for part in parts):
        assert time.monotonic() < deadline, running.poll()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    # A stalled download would end after 30 s only.
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert said.decode().endswith("rehydrator: interrupted\n")
    assert leftovers(release.user.home) == []
    release.mirror()
    assert {release.asked(each)[-1]["range"] for each in DATA} == {"bytes=1000-"}
    complete(release)


def test_two_at_once(release: Release) -> None:
    """Two processes do not write into one mirror."""
    import fcntl

    release.place.mkdir()
    descriptor = os.open(release.place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "another process" in release.mirror(code=1).err
    os.close(descriptor)


# ---- the document


def test_https(release: Release, tls: Path) -> None:
    """Certificates are checked (12); SSL_CERT_FILE vouches; nothing goes on over http."""
    with hostile.running(tls) as secure:
        url = secure.serve("/" + FILE["aws"], DATA["aws"])
        release.file("aws")["location"] = url
        one = ("--platform", "aws")
        assert "certificate is refused" in release.mirror(*one, code=12).err
        trusted = {"SSL_CERT_FILE": str(tls)}
        release.mirror(*one, env=trusted)
        assert (release.place / FILE["aws"]).read_bytes() == DATA["aws"]
        (release.place / FILE["aws"]).unlink()
        plain = release.behave("aws", hostile.good)
        secure.serve("/" + FILE["aws"], b"", hostile.redirecting(plain))
        assert "from https to http" in release.mirror(*one, code=12, env=trusted).err
        assert release.asked("aws") == []


def test_document_that_is_not_there(release: Release) -> None:
    """No document: 2 for a path, 12 for a URL; no password of it is shown."""
    assert "no such file" in release.mirror(source="none.json", code=2).err
    secret = release.server.url("/none.json?x=s3cret", host="me:s3cret@127.0.0.1")
    said = release.mirror("--retries", 0, source=secret, code=12).err
    assert "/none.json" in said
    assert "s3cret" not in said
    release.mirror("--retries", 0, source="http://127.0.0.1:1/x", code=12)


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"stream": 5}', bytes(40 << 20)])
def test_document_that_is_none(release: Release, content: bytes) -> None:
    """What is no stream document is refused (8), named by its URL without password."""
    release.server.serve("/other", content)
    said = release.mirror(source=release.server.url("/other", host="a:s3cret@127.0.0.1"), code=8).err
    assert "/other" in said
    assert "s3cret" not in said


def test_password_of_the_document(release: Release) -> None:
    """The document's user name and password serve for what lies on its server, and no other."""
    release.file("aws")["location"] = release.server.url(f"/{FILE['aws']}", host="localhost")
    release.file("qemu")["location"] = FILE["qemu"]
    release.mirror()
    shutil.rmtree(release.place)
    release.server.requests.clear()
    release.mirror(source=release.server.url("/stream.json", host="me:pw@127.0.0.1"))
    sent = {platform: "authorization" in release.asked(platform)[0] for platform in DATA}
    assert sent == {"aws": False, "metal": True, "qemu": True}
    assert "pw" not in (release.place / "stream.json").read_text()


def test_names_of_this_machine(release: Release) -> None:
    """A document from the network gets no file of this machine into the mirror; a local one may."""
    local = release.user.home / FILE["aws"]
    local.write_bytes(DATA["aws"])
    for location in (f"file://{local}", "file:///etc/passwd", "FILE:///etc/passwd"):
        release.file("aws")["location"] = location
        assert "files of this machine" in release.mirror(code=8).err
        assert not release.place.exists()
    release.file("aws")["location"] = f"file://{local}"
    (release.user.home / "local.json").write_text(json.dumps(release.document))
    release.mirror(source="local.json")
    complete(release)
    shutil.rmtree(release.place)
    local.unlink()
    assert f"{local}: no such file" in release.mirror("--platform", "aws", source="local.json", code=4).err


def test_names_that_no_mirror_has(release: Release) -> None:
    """Names that lead elsewhere, collide with the mirror's own, or cannot be shown: 8, before any
    download."""
    names = [
        *("..", "a%2f..%2f..%2fb/..", "stream.json", "STREAM.json", "x.part", "x.part.json", ".hidden"),
        *("%0a", "%1b[0m", "%e2%80%ae", "n" * 245, "", "%ff" * 90),
    ]
    for name in names:
        release.file("aws")["location"] = f"https://127.0.0.1:1/{name}"
        with pytest.raises(HostileInput):
            mirror.planned(
                Document.parse(json.dumps(release.document).encode(), "it").files, "https://127.0.0.1:1/"
            )
    release.file("aws")["location"] = release.server.url("/stream.json")
    said = release.mirror(code=8).err
    assert "x86_64.artifacts.aws.formats.raw.disk.location: 'stream.json' cannot be the name" in said
    assert not release.place.exists()
    assert {path for path, _ in release.server.requests} == {"/stream.json"}


def test_slash_in_a_name(release: Release) -> None:
    """An escaped slash is a slash: what follows it is the name, and nothing leaves the mirror."""
    location = release.server.serve("/a%2F..%2F..%2Fevil.raw", DATA["aws"])
    release.file("aws")["location"] = location
    release.mirror()
    assert "evil.raw" in names_in(release.place)
    assert names_in(release.user.home) == ["mirror", "tmp"]


def test_name_that_must_be_quoted(release: Release) -> None:
    """A name with characters that URLs escape is found again under what the document says."""
    location = release.server.serve("/a%20b%23%25%3F.raw", DATA["aws"])
    release.file("aws")["location"] = location
    release.mirror()
    assert "a b#%?.raw" in names_in(release.place)
    release.mirror(source="mirror/stream.json")


def test_two_files_of_one_name(release: Release) -> None:
    """Different files of one name are refused (8), before any download; the same one is one."""
    release.server.serve("/other/" + FILE["aws"], b"other")
    release.file("qemu")["location"] = release.server.url("/other/" + FILE["aws"])
    said = release.mirror(code=8).err
    assert "x86_64.artifacts.aws.formats.raw.disk" in said
    assert "x86_64.artifacts.qemu.formats.raw.disk" in said
    assert not release.place.exists()
    release.file("qemu").update(release.file("aws"))
    release.mirror()
    assert len(release.asked("aws")) == 1
    files = release.written["architectures"]["x86_64"]["artifacts"]
    assert files["qemu"]["formats"]["raw"]["disk"]["location"] == FILE["aws"]


def test_one_file_in_two_places() -> None:
    """Where the document names one file twice, it has what either place says of it."""

    def planned(*disks: dict[str, str]) -> list[mirror.Wanted]:
        formats = {f"f{number}": {"disk": disk} for number, disk in enumerate(disks)}
        artifacts = {"aws": {"release": "1", "formats": formats}}
        document = {"stream": "s", "architectures": {"x86_64": {"artifacts": artifacts}}}
        return mirror.planned(Document.parse(json.dumps(document).encode(), "it").files, "https://h/x")

    bare = {"location": "https://h/a"}
    signed = {**bare, "signature": "https://h/a.sig"}
    digest = {**bare, "sha256": "0" * 64}
    for disks in ((bare, signed, digest), (digest, bare, signed), (signed, digest, bare)):
        [wanted] = planned(*disks)
        assert (wanted.sha256, wanted.signature) == ("0" * 64, "https://h/a.sig")
        assert [each.format for each in wanted.keys] == ["f0", "f1", "f2"]
    for other in ({"location": "https://i/a"}, {"location": "https://i/a", "sha256": "1" * 64}):
        with pytest.raises(HostileInput, match="different files of the same name"):
            planned(digest, other)


def test_name_of_a_signature(release: Release) -> None:
    """A file that has the name of another one's signature is refused."""
    release.file("qemu")["location"] = release.server.url(f"/{FILE['aws']}.sig")
    assert "signature" in release.mirror(code=8).err


def test_digest_that_is_none(release: Release) -> None:
    """A digest that no file can have is refused with its place."""
    release.file("qemu")["sha256"] = "0" * 63
    assert "x86_64.artifacts.qemu.formats.raw.disk.sha256" in release.mirror(code=8).err


def test_file_without_digest(release: Release) -> None:
    """A file of which the document has no digest (in any of three ways) needs a good signature: 6
    without. What is there and is not signed like that is fetched anew."""
    release.file("aws")["sha256"] = ""
    release.file("metal")["sha256"] = None
    del release.file("qemu")["sha256"]
    assert release.mirror(code=6).err.count("give --keyring") == 3
    assert names_in(release.place) == []
    for _ in range(2):
        release.mirror("--keyring", release.ring)
        complete(release)
    assert [len(release.asked(platform)) for platform in DATA] == [1, 1, 1]
    (release.place / FILE["aws"]).write_bytes(b"damaged")
    release.mirror("--keyring", release.ring)
    complete(release)
    release.behave("aws", hostile.good, b"wrong")
    (release.place / FILE["aws"]).unlink()
    release.mirror("--keyring", release.ring, "--platform", "aws", code=7)
    assert FILE["aws"] not in names_in(release.place)
    release.file("aws")["signature"] = ""
    assert "no signature either" in release.mirror("--platform", "aws", code=6).err


# ---- signatures


def test_signatures_without_keyring(release: Release) -> None:
    """Signatures are downloaded and not checked, which is said once; --require-signatures is 2."""
    release.server.serve(f"/{FILE['aws']}.sig", b"no signature")
    ran = release.mirror()
    assert ran.err.count("no --keyring was given") == 1
    complete(release)
    assert "needs --keyring" in release.mirror("--require-signatures", code=2).err


@pytest.mark.parametrize("how", ["missing", "404", "403"])
def test_absent_signature(release: Release, how: str) -> None:
    """No signature, or one that the server does not have: a notice, and none in the document; 6 with
    --require-signatures, before the file is downloaded."""
    if how == "missing":
        release.file("aws")["signature"] = ""
    else:
        release.server.serve(f"/{FILE['aws']}.sig", b"", hostile.status(int(how)))
    one = ("--platform", "aws", "--keyring", release.ring)
    said = release.mirror(*one, "--require-signatures", code=6).err
    assert f"{FILE['aws']}: not signed" in said
    assert release.asked("aws") == []
    assert f"{FILE['aws']}: not signed" in release.mirror(*one).err
    assert names_in(release.place) == [FILE["aws"], "stream.json"]
    files = release.written["architectures"]["x86_64"]["artifacts"]
    assert files["aws"]["formats"]["raw"]["disk"]["signature"] == ""


def test_signature_that_the_network_keeps_back(release: Release) -> None:
    """A server in trouble is no reason to take a signature for absent."""
    release.server.serve(f"/{FILE['aws']}.sig", b"", hostile.status(503))
    release.mirror("--keyring", release.ring, "--platform", "aws", "--retries", 0, code=12)
    assert names_in(release.place) == []


def test_wrong_signature(release: Release) -> None:
    """A signature over other bytes: 7, naming file and key; the file has no name; the others are there."""
    release.server.serve(f"/{FILE['aws']}.sig", release.server.paths[f"/{FILE['qemu']}.sig"][0])
    ran = release.mirror("--keyring", release.ring, code=7)
    assert f"rehydrator: {FILE['aws']}: signature by key " in ran.err
    assert FILE["aws"] not in names_in(release.place)
    assert f"{FILE['aws']}.sig" not in names_in(release.place)
    assert {FILE["metal"], FILE["qemu"]} < set(names_in(release.place))


def test_wrong_keyring(release: Release) -> None:
    """Keys of somebody else: 7, also for files that are there; with the right ones nothing is
    downloaded again."""
    release.mirror()
    other = release.ring.with_name("other.gpg")
    said = release.mirror("--keyring", other, code=7).err
    assert said.count("the keyring does not have this key") == 3
    assert not set(FILE.values()) & set(names_in(release.place))
    release.server.requests.clear()
    release.mirror("--keyring", release.ring)
    assert [release.asked(platform) for platform in DATA] == [[], [], []]
    complete(release)


def test_no_keyring(release: Release) -> None:
    """A file that holds no keys is 2, before anything is asked for."""
    (release.user.home / "text").write_text("text")
    assert "holds no public keys" in release.mirror("--keyring", "text", code=2).err
    assert release.server.requests == []


def test_too_large_signature(release: Release) -> None:
    """A signature of megabytes is none."""
    release.server.serve(f"/{FILE['aws']}.sig", bytes(1 << 20))
    release.mirror("--keyring", release.ring, "--platform", "aws", code=9)


# ---- the directory


def test_place_that_cannot_be_written(release: Release) -> None:
    """A directory or a pipe where a file should be, and a file where the directory should be, are
    told in words."""
    (release.place / FILE["aws"]).mkdir(parents=True)
    assert "no regular file" in release.mirror("--platform", "aws", code=1).err
    os.mkfifo(release.place / FILE["qemu"])
    assert "no regular file" in release.mirror("--platform", "qemu", code=1).err
    (release.user.home / "file").write_text("")
    release.user.run("stream", "mirror", release.server.url("/stream.json"), "file/x", code=1)


def test_link_instead_of_a_temporary_file(release: Release) -> None:
    """What lies where a temporary file belongs, a link or a pipe, is replaced, never written through."""
    release.place.mkdir()
    elsewhere = release.user.home / "elsewhere"
    elsewhere.write_text("of somebody else")
    (release.place / ".rehydrator-stream.json").symlink_to(elsewhere)
    os.mkfifo(release.place / f".rehydrator-{SIGNATURES[0]}")
    release.mirror()
    complete(release)
    assert not (release.place / "stream.json").is_symlink()
    assert elsewhere.read_text() == "of somebody else"


def test_full_disk(release: Release) -> None:
    """A disk that is full: 9, and the next run goes on."""
    limit = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh"]
    ran = release.mirror("--platform", "aws", code=9, wrapper=limit)
    assert "free some space" in ran.err
    assert len(release.asked("aws")) == 1
    release.mirror("--platform", "aws")
    assert release.asked("aws")[1]["range"].startswith("bytes=")
    assert (release.place / FILE["aws"]).read_bytes() == DATA["aws"]


def test_base_url_that_is_none(release: Release) -> None:
    """Locations cannot be under what is no URL: 2."""
    for url in ("mirror.example", "/x", "ftp://x", "https://x?y", "https://x/#y", "http://[x", "http://a b"):
        with pytest.raises(UsageError, match=re.escape(url)):
            mirror.checked_base_url(url)
    assert "a:b" in release.mirror("--base-url", "a:b", code=2).err
    assert release.server.requests == []


# ---- and on


def test_build_from_a_mirror(user: User, keys: Keys) -> None:
    """A signed release, mirrored over HTTP: what it holds is what a build takes, and a disk that is
    rehydrated from the bundle is the one that was published."""
    images = user.home / "images"
    images.mkdir()
    metal, openstack = (images / NAME.format(*each) for each in (("metal", "raw"), ("openstack", "qcow2")))
    metal.write_bytes(random.Random(9).randbytes(2 << 20) + bytes(2 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", metal, openstack], check=True)
    published = {"metal": metal.read_bytes(), "openstack": lzma.compress(openstack.read_bytes(), preset=0)}
    with hostile.running() as server:
        artifacts: dict[str, Any] = {}
        for platform, data in published.items():
            key = "raw" if platform == "metal" else "qcow2.xz"
            name = NAME.format(platform, key)
            disk = {
                "location": server.serve(f"/{name}", data, hostile.truncating(len(data) // 2)),
                "signature": server.serve(f"/{name}.sig", signed(keys, data)),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            artifacts[platform] = {"release": "1.0.0", "formats": {key: {"disk": disk}}}
        document = {"stream": "stable", "architectures": {"x86_64": {"artifacts": artifacts}}}
        url = server.serve("/stream.json", json.dumps(document).encode())
        ring = keys.file.with_name("release.gpg")
        user.run("stream", "mirror", url, "mirror", "--keyring", ring, "--require-signatures")
    place = user.home / "mirror"
    build = ("--stream-json", "mirror/stream.json", "--runtime", "none", "--level", 1)
    user.run("build", "mirror", "-o", "oci:out:x", *build)
    assert user.run("print-stream-json", "oci:out:x").out == (place / "stream.json").read_bytes()
    user.run("rehydrate", "back", "--disk", "openstack", "--bundle", "oci:out:x")
    assert names_in(user.home / "back") == [openstack.name]
    assert sha256(user.home / "back" / openstack.name) == sha256(openstack)
