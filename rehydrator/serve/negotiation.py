"""The first phase of an NBD connection: which image, and how ("fixed newstyle" negotiation).

    greeting ──> client's flags ──> option, reply ──> … ──> GO or EXPORT_NAME: transmission
                                                          └> ABORT: the end

A client may only ask here. What it sends is bounded: so many options, so many bytes each, so many
seconds for all of them (`Link` counts those).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput
from rehydrator.serve import c_nbd as nbd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rehydrator.serve.images import Image
    from rehydrator.serve.link import Link

MAX_OPTIONS: Final = 1000
MAX_OPTION: Final = 64 << 10
_MAX_QUERIES: Final = 64

# What a request may ask for at most, and what suits a client best (pages of guests).
MAX_REQUEST: Final = 32 << 20
PREFERRED: Final = 4096


@dataclass(frozen=True, slots=True)
class Export:
    """An image under a name; `aliases` name it too, where no other one is called so."""

    name: str
    image: Image
    description: str = ""
    aliases: tuple[str, ...] = ()


class Exports:
    """What a server has, by name; "" is the first."""

    def __init__(self, exports: Sequence[Export]) -> None:
        self._all = exports
        self._named = {alias: export for export in reversed(exports) for alias in export.aliases}
        self._named |= {export.name: export for export in reversed(exports)}
        self._named[""] = exports[0]

    def __iter__(self) -> Iterator[Export]:
        return iter(self._all)

    def find(self, name: bytes) -> Export | None:
        """The image of that name."""
        return self._named.get(name.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was agreed on. With `allocation`, the client may ask where zeros are."""

    export: Export
    structured: bool
    allocation: bool


class _InvalidError(Exception):
    """The data of an option is malformed; the client is told and may go on."""


def negotiate(link: Link, exports: Exports) -> Chosen | None:
    """Talk to a client until it has chosen; None where it changed its mind.

    Raises:
        HostileInput: it does not speak the protocol.
        OSError: it is gone, or too slow.
    """
    return _Negotiation(link, exports).run()


class _Negotiation:
    def __init__(self, link: Link, exports: Exports) -> None:
        self._link, self._exports = link, exports
        self._structured = False
        self._context_of: Export | None = None
        self._zeroes = True
        self._ended = False
        self._chosen: Chosen | None = None
        self._answers: dict[int, Callable[[int, bytes], None]] = {
            nbd.OPT_EXPORT_NAME: self._export_name,
            nbd.OPT_ABORT: self._abort,
            nbd.OPT_LIST: self._list,
            nbd.OPT_STARTTLS: self._tls,
            nbd.OPT_INFO: self._info,
            nbd.OPT_GO: self._info,
            nbd.OPT_STRUCTURED_REPLY: self._structured_reply,
            nbd.OPT_LIST_META_CONTEXT: self._meta_context,
            nbd.OPT_SET_META_CONTEXT: self._meta_context,
        }

    def run(self) -> Chosen | None:
        offered = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        self._link.send([nbd.GREETING.pack(nbd.NBDMAGIC, nbd.IHAVEOPT, offered)])
        (flags,) = nbd.CLIENT_FLAGS.unpack(self._link.read(nbd.CLIENT_FLAGS.size))
        if flags & ~offered:
            raise HostileInput(f"NBD client: unknown flags {flags:#x}")
        self._zeroes = not flags & nbd.NO_ZEROES
        for _ in range(MAX_OPTIONS):
            self._answer_one()
            if self._ended:
                return self._chosen
        raise HostileInput(f"NBD client: more than {MAX_OPTIONS} options")

    def _answer_one(self) -> None:
        magic, option, length = nbd.OPTION.unpack(self._link.read(nbd.OPTION.size))
        if magic != nbd.IHAVEOPT:
            raise HostileInput("NBD client: what should be an option is none")
        if length > MAX_OPTION:
            raise HostileInput(f"NBD client: an option of {length} bytes")
        data = self._link.read(length)
        try:
            self._answers.get(option, self._unknown)(option, data)
        except _InvalidError as error:
            self._reply(option, nbd.REP_ERR_INVALID, str(error).encode())

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._link.send([nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)), data])

    def _unknown(self, option: int, _: bytes) -> None:
        self._reply(option, nbd.REP_ERR_UNSUP)

    def _tls(self, option: int, _: bytes) -> None:
        self._reply(option, nbd.REP_ERR_POLICY, b"no TLS here: use a unix socket, or a tunnel")

    def _abort(self, option: int, _: bytes) -> None:
        self._reply(option, nbd.REP_ACK)
        self._ended = True

    def _structured_reply(self, option: int, data: bytes) -> None:
        _require(not data, "this option has no data")
        self._structured = True
        self._reply(option, nbd.REP_ACK)

    def _list(self, option: int, data: bytes) -> None:
        _require(not data, "this option has no data")
        for export in self._exports:
            self._reply(option, nbd.REP_SERVER, _string(export.name) + export.description.encode())
        self._reply(option, nbd.REP_ACK)

    def _export_name(self, _: int, data: bytes) -> None:
        found = self._exports.find(data)
        if found is None:
            raise HostileInput("NBD client: no image of that name")
        reserved = nbd.RESERVED if self._zeroes else b""
        self._link.send([nbd.EXPORT.pack(found.image.size, self._flags()), reserved])
        self._choose(found)

    def _info(self, option: int, data: bytes) -> None:
        name, rest = _take_string(data)
        wanted = _numbers(rest)
        found = self._exports.find(name)
        if found is None:
            self._reply(option, nbd.REP_ERR_UNKNOWN, b"no image of that name")
            return
        for info in _infos(found, self._flags(), wanted):
            self._reply(option, nbd.REP_INFO, info)
        self._reply(option, nbd.REP_ACK)
        if option == nbd.OPT_GO:
            self._choose(found)

    def _choose(self, export: Export) -> None:
        self._chosen = Chosen(export, self._structured, self._context_of is export)
        self._ended = True

    def _flags(self) -> int:
        fragments = nbd.FLAG_SEND_DF if self._structured else 0
        return nbd.FLAG_HAS_FLAGS | nbd.FLAG_READ_ONLY | nbd.FLAG_CAN_MULTI_CONN | fragments

    def _meta_context(self, option: int, data: bytes) -> None:
        """One context, under one id. A query that ends in ":" lists a name space; what is selected is
        named in full."""
        setting = option == nbd.OPT_SET_META_CONTEXT
        if setting:
            self._context_of = None
        _require(self._structured, "structured replies come first")
        name, rest = _take_string(data)
        queries = _queries(rest)
        found = self._exports.find(name)
        if found is None:
            self._reply(option, nbd.REP_ERR_UNKNOWN, b"no image of that name")
            return
        listing = not setting and (not queries or b"base:" in queries)
        if listing or nbd.BASE_ALLOCATION in queries:
            self._context_of = found if setting else self._context_of
            identity = nbd.CONTEXT.pack(int(setting))
            self._reply(option, nbd.REP_META_CONTEXT, identity + nbd.BASE_ALLOCATION)
        self._reply(option, nbd.REP_ACK)


def _infos(export: Export, flags: int, wanted: Sequence[int]) -> Iterator[bytes]:
    """What is told of an image: size and limits always, the rest where it was asked for."""
    yield nbd.INFO_OF_EXPORT.pack(nbd.INFO_EXPORT, export.image.size, flags)
    yield nbd.INFO_OF_BLOCKS.pack(nbd.INFO_BLOCK_SIZE, 1, PREFERRED, MAX_REQUEST)
    if nbd.INFO_NAME in wanted:
        yield nbd.INFO_NAME.to_bytes(2, "big") + export.name.encode()
    if nbd.INFO_DESCRIPTION in wanted and export.description:
        yield nbd.INFO_DESCRIPTION.to_bytes(2, "big") + export.description.encode()


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise _InvalidError(why)


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    """A string behind its length, and what follows."""
    length = int.from_bytes(data[:4], "big")
    _require(len(data) >= 4 and length <= min(len(data) - 4, nbd.MAX_STRING), "a string is cut short")
    return data[4 : 4 + length], data[4 + length :]


def _numbers(data: bytes) -> tuple[int, ...]:
    """16-bit numbers behind their count."""
    count = int.from_bytes(data[:2], "big")
    _require(len(data) == 2 + 2 * count, "a list of requests of another length")
    return struct.unpack(f">{count}H", data[2:])


def _queries(data: bytes) -> list[bytes]:
    """Strings behind their count."""
    count, rest, found = int.from_bytes(data[:4], "big"), data[4:], []
    _require(len(data) >= 4 and count <= _MAX_QUERIES, "a list of queries is cut short, or too long")
    for _ in range(count):
        query, rest = _take_string(rest)
        found.append(query)
    _require(not rest, "bytes behind a list of queries")
    return found
