"""Keys of gpg's that tests make and sign with."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Keys:
    """A home of gpg's with keys, and files signed by them."""

    home: Path
    file: Path

    def gpg(self, *arguments: object, stdin: bytes = b"") -> bytes:
        """Run gpg in this home; what it writes on stdout."""
        done = subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--quiet", "--yes", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            check=True,
        )
        return done.stdout

    def make(self, name: str, *more: str, expires: str = "never") -> None:
        self.gpg(*more, "--passphrase", "", "--quick-gen-key", f"{name}@test", "ed25519", "sign", expires)

    def fingerprint(self, name: str) -> str:
        listing = self.gpg("--with-colons", "-k", f"{name}@test").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))

    def sign(self, *names: str, more: tuple[str, ...] = (), file: Path | None = None) -> bytes:
        users = [word for name in names for word in ("-u", f"{name}@test")]
        return self.gpg(*users, *more, "--output", "-", "--detach-sign", file or self.file)

    def export(self, *names: str, more: tuple[str, ...] = ()) -> bytes:
        return self.gpg(*more, "--export", *(f"{name}@test" for name in names))

    def revoke(self, name: str) -> None:
        made = self.home / "openpgp-revocs.d" / f"{self.fingerprint(name)}.rev"
        self.gpg("--import", stdin=made.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))

    def stop(self) -> None:
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=True, capture_output=True)
