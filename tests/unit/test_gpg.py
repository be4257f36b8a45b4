"""Detached OpenPGP signatures: which ones count, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rehydrator import host
from rehydrator.core.errors import RehydratorError, SignatureWrong, ToolMissing, UsageError
from rehydrator.host import gpg
from tests.conftest import names_in
from tests.gpg_keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"a disk image\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    """Keys `release`, `other`, `stranger`; `expired` (in 2020) and `revoked`, signed with before."""
    # A socket's name has 107 bytes at most, and gpg-agent's lies in its home.
    base = tmp_path_factory.mktemp("gpg")
    keys = Keys(base / "h", base / "file")
    keys.home.mkdir(mode=0o700)
    keys.file.write_bytes(CONTENT)
    for name in ("release", "other", "stranger", "revoked"):
        keys.make(name)
    keys.make("expired", "--faked-system-time", "20200101T000000", expires="2020-02-01")
    (base / "revoked.sig").write_bytes(keys.sign("revoked"))
    (base / "expired.sig").write_bytes(keys.sign("expired", more=("--faked-system-time", "20200110T000000")))
    keys.revoke("revoked")
    (base / "ring.gpg").write_bytes(keys.export("release", "other", "revoked", "expired"))
    yield keys
    keys.stop()


def verified(keys: Keys, signature: bytes, ring: Path | None = None) -> gpg.Signer:
    with gpg.keyring(ring or keys.file.with_name("ring.gpg")) as known:
        return gpg.verify(keys.file, signature, known, "disk.qcow2")


def refused(keys: Keys, signature: bytes, ring: Path | None = None) -> str:
    with pytest.raises(SignatureWrong) as failed:
        verified(keys, signature, ring)
    assert str(failed.value).startswith("disk.qcow2: ")
    return str(failed.value)


@pytest.mark.parametrize("armor", [(), ("--armor",)], ids=["binary", "armored"])
def test_good(keys: Keys, armor: tuple[str, ...]) -> None:
    """A good signature of a known key says who signed, and when."""
    signer = verified(keys, keys.sign("release", more=armor))
    fingerprint = keys.fingerprint("release")
    assert (fingerprint, fingerprint, "release@test") == (signer.fingerprint, signer.primary, signer.user_id)
    assert signer.created > 0


def test_subkey(keys: Keys, tmp_path: Path) -> None:
    """A signature by a subkey names both it and the key that it belongs to."""
    keys.make("master")
    keys.gpg("--passphrase", "", "--quick-add-key", keys.fingerprint("master"), "ed25519", "sign", "never")
    (tmp_path / "ring").write_bytes(keys.export("master"))
    signer = verified(keys, keys.sign("master"), tmp_path / "ring")
    assert keys.fingerprint("master") == signer.primary != signer.fingerprint


@pytest.mark.parametrize("kind", ["armored", "armored, CRLF and text around", "two armored blocks", "keybox"])
def test_keyrings(keys: Keys, tmp_path: Path, kind: str) -> None:
    """Keys are taken as gpg exports them, armored or not, one block or several, and from a keybox."""
    ring = tmp_path / "ring"
    armored = keys.export("other", "release", more=("--armor",))
    ring.write_bytes(
        {
            "armored": armored,
            "armored, CRLF and text around": b"Keys:\r\n" + armored.replace(b"\n", b"\r\n") + b"bye\r\n",
            "two armored blocks": keys.export("other", more=("--armor",))
            + keys.export("release", more=("--armor", "--comment", "Fedora")),
            "keybox": (keys.home / "pubring.kbx").read_bytes(),
        }[kind]
    )
    assert keys.fingerprint("release") == verified(keys, keys.sign("release"), ring).fingerprint


def test_several_signatures(keys: Keys) -> None:
    """One good signature of a known key suffices beside one of an unknown key, not beside a bad one."""
    fingerprint = keys.fingerprint("release")
    assert fingerprint == verified(keys, keys.sign("release", "stranger")).fingerprint
    assert fingerprint == verified(keys, keys.sign("stranger", "release")).fingerprint
    assert fingerprint == verified(keys, keys.sign("release", "other")).fingerprint
    revoked = keys.file.with_name("revoked.sig").read_bytes()
    assert "revoked" in refused(keys, keys.sign("release") + revoked)
    keys.file.with_name("else").write_bytes(b"something else")
    bad = keys.sign("other", file=keys.file.with_name("else"))
    for both in (keys.sign("release") + bad, bad + keys.sign("release")):
        assert "does not fit" in refused(keys, both)


def test_bad(keys: Keys) -> None:
    """A signature over other bytes names file, key and reason."""
    keys.file.with_name("else").write_bytes(b"something else")
    said = refused(keys, keys.sign("release", file=keys.file.with_name("else")))
    assert f"key {keys.fingerprint('release')[-16:]}: the signature does not fit the file" in said


@pytest.mark.parametrize("name", ["expired", "revoked"])
def test_key_that_is_no_longer_good(keys: Keys, name: str) -> None:
    """gpgv ends with 0 for expired and revoked keys; they are refused all the same."""
    assert name in refused(keys, keys.file.with_name(f"{name}.sig").read_bytes())


def test_unknown_key(keys: Keys) -> None:
    """A key that is not in the keyring: says so, and which keyring."""
    said = refused(keys, keys.sign("stranger"))
    assert "the keyring does not have this key" in said
    assert keys.fingerprint("stranger")[-16:] in said
    assert "ring.gpg" in said


def test_expired_signature(keys: Keys) -> None:
    """A signature has an end of its own, and is refused after it."""
    old = ("--faked-system-time", "20200110T000000", "--default-sig-expire", "5")
    assert "expired" in refused(keys, keys.sign("expired", more=old))


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--digest-algo", "SHA1"), "digest"), (("--textmode",), "text")],
    ids=["SHA-1", "text mode"],
)
def test_weak_signatures(keys: Keys, more: tuple[str, ...], said: str) -> None:
    """SHA-1 collides, and a signature over text allows other line ends: neither counts."""
    assert said in refused(keys, keys.sign("release", more=more))


def test_no_detached_signature(keys: Keys) -> None:
    """Nothing, noise, keys, a signed message that carries its own content, and what is too long."""
    inline = keys.gpg("-u", "release@test", "--output", "-", "--sign", keys.file)
    clear = keys.gpg("-u", "release@test", "--output", "-", "--clear-sign", keys.file)
    noise = [b"", b"<html>404</html>", bytes(1000), keys.export("release"), inline, clear]
    for signature in noise:
        assert "no detached signature" in refused(keys, signature)
    assert "no detached signature" in refused(keys, bytes(gpg.MAX_SIGNATURE + 1))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        b"\x88\x5e",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n@@@@\n-----END PGP PUBLIC KEY BLOCK-----\n",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ],
)
def test_no_keyring(tmp_path: Path, content: bytes) -> None:
    """A file without public keys, and no file at all: 2, naming it."""
    (tmp_path / "ring").write_bytes(content)
    for path in (tmp_path / "ring", tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=str(path)), gpg.keyring(path):
            pass


def test_no_gpgv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gpgv: 10, before anything else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_SYSTEM_PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="gpgv"), gpg.keyring(tmp_path / "none"):
        pass


def test_home_is_left_alone(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking reads and writes nothing in the user's home, and leaves nothing behind."""
    for place in ("home", "tmp"):
        (tmp_path / place).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GNUPGHOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    verified(keys, keys.sign("release"))
    refused(keys, keys.sign("stranger"))
    assert names_in(tmp_path / "home") == []
    assert names_in(tmp_path / "tmp") == []


# ---- signing


def test_sign(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gpg signs, gpgv verifies; an older signature is replaced."""
    monkeypatch.setenv("GNUPGHOME", str(keys.home))
    target = tmp_path / "-file.sig"
    for _ in range(2):
        gpg.detach_sign(keys.file, "other@test", target)
        assert keys.fingerprint("other") == verified(keys, target.read_bytes()).fingerprint
    assert names_in(tmp_path) == ["-file.sig"]


def test_sign_without_key(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that gpg does not have is 2 and named; a file that is not there 1; nothing is written."""
    monkeypatch.setenv("GNUPGHOME", str(keys.home))
    with pytest.raises(UsageError, match="nobody@test"):
        gpg.detach_sign(keys.file, "nobody@test", tmp_path / "sig")
    with pytest.raises(RehydratorError, match=r"none\.img") as failed:
        gpg.detach_sign(tmp_path / "none.img", "release@test", tmp_path / "sig")
    assert RehydratorError is type(failed.value)
    assert names_in(tmp_path) == []
