"""`rehydrate --dry-run`: what would be written where. Nothing is made or written."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from rehydrator.cli.rehydrate import make_directory, outcome_of, report
from rehydrator.core.errors import LimitExceeded, RehydratorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options


def to_pipe(bundle: Bundle, outputs: Sequence[Output]) -> int:
    """What would go to standard output.

    Raises:
        RehydratorError: what a run would fail with before its first byte.
    """
    from rehydrator.bundle.making import making

    for output in outputs:
        making(bundle, output)
    return report([would_be(output, "standard output") for output in outputs], as_json=False)


def to_directory(
    bundle: Bundle, outputs: Sequence[Output], directory: Path, options: Options, *, as_json: bool
) -> int:
    """What would be in a directory, which is not made; the exit code that a run would have, as far as
    that can be known.

    Raises:
        UsageError: it could not be made.
    """
    room = _Room(make_directory(directory, dry_run=True))
    outcomes = list[dict[str, Any]]()
    for output in outputs:
        try:
            outcomes.append(_look(bundle, output, directory, options, room))
        except RehydratorError as error:
            outcomes.append(outcome_of(output, error))
    return report(outcomes, as_json=as_json)


def would_be(output: Output, place: str) -> dict[str, Any]:
    """What is said of an output that would be written."""
    return outcome_of(output, "would be written") | {"to": place}


class _Room:
    """What is free where a directory is or will be, less what outputs before take."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._there = directory if directory.is_dir() else directory.parent
        status = os.statvfs(self._there)
        self._free = status.f_bavail * status.f_frsize

    def take(self, output: Output, needed: int) -> None:
        if not os.access(self._there, os.W_OK | os.X_OK):
            raise RehydratorError(f"{self._there}: Permission denied")
        if needed > self._free:
            raise LimitExceeded(
                f"{self._directory}: {output.form.name} needs {needed} bytes and {self._free} are free; "
                "free some space, or choose another DEST"
            )
        self._free -= needed


def _look(bundle: Bundle, output: Output, directory: Path, options: Options, room: _Room) -> dict[str, Any]:
    from rehydrator.bundle.making import making
    from rehydrator.bundle.rehydrate import is_there

    target = directory / output.form.name
    if os.path.lexists(target):
        if is_there(bundle, output, target, options):
            return outcome_of(output, "present")
        if not options.overwrite:
            raise RehydratorError(f"{target} exists and is another file; --overwrite replaces it")
        if stat.S_ISDIR(target.lstat().st_mode):
            raise RehydratorError(f"{target}: Is a directory")
    making(bundle, output)  # what cannot be made here is said
    room.take(output, output.form.data if options.is_sparse(output) else output.form.size)
    return would_be(output, str(target))
