"""Every compressed container by its suffix: recognised by content, and read once.

Adding one is a module with `recognise` and `unpack`, and a line in `CONTAINERS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import HostileInput, LimitExceeded, Unexplained
from rehydrator.formats import bzip2, gzip, xz, zip, zstd  # noqa: A004 - the field's names

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.reader import Reader
    from rehydrator.formats.streams import Layout

    Take = Callable[[bytes], object]


class Container(NamedTuple):
    """A container format, and the suffix that names it."""

    name: str
    suffix: str
    recognise: Callable[[Reader], bool]
    unpack: Callable[[Reader, int, Take], Layout]


_EVERY: Final = (
    Container("xz", ".xz", xz.recognise, xz.unpack),
    Container("gzip", ".gz", gzip.recognise, gzip.unpack),
    Container("zstd", ".zst", zstd.recognise, zstd.unpack),
    Container("bzip2", ".bz2", bzip2.recognise, bzip2.unpack),
    Container("zip", ".zip", zip.recognise, zip.unpack),
)
CONTAINERS: Final = {container.suffix: container for container in _EVERY}


def recognise(file: Reader) -> str:
    """The name of the container that the file begins as; empty for none."""
    return next((container.name for container in _EVERY if container.recognise(file)), "")


def read(file: Reader, name: str, limit: int, take: Take) -> Layout:
    """Where the encoded parts of the file called `name` lie. `take` gets its plain bytes in
    order, in pieces of at most 256 KiB, each before the checksum over it is known to be right;
    when this returns, all of them were. The container is told by the content, not by the name.

    The member of a zip file has to be called as the file is, without `.zip`.

    Raises:
        Unexplained: no container, a kind of it that is not read, or damaged: says which file,
            what and where.
        LimitExceeded: more than `limit` plain bytes, too many parts, or too large a dictionary.
    """
    found = next((container for container in _EVERY if container.recognise(file)), None)
    if found is None:
        raise Unexplained(f"{name}: its content is none of {', '.join(each.name for each in _EVERY)}")
    try:
        if found.name == "zip" and name.endswith(".zip"):
            return zip.unpack(file, limit, take, name.removesuffix(".zip"))
        return found.unpack(file, limit, take)
    except Unexplained as error:
        raise Unexplained(f"{name}: {error}") from None
    except HostileInput as error:
        raise HostileInput(f"{name}: {error}") from None
    except LimitExceeded as error:
        raise LimitExceeded(f"{name}: {error}") from None
