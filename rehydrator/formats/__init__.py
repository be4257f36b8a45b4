"""Format modules: each explains one file format. Adding one is a module and a line in `FORMATS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Rules
from rehydrator.formats import qcow2, raw, tar, vhd, vhdx, vmdk
from rehydrator.formats.explanation import MAX_LAYERS, Explanation, Layer, NoDiskError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each, Unpack


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


def explain(
    file: Reader, each: Each = map, unpack: Unpack | None = None, depth: int = MAX_LAYERS
) -> Explanation:
    """The file explained; what is compressed in it is taken apart by `unpack`, `depth` levels deep.

    Raises:
        Unexplained: no format recognises it, or the one that does declines it; says why.
    """
    found = recognise(file)
    try:
        if found is None:
            return _explain_packed(file, each, unpack, depth)
        if found.explain is tar.explain:
            inside = _inside(each, unpack, depth)
            return tar.explain(file, each, inside)
        return found.explain(file, each)
    except Unexplained as error:
        raise Unexplained(f"{found.name}: {error}" if found else str(error)) from None
    except HostileInput as error:
        raise Unexplained(f"{found.name if found else 'compressed'}: malformed: {error}") from None


def _inside(each: Each, unpack: Unpack | None, depth: int) -> Callable[[Reader], Explanation]:
    """What a tar does with members that it does not know itself."""
    return lambda member: _explain_packed(member, each, unpack, depth)


def _explain_packed(file: Reader, each: Each, unpack: Unpack | None, depth: int) -> Explanation:
    unpacked = unpack(file) if unpack and depth else None
    if unpacked is None:
        raise NoDiskError("not a disk image: compared by its contents")
    inner = explain(unpacked.plain, each, unpack, depth - 1)
    return Explanation(
        f"{unpacked.container}+{inner.format}",
        inner.guest,
        unpacked.ops,
        Rules(streams=unpacked.streams),
        facts={**inner.facts, **unpacked.encoders},
        layers=(Layer(unpacked.plain, inner),),
    )
