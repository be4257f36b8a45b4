"""The error tree. Every error says what, where and what to do, and owns its exit code.

    RehydratorError                  1  anything else that failed
      UsageError                     2  the command line asks for something that makes no sense
      PartialFailure                 3  several artifacts, some failed
      NotInBundle                    4  the bundle (or the release) has no such artifact
      DigestMismatch                 5  bytes are not those that were promised
      SignatureMissing               6
      SignatureWrong                 7
      HostileInput                   8  malformed or malicious bytes, refused
        Unexplained                  8  a format module declines a file: the next rung takes it
      LimitExceeded                  9  out of space or beyond a limit
      ToolMissing                   10  a needed program or library version is missing
      RegistryError                 11
      NetworkError                  12

The numbers are documented in README and stay below 125, which podman keeps for itself.
"""

from __future__ import annotations

from typing import ClassVar


class RehydratorError(Exception):
    """Base of everything that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(RehydratorError):
    """The request itself makes no sense."""

    exit_code = 2


class PartialFailure(RehydratorError):
    """Several artifacts were asked for and some failed; each was reported by itself."""

    exit_code = 3


class NotInBundle(RehydratorError):
    """No artifact, file or platform of that name."""

    exit_code = 4


class DigestMismatch(RehydratorError):
    """Bytes do not have the digest that was promised for them."""

    exit_code = 5


class SignatureMissing(RehydratorError):
    """A key was given and nothing is signed."""

    exit_code = 6


class SignatureWrong(RehydratorError):
    """No signature fits the key that was given."""

    exit_code = 7


class HostileInput(RehydratorError):
    """Malformed or malicious input."""

    exit_code = 8


class Unexplained(HostileInput):
    """A format module declines a file; the message says why."""


class LimitExceeded(RehydratorError):
    """Out of disk space, or beyond a declared limit."""

    exit_code = 9


class ToolMissing(RehydratorError):
    """A needed program, or a library of a needed version, is missing."""

    exit_code = 10


class RegistryError(RehydratorError):
    """A registry refused or answered nonsense."""

    exit_code = 11


class NetworkError(RehydratorError):
    """The network failed."""

    exit_code = 12


class Interrupted(RehydratorError):
    """The user pressed Ctrl-C or sent SIGTERM."""

    exit_code = 130


def worst_exit_code(codes: list[int]) -> int:
    """One exit code for several artifacts: their own where there is one artifact,
    else 3, unless one failed with 5 to 8, then the lowest of those.
    """
    failed = [code for code in codes if code]
    if len(codes) == 1 or not failed:
        return failed[0] if failed else 0
    grave = [code for code in failed if 5 <= code <= 8]
    return min(grave) if grave else PartialFailure.exit_code
