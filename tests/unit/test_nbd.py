"""The NBD server: what clients agree on, what they get, and what they cannot do to others."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.cli.nbd import _private_directory
from rehydrator.core.errors import DigestMismatch, HostileInput, RehydratorError, UsageError
from rehydrator.core.ops import Copy, Rules, Series, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace, join
from rehydrator.serve import admission, nbd
from rehydrator.serve.admission import MAX_CLIENTS, MAX_OF_ADDRESS, origin
from rehydrator.serve.images import SpaceImage, ZeroRuns
from rehydrator.serve.listening import Place, listening, place_of
from rehydrator.serve.nbd import Server
from rehydrator.serve.negotiation import MAX_OPTION, MAX_OPTIONS, MAX_REQUEST, Export, Exports
from rehydrator.serve.transmission import BLOCK, THREADS
from tests.nbd_client import Chunk, Client, MemoryImage, Option, context_data, go_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.ops import Op
    from rehydrator.engine import Piece

EPERM, EIO, ENOMEM, EINVAL, EOVERFLOW = 1, 5, 12, 22, 75
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
HOLE = (65536, 65536 + 3_145_728)
SIZE = HOLE[1] + 100_001


def content() -> bytes:
    data = bytearray(random.Random(1).randbytes(SIZE))
    data[HOLE[0] : HOLE[1]] = bytes(HOLE[1] - HOLE[0])
    return bytes(data)


DATA = content()


class Serving:
    """A running server, and what it said."""

    def __init__(self, *exports: Export, jobs: int = 2) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind("")  # an abstract name that the kernel chooses
        self.listener.listen(16)
        self.address = self.listener.getsockname()
        self.said: list[str] = []
        self.server = Server(self.listener, Exports(exports), jobs, self.said.append)
        self.server.start()
        self.clients: list[Client] = []

    def client(self) -> Client:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.address)
        self.clients.append(Client(connection))
        return self.clients[-1]

    def end(self) -> None:
        self.server.stop()
        for client in self.clients:
            client.socket.close()


def serving(*images: MemoryImage, jobs: int = 2) -> Serving:
    """A server of images that are called a, b, ...; their platforms are A, B, ..."""
    names = [chr(ord("a") + number) for number in range(len(images))]
    return Serving(
        *(Export(n, image, f"it is {n}", (n.upper(),)) for n, image in zip(names, images, strict=True)),
        jobs=jobs,
    )


@pytest.fixture
def served() -> Iterator[Serving]:
    found = serving(MemoryImage(DATA, [HOLE]), MemoryImage(b"second"))
    yield found
    found.end()


# ---- negotiation


def test_the_list_is_in_order(served: Serving) -> None:
    """Names, and descriptions behind them."""
    client = served.client()
    client.greet()
    expected = [Option(2, b"\0\0\0\1ait is a"), Option(2, b"\0\0\0\1bit is b"), Option(1, b"")]
    assert expected == client.option(3)


@pytest.mark.parametrize(
    ("name", "size"), [(b"", SIZE), (b"a", SIZE), (b"A", SIZE), (b"b", 6), (b"B", 6)], ids=repr
)
def test_images_have_names(served: Serving, name: bytes, size: int) -> None:
    """A file's name, its platform, and nothing at all for the first."""
    client = served.client()
    client.greet()
    infos = client.option(6, go_data(name))
    assert struct.pack(">HQH", 0, size, 0b1_0000_0011) == infos[0].data
    assert struct.pack(">HIII", 3, 1, 4096, 32 << 20) == infos[1].data
    assert (size, 0b1_0000_0011) == client.export_name(name)


def test_a_file_name_wins_over_a_platform() -> None:
    """One image's alias does not hide another one's name, and the first of two aliases counts."""
    images = [MemoryImage(bytes(size)) for size in (1, 2, 3)]
    exports = Exports(
        [
            Export("x", images[0], aliases=("y",)),
            Export("y", images[1], aliases=("z",)),
            Export("w", images[2], aliases=("z",)),
        ]
    )
    found = [exports.find(name) for name in (b"x", b"y", b"z", b"w", b"", b"no")]
    assert [each and each.image.size for each in found] == [1, 2, 2, 3, 1, None]


def test_names_and_descriptions_where_they_are_asked_for(served: Serving) -> None:
    """INFO gives the name of the default, and its description."""
    client = served.client()
    client.greet()
    infos = client.option(6, go_data(b"", 1, 2, 3, 99))
    assert [Option(3, b"\0\1a"), Option(3, b"\0\2it is a"), Option(1, b"")] == infos[2:]


def test_the_old_way_to_choose(served: Serving) -> None:
    """EXPORT_NAME has 124 zeros behind it, unless they were declined."""
    client = served.client()
    client.greet(flags=1)
    assert client.export_name(b"b") == (6, 0b1_0000_0011)
    assert bytes(124) == client.read(124)
    client.request(READ, 1, 3)
    assert client.simple() == (0, 7)
    assert client.read(3) == b"eco"


def test_no_such_image(served: Serving) -> None:
    """INFO and GO say so and talk goes on; EXPORT_NAME has no way to say it but the end."""
    client = served.client()
    client.greet()
    assert client.option(6, go_data(b"c"))[0].kind == 0x80000006
    assert client.option(7, go_data(b"\xff\xfe"))[0].kind == 0x80000006
    client.ask(1, b"c")
    assert client.left()


@pytest.mark.parametrize(
    ("option", "data", "kind"),
    [
        (5, b"", 0x80000002),  # STARTTLS: not here
        (4, b"", 0x80000001),  # PEEK_EXPORT
        (11, b"", 0x80000001),  # EXTENDED_HEADERS
        (12345, b"any", 0x80000001),
        (3, b"data", 0x80000003),
        (8, b"data", 0x80000003),
        (6, b"", 0x80000003),
        (6, b"\0\0\0\xffa\0\0", 0x80000003),
        (7, b"\0\0\0\1a", 0x80000003),
        (7, b"\0\0\0\1a\0\2\0\1", 0x80000003),
        (7, struct.pack(">I", 5000) + bytes(5002), 0x80000003),
        (10, context_data(b"a"), 0x80000003),  # before structured replies
    ],
    ids=str,
)
def test_options_that_are_refused(served: Serving, option: int, data: bytes, kind: int) -> None:
    """Each with the reason that the protocol has for it; the client may go on."""
    client = served.client()
    client.greet()
    assert kind == client.option(option, data)[0].kind
    assert client.option(2)[0].kind == 1
    assert client.left()


def test_contexts(served: Serving) -> None:
    """base:allocation is listed, under id 0, and selected, under id 1, where it is named in full."""
    client = served.client()
    client.greet()
    client.option(8)
    name = b"base:allocation"
    listed = [Option(4, bytes(4) + name), Option(1, b"")]
    assert listed == client.option(9, struct.pack(">I1sI", 1, b"a", 0))
    assert listed == client.option(9, context_data(b"a", b"base:"))
    assert listed == client.option(9, context_data(b"a", b"qemu:x", name))
    assert listed[1:] == client.option(9, context_data(b"a", b"qemu:"))
    assert listed[1:] == client.option(10, context_data(b"a", b"base:"))
    assert [Option(4, b"\0\0\0\1" + name), Option(1, b"")] == client.option(10, context_data(b"a"))
    assert client.option(10, context_data(b"c"))[0].kind == 0x80000006


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0\1a", b"\0\0\0\0\xff\xff\xff\xff", context_data(b"a") + b"x", context_data(b"a")[:-1]],
    ids=repr,
)
def test_malformed_contexts(served: Serving, data: bytes) -> None:
    """Counts and lengths are compared with what was sent."""
    client = served.client()
    client.greet()
    client.option(8)
    assert client.option(10, data)[0].kind == 0x80000003


def test_a_context_belongs_to_an_image(served: Serving) -> None:
    """Who selects it for one image and takes another one cannot ask for it."""
    client = served.client()
    client.greet()
    client.option(8)
    client.option(10, context_data(b"a"))
    assert Option(1, b"") == client.option(7, go_data(b"b"))[-1]
    client.request(BLOCK_STATUS, 0, 6)
    assert client.error() == (EINVAL, "base:allocation was not selected")


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 4),  # a flag that there is not
        struct.pack(">I", 0x8000_0003),
        struct.pack(">IQII", 3, 0x1234, 3, 0),  # not an option
        struct.pack(">IQII", 3, 0x49484156454F5054, 3, MAX_OPTION + 1),
        struct.pack(">IQII", 3, 0x49484156454F5054, 1 << 31, 0xFFFFFFFF),
        struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 99, 0) * (MAX_OPTIONS + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(7),
)
def test_no_client_at_all(served: Serving, data: bytes) -> None:
    """Who does not speak the protocol is left alone, and nothing is said."""
    client = served.client()
    client.socket.sendall(data)
    while not client.left():
        pass
    assert served.said == []


def drip(client: Client) -> None:
    for byte in b"IHAVEOPT" * 100:
        client.socket.sendall(bytes([byte]))
        time.sleep(0.05)


def test_who_is_slow_is_sent_away(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the negotiation has to be done in a minute, however the bytes drip."""
    monkeypatch.setattr(nbd, "PATIENCE", 0.5)
    silent, dripping = served.client(), served.client()
    dripping.greet()
    started = time.monotonic()
    with pytest.raises(OSError, match=r"pipe|reset"):
        drip(dripping)
    assert 0.3 < time.monotonic() - started < 10
    silent.read(18)
    assert silent.left()


# ---- reading


def test_flags(served: Serving) -> None:
    """Read-only, several connections, and "don't fragment" where there are fragments."""
    assert served.client().go(b"a") == 0b1_1000_0011
    assert served.client().go(b"a", structured=False) == 0b1_0000_0011


def test_reads_are_what_the_image_has(served: Serving) -> None:
    """At any place, of any length, over the hole and its ends."""
    client = served.client()
    client.go()
    places = random.Random(2)
    spans = [(0, SIZE), (SIZE - 1, 1), (HOLE[0] - 5, 10), (HOLE[1] - 5, 10), (HOLE[0] - 1, SIZE - HOLE[0])]
    spans += [(at, places.randrange(1, SIZE - at)) for at in places.sample(range(SIZE), 12)]
    for offset, length in spans:
        assert DATA[offset : offset + length] == client.pread(offset, length)


def test_holes_are_not_sent(served: Serving) -> None:
    """A run of zeros is a chunk of 12 bytes of payload, of whole sectors; a block is done at a time."""
    client = served.client()
    client.go()
    client.request(READ, HOLE[0] - 10, 10 + 4096 + 7)
    assert [(flags, kind, len(payload)) for flags, kind, _, payload in client.chunks()] == [
        (0, 1, 18),
        (0, 2, 12),
        (1, 1, 15),
    ]
    client.request(READ, HOLE[0] + 1, 8191)
    head, hole = client.chunks()
    assert bytes(511) == head.payload[8:]
    assert (HOLE[0] + 512, 7680) == struct.unpack(">QI", hole.payload)


def test_nothing_can_be_read(served: Serving) -> None:
    """A read of no bytes is answered, and one of an image of no bytes."""
    client = served.client()
    client.go()
    client.request(READ, 5, 0)
    assert client.chunks() == [(1, 0, 7, b"")]
    simple = served.client()
    simple.go(structured=False)
    simple.request(READ, 5, 0)
    assert simple.simple() == (0, 7)


def test_without_structured_replies(served: Serving) -> None:
    """A header and all the bytes, as old clients know it."""
    client = served.client()
    client.go(structured=False)
    for offset, length in ((3, 100), (HOLE[0] - 100, HOLE[1] - HOLE[0] + 200)):
        client.request(READ, offset, length, cookie=offset)
        assert (0, offset) == client.simple()
        assert DATA[offset : offset + length] == client.read(length)


def test_do_not_fragment(served: Serving) -> None:
    """One chunk with its zeros in it; one that is too long for that is refused."""
    client = served.client()
    client.go()
    client.request(READ, HOLE[0] - 10, 100_000, flags=4)
    [(flags, kind, _, payload)] = client.chunks()
    assert (flags, kind) == (1, 1)
    assert DATA[HOLE[0] - 10 :][:100_000] == payload[8:]
    client.request(READ, 0, BLOCK + 1, flags=4)
    assert client.error()[0] == EOVERFLOW
    simple = served.client()
    simple.go(structured=False)
    simple.request(READ, 0, 10, flags=4)
    assert simple.simple() == (EINVAL, 7)


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "error"),
    [
        (READ, SIZE - 5, 6, 0, EINVAL),
        (READ, SIZE, 1, 0, EINVAL),
        (READ, (1 << 64) - 1, 0xFFFFFFFF, 0, EINVAL),
        (READ, 0, MAX_REQUEST + 1, 0, EINVAL),
        (READ, 0, 10, 1, EINVAL),
        (READ, 0, 10, 8, EINVAL),
        (READ, 0, 10, 0x8000, EINVAL),
        (BLOCK_STATUS, SIZE - 5, 6, 0, EINVAL),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        (BLOCK_STATUS, 0, 10, 4, EINVAL),
        (WRITE, 0, 0, 0, EPERM),
        (TRIM, 0, 4096, 0, EPERM),
        (WRITE_ZEROES, 0, 0xFFFFFFFF, 2, EPERM),
        (FLUSH, 0, 0, 0, EINVAL),
        (CACHE, 0, 4096, 0, EINVAL),
        (77, 0, 0, 0, EINVAL),
    ],
)
def test_requests_that_are_refused(
    served: Serving, kind: int, offset: int, length: int, flags: int, error: int
) -> None:
    """Each with its error, in words where there is room for words; the connection goes on."""
    client = served.client()
    client.go()
    client.request(kind, offset, length, flags=flags)
    found, message = client.error()
    assert (error, True) == (found, bool(message))
    simple = served.client()
    simple.go(structured=False)
    simple.request(kind, offset, length, flags=flags, cookie=8)
    assert (error, 8) == simple.simple()
    assert DATA[:9] == client.pread(0, 9)
    assert served.said == []


def test_what_is_written_is_thrown_away(served: Serving) -> None:
    """The bytes of a write are read and forgotten, so that the next request is understood."""
    client = served.client()
    client.go()
    client.request(WRITE, 0, 200_000)
    client.socket.sendall(b"w" * 200_000)
    assert client.error() == (EPERM, "images are read-only")
    assert DATA[:10] == client.pread(0, 10)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IHHQQI", 0x12345678, 0, READ, 1, 0, 10),
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, MAX_REQUEST + 1),
        struct.pack(">IHHQQI", 0x25609513, 0, DISC, 1, 0, 0),
    ],
    ids=["magic", "write", "disc"],
)
def test_the_end_of_a_connection(served: Serving, data: bytes) -> None:
    """Nonsense ends it, and DISC does."""
    client = served.client()
    client.go()
    client.socket.sendall(data)
    assert client.left()


# ---- where zeros are


def test_block_status(served: Serving) -> None:
    """Data, hole, data; clipped to the range; one descriptor where one was asked for."""
    client = served.client()
    client.go()
    whole = [(HOLE[0], 0), (HOLE[1] - HOLE[0], 3), (SIZE - HOLE[1], 0)]
    assert whole == client.status(0, SIZE)
    assert whole[:1] == client.status(0, SIZE, flags=8)
    assert client.status(HOLE[0] + 4096, 100) == [(100, 3)]
    assert client.status(SIZE - 5, 5) == [(5, 0)]


def test_a_long_status_may_be_continued() -> None:
    """A reply has so many descriptors; what lies behind them is asked for again."""
    step = 8192
    holes = [(at, at + 4096) for at in range(0, step * 5000, step)]
    served = serving(MemoryImage(bytes(step * 5000), holes))
    client = served.client()
    client.go()
    here, found = 0, []
    while here < step * 5000:
        found.append(client.status(here, step * 5000 - here))
        here += sum(length for length, _ in found[-1])
    assert [len(each) for each in found] == [4096, 4096, 1808]
    assert [each for part in found for each in part] == [(4096, 3), (4096, 0)] * 5000
    served.end()


def machine(*spaces: bytes | list[Op]) -> Machine:
    """Spaces by number: bytes, or what ops make."""
    made = [OpsSpace(each) if isinstance(each, list) else ReaderSpace(BytesReader(each)) for each in spaces]
    return Machine(dict(enumerate(made)), Rules())


def runs_of(of: Machine, space: int) -> list[tuple[int, int]]:
    image = SpaceImage(of, space, ZeroRuns(of))
    return list(image.zero_runs(0, image.size))


def test_zeros_are_read_off_recipes() -> None:
    """Runs of zeros, and copies of them through other recipes, joined where they meet."""
    base: list[Op] = [zeros(8192), Copy(4096, 0, 0), zeros(16384)]
    above: list[Op] = [Copy(12288, 1, 4096), zeros(4096), Copy(4096, 0, 0), Copy(28672, 1, 0)]
    of = machine(b"x" * 4096, base, above)
    assert runs_of(of, 1) == [(0, 8192), (12288, 28672)]
    assert runs_of(of, 2) == [(0, 4096), (8192, 16384), (20480, 28672), (32768, 49152)]


def test_zeros_begin_and_end_at_pages() -> None:
    """qemu-img 7.2 would take the rest of the last sector for zero: it copied wrong bytes."""
    of = machine(b"x" * 4096, [Copy(100, 0, 0), zeros(9000), Copy(92, 0, 0), zeros(5000)])
    image = SpaceImage(of, 1, ZeroRuns(of))
    assert runs_of(of, 1) == [(4096, 8192), (12288, 14192)]
    assert list(image.zero_runs(4100, 100)) == [(4100, 4200)]
    assert list(image.zero_runs(8191, 4096)) == [(8191, 8192)]


def test_short_runs_are_data() -> None:
    """A run below a page is not told; neither is a series that only begins with zeros."""
    ops: list[Op] = [zeros(100), Copy(3996, 0, 0), zeros(4095), Series(8, 0, 1, 4, "little")]
    assert runs_of(machine(b"x" * 4096, ops), 1) == []


def test_zeros_of_a_deep_recipe_are_not_looked_for() -> None:
    """A tower of recipes, each a copy of the one below, does not become a tower of calls."""
    tower: list[list[Op]] = [[zeros(8192)]]
    tower += [[Copy(8192, number, 0)] for number in range(2000)]
    assert runs_of(machine(*tower), 2000) == []
    assert runs_of(machine(*tower), 3) == [(0, 8192)]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000), st.integers(0, 999)), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_what_is_told_to_be_zero_is(shape: list[tuple[bool, int, int]]) -> None:
    """No byte of a run is anything else, and every whole page of a long run is told."""
    plain = b"x" * 10_000
    base: list[Op] = [zeros(size) if zero else Copy(size, 0, at) for zero, size, at in shape]
    total = sum(op.length for op in base)
    above: list[Op] = [Copy(total, 1, 0), zeros(77), Copy(total - total // 3, 1, total // 3)]
    of = machine(plain, base, above)
    made = join(of.pieces(2, 0, of.space(2).size))
    told = bytearray(len(made))
    for start, end in runs_of(of, 2):
        assert not any(made[start:end])
        told[start:end] = b"z" * (end - start)
    for at in range(0, len(made) - 8191, 4096):
        if not any(made[at : at + 8192]) and b"x" in made[at : at + 8192]:
            assert told[at] == told[at + 8191]


# ---- errors


def failing(error: BaseException, behind: int = 0) -> MemoryImage:
    def before(offset: int) -> None:
        if offset >= behind:
            raise error

    return MemoryImage(DATA, before=before)


@pytest.mark.parametrize(
    ("error", "number", "told", "said"),
    [
        (DigestMismatch("frame at 0 is damaged"), EIO, "frame at 0 is damaged", "frame at 0 is damaged"),
        (DigestMismatch("\udcff"), EIO, "?", "\udcff"),
        (DigestMismatch("\u20ac" * 2000), EIO, "\u20ac" * 1365, "\u20ac" * 2000),
        (OSError(5, "no medium", "/mine"), EIO, "it cannot be read", "[Errno 5] no medium: '/mine'"),
        (MemoryError(), ENOMEM, "out of memory", "out of memory at 5"),
        (KeyError("unforeseen"), EIO, "it cannot be read", "KeyError: 'unforeseen'"),
    ],
    ids=["digest", "surrogate", "long", "system", "memory", "defect"],
)
def test_what_cannot_be_made_is_an_error(error: BaseException, number: int, told: str, said: str) -> None:
    """For the client, each time, without what is not his business; it is said here once; and the
    connection goes on."""
    served = serving(failing(error), MemoryImage(b"fine"))
    client, simple, other = served.client(), served.client(), served.client()
    client.go()
    simple.go(structured=False)
    other.go(b"b")
    for _ in range(2):
        client.request(READ, 5, 10)
        assert client.error() == (number, told)
        simple.request(READ, 5, 10)
        assert simple.simple() == (number, 7)
        assert other.pread(0, 4) == b"fine"
    assert served.said == [f"a: {said}"]
    served.end()


def test_a_defect_ends_one_connection() -> None:
    """An image that gives what cannot be sent: the client is hung up on, and others are not."""

    class Wrong(MemoryImage):
        def pieces(self, offset: int, length: int) -> Iterator[Piece]:
            yield "text"  # type: ignore[misc]

    served = serving(Wrong(DATA), MemoryImage(b"fine"))
    client, other = served.client(), served.client()
    client.go()
    client.request(READ, 5, 10)
    assert client.left()
    other.go(b"b")
    assert other.pread(0, 4) == b"fine"
    assert [each.startswith("a: TypeError: ") for each in served.said] == [True]
    served.end()


def test_an_error_behind_the_first_block() -> None:
    """Structured replies name the place; without them all that is left is to hang up."""
    served = serving(failing(DigestMismatch("damaged"), behind=BLOCK))
    client, simple = served.client(), served.client()
    client.go()
    client.request(READ, 10, 3 * BLOCK)
    first, last = client.chunks()
    assert (1, DATA[10 : 10 + BLOCK]) == (first.kind, first.payload[8:])
    assert (0x8002, (BLOCK + 10).to_bytes(8, "big")) == (last.kind, last.payload[-8:])
    assert DATA[:10] == client.pread(0, 10)
    simple.go(structured=False)
    simple.request(READ, 10, 3 * BLOCK)
    assert simple.simple() == (0, 7)
    assert DATA[10 : 10 + BLOCK] == simple.read(BLOCK)
    assert simple.left()
    served.end()


def test_complaints_end() -> None:
    """A bundle with a thousand damaged frames does not fill a log."""

    def before(offset: int) -> None:
        raise DigestMismatch(f"frame at {offset}")

    served = serving(MemoryImage(DATA, before=before))
    client = served.client()
    client.go()
    for offset in range(150):
        client.request(READ, offset, 1)
        assert (EIO, f"frame at {offset}") == client.error()
    assert [f"a: frame at {offset}" for offset in range(100)] == served.said
    served.end()


# ---- several clients


class Gate:
    """Holds up whoever reads at offset 0, and counts the reads."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.reads = 0

    def __call__(self, offset: int) -> None:
        self.reads += 1
        if offset == 0:
            self.reached.set()
            assert self.open.wait(20)


def cookie_and_data(chunk: Chunk) -> tuple[int, bytes]:
    return chunk.cookie, chunk.payload[8:]


def test_requests_overtake_each_other() -> None:
    """What takes long holds up neither the same client's next request nor other clients."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate))
    client, other = served.client(), served.client()
    client.go()
    other.go()
    client.request(READ, 0, 5, cookie=1)
    assert gate.reached.wait(20)
    client.request(READ, 10, 5, cookie=2)
    assert (2, DATA[10:15]) == cookie_and_data(client.chunk())
    assert DATA[20:30] == other.pread(20, 10)
    gate.open.set()
    assert (1, DATA[:5]) == cookie_and_data(client.chunk())
    served.end()


def test_a_farewell_waits_for_answers() -> None:
    """DISC ends the connection behind what was asked before it."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate))
    client = served.client()
    client.go()
    client.request(READ, 0, 5, cookie=1)
    assert gate.reached.wait(20)
    client.request(DISC, 0, 0)
    gate.open.set()
    assert DATA[:5] == client.chunk().payload[8:]
    assert client.left()
    served.end()


def test_slots_bound_what_is_made_at_once() -> None:
    """With one slot, the second read begins when the first one is done, whoever asks."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate), jobs=1)
    client, other = served.client(), served.client()
    client.go()
    other.go()
    client.request(READ, 0, 5)
    assert gate.reached.wait(20)
    other.request(READ, 10, 5)
    time.sleep(0.2)
    assert gate.reads == 1
    gate.open.set()
    assert DATA[10:15] == other.chunk().payload[8:]
    served.end()


def test_who_asks_for_much_waits_for_his_own() -> None:
    """A client's eighth request does not go before another one's first."""
    order: list[int] = []
    gate = Gate()

    def before(offset: int) -> None:
        order.append(offset)
        gate(offset)
        time.sleep(0.02)

    served = serving(MemoryImage(DATA, before=before), jobs=1)
    greedy, other = served.client(), served.client()
    greedy.go()
    other.go()
    for offset in range(8):
        greedy.request(READ, offset, 1, cookie=offset)
    assert gate.reached.wait(20)
    other.request(READ, 100, 1)
    other.request(READ, SIZE, 1)
    assert other.error()[0] == EINVAL  # so the one before it was received
    time.sleep(0.1)
    gate.open.set()
    assert other.chunk().payload[8:] == DATA[100:101]
    assert order.index(100) < 5
    served.end()


def test_who_does_not_read_stops_himself_alone() -> None:
    """A client that asks for 160 MB and takes none of them: a block for each of its threads is
    made, and others are served."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate))
    greedy, other = served.client(), served.client()
    greedy.go()
    other.go()
    for number in range(50):
        greedy.request(READ, 1, SIZE - 1, cookie=number)
    deadline = time.monotonic() + 20
    while gate.reads < THREADS and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    # The kernel may hold a block, whose thread is at its next one.
    assert THREADS <= gate.reads <= THREADS + 1
    assert DATA[20:30] == other.pread(20, 10)
    served.end()


def test_who_disappears_leaves_nothing_behind() -> None:
    """Threads of clients that left, in the middle of whatever, end."""
    before = threading.active_count()
    served = serving(MemoryImage(DATA))
    for number in range(10):
        client = served.client()
        if number > 3:
            client.go()
        if number > 6:
            for _ in range(20):
                client.request(READ, 0, SIZE)
        client.socket.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert before + 1 == threading.active_count()
    served.end()
    assert before == threading.active_count()


def fill(served: Serving) -> list[Client]:
    """As many clients as there is room for, all at work: each has just chosen."""
    clients = [served.client() for _ in range(MAX_CLIENTS)]
    for client in clients:
        client.go()
    return clients


def pause(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> None:
    """Who holds a place for so long without use may lose it."""
    monkeypatch.setattr(admission, "HURRY", seconds)
    monkeypatch.setattr(admission, "IDLE", seconds)


def test_so_many_clients() -> None:
    """One too many is sent away while all are at work, and has room when another one leaves."""
    served = serving(MemoryImage(b"fine"))
    clients = fill(served)
    assert [served.client().left() for _ in range(2)] == [True, True]
    assert [f"a client was sent away: there are {MAX_CLIENTS}, none of them idle"] == served.said
    clients[5].request(DISC, 0, 0)
    assert clients[5].left()
    time.sleep(0.1)
    client = served.client()
    client.go()
    assert client.pread(0, 4) == b"fine"
    served.end()


def test_idle_clients_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all places are held, the client that has been idle longest makes room; those that ask for
    something keep theirs."""
    served = serving(MemoryImage(b"fine"))
    clients = fill(served)
    pause(monkeypatch)
    time.sleep(0.6)
    for client in (clients[0], clients[1], *clients[3:]):
        assert client.pread(0, 4) == b"fine"
    client = served.client()
    client.go()
    assert client.pread(0, 4) == b"fine"
    assert clients[2].left()
    pause(monkeypatch, 60)
    assert served.client().left()
    assert [clients[0].pread(0, 4), clients[63].pread(0, 4)] == [b"fine"] * 2
    assert served.said == [
        f"a client that asked for nothing for 0.5 s made room for another one: there are {MAX_CLIENTS}",
        f"a client was sent away: there are {MAX_CLIENTS}, none of them idle",
    ]
    served.end()


def test_silent_clients_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not choose goes before who is idle, the first one first, and it is said once."""
    served = serving(MemoryImage(b"fine"))
    idle = [served.client() for _ in range(3)]
    for client in idle:
        client.go()
    silent = [served.client() for _ in range(MAX_CLIENTS - 3)]
    for client in silent:
        client.read(18)
    assert served.client().left()
    pause(monkeypatch)
    time.sleep(0.6)
    for number in range(2):
        client = served.client()
        client.go()
        assert client.pread(0, 4) == b"fine"
        assert silent[number].left()
    assert [client.pread(0, 4) for client in idle] == [b"fine"] * 3
    assert served.said[1:] == [
        f"a client that chose nothing for 0.5 s made room for another one: there are {MAX_CLIENTS}"
    ]
    served.end()


def test_who_does_not_read_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that nobody takes are no work; what is being made is, however long it takes."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate), MemoryImage(b"fine"), jobs=3)
    clients = fill(served)
    clients[7].request(READ, 0, 5)
    assert gate.reached.wait(20)
    for _ in range(10):
        clients[20].request(READ, 1, SIZE - 1)
    pause(monkeypatch)
    time.sleep(0.8)
    for number, client in enumerate(clients):
        if number not in {7, 20}:
            assert client.pread(1, 4) == DATA[1:5]
    client = served.client()
    client.go(b"b")
    assert client.pread(0, 4) == b"fine"
    gate.open.set()
    assert DATA[:5] == clients[7].chunk().payload[8:]
    with pytest.raises((AssertionError, ConnectionResetError), match=r"the server left|reset"):
        clients[20].read(10 * SIZE)
    served.end()


def connected(port: int, host: str) -> Client:
    """A client of an address of this machine's."""
    return Client(socket.create_connection(("127.0.0.1", port), 20, (host, 0)))


def test_one_address_has_a_part_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has many connections makes room among his own, and others come in."""
    said: list[str] = []
    with listening(Place(host="127.0.0.1")) as found:
        server = Server(found.socket, Exports([Export("a", MemoryImage(DATA))]), 1, said.append)
        server.start()
        greedy = [connected(found.port, "127.0.0.2") for _ in range(MAX_OF_ADDRESS)]
        for client in greedy:
            client.go()
        assert connected(found.port, "127.0.0.2").left()
        other = connected(found.port, "127.0.0.3")
        other.go()
        pause(monkeypatch, 0.2)
        time.sleep(0.3)
        another = connected(found.port, "127.0.0.2")
        another.go()
        assert greedy[0].left()
        assert [each.pread(5, 9) for each in (another, other, greedy[1])] == [DATA[5:14]] * 3
        server.stop()
        for client in (*greedy, other, another):
            client.socket.close()
    many = f"there are {MAX_OF_ADDRESS} of its address"
    assert said == [
        f"a client was sent away: {many}, none of them idle",
        f"a client that asked for nothing for 0.2 s made room for another one: {many}",
    ]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ""),
        (b"\0abstract", ""),
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("2001:db8:1:2:3::4", 1234, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1234, 0, 2), "fe80::/64"),
    ],
)
def test_whose_an_address_is(address: object, expected: str) -> None:
    """A host's, or an IPv6 network's: who has one address of it has all. A unix socket's is nobody's."""
    assert expected == origin(address)


def test_the_end_of_a_server() -> None:
    """It hangs up, whatever clients are doing, and says nothing of it."""
    gate = Gate()
    served = serving(MemoryImage(DATA, before=gate))
    idle, silent, waiting = served.client(), served.client(), served.client()
    idle.go()
    waiting.go()
    silent.read(18)
    waiting.request(READ, 1, SIZE - 1)
    started = time.monotonic()
    served.server.stop()
    assert time.monotonic() - started < 2
    assert (idle.left(), silent.left()) == (True, True)
    with pytest.raises(OSError, match="refused"):
        served.client()
    assert served.said == []
    served.end()


@pytest.fixture(scope="module")
def bystander() -> Iterator[Serving]:
    found = serving(MemoryImage(DATA, [HOLE]), MemoryImage(b"second"))
    yield found
    found.end()


def bytes_of_clients() -> st.SearchStrategy[bytes]:
    """Options, requests and noise, well-formed or nearly so."""
    small = st.binary(max_size=40)
    option = st.builds(
        lambda number, data, off: struct.pack(">QII", 0x49484156454F5054, number, len(data) + off) + data,
        st.integers(0, 12),
        st.one_of(small, st.builds(go_data, small), st.builds(context_data, small, small)),
        st.sampled_from([0, 0, 0, 1, 70_000]),
    )
    request = st.builds(
        lambda flags, kind, offset, length: struct.pack(
            ">IHHQQI", 0x25609513, flags, kind, 1, offset, length
        ),
        st.integers(0, 40),
        st.integers(0, 9),
        st.integers(0, SIZE + 10),
        st.integers(0, 3000),
    )
    go = st.just(struct.pack(">QII", 0x49484156454F5054, 7, 6) + go_data(b""))
    part = st.one_of(option, option, request, go, small)
    return st.builds(lambda flags, parts: flags + b"".join(parts), st.sampled_from(FLAGS), st.lists(part))


FLAGS = [b"\0\0\0\3", b"\0\0\0\1", b"\0\0\0\0", b""]


@given(data=bytes_of_clients())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_harm_nobody(bystander: Serving, data: bytes) -> None:
    """Whatever a client sends, its connection ends when it has sent it, and the next one is served."""
    hostile = bystander.client()
    hostile.socket.sendall(data)
    hostile.socket.shutdown(socket.SHUT_WR)
    while not hostile.left():
        pass
    client = bystander.client()
    client.go(b"b")
    assert client.pread(0, 6) == b"second"
    client.socket.close()
    hostile.socket.close()
    assert bystander.said == []


# ---- places


def test_a_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Mode 0600 from the beginning, whatever the umask; gone at the end."""
    path = tmp_path / "s"
    mask = os.umask(0)
    try:
        with listening(Place(path)) as found:
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert (found.port, found.public) == (0, False)
    finally:
        assert os.umask(mask) == 0
    assert not path.exists()


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    """Neither a file, nor a link, nor a socket that somebody listens on."""
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"mine")
    link.symlink_to(path)
    for each in (path, link):
        with pytest.raises(UsageError, match=f"{each}: is there already"), listening(Place(each)):
            pass
    assert path.read_bytes() == b"mine"
    live = tmp_path / "live"
    with listening(Place(live)):
        with pytest.raises(UsageError, match="is there already"), listening(Place(live)):
            pass
        assert live.exists()


def test_what_a_killed_server_left_gives_way(tmp_path: Path) -> None:
    """A socket that nobody listens on is replaced."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abandoned:
        abandoned.bind(str(path))
    with listening(Place(path)) as found, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        found.socket.accept()[0].close()
    assert not path.exists()


def test_another_ones_file_stays(tmp_path: Path) -> None:
    """What somebody put in the place of our socket is not ours to remove."""
    path = tmp_path / "s"
    with listening(Place(path)):
        path.unlink()
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"


def test_places_that_cannot_be(tmp_path: Path) -> None:
    """A directory that is missing, a path that is too long, an address of another machine."""
    with pytest.raises(UsageError, match=r"No such file or directory; name another"):
        listening(Place(tmp_path / "no" / "s")).__enter__()
    with pytest.raises(UsageError, match=r"too long for a unix socket \(107 bytes"):
        listening(Place(Path("/" + "x" * 108))).__enter__()
    with pytest.raises(RehydratorError, match=r"192\.0\.2\.1 port 0: Cannot assign"):
        listening(Place(host="192.0.2.1")).__enter__()


def test_no_place_for_a_socket(tmp_path: Path) -> None:
    """Where nothing can be written, somebody has to name a place."""
    with pytest.raises(UsageError, match=f"{tmp_path}/none: No such .*; name a place with --socket"):
        _private_directory(tmp_path / "none").__enter__()


def test_a_port_that_is_taken() -> None:
    """Says which, and what to do."""
    with listening(Place(host="127.0.0.1")) as first:
        place = Place(host="127.0.0.1", port=first.port)
        with pytest.raises(RehydratorError, match="Address already in use; name another"):
            listening(place).__enter__()


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:10809", "127.0.0.1", 10809), ("[::1]:0", "::1", 0), ("a.example:1", "a.example", 1)],
)
def test_addresses(listen: str, host: str, port: int) -> None:
    """HOST:PORT, an IPv6 address in brackets."""
    assert Place(host=host, port=port) == place_of(None, listen)


@pytest.mark.parametrize(
    "listen", ["", "10809", ":10809", "localhost", "localhost:", "h:65536", "h:-1", "h:x"]
)
def test_no_addresses(listen: str) -> None:
    """Nothing is guessed: who wants everybody says so."""
    with pytest.raises(UsageError, match="name HOST:PORT"):
        place_of(None, listen)


def test_uris(tmp_path: Path) -> None:
    """Names and paths are quoted."""
    path = tmp_path / "a b&c?"
    with listening(Place(path)) as found:
        assert f"nbd+unix:///?socket={tmp_path}/a%20b%26c%3F" == found.uri()
        assert f"nbd+unix:///x%2Fy%20z?socket={tmp_path}/a%20b%26c%3F" == found.uri("x/y z")
    with listening(Place(host="127.0.0.1")) as found:
        assert f"nbd://127.0.0.1:{found.port}/x" == found.uri("x")
        assert not found.public


@pytest.mark.parametrize(("host", "loopback"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_uris_of_all_addresses(host: str, loopback: str) -> None:
    """All addresses are none that a client elsewhere could use: the machine is named; to itself it is
    the loopback address. What is warned of is what was asked for."""
    with listening(Place(host=host)) as found:
        assert f"nbd://{socket.gethostname()}:{found.port}/x" == found.uri("x")
        assert f"nbd://{loopback}:{found.port}/x" == found.uri("x", here=True)
        shown = f"[{host}]" if ":" in host else host
        assert (True, f"{shown}:{found.port}") == (found.public, found.authority)


def test_over_tcp() -> None:
    """The same protocol."""
    with listening(Place(host="127.0.0.1")) as found:
        server = Server(found.socket, Exports([Export("a", MemoryImage(DATA))]), 1, print)
        server.start()
        with socket.create_connection(("127.0.0.1", found.port)) as connection:
            client = Client(connection)
            client.go()
            assert DATA[5:100_005] == client.pread(5, 100_000)
        server.stop()


def test_hostile_recipes_are_an_error() -> None:
    """Zeros of a recipe that names a space that there is not."""
    of = machine(b"", [Copy(4096, 9, 0)])
    with pytest.raises(HostileInput, match="space 9"):
        runs_of(of, 1)
