"""A user builds, signs, lists, checks and rehydrates a release: every option at least once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.reader import Bundle
from rehydrator.oci.reference import open_bundle, parse
from tests.conftest import NAME, NOBODY, Made, User, leftovers, names_in, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENSTACK = NAME.format("openstack", "qcow2")
QEMU = NAME.format("qemu", "qcow2")
METAL = NAME.format("metal", "raw")
METAL4K = NAME.format("metal4k", "raw")


def give_back(user: User, made: Made, *arguments: object, code: int = 0) -> dict[str, str]:
    """Names and digests of what a request puts into a new directory."""
    user.run("rehydrate", "out", "--bundle", made.reference, *arguments, code=code)
    return {path.name: sha256(path) for path in sorted((user.home / "out").iterdir())}


def expected(made: Made, *names: str) -> dict[str, str]:
    return {name: sha256(made.images[name]) for name in sorted(names)}


# ---- naming what to rehydrate


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--disk", "openstack"], [OPENSTACK]),
        (["--disk", "qemu"], [QEMU]),
        (["--disk", "aws", "--disk", "gcp"], [NAME.format("aws", "vmdk"), NAME.format("gcp", "tar")]),
        (["--disk", "metal"], [METAL]),
        (["--disk", "metal", "--format", "4k.raw"], [METAL4K]),
        (["--disk", "openstack", "--format", "qcow2.xz"], [OPENSTACK]),
        (["--disk", "openstack", "--format", "qcow2"], [OPENSTACK]),
        (["--disk", "box"], ["box.old.qcow2"]),
        (["--file", "SHA256SUMS", "--file", QEMU], ["SHA256SUMS", QEMU]),
        (["--iso"], [NAME.format("live", "iso")]),
        (["--pxe"], ["demo-1.0.0-live-initramfs.x86_64.img", "demo-1.0.0-live-kernel.x86_64"]),
        (["--disk", "azure", "--disk", "azure", "--arch", "x86_64"], [NAME.format("azure", "vhd")]),
        (["--disk", "vmware", "--jobs", "1"], [NAME.format("vmware", "ova")]),
    ],
)
def test_named_files_come_back(
    user: User, made: Made, arguments: Sequence[str], names: Sequence[str]
) -> None:
    """What is named, and nothing else, is written, bit for bit, whoever is canonical."""
    assert expected(made, *names) == give_back(user, made, *arguments)


def test_all(user: User, made: Made) -> None:
    """--all gives every file back, with its mode, time and holes."""
    assert expected(made, *made.images) == give_back(user, made, "--all")
    for name, image in made.images.items():
        was, now = image.stat(), (user.home / "out" / name).stat()
        published = next(path for path in made.release.iterdir() if path.name.startswith(name)).stat()
        assert (published.st_mode, int(published.st_mtime)) == (now.st_mode, int(now.st_mtime))
        # A file that had no holes gets none; short runs of zeros may be written out.
        whole = published.st_size == now.st_size and published.st_blocks * 512 >= published.st_size
        assert whole or now.st_blocks * 512 <= was.st_blocks * 512 + (256 << 10)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--disk", "nowhere"], 4, ["nowhere", "openstack", "qemu"]),
        (["--disk", "qemu", "--format", "vmdk"], 4, ["vmdk", "qcow2"]),
        (["--disk", "qemu", "--arch", "s390x"], 4, ["s390x", "x86_64"]),
        (["--file", "../etc/passwd"], 4, ["../etc/passwd", QEMU]),
        (["--file", ""], 4, [QEMU]),
        ([], 2, ["--disk", "--file", "--all"]),
        (["--disk"], 2, ["--disk"]),
        (["--all", "--jobs", "0"], 2, ["--jobs"]),
    ],
)
def test_unknown_names(
    user: User, made: Made, arguments: Sequence[str], code: int, said: Sequence[str]
) -> None:
    """What does not exist is 4 with the names that do; what makes no sense is 2; nothing is made."""
    ran = user.run("rehydrate", "out", "--bundle", made.reference, *arguments, code=code)
    assert [text for text in said if text not in ran.err] == []
    assert not (user.home / "out").exists()


# ---- where it goes


def test_dest_is_made_if_its_parent_exists(user: User, made: Made) -> None:
    """DEST is made below an existing directory; deeper is exit 2, as is a file or no name at all."""
    user.run("rehydrate", "new", "--bundle", made.reference, "--file", "SHA256SUMS")
    assert names_in(user.home / "new") == ["SHA256SUMS"]
    for dest in ("a/b", "new/SHA256SUMS", ""):
        ran = user.run("rehydrate", dest, "--bundle", made.reference, "--file", "SHA256SUMS", code=2)
        assert "director" in ran.err
    assert names_in(user.home) == ["new", "tmp"]


def test_existing_files(user: User, made: Made) -> None:
    """The right file counts as done and is not touched; another is kept (1) unless --overwrite."""
    ask = ["rehydrate", "out", "--bundle", made.reference, "--disk", "qemu", "--json"]
    assert [each["status"] for each in json.loads(user.run(*ask).out)] == ["written"]
    target = user.home / "out" / QEMU
    os.utime(target, (1, 1))
    assert [each["status"] for each in json.loads(user.run(*ask).out)] == ["present"]
    assert target.stat().st_mtime == 1
    target.write_bytes(b"mine")
    [report] = json.loads(user.run(*ask, code=1).out)
    assert (report["status"], report["exit_code"]) == ("failed", 1)
    assert QEMU in report["error"]
    assert "--overwrite" in report["error"]
    assert target.read_bytes() == b"mine"
    user.run(*ask, "--overwrite")
    assert sha256(made.images[QEMU]) == sha256(target)


def test_several_and_one_fails(user: User, made: Made) -> None:
    """The others are written when one is in the way; the exit code is 3."""
    (user.home / "out").mkdir()
    (user.home / "out" / QEMU).write_bytes(b"mine")
    found = give_back(user, made, "--disk", "qemu", "--disk", "aws", code=3)
    assert expected(made, NAME.format("aws", "vmdk")).items() <= found.items()


def test_links_in_the_way(user: User, made: Made) -> None:
    """A symbolic link or a directory in the way is kept; --overwrite replaces the link, never what
    it points at, and no directory."""
    (user.home / "out").mkdir()
    precious = user.home / "precious"
    precious.write_bytes(b"mine")
    (user.home / "out" / QEMU).symlink_to(precious)
    (user.home / "out" / METAL4K).symlink_to(user.home / "dangling")
    (user.home / "out" / "SHA256SUMS").mkdir()
    ask = ["--disk", "qemu", "--disk", "metal", "--format", "4k.raw", "--format", "qcow2"]
    ask += ["--file", "SHA256SUMS"]
    user.run("rehydrate", "out", "--bundle", made.reference, *ask, code=3)
    assert (user.home / "out" / QEMU).read_bytes() == b"mine"
    user.run("rehydrate", "out", "--bundle", made.reference, *ask, "--overwrite", code=3)
    assert sha256(made.images[QEMU]) == sha256(user.home / "out" / QEMU)
    assert sha256(made.images[METAL4K]) == sha256(user.home / "out" / METAL4K)
    assert precious.read_bytes() == b"mine"
    assert not (user.home / "dangling").exists()
    assert (user.home / "out" / "SHA256SUMS").is_dir()


def test_sparse(user: User, made: Made) -> None:
    """--sparse leaves holes and --no-sparse none; the bytes are the same."""
    blocks = {}
    for option in ("--sparse", "--no-sparse"):
        give_back(user, made, "--disk", "azure", option, "--overwrite")
        target = user.home / "out" / NAME.format("azure", "vhd")
        assert sha256(made.images[target.name]) == sha256(target)
        blocks[option] = target.stat().st_blocks * 512
        target.unlink()
    assert blocks["--sparse"] < 16 << 20
    assert blocks["--no-sparse"] >= 48 << 20


def test_another_filesystem(user: User, made: Made) -> None:
    """DEST on a file system of its own works."""
    (user.home / "mnt").mkdir()
    script = 'mount -t tmpfs none mnt && "$@" && sha256sum mnt/*'
    ran = user.run(
        *("rehydrate", "mnt", "--bundle", made.reference, "--disk", "qemu"),
        wrapper=["unshare", "-m", "sh", "-c", script, "sh"],
    )
    assert f"{sha256(made.images[QEMU])}  mnt/{QEMU}\n" == ran.out.decode()


# ---- standard output


def test_one_on_standard_output(user: User, made: Made) -> None:
    """One file is its bytes, whether stdout is a pipe or a file; progress and talk stay away."""
    ask = ["rehydrate", "-", "--bundle", made.reference, "--disk", "openstack"]
    assert made.images[OPENSTACK].read_bytes() == user.run(*ask).out
    with (user.home / "file").open("wb") as out:
        subprocess.run(user.command(*ask), env=user.environment(), stdout=out, check=True)
    assert sha256(made.images[OPENSTACK]) == sha256(user.home / "file")


def test_several_on_standard_output(user: User, made: Made) -> None:
    """Several files are a pax tar that Python and GNU tar read, with modes and times."""
    ran = user.run("rehydrate", "-", "--bundle", made.reference, "--all")
    with tarfile.open(fileobj=io.BytesIO(ran.out)) as archive:
        members = {member.name: member for member in archive}
    assert sorted(made.images) == sorted(members)
    subprocess.run(["tar", "-x", "-C", user.tmp], input=ran.out, check=True)
    for name, image in made.images.items():
        there = user.tmp / name
        assert sha256(image) == sha256(there)
        assert (image.stat().st_mode & 0o777, int(image.stat().st_mtime)) == (
            there.stat().st_mode & 0o777,
            int(there.stat().st_mtime),
        )
        assert image.stat().st_mode & 0o777 == members[name].mode


def test_a_terminal_is_refused(user: User, made: Made) -> None:
    """Images do not go to a terminal: exit 2, and how to do it."""
    master, slave = pty.openpty()
    done = subprocess.run(
        user.command("rehydrate", "-", "--bundle", made.reference, "--disk", "qemu"),
        env=user.environment(),
        stdout=slave,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert b"terminal" in done.stderr


def test_stdout_closed_full_or_left(user: User, made: Made) -> None:
    """A closed stdout is exit 2, a full device 9, a reader that leaves 1; none ends in silence."""
    ask = user.command("rehydrate", "-", "--bundle", made.reference, "--disk", "azure")
    for redirection, code in ((">&-", 2), (">/dev/full", 9), ("| head -c 1000 >/dev/null", 1)):
        script = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *ask],
            env=user.environment(),
            stderr=subprocess.PIPE,
            check=False,
        )
        assert code == done.returncode, done.stderr
        assert b"Traceback" not in done.stderr
        assert done.stderr.startswith(b"rehydrator: ")
        if code == 9:
            assert done.stderr.startswith(b"rehydrator: standard output: No space left on device; free some")
            assert b"--tmpdir" not in done.stderr
    assert leftovers(user.home) == []


@pytest.mark.parametrize("verb", ["list", "info", "print-stream-json", "verify"])
def test_closed_streams(user: User, made: Made, verb: str) -> None:
    """Closed standard streams are no reason for a traceback."""
    user.run(verb, "--bundle", made.reference, wrapper=["sh", "-c", '"$@" >&- <&-', "sh"])


@pytest.mark.parametrize("verb", ["list", "info", "print-stream-json", "verify"])
def test_reports_to_a_full_device(user: User, made: Made, verb: str) -> None:
    """A report that could not be written is exit 9, not success."""
    script = '"$@" >/dev/full'
    user.run(verb, "--bundle", made.reference, code=9, wrapper=["sh", "-c", script, "sh"])


def test_progress_on_a_terminal(user: User, made: Made) -> None:
    """With stderr on a terminal, progress is shown there and the output is the same."""
    master, slave = pty.openpty()
    subprocess.run(
        user.command("rehydrate", "out", "--bundle", made.reference, "--disk", "qemu", "--disk", "azure"),
        cwd=user.home,
        env=user.environment({"TERM": "xterm"}),
        stdout=subprocess.DEVNULL,
        stderr=slave,
        check=True,
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 1 << 16):
            shown += chunk
    except OSError:
        pass  # EIO: the other side is closed
    os.close(master)
    assert b"\x1b[K" in shown
    assert re.search(rb" \d+%  [\d.]+ \w+/s .* s left", shown)
    assert f"{QEMU}: written" in shown.decode()


# ---- looking at a bundle


def test_json_everywhere(user: User, made: Made) -> None:
    """list, info, print-stream-json, verify and rehydrate print one JSON document each."""
    for verb in (["list"], ["info"], ["info", "--disk", "qemu"], ["verify"], ["verify", "--all"]):
        json.loads(user.run(*verb, "--json", made.reference).out)
    listed = json.loads(user.run("list", "--json", "--bundle", made.reference).out)
    assert sorted(made.images) == sorted(item["file"] for item in listed)
    document = json.loads(user.run("print-stream-json", made.reference).out)
    artifacts = document["architectures"]["x86_64"]["artifacts"]
    [disk] = artifacts["openstack"]["formats"].values()
    assert f"{OPENSTACK}.xz" == disk["disk"]["location"]
    assert sha256(made.release / f"{OPENSTACK}.xz") == disk["disk"]["sha256"]
    assert sha256(made.images[OPENSTACK]) == disk["disk"]["uncompressed-sha256"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list", "oci:nowhere"], 4),
        (["list", "nonsense"], 2),
        (["list"], 2),
        (["list", "--no-such-option"], 2),
        (["build", "no-such-directory"], 2),
        (["verify", "--jobs", "many"], 2),
        (["rehydrate"], 2),
        (["frobnicate"], 2),
    ],
)
def test_errors_as_json(user: User, arguments: Sequence[str], code: int) -> None:
    """With --json an error is one JSON document on stderr, usage errors included."""
    ran = user.run(*arguments, "--json", code=code)
    assert ran.out == b""
    report = json.loads(ran.err)
    assert ("exit_error", code) == (report["message_type"], report["code"])
    assert report["message"]


def test_one_reference_only(user: User, made: Made) -> None:
    """REF and --bundle at once are exit 2; the environment's bundle gives way to either."""
    for verb in ("list", "info", "print-stream-json", "verify"):
        ran = user.run(verb, made.reference, "--bundle", made.reference, code=2)
        assert "--bundle" in ran.err
    env = {"REHYDRATOR_BUNDLE": "oci:nowhere"}
    assert user.run("list", made.reference, env=env).out == user.run("list", made.reference).out
    user.run("list", env=env, code=4)


def test_info_adds_up(user: User, made: Made) -> None:
    """What the files add and what they share is what the bundle stores."""
    info = json.loads(user.run("info", "--json", made.reference).out)
    added = sum(item["how"]["cost"] for item in info["artifacts"])
    assert info["bundle"]["bytes stored"] == info["bundle"]["of these shared"] + added
    assert info["bundle"]["of these shared"] > added


def test_info_names_the_rung(user: User, made: Made) -> None:
    """info tells how each file is stored, and whose disk is canonical."""
    report = json.loads(user.run("info", "--json", made.reference).out)
    how = {item["file"]: item["how"]["rung"] for item in report["artifacts"]}
    assert {"explained"} == {
        how[name] for name in how if name.endswith(("qcow2", "vmdk", "vhd", "ova", "raw"))
    }
    assert {"whole"} == {how[NAME.format("live", "iso")], how["SHA256SUMS"]}
    assert any(item["canonical"] for item in report["artifacts"])
    text = user.run("info", "--file", QEMU, made.reference).out.decode()
    assert "explained (qcow2)" in text


def test_help(user: User) -> None:
    """Every verb explains itself and its exit codes; the version is one line."""
    verbs = ["build", "info", "keygen", "list", "print-stream-json", "rehydrate", "stream", "variants"]
    verbs += ["verify"]
    top = user.run("--help").out.decode()
    assert [verb for verb in verbs if verb not in top] == []
    for verb in verbs:
        assert b"130 interrupted" in user.run(verb, "--help").out
    assert len(user.run("--version").out.splitlines()) == 1


# ---- keys and signatures


def test_verify_says_what_it_checked(user: User, made: Made) -> None:
    """Without a key no signature was checked, and verify says so; with it, it was."""
    assert b"signature: not checked" in user.run("verify", made.reference).out
    assert b"signature: verified" in user.run("verify", made.reference, "--key", made.public).out
    assert b"every image" in user.run("verify", made.reference, "--all", "--jobs", 1).out


def test_wrong_and_missing_signature(user: User, made: Made) -> None:
    """--key with an unsigned bundle is 6, with none that fits 7, for every verb; nothing is made."""
    (user.home / "small").mkdir()
    (user.home / "small" / "a.raw").write_bytes(b"small")
    user.run("keygen", "other", "--no-password")
    ran = user.run("build", "small", *OPTIONS, "-o", "oci:unsigned:x")
    assert "UNSIGNED" in ran.err
    for verb in (["list"], ["info"], ["print-stream-json"], ["verify"], ["rehydrate", "out", "--all"]):
        user.run(*verb, "--bundle", "oci:unsigned:x", "--key", made.public, code=6)
        user.run(*verb, "--bundle", made.reference, "--key", "other.pub", code=7)
    user.run("verify", made.reference, "--key", "other.key", code=2)
    assert not (user.home / "out").exists()


def test_openssl_accepts_the_export(user: User, made: Made) -> None:
    """openssl verifies what `verify --export` writes."""
    user.run("verify", made.reference, "--export", "export")
    [signature] = (user.home / "export").glob("*.sig")
    argv = ["openssl", "dgst", "-sha256", "-verify", str(made.public), "-signature", str(signature)]
    done = subprocess.run([*argv, "export/bundle.json"], cwd=user.home, capture_output=True, check=True)
    assert done.stdout == b"Verified OK\n"


def test_keygen(user: User) -> None:
    """Encrypted by file, environment or prompt; private to the user; never written over."""
    (user.home / "password").write_text("secret\n")
    user.run("keygen", "file", "--password-file", "password")
    user.run("keygen", "environment", env={"REHYDRATOR_PASSWORD": "secret"})
    user.run("keygen", "bytes", env={"REHYDRATOR_PASSWORD": os.fsdecode(b"\xff")})
    said = json.loads(user.run("keygen", "plain", "--no-password", "--json").out)
    assert (said["key"], said["public"], len(said["key_id"])) == ("plain.key", "plain.pub", 16)
    for name in ("file", "environment", "bytes"):
        assert "ENCRYPTED" in (user.home / f"{name}.key").read_text()
    assert "ENCRYPTED" not in (user.home / "plain.key").read_text()
    assert (user.home / "file.key").stat().st_mode & 0o777 == 0o600
    before = (user.home / "plain.key").read_bytes()
    assert "plain.key" in user.run("keygen", "plain", "--no-password", code=2).err
    assert before == (user.home / "plain.key").read_bytes()
    user.run("keygen", "both", "--no-password", "--password-file", "password", code=2)
    user.run("keygen", "empty", env={"REHYDRATOR_PASSWORD": ""}, code=2)
    ran = user.run("keygen", "nobody", code=2, wrapper=["setsid", "-w"])
    assert "--no-password" in ran.err
    user.run("keygen", "no/directory", "--no-password", code=1)
    names = [
        f"{name}.{kind}" for name in ("bytes", "environment", "file", "plain") for kind in ("key", "pub")
    ]
    assert sorted([*names, "password", "tmp"]) == names_in(user.home)


def test_keygen_asks(user: User) -> None:
    """On a terminal the password is asked for, twice, and not shown."""
    child, master = pty.fork()
    if not child:  # pragma: no cover
        os.chdir(user.home)
        command = user.command("keygen", "asked")
        os.execve(command[0], command, user.environment())
    for prompt in (b"Password: ", b"confirmation: "):
        shown = b""
        while not shown.endswith(prompt):
            shown += os.read(master, 1000)
        assert b"secret" not in shown
        os.write(master, b"secret\n")
    _, status = os.waitpid(child, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "ENCRYPTED" in (user.home / "asked.key").read_text()


def test_wrong_password(user: User, made: Made) -> None:
    """A build that cannot open its key ends before anything is read: exit 2, names the key."""
    user.run("keygen", "key", env={"REHYDRATOR_PASSWORD": "right"})
    ask = ["build", made.release, "-o", "oci:out:x", "--runtime", "none", "--key", "key.key"]
    assert "key.key" in user.run(*ask, env={"REHYDRATOR_PASSWORD": "wrong"}, code=2).err
    assert not (user.home / "out").exists()


# ---- the bundle


OPTIONS = ["--runtime", "none", "--level", "1"]


def build(user: User, made: Made, target: str, *more: object) -> str:
    """The manifest digest of a build."""
    ran = user.run("build", made.release, "-o", target, *OPTIONS, *more, "--json")
    digest: str = json.loads(ran.out)["digest"]
    return digest


def test_same_inputs_same_bundle(user: User, made: Made) -> None:
    """The digest depends on neither threads nor place nor time, signed or not; archives are
    the same bytes."""
    signed = ["--key", made.private]
    first = build(user, made, "oci:one:x", "--jobs", 1, *signed)
    (user.home / "elsewhere").mkdir()
    assert first == build(user, made, "oci:elsewhere/two:y", "--jobs", 4, *signed, "--tmpdir", "elsewhere")
    assert build(user, made, "oci:one:z", "--jobs", 3) == build(user, made, "oci-archive:a.tar:z")
    build(user, made, "oci-archive:b.tar:z", "--jobs", 1)
    assert sha256(user.home / "a.tar") == sha256(user.home / "b.tar")
    index = json.loads((user.home / "one" / "index.json").read_bytes())
    tags = [item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]]
    assert sorted(tags) == ["x", "z"]


def test_environment_does_not_reach_the_bundle(user: User, made: Made) -> None:
    """Neither the hash seed, the time zone, the locale nor the umask changes the digest."""
    ask = ["build", made.release, *OPTIONS, "--json"]
    plain = user.run(*ask, "-o", "oci:one:x", env={"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"})
    other = {"PYTHONHASHSEED": "2", "TZ": "Asia/Kolkata", "LC_ALL": "tr_TR.UTF-8"}
    strict = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    changed = user.run(*ask, "-o", "oci:two:x", env=other, wrapper=strict)
    assert json.loads(plain.out)["digest"] == json.loads(changed.out)["digest"]


def test_two_of_one_name_and_format(user: User, made: Made) -> None:
    """Two disks that only --file tells apart: --disk says so (2), and names them."""
    names = ["a-1.0-qemu.x86_64.raw", "b-1.0-qemu.x86_64.raw"]
    (user.home / "two").mkdir()
    for name in names:
        (user.home / "two" / name).write_bytes(name.encode() * 1000)
    ran = user.run("build", "two", "-o", "oci:both:x", *OPTIONS)
    assert f"{', '.join(names)}: both are qemu raw" in ran.err
    for more in ([], ["--format", "raw"]):
        ran = user.run("rehydrate", "-", "--bundle", "oci:both:x", "--disk", "qemu", *more, code=2)
        assert f"--file: {', '.join(names)}" in ran.err
    ran = user.run("rehydrate", "-", "--bundle", "oci:both:x", "--file", names[1])
    assert ran.out == names[1].encode() * 1000


def test_few_open_files(user: User, tmp_path: Path) -> None:
    """A bundle of more files than a process may have open at once is checked all the same."""
    (user.home / "many").mkdir()
    for number in range(60):
        (user.home / "many" / f"{number}.raw").write_bytes(random.Random(number).randbytes(3000))
    user.run("build", "many", "-o", "oci:many.oci:x", *OPTIONS)
    for blob in (user.home / "many.oci" / "blobs" / "sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            subprocess.run(["tar", "-xzf", blob, "-C", tmp_path], check=True)
    few = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    user.run("verify", "--bundle", f"dir:{tmp_path}/bundle", wrapper=few)


def test_source_date_epoch(user: User) -> None:
    """The image bears that time and no other; what is no time is exit 2, before the work."""
    (user.home / "small").mkdir()
    (user.home / "small" / "a.raw").write_bytes(b"small")
    for given, expected in (("1700000000", "2023-11-14T22:13:20Z"), ("", "1970-01-01T00:00:00Z")):
        target = f"oci:at{given}:x"
        user.run("build", "small", "-o", target, *OPTIONS, env={"SOURCE_DATE_EPOCH": given})
        told = subprocess.run(
            ["skopeo", "inspect", "--config", target], cwd=user.home, capture_output=True, check=True
        )
        assert json.loads(told.stdout)["created"] == expected
    for wrong in ("now", "-5", "9" * 17):
        ask = ["build", "small", "-o", "oci:never:x", *OPTIONS]
        ran = user.run(*ask, code=2, env={"SOURCE_DATE_EPOCH": wrong})
        assert "SOURCE_DATE_EPOCH" in ran.err


def test_tags_are_replaced_and_kept(user: User, made: Made) -> None:
    """Building to an existing tag replaces it; other tags keep their image."""
    (user.home / "small").mkdir()
    (user.home / "small" / "a.raw").write_bytes(b"first")
    small = ["build", "small", *OPTIONS, "-o"]
    user.run(*small, "oci:out:keep")
    user.run(*small, "oci:out:change")
    (user.home / "small" / "a.raw").write_bytes(b"second")
    user.run(*small, "oci:out:change")
    user.run(*small, "oci-archive:out.tar")
    assert user.run("rehydrate", "-", "--all", "--bundle", "oci:out:keep").out == b"first"
    for reference in ("oci:out:change", "oci-archive:out.tar"):
        assert user.run("rehydrate", "-", "--all", "--bundle", reference).out == b"second"
    assert "change, keep" in user.run("list", "oci:out", code=2).err
    assert "change, keep" in user.run("list", "oci:out:gone", code=4).err


def test_names_and_stream(user: User, made: Made) -> None:
    """--name, --stream, --release and --arch are what files without a convention get."""
    (user.home / "small").mkdir()
    (user.home / "small" / "box.img").write_bytes(b"content")
    more = ["--name", "n", "--stream", "s", "--release", "r", "--arch", "s390x", "-o", "oci:out"]
    user.run("build", "small", *OPTIONS, *more)
    assert "n r (s)" in user.run("info", "oci:out").out.decode()
    [item] = json.loads(user.run("list", "oci:out", "--json").out)
    assert (item["platform"], item["arch"], item["format"]) == ("box", "s390x", "img")
    assert user.run("rehydrate", "-", "--disk", "box", "--bundle", "oci:out").out == b"content"
    document = json.loads(user.run("print-stream-json", "oci:out", "--release", "r").out)
    assert document["stream"] == "s"
    assert "r" in user.run("print-stream-json", "oci:out", "--release", "q", code=4).err


def test_build_of_the_current_directory(user: User) -> None:
    """`build .` takes the release's name from the directory, as any other spelling does."""
    (user.home / "small").mkdir()
    (user.home / "small" / "box.img").write_bytes(b"content")
    script = 'cd small && "$@"'
    wrapper = ["sh", "-c", script, "sh"]
    user.run("build", ".", *OPTIONS, "-o", "oci:../out", wrapper=wrapper)
    assert "small unknown" in user.run("info", "oci:out").out.decode()


def test_canonical(user: User, made: Made) -> None:
    """--canonical chooses whose disk is stored, by either name, once however often it is said."""
    again = ["--canonical", OPENSTACK, "--canonical", f"{OPENSTACK}.xz"]
    stored = {}
    for tag, more in (("once", again[:2]), ("twice", again)):
        stored[tag] = build(user, made, f"oci:out:{tag}", *more)
    assert stored["once"] == stored["twice"]
    listed = json.loads(user.run("list", "--json", "oci:out:once").out)
    assert OPENSTACK in [item["file"] for item in listed if item["canonical"]]
    ran = user.run("build", made.release, *OPTIONS, "--canonical", "nothing", "-o", "oci:no", code=2)
    assert "--canonical nothing" in ran.err
    assert not (user.home / "no").exists()


def test_dry_run(user: User, made: Made) -> None:
    """--dry-run shows every file's rung, for people and as JSON, and writes nothing."""
    text = user.run("build", made.release, "--dry-run").out.decode()
    planned = json.loads(user.run("build", made.release, "--dry-run", "--json", "-o", "oci:out").out)
    assert sorted(made.images) == sorted(item["file"] for item in planned)
    assert [name for name in made.images if name not in text] == []
    assert names_in(user.home) == ["tmp"]


def test_siblings_that_share_nothing(user: User, made: Made) -> None:
    """The 4k disk and the 512-byte disks have a canonical disk each."""
    listed = json.loads(user.run("list", "--json", made.reference).out)
    canonical = [item["file"] for item in listed if item["canonical"]]
    assert len(canonical) == 2
    assert METAL4K in canonical


def test_several_architectures(user: User, made: Made) -> None:
    """Architectures share a bundle; --arch chooses, the host's is the default, and where it is
    not among them the list is shown (2)."""
    release = user.home / "release"
    release.mkdir()
    for arch in ("x86_64", "aarch64", "s390x"):
        for platform, arches in (("qemu", 3), ("azure", 2)):
            if arches == 3 or arch != "x86_64":
                (release / f"demo-1-{platform}.{arch}.raw").write_text(f"{platform} {arch}")
    user.run("build", "release", *OPTIONS, "-o", "oci:out")
    ask = ["rehydrate", "-", "--bundle", "oci:out", "--disk"]
    host = os.uname().machine
    assert f"qemu {host}" == user.run(*ask, "qemu").out.decode()
    assert user.run(*ask, "qemu", "--arch", "s390x").out == b"qemu s390x"
    if host == "x86_64":
        assert "aarch64, s390x" in user.run(*ask, "azure", code=2).err
    assert "aarch64, s390x" in user.run(*ask, "azure", "--arch", "x86_64", code=4).err
    user.run("rehydrate", "arm", "--bundle", "oci:out", "--all", "--arch", "aarch64")
    assert names_in(user.home / "arm") == ["demo-1-azure.aarch64.raw", "demo-1-qemu.aarch64.raw"]


def test_live_media_of_another_architecture(user: User) -> None:
    """--iso --arch where only others have one is 4, not success with nothing written."""
    release = user.home / "release"
    release.mkdir()
    (release / "demo-1-live.x86_64.iso").write_text("iso")
    (release / "demo-1-qemu.aarch64.raw").write_text("disk")
    user.run("build", "release", *OPTIONS, "-o", "oci:out")
    for option in ("--iso", "--pxe"):
        ran = user.run("rehydrate", "-", "--bundle", "oci:out", option, "--arch", "aarch64", code=4)
        assert ran.out == b""


# ---- reading anywhere


def test_random_reads(user: User, made: Made) -> None:
    """Random spans of every artifact, the canonical ones too, are the file's bytes."""
    dice = random.Random(1)
    with open_bundle(parse(made.reference), user.home) as files:
        bundle = Bundle(files)
        for artifact in bundle.manifest.artifacts():
            reader = bundle.reader(artifact)
            with made.images[artifact.image.name].open("rb") as file:
                for _ in range(40 if reader.size else 0):
                    offset = dice.randrange(reader.size)
                    length = min(dice.choice([1, 512, 4097, 70_000, 1_000_000]), reader.size - offset)
                    assert os.pread(file.fileno(), length, offset) == reader.pread(offset, length)


def test_reading_needs_no_root_and_no_writable_place(user: User, made: Made) -> None:
    """Nobody reads a bundle that belongs to root, with a read-only root file system."""
    bundle = user.home / "bare"
    bundle.mkdir()
    for blob in (made.layout / "blobs" / "sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            subprocess.run(["tar", "-xzf", blob, "-C", bundle], check=True)
    for folder in (bundle, *bundle.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    script = f'mount -o remount,bind,ro / && ! touch x 2>/dev/null && exec {drop} "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    ask = ["--bundle", f"dir:{bundle / 'bundle'}"]
    ran = user.run("rehydrate", "-", *ask, "--disk", "qemu", wrapper=wrapper)
    assert sha256(made.images[QEMU]) == hashlib.sha256(ran.out).hexdigest()
    shutil.copy(made.public, bundle)
    user.run("verify", *ask, "--key", bundle / "demo.pub", "--all", wrapper=wrapper)


def test_every_reference_form(user: User, made: Made) -> None:
    """A layout with or without tag, an archive, a bare directory and an untagged one read alike."""
    expected_list = user.run("list", made.reference).out
    build(user, made, "oci-archive:a.tar:t")
    for reference in (f"oci:{made.layout}", "oci-archive:a.tar", "oci-archive:a.tar:t"):
        assert expected_list == user.run("list", reference).out
    subprocess.run(
        ["skopeo", "copy", "-q", made.reference, f"dir:{user.home}/copied"], check=True, capture_output=True
    )
    assert expected_list == user.run("list", f"dir:{user.home}/copied").out
    shutil.rmtree(user.home / "copied")
