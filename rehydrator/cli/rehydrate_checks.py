"""What of a command line of `rehydrate` makes no sense, said before anything is opened or made."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rehydrator.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of memory, and nobody's devices: the one place below /dev for files.
_DEVICES, _MEMORY = Path("/dev"), Path("/dev/shm")  # noqa: S108 - only compared with
_IMAGES = (".raw", ".img", ".qcow2", ".vmdk", ".vhd", ".vhdx", ".ova", ".iso", ".tar")
_COMPRESSED = (".xz", ".gz", ".zst", ".zip")
_LISTED = "lsblk lists the disks that are there"


def the_place(arguments: Sequence[str]) -> str:
    """The one DEST of the command line; what names a bundle is none.

    Raises:
        UsageError: there are several, or one that names a bundle.
    """
    for argument in arguments:
        if _names_bundle(argument):
            raise UsageError(
                f"{argument} is a bundle, not DEST: name it with --bundle {argument}, or in REHYDRATOR_BUNDLE"
            )
    if len(arguments) > 1:
        raise UsageError(f"one DEST can be named, and {len(arguments)} are: {' '.join(arguments)}")
    return arguments[0]


def _names_bundle(argument: str) -> bool:
    """Whether it is a reference, and no file or directory that is called like one."""
    from rehydrator.oci.reference import parse

    with suppress(UsageError):
        parse(argument)
        return not Path(argument).exists()
    return False


def either(name: str, value: bool | None = None) -> dict[str, bool]:
    """Both names of a flag, and which of them was given."""
    return {f"--{name}": value is True, f"--no-{name}": value is False}


def check_options(dest: str, given: Mapping[str, bool]) -> None:
    """Refuse options (by their names, whether they were given) that DEST has no use for.

    Raises:
        UsageError: there are some.
    """
    cache, sparse = either("cache"), either("sparse")
    what, useless = "standard output", ["--json", *cache, *sparse, "--overwrite"]
    if dest != "-":
        if not Path(dest).is_block_device():
            return
        # --no-sparse has zeros written that would be given back to the disk.
        what, useless = "a disk", [*cache, "--overwrite"]
    found = [name for name in useless if given.get(name)]
    if found:
        raise UsageError(f"{' and '.join(found)}: of no use where DEST is {what}; leave it out")


def check_place(dest: str, *, yes: bool) -> None:
    """Refuse a DEST that is most likely a mistake.

    Raises:
        UsageError: it is none, a device that is not there, or a file.
    """
    if not dest:
        raise UsageError("DEST is empty; name a directory, or - for standard output")
    if dest == "-":
        if yes:
            raise UsageError("--yes is for block devices, and DEST is standard output; leave it out")
        return
    path = Path(dest)
    if not path.exists():
        _check_missing(dest, path, yes=yes)
    elif path.is_dir():
        if yes:
            raise UsageError(f"--yes is for block devices, and {dest} is a directory; leave it out")
    elif not path.is_block_device():
        kind = "a regular file" if path.is_file() else "neither a disk nor a directory"
        raise UsageError(
            f"{dest} is {kind}: name the directory that files go into, a whole disk ({_LISTED}), "
            "or - for standard output"
        )


def _check_missing(dest: str, path: Path, *, yes: bool) -> None:
    """A directory is made of it, unless it was meant to be something else."""
    # Its parent may be a link to /dev, or be where we are.
    real = Path(os.path.realpath(path))
    if yes or (real.is_relative_to(_DEVICES) and not real.is_relative_to(_MEMORY)):
        raise UsageError(f"{dest}: there is no such device; {_LISTED}")
    name = dest.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    if name.endswith(_IMAGES):
        raise UsageError(
            f"{dest}: DEST is the directory that files go into, under the names that list shows; "
            "name that, or write one file to standard output (- as DEST)"
        )


def check_no_disk(old: Path) -> None:
    """Refuse to change a file that is a disk of this machine at the moment: nothing locks it.

    Raises:
        UsageError: loop devices stand on it.
    """
    from rehydrator.host.block_inspection import loops_on

    loops = [str(loop) for loop in loops_on(old.stat())]
    if loops:
        raise UsageError(
            f"--in-place {old}: {', '.join(loops)} {'stands' if len(loops) == 1 else 'stand'} on it; "
            f"losetup -d {' '.join(loops)} first"
        )
