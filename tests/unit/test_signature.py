"""In-band signatures and the keys that make them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rehydrator.core.errors import SignatureMissing, SignatureWrong, UsageError
from rehydrator.oci import signature


def no_password() -> bytes:
    raise AssertionError("nobody was to be asked for a password")


@pytest.fixture(name="prefix")
def fixture_prefix(tmp_path: Path) -> str:
    return str(tmp_path / "me")


def keys(prefix: str) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    signature.keygen(prefix, None)
    private = signature.load_private_key(Path(f"{prefix}.key"), no_password)
    return private, signature.load_public_key(Path(f"{prefix}.pub"))


def test_what_is_signed_verifies(prefix: str) -> None:
    """A signature verifies over exactly the signed bytes, and over no others."""
    private, public = keys(prefix)
    made = signature.sign(b"text", private)
    signature.verify(b"text", [b"rubbish", made], public)
    with pytest.raises(SignatureWrong, match=signature.key_id(public)):
        signature.verify(b"texT", [made], public)


def test_signing_is_deterministic(prefix: str) -> None:
    """The same bytes and key give the same signature (RFC 6979)."""
    private, _ = keys(prefix)
    assert signature.sign(b"text", private) == signature.sign(b"text", private)


def test_rfc_6979_vector() -> None:
    """RFC 6979, appendix A.2.5: P-256, SHA-256, message "sample"."""
    secret = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    made = signature.sign(b"sample", ec.derive_private_key(secret, ec.SECP256R1()))
    r = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
    s = "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    assert made.hex().upper() == f"3046022100{r}022100{s}"


def test_no_signature_is_missing(prefix: str) -> None:
    """No signature at all is another error than a wrong one."""
    _, public = keys(prefix)
    with pytest.raises(SignatureMissing):
        signature.verify(b"text", [], public)


def test_another_key_does_not_fit(tmp_path: Path) -> None:
    """A signature by another key is wrong."""
    private, _ = keys(str(tmp_path / "one"))
    _, public = keys(str(tmp_path / "two"))
    with pytest.raises(SignatureWrong, match="none of the 1"):
        signature.verify(b"text", [signature.sign(b"text", private)], public)


def test_the_private_key_is_private(prefix: str) -> None:
    """PREFIX.key has mode 0600."""
    signature.keygen(prefix, b"secret")
    assert Path(f"{prefix}.key").stat().st_mode & 0o777 == 0o600


def test_passwords(prefix: str) -> None:
    """An encrypted key opens with its password, and a wrong one is said so."""
    made = signature.keygen(prefix, b"secret")
    path = Path(f"{prefix}.key")
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert signature.key_id(signature.load_private_key(path, lambda: b"secret").public_key()) == made
    with pytest.raises(UsageError, match="wrong password"):
        signature.load_private_key(path, lambda: b"Secret")
    with pytest.raises(UsageError, match="wrong password"):
        signature.load_private_key(path, lambda: b"")


def test_an_empty_password_is_refused(prefix: str) -> None:
    """It would look encrypted and not be."""
    with pytest.raises(UsageError, match="empty password"):
        signature.keygen(prefix, b"")


@pytest.mark.parametrize("ending", ["key", "pub"])
def test_keygen_overwrites_nothing(prefix: str, ending: str) -> None:
    """If either file exists, it is kept and the other is not made."""
    Path(f"{prefix}.{ending}").write_text("mine")
    with pytest.raises(UsageError, match=f"me.{ending}: exists"):
        signature.keygen(prefix, None)
    assert [path.read_text() for path in Path(prefix).parent.iterdir()] == ["mine"]


def test_key_id(prefix: str) -> None:
    """The id is the first 16 digits of the SHA-256 of the public key's DER."""
    made = signature.keygen(prefix, None)
    public = signature.load_public_key(Path(f"{prefix}.pub"))
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert made == hashlib.sha256(der).hexdigest()[:16]


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, bytes]:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


@pytest.mark.parametrize(
    "pair",
    [
        (b"", b""),
        (b"x" * 70000, b"x" * 70000),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",) * 2,
        pem_of(ec.derive_private_key(7, ec.SECP384R1())),
        pem_of(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
    ],
)
def test_other_keys_are_refused(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    """Rubbish and keys of other kinds are refused with the file's name."""
    (tmp_path / "k.key").write_bytes(pair[0])
    (tmp_path / "k.pub").write_bytes(pair[1])
    with pytest.raises(UsageError, match=r"k\.key: "):
        signature.load_private_key(tmp_path / "k.key", no_password)
    with pytest.raises(UsageError, match=r"k\.pub: "):
        signature.load_public_key(tmp_path / "k.pub")


def test_a_missing_key_file(tmp_path: Path) -> None:
    """The message names the file and the reason."""
    with pytest.raises(UsageError, match=r"no\.pub: cannot be read: No such file"):
        signature.load_public_key(tmp_path / "no.pub")
