"""Detached OpenPGP signatures: checked with gpgv, made with gpg.

Checking touches no home directory of the user: keys come from one file, and gpgv runs in a
private directory. gpgv's exit status is not what counts (it is 0 for a good signature of a
revoked or an expired key, measured with 2.2.40); its status lines are (GnuPG, doc/DETAILS,
"Format of the --status-fd output").
"""

from __future__ import annotations

import binascii
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rehydrator import host
from rehydrator.core.errors import HostileInput, RehydratorError, SignatureWrong, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes. A signature takes some hundred; Fedora's keyring some ten thousand.
MAX_SIGNATURE: Final = 64 << 10
MAX_KEYRING: Final = 16 << 20

# Seconds; a file of 256 GiB at 60 MB/s takes 4,600.
_TIMEOUT: Final = 6 * 3600.0
_SIGNING_TIMEOUT: Final = 6 * 3600.0

_ARMOR: Final = re.compile(
    rb"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)^-----END PGP PUBLIC KEY BLOCK-----",
    re.MULTILINE | re.DOTALL,
)

# Status keyword -> what it means for a person (doc/DETAILS). All of them are refusals.
_REFUSALS: Final = {
    "BADSIG": "the signature does not fit the file",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key was revoked",
    "NO_PUBKEY": "the keyring does not have this key",
}
# ERRSIG's sixth argument (doc/DETAILS, ERRSIG; libgpg-error's codes).
_ERRSIG: Final = {
    "4": "its algorithm is not supported",
    "5": "its digest algorithm is refused (SHA-1 and MD5 are)",
    "9": "the keyring does not have this key",
    "39": "it is older than its key",
}
# A signature over the file's exact bytes (RFC 9580, 5.2.1.1); 01 would allow other line ends.
_BINARY: Final = "00"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed: fingerprints in hexadecimal, time in seconds since 1970. `fingerprint` is of
    the key that signed, `primary` of the key that it belongs to.
    """

    fingerprint: str
    primary: str
    user_id: str
    created: int


@dataclass(frozen=True, slots=True)
class Keyring:
    """Public keys, ready for gpgv, in a private directory; `path` is what the user named."""

    path: Path
    home: Path
    keys: Path


@contextmanager
def keyring(path: Path) -> Iterator[Keyring]:
    """The public keys in a file (as `gpg --export` writes them, with or without --armor, or a
    keybox), for the time of a block. What gpgv needs lies in one private directory, which goes
    with the block.

    Raises:
        UsageError: the file holds no public keys.
        ToolMissing: there is no gpgv.
    """
    host.find("gpgv")
    keys = read_keys(path)
    home = Path(tempfile.mkdtemp(prefix="rehydrator-gpgv-"))
    try:
        (home / "keys.gpg").write_bytes(keys)
        yield Keyring(path, home, home / "keys.gpg")
    finally:
        # Twice: an interrupt, or a last file of a thread that is being ended, spoils the first round.
        try:
            shutil.rmtree(home, ignore_errors=True)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def read_keys(path: Path) -> bytes:
    """The public keys in a file, without armor.

    Raises:
        UsageError: there are none, or it is no regular file, or above 16 MiB.
    """
    if not path.is_file() or path.stat().st_size > MAX_KEYRING:
        raise UsageError(f"{path}: no keyring: a file of at most {MAX_KEYRING >> 20} MiB is wanted")
    data = path.read_bytes()
    blocks = _ARMOR.findall(data)
    keys = b"".join(_dearmored(block, path) for block in blocks) if blocks else data
    if not _begins_with_key(keys):
        raise UsageError(f"{path}: holds no public keys; write them with gpg --export KEY > FILE")
    return keys


def _dearmored(block: bytes, path: Path) -> bytes:
    """The bytes of an armored block: headers up to an empty line, base64, a checksum that
    need not be looked at (RFC 9580, 6.1 and 6.2).
    """
    lines = [line.strip() for line in block.splitlines()]
    body = lines[lines.index(b"") + 1 :] if b"" in lines else lines
    text = b"".join(line for line in body if not line.startswith(b"="))
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise UsageError(f"{path}: its ASCII armor is damaged; export the keys once more") from None


def _begins_with_key(keys: bytes) -> bool:
    """Is the first packet a public key (tag 6; RFC 9580, 4.2), or this a keybox (its magic is at
    byte 8: GnuPG, kbx/keybox-blob.c)?
    """
    if keys[8:12] == b"KBXf":
        return True
    if not keys or not keys[0] & 0x80:
        return False
    tag = keys[0] & 0x3F if keys[0] & 0x40 else (keys[0] & 0x3C) >> 2
    return tag == 6


def verify(file: Path, signature: bytes, keys: Keyring, name: str = "") -> Signer:
    """Who signed `file`, by its detached signature; `name` is what messages call the file.

    Where there are several signatures, one good one of a key in the keyring suffices, as long as
    none is bad, expired or of a revoked key; those of keys that the keyring does not have do not
    count. Signatures whose digest is MD5 or SHA-1 are none.

    Raises:
        SignatureWrong: there is no good signature, or a bad one; names file, key and reason.
        ToolMissing: there is no gpgv.
    """
    name = name or str(file)
    if len(signature) > MAX_SIGNATURE:
        raise SignatureWrong(f"{name}: {len(signature)} bytes are no detached signature")
    with tempfile.NamedTemporaryFile(dir=keys.home, suffix=".sig") as beside:
        beside.write(signature)
        beside.flush()
        ran = host.run(
            [
                *("gpgv", "--homedir", str(keys.home), "--keyring", str(keys.keys)),
                *("--weak-digest", "SHA1", "--status-fd", "1", "--"),
                *(beside.name, str(file.absolute())),
            ],
            _TIMEOUT,
        )
    return _judged(ran, name, keys.path)


def _judged(ran: host.Result, name: str, keyring_path: Path) -> Signer:
    good: list[Signer] = []
    refused: list[tuple[str, str]] = []
    unknown: list[tuple[str, str]] = []
    for lines in _signatures(ran.stdout):
        reason = _refusal(lines)
        if not reason:
            good.append(_signer(lines))
        else:
            absent = "NO_PUBKEY" in lines
            (unknown if absent else refused).append((_key_id(lines), reason))
    if good and not refused and ran.status in {0, 2}:
        return good[0]
    for key, reason in refused or unknown:
        raise SignatureWrong(f"{name}: signature by key {key}: {reason} (keyring {keyring_path})")
    raise SignatureWrong(f"{name}: its signature file holds no detached signature")


def _signatures(status: bytes) -> list[dict[str, list[str]]]:
    """Status lines, keyword -> arguments, for each signature (each begins with NEWSIG)."""
    found: list[dict[str, list[str]]] = []
    for line in status.decode(errors="replace").split("\n"):
        marker, _, rest = line.partition(" ")
        keyword, *arguments = rest.split(" ") if marker == "[GNUPG:]" else [""]
        if keyword == "NEWSIG":
            found.append({})
        elif keyword and found:
            found[-1][keyword] = arguments
    return found


def _refusal(lines: dict[str, list[str]]) -> str:
    """Why one signature does not count; empty where it is good."""
    for keyword, reason in _REFUSALS.items():
        if keyword in lines:
            return reason
    if "ERRSIG" in lines:
        code = (lines["ERRSIG"][5:6] or ["?"])[0]
        return _ERRSIG.get(code, f"gpgv cannot check it (code {code})")
    valid = lines.get("VALIDSIG", [])
    if "GOODSIG" not in lines or len(valid) < 10:
        return "gpgv does not call it good"
    return "" if valid[8] == _BINARY else "it is over text, not over the file's exact bytes"


def _key_id(lines: dict[str, list[str]]) -> str:
    for keyword in ("BADSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NO_PUBKEY", "ERRSIG", "GOODSIG"):
        if lines.get(keyword):
            return lines[keyword][0]
    return "unknown"


def _signer(lines: dict[str, list[str]]) -> Signer:
    valid = lines["VALIDSIG"]
    user_id = " ".join(lines["GOODSIG"][1:])
    return Signer(valid[0], valid[9], user_id, int(valid[2]) if valid[2].isdigit() else 0)


def detach_sign(path: Path, key_id: str, target: Path) -> None:
    """Sign a file with a key of the user's own keyring (or agent, or card): a detached binary
    signature, complete under its name or not there at all.

    Raises:
        UsageError: gpg has no such secret key.
        RehydratorError: gpg failed; says what it said.
        HostileInput: gpg wrote no signature.
        ToolMissing: there is no gpg.
    """
    temporary = target.with_name(f".rehydrator-{target.name}")
    try:
        ran = host.run(
            [
                *("gpg", "--batch", "--yes", "--no-tty", "--status-fd", "1", "--local-user", key_id),
                *("--output", str(temporary.absolute()), "--detach-sign", "--", str(path.absolute())),
            ],
            _SIGNING_TIMEOUT,
        )
        if b"[GNUPG:] INV_SGNR " in ran.stdout:
            raise UsageError(f"gpg has no secret key {key_id} that can sign; list yours with gpg -K")
        if ran.status:
            raise RehydratorError(f"{path}: signing with key {key_id}: {ran.said or 'gpg failed'}")
        if not 0 < temporary.stat().st_size <= MAX_SIGNATURE:
            raise HostileInput(f"{path}: gpg wrote no detached signature")
        temporary.rename(target)
    finally:
        with suppress(OSError):
            temporary.unlink()
