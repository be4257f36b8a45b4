"""What a build has compared already, for the proof that follows it.

A build finds an encoder by giving it all the plain bytes of a part and comparing what comes out
with the published file. The proof makes the plain bytes again, from the staged image and in a
fresh process; where they are those that were compared, the encoder's output is what lies in the
published file, and need not be made a second time: xz -9 takes minutes for each disk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rehydrator.codecs import Params

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """The encoder gave the `packed` bytes at `at` of a file for `plain` bytes of this digest."""

    codec: str
    params: Params
    plain: int
    digest: str
    file: str
    at: int
    packed: int


def save(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write comparisons for a process that is ours."""
    path.write_text(json.dumps([asdict(each) for each in comparisons]))


class Proven:
    """The comparisons of a build, by what was compared."""

    def __init__(self, path: Path) -> None:
        """Read what `save` wrote."""
        self._known: dict[tuple[str, Params, int, str], Comparison] = {}
        self._lengths: set[tuple[str, Params, int]] = set()
        for item in json.loads(path.read_text()):
            each = _comparison(item)
            self._known[each.codec, each.params, each.plain, each.digest] = each
            self._lengths.add((each.codec, each.params, each.plain))

    def find(
        self, codec: str, params: Params, plain: int, feed: Callable[[], Iterator[bytes]]
    ) -> Iterator[bytes] | None:
        """The stream of `plain` bytes that `feed` gives, if they were compared; they are not read
        where no such stream was."""
        if (codec, params, plain) not in self._lengths:
            return None
        state = hasher()
        for piece in feed():
            state.update(piece)
        known = self._known.get((codec, params, plain, state.hexdigest()))
        return _packed(known) if known else None


def hasher() -> hashlib.blake2b:
    """What plain bytes are told apart by."""
    return hashlib.blake2b(digest_size=32)


def _comparison(item: dict[str, Any]) -> Comparison:
    params = tuple((name, value) for name, value in item["params"])
    return Comparison(**{**item, "params": params})


def _packed(known: Comparison) -> Iterator[bytes]:
    with Path(known.file).open("rb") as file:
        file.seek(known.at)
        left = known.packed
        while left:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise HostileInput(f"{known.file}: became shorter while it was packed")
            left -= len(piece)
            yield piece
