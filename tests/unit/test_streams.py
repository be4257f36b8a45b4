"""Stream encoders by id: their parameters are checked, their bytes are one stream, and the one that
wrote a stream is found."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import subprocess
import sys
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.codecs import deflate_encoders, deflate_streams, lzma2, streams
from rehydrator.codecs.stream_encoder import pieces
from rehydrator.core.errors import HostileInput, LimitExceeded, ToolMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KIB, MIB = 1 << 10, 1 << 20
DICE = random.Random(46)
WORDS = [DICE.randbytes(DICE.randrange(2, 9)).hex().encode() for _ in range(2000)]
TEXT = b" ".join(DICE.choice(WORDS) for _ in range(60_000))

LIBRARIES = [
    ("deflate.zlib", {"level": 6, "memlevel": 8}),
    ("deflate.zlib-ng", {"level": 6, "memlevel": 8, "piece": 16 * KIB}),
    ("deflate.libdeflate", {"level": 6}),
    ("deflate.isal", {"level": 2, "memlevel": 8, "piece": 64 * KIB}),
]
LZMA2 = {"preset": 1, "extreme": 0, "dict_size": MIB}
GZIP = {"level": 6, "rsyncable": 0}
PROGRAMS = [
    ("deflate.gzip", GZIP),
    ("deflate.pigz", {"level": 9, "independent": 0, "rsyncable": 1}),
    ("deflate.zip", {"level": 9}),
]


def chunks(data: bytes, size: int) -> list[bytes]:
    return [b"", *(data[at : at + size] for at in range(0, len(data), size)), b""]


def pretends(argv: Sequence[str], given: Iterable[bytes]) -> Iterator[bytes]:
    """A runner of programs that runs none: gzip and pigz are zlib level 6, zip is too."""
    plain = b"".join(given)
    if "--version" in argv:
        yield f"This is {argv[0]} 1.2.3 (and so on 4.5)".encode()
    elif argv[0] == "zip":
        yield from chunks(_zip(plain), 700)
    else:
        packed = zlib.compressobj(6, zlib.DEFLATED, 31)
        yield from chunks(packed.compress(plain) + packed.flush(), 700)


def _zip(plain: bytes) -> bytes:
    """A zip archive as zip streams it: data descriptor with 64-bit sizes, forced zip64."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.said = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.said += data
            return len(data)

    pipe = Pipe()
    with (
        zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("-", "w", force_zip64=True) as member,
    ):
        member.write(plain)
    return bytes(pipe.said)


def deflated(plain: bytes, level: int = 6, memlevel: int = 8) -> bytes:
    packed = zlib.compressobj(level, zlib.DEFLATED, -15, memlevel)
    return packed.compress(plain) + packed.flush()


def encoded(codec: str, params: dict[str, int], data: Iterable[bytes]) -> bytes:
    return b"".join(streams.encoder(codec, params, pretends).encode(data))


@pytest.mark.parametrize(("codec", "params"), LIBRARIES)
def test_libraries_write_one_stream_however_the_input_is_cut(codec: str, params: dict[str, int]) -> None:
    """The same bytes for one chunk and for many, and they inflate to the input."""
    for plain in (b"", b"x", TEXT[: 200 * KIB]):
        whole = encoded(codec, params, [plain])
        assert [whole] * 2 == [encoded(codec, params, chunks(plain, size)) for size in (999, 70_000)]
        inflate = zlib.decompressobj(-15)
        assert (inflate.decompress(whole), inflate.eof, inflate.unused_data) == (plain, True, b"")


def test_lzma2_is_one_stream_however_the_input_is_cut() -> None:
    """The block's data, its end marker included."""
    whole = encoded("lzma2", LZMA2, [TEXT])
    assert whole == encoded("lzma2", LZMA2, chunks(TEXT, 999))
    assert lzma2.decode(whole, MIB, len(TEXT)) == TEXT


@pytest.mark.parametrize(("codec", "params"), PROGRAMS)
def test_a_programs_container_is_taken_off(codec: str, params: dict[str, int]) -> None:
    """What is left of a gzip member and of a zip archive is the raw stream."""
    for plain in (b"", b"x", TEXT[:3000], TEXT):
        assert encoded(codec, params, chunks(plain, 5000)) == deflated(plain)


@pytest.mark.parametrize(
    ("codec", "params", "argv"),
    [
        ("deflate.gzip", {"level": 9, "rsyncable": 0}, "gzip -c -n -9"),
        ("deflate.gzip", {"level": 1, "rsyncable": 1}, "gzip -c -n -1 --rsyncable"),
        ("deflate.pigz", {"level": 6, "independent": 1, "rsyncable": 0}, "pigz -c -n -p 1 -6 -i"),
        ("deflate.pigz", {"level": 6, "independent": 0, "rsyncable": 1}, "pigz -c -n -p 1 -6 -R"),
        ("deflate.zip", {"level": 5}, "zip -q -X -5 - -"),
    ],
)
def test_programs_are_run_with_these_arguments(codec: str, params: dict[str, int], argv: str) -> None:
    """Nothing but words known here and one digit."""
    seen: list[str] = []

    def spy(words: Sequence[str], given: Iterable[bytes]) -> Iterator[bytes]:
        seen.append(" ".join(words))
        return pretends(words, given)

    list(streams.encoder(codec, params, spy).encode([TEXT]))
    assert seen == [argv]


def test_only_known_codecs_and_parameters_are_taken() -> None:
    """An unknown name, a parameter too many, too few, out of range, or no number."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("deflate", {"level": 6}),
        ("deflate.gzip -9", dict(GZIP)),
        ("deflate.gzip", {}),
        ("deflate.gzip", {"level": 6}),
        ("deflate.gzip", {**GZIP, "level": 0}),
        ("deflate.gzip", {**GZIP, "level": 10}),
        ("deflate.gzip", {**GZIP, "level": True}),
        ("deflate.gzip", {**GZIP, "level": "6 --fast"}),
        ("deflate.gzip", {**GZIP, "suffix": 1}),
        ("deflate.zip", {"level": 10}),
        ("deflate.pigz", {"level": 11, "independent": 0, "rsyncable": 0}),
        ("deflate.zlib", {"level": 6, "memlevel": 0}),
        ("deflate.zlib-ng", {"level": 6, "memlevel": 8, "piece": 0}),
        ("deflate.zlib-ng", {"level": 6, "memlevel": 8, "piece": 1 << 40}),
        ("deflate.isal", {"level": 4, "memlevel": 8, "piece": 1}),
        ("deflate.libdeflate", {"level": 13}),
        ("deflate.libdeflate", {"level": -1}),
        ("lzma2", {"preset": 10, "extreme": 0, "dict_size": MIB}),
        ("lzma2", {"preset": 6, "extreme": 0, "dict_size": 1 << 40}),
        ("lzma2", {"preset": 6}),
    ]
    for codec, params in wrong:
        for use in (streams.encoder, streams.memory, streams.described):
            with pytest.raises(
                HostileInput, match=r"unknown stream codec|does not have|out of range|of \d+ byte"
            ):
                use(codec, params)


def test_programs_need_somebody_who_runs_them() -> None:
    """Without a runner they are missing, and passed over in a search."""
    for codec, params in PROGRAMS:
        with pytest.raises(ToolMissing, match="programs are not run here"):
            list(streams.encoder(codec, params).encode([b"x"]))
    (hit,) = streams.find("deflate", TEXT[:9999], deflated(TEXT[:9999], 9), {}, whole=True)
    assert hit.codec == "deflate.zlib"


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """libdeflate and ISA-L are optional: their absence says what to install."""
    for codec, params, module in (*[(*LIBRARIES[2], "deflate")], *[(*LIBRARIES[3], "isal")]):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.isal_zlib", None)
        with pytest.raises(ToolMissing, match=f"package {module} is not installed"):
            list(streams.encoder(codec, params).encode([b"x"]))
        with pytest.raises(ToolMissing, match=f"package {module} is not installed"):
            streams.version(codec)


def test_versions_name_the_library() -> None:
    """Every codec says what it is, and programs are asked."""
    said = {
        codec: streams.version(codec, pretends)
        for family in ("deflate", "lzma2")
        for codec in streams.codecs(family)
    }
    assert {codec: said[codec].rsplit(" ", 1)[0] for codec in said} == {
        "deflate.gzip": "gzip",
        "deflate.zlib": "zlib",
        "deflate.pigz": "pigz",
        "deflate.zlib-ng": "zlib-ng",
        "deflate.libdeflate": "libdeflate of deflate",
        "deflate.isal": "ISA-L",
        "deflate.zip": "zip",
        "lzma2": "liblzma",
    }
    assert said["deflate.gzip"] == "gzip 1.2.3"
    assert said["deflate.zlib"] == f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
    assert said["lzma2"].split(" ")[1].split(".")[0] == "5"


def test_encoders_are_described() -> None:
    """As somebody would type them, or by their parameters."""
    assert [
        streams.described("deflate.gzip", {"level": 9, "rsyncable": 1}),
        streams.described("deflate.zlib", {"level": 6, "memlevel": 8}),
        streams.described("deflate.libdeflate", {"level": 12}),
        streams.described("lzma2", {"preset": 9, "extreme": 1, "dict_size": 64 * MIB}),
        streams.described("lzma2", {"preset": 6, "extreme": 0, "dict_size": 7 * MIB}),
        streams.described("lzma2", dict(lzma2.STORED)),
    ] == [
        "gzip -9 --rsyncable",
        "zlib level 6, memlevel 8",
        "libdeflate level 12",
        "xz -9e",
        "xz -6, dictionary of 7340032 bytes",
        "xz, stored",
    ]


def test_memory_is_counted() -> None:
    """libdeflate holds its input and output, the others a window; xz its dictionary."""
    assert streams.memory("deflate.zlib", {"level": 9, "memlevel": 9}) < 8 * MIB
    assert streams.memory("deflate.gzip", GZIP) < 8 * MIB
    small, large = (streams.memory("deflate.libdeflate", {"level": 6}, size) for size in (MIB, 1 << 30))
    assert (small < 32 * MIB, 2 << 30 < large < 3 << 30) == (True, True)
    assert streams.memory("deflate.libdeflate", {"level": 6}) > 4 << 30
    assert 600 * MIB < streams.memory("lzma2", {"preset": 9, "extreme": 0, "dict_size": 64 * MIB}) < 700 * MIB


def test_libdeflate_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its input at once: more than the limit is refused before it is in memory."""
    monkeypatch.setattr(deflate_encoders, "MAX_WHOLE", MIB)
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield bytes(64 * KIB)

    with pytest.raises(LimitExceeded, match="more than 1048576 bytes"):
        list(streams.encoder("deflate.libdeflate", {"level": 1}).encode(endless()))
    assert len(taken) == 17


@pytest.mark.parametrize(("codec", "params"), LIBRARIES)
def test_the_encoder_of_a_prefix_is_found(codec: str, params: dict[str, int]) -> None:
    """A sample of a stream is enough: the first hit is the encoder, with its parameters."""
    packed = encoded(codec, params, [TEXT])
    hits = streams.find("deflate", TEXT[: 500 * KIB], packed[: 400 * KIB], {}, whole=False)
    assert (codec, params) == (hits[0].codec, dict(hits[0].params))
    assert streams.prove(streams.encoder(codec, params), chunks(TEXT, 9999), chunks(packed, 777)) is None
    assert [hit.agreed for hit in hits] == sorted((hit.agreed for hit in hits), reverse=True)


def test_a_whole_stream_has_one_hit_and_that_gives_it() -> None:
    """What is given whole needs no proof; short streams are many encoders' and one is enough."""
    for plain in (b"", b"hello", TEXT[:5000], TEXT):
        (hit,) = streams.find("deflate", plain, deflated(plain, 9), {"xfl": 2}, whole=True)
        assert encoded(hit.codec, dict(hit.params), [plain]) == deflated(plain, 9)
    assert streams.find("deflate", TEXT, deflated(TEXT) + b"x", {}, whole=True) == []
    assert streams.find("deflate", TEXT, deflated(TEXT)[:-1], {}, whole=True) == []


def test_xz_levels_are_found() -> None:
    """By the dictionary that the header states; all that are alike, the likeliest first."""
    packed = encoded("lzma2", LZMA2, [TEXT])
    hits = streams.find("lzma2", TEXT, packed, {"dict_size": MIB}, whole=True)
    assert [(hit.codec, dict(hit.params)) for hit in hits] == [("lzma2", LZMA2)]
    assert streams.find("lzma2", TEXT, packed, {"dict_size": 2 * MIB}, whole=True) == []
    assert streams.find("lzma2", TEXT, packed, {}, whole=True) == []
    with pytest.raises(HostileInput):
        streams.find("lzma2", TEXT, packed, {"dict_size": 1}, whole=True)


def test_an_unknown_family_has_no_hits() -> None:
    """Whoever reads containers may know more than there are encoders."""
    assert streams.find("brotli", b"x", b"y", {}, whole=True) == []
    assert streams.codecs("brotli") == ()


def test_a_stream_of_noise_has_no_hits() -> None:
    """No encoder writes what is no deflate stream at all."""
    assert streams.find("deflate", TEXT, DICE.randbytes(100_000), {}, whole=False, run=pretends) == []


def test_the_header_orders_the_trial() -> None:
    """XFL 2 is level 9 and 4 is level 1; OS 255 is Python's GzipFile, 3 is a program."""
    headers: tuple[dict[str, int], ...] = (
        {"xfl": 2, "os": 3},
        {"xfl": 4, "os": 3},
        {"xfl": 0, "os": 3},
        {},
        {"xfl": 2, "os": 255},
    )
    every = [deflate_streams.likeliest(hints) for hints in headers]
    first = [(codec.id, dict(params)["level"]) for (codec, params), *_ in every]
    gnu = [("deflate.gzip", level) for level in (9, 1, 6, 6)]
    assert [*gnu, ("deflate.zlib", 9)] == first
    assert len({tuple(sorted(map(repr, each))) for each in every}) == 1
    (hit,) = streams.find("deflate", b"hello", deflated(b"hello"), {"os": 255}, whole=True, run=pretends)
    assert hit.codec == "deflate.zlib"


def test_streams_are_compared_however_they_are_cut() -> None:
    """The first difference, or the end of the shorter one, whatever the pieces."""
    data = DICE.randbytes(1000)
    other = data[:700] + bytes([data[700] ^ 1]) + data[701:]
    pairs = ((data, data), (other, data), (data[:400], data), (data, data[:400]), (b"", b""))
    for one in (1, 7, 256, 1000):
        for two in (1, 9, 300, 1000):
            found = [
                streams.first_difference(iter(chunks(left, one)), chunks(right, two)) for left, right in pairs
            ]
            assert found == [None, 700, 400, 400, None]


def test_pieces_are_of_one_size() -> None:
    """However they were cut before, and nothing is lost."""
    for size in (1, 10, 256, 999, 5000):
        for before in (1, 7, 256, 999, 1000, 3000):
            made = list(pieces(chunks(TEXT[:3000], before), size))
            assert b"".join(made) == TEXT[:3000]
            assert {len(piece) for piece in made[:-1]} <= {size}


@pytest.mark.parametrize(
    "said",
    [
        [],
        [b"\x1f\x8b"],
        [b"not gzip at all, but text"],
        [gzip.compress(b"x")[:12]],
        [b"PK\3\4" + bytes(100)],
        [_zip(TEXT)[:-400]],
        [_zip(TEXT)[:9000]],
        [_zip(TEXT).replace(b"PK\7\x08", b"PK\7\x09")],
        [_zip(TEXT)[:40], _zip(TEXT)[41:]],
    ],
)
def test_a_program_that_writes_something_else_is_refused(said: list[bytes]) -> None:
    """No header, no end, or a length that is not that of the data, is told in words."""
    for codec, params in PROGRAMS:
        with pytest.raises(HostileInput, match=f"^{codec[8:]} wrote no (gzip|zip) "):
            list(streams.encoder(codec, params, lambda _argv, _chunks: iter(said)).encode([b"x"]))


def test_closing_an_encoder_closes_the_program() -> None:
    """What takes a container off passes on that nobody wants more."""
    closed: list[str] = []

    def noticing(argv: Sequence[str], given: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from pretends(argv, given)
        finally:
            closed.append(argv[0])

    for codec, params in PROGRAMS:
        made = streams.encoder(codec, params, noticing).encode([TEXT])
        next(made)
        made.close()  # type: ignore[attr-defined]
    assert closed == ["gzip", "pigz", "zip"]


def test_importing_the_registry_is_light() -> None:
    """The reader starts fast: no optional library is imported before it is needed."""
    late = ("zlib_ng", "isal", "deflate", "ctypes", "numpy", "subprocess")
    code = f"import sys, rehydrator.codecs.streams; print([n for n in {late} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_lzma_is_the_standard_librarys() -> None:
    """The version that is told belongs to the liblzma that encodes."""
    packed = lzma.compress(b"x", lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    params = {"preset": 6, "extreme": 0, "dict_size": 8 * MIB}
    assert packed == encoded("lzma2", params, [b"x"])


def test_a_version_is_read_to_no_end() -> None:
    """A program that says its version for ever is ended, and has none."""
    written = []

    def endless(argv: Sequence[str], chunks: Iterable[bytes]) -> Iterator[bytes]:
        while True:
            written.append(argv)
            yield bytes(1000)

    assert streams.version("deflate.gzip", endless) == "gzip of no known version"
    assert len(written) < 100
