"""Format modules: each explains one file format. Adding one is a module and a line in `FORMATS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.formats import qcow2, raw, tar, vhd, vhdx, vmdk

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each, Explanation


class Format(NamedTuple):
    """A format: how to recognise a file (cheaply, never raising), and how to explain it."""

    name: str
    recognise: Callable[[Reader], bool]
    explain: Callable[[Reader, Each], Explanation]


# Read top to bottom; the first that recognises a file explains it. Raw comes last: any disk
# with a partition table or a file system is raw, and so the others must have had their say.
FORMATS: tuple[Format, ...] = (
    Format("qcow2", qcow2.recognise, qcow2.explain),
    Format("vmdk", vmdk.recognise, vmdk.explain),
    Format("vhdx", vhdx.recognise, vhdx.explain),
    Format("vhd", vhd.recognise, vhd.explain),
    Format("tar", tar.recognise, tar.explain),
    Format("raw", raw.recognise, raw.explain),
)


def recognise(file: Reader) -> Format | None:
    """The first format that recognises the file."""
    return next((each for each in FORMATS if each.recognise(file)), None)


def explain(file: Reader, each: Each = map) -> Explanation:
    """The file explained.

    Raises:
        Unexplained: no format recognises it, or the one that does declines it; says why.
    """
    found = recognise(file)
    if found is None:
        raise Unexplained("no known disk format")
    try:
        return found.explain(file, each)
    except Unexplained as error:
        raise Unexplained(f"{found.name}: {error}") from None
    except HostileInput as error:
        raise Unexplained(f"{found.name}: malformed: {error}") from None
