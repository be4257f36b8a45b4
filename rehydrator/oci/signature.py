"""In-band signatures: ECDSA on P-256 over SHA-256, in DER, deterministic (RFC 6979).

`openssl dgst -sha256 -verify PUB -signature SIG FILE` accepts them. Keys are PEM: PKCS#8,
encrypted unless asked otherwise, and SubjectPublicKeyInfo. Keys never come from a bundle.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import (
    RehydratorError,
    SignatureMissing,
    SignatureWrong,
    ToolMissing,
    UsageError,
)

# cryptography takes 50 ms to import, and most commands sign nothing: it is imported late.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

    AskPassword = Callable[[], bytes]

_MAX_KEY: Final = 1 << 16
_ID_LENGTH: Final = 16


def keygen(prefix: str, password: bytes | None) -> str:
    """Make PREFIX.key (mode 0600, encrypted with `password` unless None) and PREFIX.pub, and
    return the key id.

    Raises:
        UsageError: one of them exists, or the password is empty.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if password == b"":
        raise UsageError("an empty password protects nothing; ask for an unencrypted key instead")
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_pair(Path(f"{prefix}.key"), private, Path(f"{prefix}.pub"), public)
    return key_id(key.public_key())


def load_private_key(path: Path, ask: AskPassword) -> EllipticCurvePrivateKey:
    """The private key in a file; `ask` gives the password where it is encrypted.

    Raises:
        UsageError: no such file, no P-256 key, or the wrong password.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_key(path)
    password = ask() if b"ENCRYPTED" in data else None
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError) as error:
        if password is not None:
            raise UsageError(f"{path}: wrong password, or a damaged key") from None
        raise UsageError(f"{path}: not a private key in PEM: {_first_line(error)}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise UsageError(f"{path}: not a P-256 private key")
    return key


def load_public_key(path: Path) -> EllipticCurvePublicKey:
    """The public key in a file.

    Raises:
        UsageError: no such file, or no P-256 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise UsageError(f"{path}: not a P-256 public key")
    return key


def key_id(key: EllipticCurvePublicKey) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the key's SubjectPublicKeyInfo (DER)."""
    from cryptography.hazmat.primitives import serialization

    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:_ID_LENGTH]


def sign(data: bytes, key: EllipticCurvePrivateKey) -> bytes:
    """The signature of `data`: the same bytes each time.

    Raises:
        ToolMissing: the OpenSSL under cryptography is older than 3.2.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:
        raise ToolMissing("signing needs a cryptography package with OpenSSL 3.2 or later") from None


def verify(data: bytes, signatures: Iterable[bytes], key: EllipticCurvePublicKey) -> None:
    """Return if one of `signatures` is `key`'s over exactly `data`.

    Raises:
        SignatureMissing: there are none at all.
        SignatureWrong: none fits.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    tried = 0
    for signature in signatures:
        tried += 1
        try:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return
    if not tried:
        raise SignatureMissing("this bundle is not signed; get the signed one, or leave out --key")
    raise SignatureWrong(f"none of the {tried} signatures is one by key {key_id(key)} over these bytes")


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_KEY:
        raise UsageError(f"{path}: above {_MAX_KEY} bytes, so no key")
    return data


def _write_pair(private: Path, private_data: bytes, public: Path, public_data: bytes) -> None:
    """Both or none, and nothing that exists is overwritten."""
    _write_new(private, private_data, 0o600)
    try:
        _write_new(public, public_data, 0o644)
    except BaseException:
        private.unlink()
        raise


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise UsageError(f"{path}: exists, and is not overwritten") from None
    except OSError as error:
        raise RehydratorError(f"{path}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
