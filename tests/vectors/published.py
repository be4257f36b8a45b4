"""Golden vectors of published forms, streams and blocks of file systems, good and broken.

What must come out is put together here from the specifications of .xz, gzip, zip and tar, and
read back by the standard library. Contents are so plain that encoders of all versions agree.
"""

from __future__ import annotations

import copy
import gzip
import io
import lzma
import random
import struct
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zlib_ng import zlib_ng

from rehydrator.core.ops import Copy, Decode, Op, Series, Stream, zeros
from tests.vectors.making import Making, broken, change_ops, document, put, sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vectors.draft import Draft

FOXES = b"".join(b"The quick brown fox %d jumps over the lazy dog. " % (k * 7919 % 1000) for k in range(25))
NOISE = random.Random(4).randbytes(300)
FOXES_LZMA1 = bytes.fromhex(  # of FOXES[:900], lc 3, pb 2
    "a22a1a08a2032566f14b78c5a205ff2ee6d9d2201aad2e25e2f459634c1d26823eae0d9929b022df4f2e600904bfcd"
    "10e4b74ec8db0431d70180e06bd1e7fbcbb6a13bc5aeadd29e6b45f7516fb3adf3e8436eb9b97d4d1a8041da7ea5e8"
    "88a45ae00c2f4ff28b14c661206e6b84c847811327837387cc90da4dfffd3f3c00"
)

LZMA2 = {"preset": 6, "extreme": 0, "dict_size": 1 << 16}
STORED = {"stored": 1}


class Container:
    """A published form on its way: literals, and streams over the bytes of a space."""

    def __init__(self, making: Making, space: int, plain: bytes) -> None:
        self._making, self._space, self.plain = making, space, plain
        self._parts: list[bytes | Stream] = []
        self._rules: set[int] = set()
        self.content = b""

    def literal(self, data: bytes) -> None:
        """Bytes that no rule gives."""
        last = self._parts.pop() if self._parts and isinstance(self._parts[-1], bytes) else b""
        assert isinstance(last, bytes)
        self._parts.append(last + data)
        self.content += data

    def stream(self, rule: int, offset: int, length: int, encode: Callable[[bytes], bytes]) -> bytes:
        """A span of the space, encoded; the plain bytes."""
        plain = self.plain[offset : offset + length]
        packed = encode(plain)
        self._parts.append(Stream(len(packed), rule, offset, len(plain)))
        self._rules.add(rule)
        self.content += packed
        return plain

    def recipe(self) -> int:
        """Its space."""
        at = self._making.data(b"".join(part for part in self._parts if isinstance(part, bytes)))
        ops: list[Op] = []
        for part in self._parts:
            ops.append(Copy(len(part), 0, at) if isinstance(part, bytes) else part)
            at += len(part) if isinstance(part, bytes) else 0
        return self._making.recipe([0, self._space], ops, streams=sorted(self._rules))


def checksum(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


# --- .xz (The .xz File Format 1.2): blocks of one filter, LZMA2, with CRC32


def lzma2(plain: bytes) -> bytes:
    """LZMA2 data by the parameters `LZMA2`."""
    chain = [{"id": lzma.FILTER_LZMA2, "preset": LZMA2["preset"], "dict_size": LZMA2["dict_size"]}]
    return lzma.compress(plain, lzma.FORMAT_RAW, filters=chain)


def lzma2_stored(plain: bytes) -> bytes:
    """LZMA2 data of one stored chunk."""
    return b"\1" + struct.pack(">H", len(plain) - 1) + plain + b"\0"


def xz_header(dictionary: int) -> bytes:
    """Of a block, with the dictionary as 5.3.1 encodes it."""
    header = b"\x02\0\x21\1" + bytes([dictionary]) + bytes(3)
    return header + checksum(header)


def xz_number(value: int) -> bytes:
    """1.2: seven bits a byte, the lowest first."""
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + xz_number(high) if high else bytes([low])


def xz_end(blocks: list[tuple[int, int]]) -> bytes:
    """Index and footer; a block is its unpadded and its plain size."""
    index = b"\0" + xz_number(len(blocks))
    index += b"".join(xz_number(unpadded) + xz_number(plain) for unpadded, plain in blocks)
    index += bytes(-len(index) % 4)
    footer = struct.pack("<IH", (len(index) + 4) // 4 - 1, 1 << 8)
    return index + checksum(index) + checksum(footer) + footer + b"YZ"


XZ_BEGIN = b"\xfd7zXZ\0\0\1" + checksum(b"\0\1")


def xz_block(container: Container, rule: int, offset: int, length: int) -> tuple[int, int]:
    """A block by rule 0, LZMA2, or by rule 1, stored."""
    container.literal(xz_header(0 if rule else 8))
    before = len(container.content)
    plain = container.stream(rule, offset, length, lzma2_stored if rule else lzma2)
    packed = len(container.content) - before
    container.literal(bytes(-packed % 4) + checksum(plain))
    return 12 + packed + 4, len(plain)


def lzma2_rules(making: Making, space: int, at: int) -> None:
    """Rules 0 and 1, and their known answers about the 300 bytes from `at`."""
    for params, encode in ((LZMA2, lzma2), (STORED, lzma2_stored)):
        making.stream("lzma2", params, space)
        making.answer("lzma2", params, (at, len(NOISE)), encode(NOISE))


def streams_xz() -> Draft:
    """A disk in an .xz of three blocks, one of them stored, with a signature beside it."""
    making = Making()
    foxes, noise = making.data(FOXES), making.data(NOISE)
    making.data(b"unused")
    ops: list[Op] = [Copy(len(FOXES), 0, foxes), zeros(9000), Copy(len(NOISE), 0, noise)]
    ops.append(Series(4000, 0, 3, 4, "little"))
    plain = FOXES + bytes(9000) + NOISE + b"".join(struct.pack("<I", 3 * k) for k in range(1000))
    image = making.recipe([0], ops)
    lzma2_rules(making, image, noise)
    container, edge = Container(making, image, plain), len(FOXES) + 9000
    container.literal(XZ_BEGIN)
    spans = ((0, 0, edge), (1, edge, len(NOISE)), (0, edge + len(NOISE), 4000))
    container.literal(xz_end([xz_block(container, *span) for span in spans]))
    assert plain == lzma.decompress(container.content)
    making.artifact("disk.raw", image, plain, format="raw.xz", virtual_size=len(plain))
    making.form("published", "disk.raw.xz", container.recipe(), container.content)
    signature = b"-----BEGIN PGP SIGNATURE-----\n"
    making.form(
        "signature", "disk.raw.xz.sig", making.recipe([0], [Copy(30, 0, making.data(signature))]), signature
    )
    return making.draft()


# --- gzip (RFC 1952) and zip (APPNOTE 4.3)

GZIP_BEGIN = b"\x1f\x8b\x08\0" + bytes(4) + b"\0\3"
DEFLATE = {"level": 9, "memlevel": 8}
DEFLATE_NG = {"level": 6, "memlevel": 8, "piece": 10_000}


def deflate(plain: bytes) -> bytes:
    """Raw deflate by the parameters `DEFLATE`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 8)
    return packer.compress(plain) + packer.flush()


def deflate_ng(plain: bytes) -> bytes:
    """Raw deflate by zlib-ng and the parameters `DEFLATE_NG`."""
    packer = zlib_ng.compressobj(6, zlib.DEFLATED, -15, 8)
    parts = [packer.compress(plain[at : at + 10_000]) for at in range(0, len(plain), 10_000)]
    return b"".join(parts) + bytes(packer.flush())


def gzip_end(plain: bytes) -> bytes:
    """Trailer of a member."""
    return checksum(plain) + struct.pack("<I", len(plain))


def streams_gzip() -> Draft:
    """A .gz of two members, the first one large, and zeros behind them."""
    making = Making()
    at = making.data(FOXES)
    large = 1_200_000
    image = making.recipe([0], [zeros(large), Copy(len(FOXES), 0, at), zeros(70_000)])
    plain = bytes(large) + FOXES + bytes(70_000)
    making.stream("deflate.zlib", DEFLATE, image)
    making.stream("deflate.zlib-ng", DEFLATE_NG, image)
    making.answer("deflate.zlib", DEFLATE, (at, len(FOXES)), deflate(FOXES))
    making.answer("deflate.zlib-ng", DEFLATE_NG, (at, len(FOXES)), deflate_ng(FOXES))
    container = Container(making, image, plain)
    container.literal(b"\x1f\x8b\x08\x08\x01\x02\x03\x04\x02\x03disk.raw\0")
    container.literal(gzip_end(container.stream(0, 0, large + 100, deflate)))
    container.literal(GZIP_BEGIN)
    container.literal(gzip_end(container.stream(1, large + 100, len(plain), deflate_ng)) + bytes(5))
    assert plain == gzip.decompress(container.content)
    making.artifact("disk.raw", image, plain, format="raw.gz")
    making.form("published", "disk.raw.gz", container.recipe(), container.content)
    return making.draft()


def program(*argv: str) -> Callable[[bytes], bytes]:
    """A program as a filter."""
    return lambda plain: subprocess.run(argv, input=plain, check=True, capture_output=True).stdout


GZIP = {"level": 9, "rsyncable": 1}
PIGZ = {"level": 6, "independent": 1, "rsyncable": 0}
ZIP = {"level": 6}


def gzip_body(plain: bytes) -> bytes:
    """By the parameters `GZIP`."""
    return program("gzip", "-c", "-n", "-9", "--rsyncable")(plain)[10:-8]


def pigz_body(plain: bytes) -> bytes:
    """By the parameters `PIGZ`."""
    return program("pigz", "-c", "-n", "-p", "1", "-6", "-i")(plain)[10:-8]


def zip_body(plain: bytes) -> bytes:
    """By the parameters `ZIP`."""
    archive = program("zip", "-q", "-X", "-6", "-", "-")(plain)
    [member] = zipfile.ZipFile(io.BytesIO(archive)).infolist()
    begin = 30 + sum(struct.unpack_from("<HH", archive, 26))
    return archive[begin : begin + member.compress_size]


def zip_archive(container: Container, rule: int, offset: int, length: int) -> None:
    """An archive of one member, "a", which is a span of the space."""
    plain = container.plain[offset : offset + length]
    sizes = struct.pack("<4sII", checksum(plain), len(zip_body(plain)), length)
    fields = struct.pack("<HHHHH", 20, 0, 8, 0, 0x21) + sizes + struct.pack("<HH", 1, 0)
    container.literal(b"PK\3\4" + fields + b"a")
    container.stream(rule, offset, length, zip_body)
    directory = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(container.content), 0)
    container.literal(directory + b"PK\5\6" + end)


def streams_programs() -> Draft:
    """A .gz of two members by gzip and pigz, and a .zip by zip: each program by its own params."""
    making = Making()
    at = making.data(FOXES)
    image = making.recipe([0], [zeros(140_000), Copy(len(FOXES), 0, at)])
    plain = bytes(140_000) + FOXES
    for codec, params, body in (
        ("deflate.gzip", GZIP, gzip_body),
        ("deflate.pigz", PIGZ, pigz_body),
        ("deflate.zip", ZIP, zip_body),
    ):
        making.answer(codec, params, (at, len(FOXES)), body(FOXES))
        making.stream(codec, params, image)
    members = Container(making, image, plain)
    for rule, offset, length, body in ((0, 139_000, 5000, gzip_body), (1, 0, len(plain), pigz_body)):
        members.literal(GZIP_BEGIN)
        members.literal(gzip_end(members.stream(rule, offset, length, body)))
    assert plain[139_000:144_000] + plain == gzip.decompress(members.content)
    archive = Container(making, image, plain)
    zip_archive(archive, 2, 0, len(plain))
    assert plain == zipfile.ZipFile(io.BytesIO(archive.content)).read("a")
    for kind, container in (("gz", members), ("zip", archive)):
        making.artifact(f"{kind}.raw", image, plain, format=f"raw.{kind}")
        making.form("published", f"{kind}.raw.{kind}", container.recipe(), container.content)
    return making.draft()


def tar_member(name: str, content: bytes) -> bytes:
    """Header, content and padding of a member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def nested() -> Draft:
    """An .xz of a tar with a gzip member over one file: streams of streams, and an image form
    that needs an encoder itself."""
    making = Making()
    at = making.data(FOXES)
    inner = making.recipe([0], [Copy(len(FOXES), 0, at), zeros(5000), Copy(777, 0, at + 5)])
    plain = FOXES + bytes(5000) + FOXES[5:782]
    rule = making.stream("deflate.zlib", DEFLATE, inner)
    making.answer("deflate.zlib", DEFLATE, (at, len(FOXES)), deflate(FOXES))
    layer = GZIP_BEGIN + deflate(plain) + gzip_end(plain)
    tar = tar_member("note", b"a note\n") + tar_member("layer.gz", layer) + bytes(1024)
    image, begin = Container(making, inner, plain), tar.index(layer) + len(GZIP_BEGIN)
    image.literal(tar[:begin])
    image.literal(tar[begin + len(deflate(image.stream(rule, 0, len(plain), deflate))) :])
    assert tar == image.content
    space = image.recipe()
    making.artifact("layers.tar", space, tar, format="tar.xz")
    outer = Container(making, space, tar)
    outer_rule = making.stream("lzma2", LZMA2, space)
    making.answer("lzma2", LZMA2, (at, len(FOXES)), lzma2(FOXES))
    outer.literal(XZ_BEGIN + xz_header(8))
    before = len(outer.content)
    outer.stream(outer_rule, 0, len(tar), lzma2)
    packed = len(outer.content) - before
    outer.literal(bytes(-packed % 4) + checksum(tar) + xz_end([(12 + packed + 4, len(tar))]))
    assert tar == lzma.decompress(outer.content)
    making.form("published", "layers.tar.xz", outer.recipe(), outer.content)
    return making.draft()


# --- blocks of file systems


def xz_stored(plain: bytes, dictionary: int = 0) -> bytes:
    """An .xz stream of one stored chunk."""
    packed = lzma2_stored(plain)
    block = xz_header(dictionary) + packed + bytes(-len(packed) % 4) + checksum(plain)
    return XZ_BEGIN + block + xz_end([(12 + len(packed) + 4, len(plain))])


def zstd_open(plain: bytes, window: int = 14) -> bytes:
    """A zstd frame that states no size, with a window of 2^window bytes and one raw block."""
    header = b"\x28\xb5\x2f\xfd\0" + bytes([window - 10 << 3])
    return header + (len(plain) << 3 | 1).to_bytes(3, "little") + plain


def deflate_stored(plain: bytes) -> bytes:
    """A deflate block of type stored (RFC 1951, 3.2.4)."""
    return b"\1" + struct.pack("<HH", len(plain), len(plain) ^ 0xFFFF) + plain


LZ4_PLAIN = b"abc" * 99 + NOISE
LZ4 = b"\x3fabc\3\0\xff\x14" + b"\xf0" + b"\xff\x1e" + NOISE
BLOCKS: dict[str, tuple[bytes, bytes]] = {
    "xz": (xz_stored(NOISE), NOISE),
    "zstd.frame": (bytes(9) + zstd_open(NOISE), NOISE),
    "deflate": (bytes(3) + deflate_stored(FOXES), FOXES),
    "lz4": (bytes(2) + LZ4, LZ4_PLAIN),
    "lzma1": (bytes(1) + FOXES_LZMA1, FOXES[:900]),
}


def blocks() -> Draft:
    """Every decoder of file systems, whole and 200 bytes from the front; zeros before all but xz."""
    assert lzma.decompress(BLOCKS["xz"][0]) == NOISE
    making = Making()
    ops: list[Op] = []
    content = b""
    for codec, (stored, plain) in BLOCKS.items():
        rules: list[dict[str, int]] = [{}, {"prefix": 0}, {"prefix": 1}]
        at, first = making.data(stored), len(making.rules["decodes"])
        making.rules["decodes"] += [{"codec": codec, "params": params, "input": 0} for params in rules]
        for rule, length in ((first, len(plain)), (first + 1, len(plain)), (first + 2, 200)):
            ops.append(Decode(length, rule, at, len(stored)))
            content += plain[:length]
    making.artifact("blocks.raw", making.recipe([0], ops), content)
    return making.draft()


GOOD = (streams_xz, streams_gzip, streams_programs, nested, blocks)


# --- broken

IMAGE, PUBLISHED = 1, 2  # spaces of streams_xz
FORMS = ("releases", 0, "artifacts", 0, "forms")


def stated(name: str, why: str, *path: Any, code: int = 8) -> None:
    """Enter a change of bundle.json of streams_xz: the value at a path."""
    document(code, name, why, put(*path), streams_xz)


def params(name: str, why: str, codec: str, **changed: int | None) -> None:
    """Enter other parameters of the first stream rule and of its known answer."""

    def change(top: dict[str, Any]) -> None:
        for each in (top["rules"]["streams"][0], top["known_answers"][0]):
            each["codec"] = codec
            each["params"] = {
                key: value for key, value in (each["params"] | changed).items() if value is not None
            }

    document(8, name, why, change, streams_xz)


def stream_ops(
    name: str, why: str, change: Callable[[list[Any]], list[Op]], base: Callable[[], Draft] = streams_xz
) -> None:
    """Enter other ops in the recipe of the published form."""

    def damage(draft: Draft) -> None:
        [space] = [each for each in draft.document["spaces"] if "streams" in each]
        change_ops(draft, change, space["chunks"]["first"])

    damage.__name__ = name
    broken(8, why, base)(damage)


def longer(by: int) -> Callable[[list[Any]], list[Op]]:
    """The first stream is said to be longer, and the literal behind it is shorter."""

    def change(ops: list[Any]) -> list[Op]:
        begin, stream, behind, *rest = ops
        behind = replace(behind, length=behind.length - by, offset=behind.offset + by)
        return [begin, replace(stream, length=stream.length + by), behind, *rest]

    return change


def first_stream(**changed: int) -> Callable[[list[Any]], list[Op]]:
    """The first stream with other operands."""
    return lambda ops: [ops[0], replace(ops[1], **changed), *ops[2:]]


stream_ops("stream_rule_missing", "a Stream names a rule that does not exist", first_stream(rule=2))
stream_ops("stream_gives_fewer", "a Stream states a byte more than its encoder gives", longer(1))
stream_ops("stream_gives_more", "a Stream states a byte less than its encoder gives", longer(-1))
stream_ops("stream_large_gives_fewer", "the same of more than a MiB", longer(1), streams_gzip)
stream_ops("stream_large_gives_more", "the same of more than a MiB", longer(-1), streams_gzip)
stream_ops("stream_outside", "a Stream leaves its space", first_stream(offset=1 << 40))
stream_ops("stream_plain_outside", "a Stream of more than its space", first_stream(plain=1 << 50))
stream_ops("stream_other_rule", "a Stream by another rule than the one that fits", first_stream(rule=1))

LISTED, RULE = ("spaces", PUBLISHED, "streams"), ("rules", "streams", 0)
stated("stream_not_listed", "a space does not list a stream rule that an op names", *LISTED, [0])
stated("streams_not_stated", "a space lists no stream rules, and an op names one", *LISTED, None)
stated("streams_descend", "stream rules of a space do not ascend", *LISTED, [1, 0])
stated("streams_twice", "a stream rule of a space stands twice", *LISTED, [0, 0, 1])
stated("streams_outside", "a space lists a stream rule that does not exist", *LISTED, [0, 1, 2])
stated("streams_not_a_list", "streams of a space are no list", *LISTED, 1)
stated("streams_not_required", "stream rules, and requires does not name them", "requires", [])
stated("stream_input_missing", "a stream rule over a space that does not exist", *RULE, "input", 99)
stated("stream_input_itself", "a stream rule over the space that it makes", *RULE, "input", PUBLISHED)
stated("stream_parameter_huge", "a parameter of 2^32", *RULE, "params", "dict_size", 1 << 32)
stated("stream_no_known_answer", "a stream rule without a known answer", "known_answers", [])
stated(
    "stream_known_answer_wrong",
    "a known answer that no library here gives",
    *("known_answers", 0, "sha256", "0" * 64),
    code=10,
)

params("stream_codec_unknown", "a stream codec of the future", "lzma3")
NOTHING: dict[str, int | None] = {"preset": None, "extreme": None, "dict_size": None}
USUAL: dict[str, int | None] = {**NOTHING, "level": 6, "memlevel": 8}
params("stream_preset_10", "preset 10", "lzma2", preset=10)
params("stream_extreme_2", "extreme 2", "lzma2", extreme=2)
params("stream_dictionary_small", "a dictionary of 4,095 bytes", "lzma2", dict_size=4095)
params("stream_dictionary_large", "a dictionary above 1,536 MiB", "lzma2", dict_size=(1536 << 20) + 1)
params("stream_parameter_missing", "lzma2 without a dictionary", "lzma2", dict_size=None)
params("stream_parameter_more", "lzma2 with a parameter of the future", "lzma2", nice_len=64)
params("stream_stored_0", "stored 0", "lzma2", **NOTHING, stored=0)

params("stream_piece_0", "pieces of no bytes", "deflate.zlib-ng", **USUAL, piece=0)
params("stream_piece_large", "pieces of 64 MiB and a byte", "deflate.zlib-ng", **USUAL, piece=(64 << 20) + 1)
params("stream_zlib_piece", "zlib with a piece", "deflate.zlib", **USUAL, piece=64)
params("stream_memlevel_10", "memlevel 10", "deflate.zlib", level=6, memlevel=10, **NOTHING)
params("stream_gzip_0", "gzip -0", "deflate.gzip", level=0, rsyncable=0, **NOTHING)
params("stream_gzip_option", "rsyncable 2", "deflate.gzip", level=6, rsyncable=2, **NOTHING)
params("stream_pigz_11", "pigz -11", "deflate.pigz", level=11, independent=0, rsyncable=0, **NOTHING)
params("stream_zip_negative", "zip --6", "deflate.zip", level=-6, **NOTHING)

XZ, SIGNATURE = (*FORMS, "published"), (*FORMS, "signature")
stated("published_of_another_size", "a published form and its space differ in size", *XZ, "size", 9)
stated("published_space_missing", "a published form names a space that does not exist", *XZ, "space", 9)
stated("published_digest_wrong", "a published form states another SHA-256", *XZ, "sha256", "0" * 64, code=5)
stated("published_more_data", "a published form has more data than bytes", *XZ, "data", 1 << 30)
stated("signature_without_space", "a signature form has no space", *SIGNATURE, "space", None)
stated("signature_digest_wrong", "a signature of another SHA-256", *SIGNATURE, "sha256", "0" * 64, code=5)
stated("signature_dotdot", "a signature form is called ..", *SIGNATURE, "name", "..")
stated("forms_of_one_name", "two forms of an artifact have one name", *XZ, "name", "disk.raw")


def codec_of_units(top: dict[str, Any]) -> None:
    same = {"codec": "zlib", "params": {"level": 6, "memlevel": 8, "wbits": 15}}
    top["rules"]["streams"][0].update(same)
    top["known_answers"][0].update(same, sha256=sha256(zlib.compress(NOISE, 6)))


document(8, "stream_codec_of_units", "a codec of encode rules in a stream rule", codec_of_units, streams_xz)


@broken(8, "the signature form of one artifact has the name of another's image", streams_programs)
def forms_of_one_name_elsewhere(draft: Draft) -> None:
    one, other = draft.document["releases"][0]["artifacts"]
    one["forms"]["signature"] = copy.deepcopy(other["forms"]["image"])


def block(name: str, why: str, codec: str, stored: bytes, length: int, **given: int) -> None:
    """Enter one Decode of a block."""

    def base() -> Draft:
        making = Making()
        at = making.data(stored)
        making.rules["decodes"] = [{"codec": codec, "params": given, "input": 0, "prefix": 0}]
        space = making.recipe([0], [Decode(length, 0, at, len(stored))])
        making.artifact("block.raw", space, bytes(length))
        return making.draft()

    broken(8, why, base)(named(name))


def named(name: str) -> Callable[[Draft], None]:
    """No damage, by a name."""

    def damage(_: Draft) -> None:
        pass

    damage.__name__ = name
    return damage


SIZE = len(NOISE)
block("block_codec_unknown", "a decoder of the future", "lzo", NOISE, SIZE)
block("block_codec_of_streams", "a stream codec in a decode rule", "lzma2", lzma2_stored(NOISE), SIZE)
block("block_prefix_2", "prefix 2", "deflate", deflate_stored(NOISE), SIZE, prefix=2)
block("block_parameter_more", "a parameter of the future", "xz", xz_stored(NOISE), SIZE, level=1)
block("block_longer", "a block of a byte more", "deflate", deflate_stored(NOISE), SIZE - 1)
block("block_shorter", "a block of a byte less", "zstd.frame", zstd_open(NOISE), SIZE + 1)
block("block_bytes_behind", "bytes behind a block", "deflate", deflate_stored(NOISE) + b"x", SIZE)
block("block_xz_padded", "zeros behind an .xz stream", "xz", xz_stored(NOISE) + bytes(4), SIZE)
block("block_xz_after_zeros", "zeros before an .xz stream", "xz", bytes(4) + xz_stored(NOISE), SIZE)
block("block_xz_dictionary", "an .xz with a dictionary of 128 MiB", "xz", xz_stored(NOISE, 30), SIZE)
block(
    "block_xz_check",
    "an .xz block with another CRC32",
    "xz",
    xz_stored(NOISE).replace(checksum(NOISE), b"nope"),
    SIZE,
)
block("block_zstd_window", "a zstd frame with a window of 2^25", "zstd.frame", zstd_open(NOISE, 25), SIZE)
block("block_lz4_before", "an LZ4 match before the beginning", "lz4", b"\x10a\2\0\x10b", 6)
block("block_lz4_distance", "an LZ4 match at distance 0", "lz4", b"\x10a\0\0\x10b", 6)
block("block_lz4_cut", "LZ4 literals that are cut short", "lz4", LZ4[:-1], len(LZ4_PLAIN))
block("block_lz4_match_last", "an LZ4 block that ends with a match", "lz4", b"\x10a\1\0", 5)
block("block_lz4_length_cut", "an LZ4 length that is cut short", "lz4", b"\xf0\xff", 300)
block("block_lzma1_cut", "MicroLZMA that is cut short", "lzma1", FOXES_LZMA1[:40], 900)
block(
    "block_lzma1_properties",
    "MicroLZMA with properties that there are not",
    "lzma1",
    b"\0" * 4 + b"\1" + FOXES_LZMA1[1:],
    900,
)
block("block_nothing", "zeros alone", "lz4", bytes(40), 7)


@broken(8, "a prefix for a codec that has none", blocks)
def block_with_prefix(draft: Draft) -> None:
    draft.document["rules"]["decodes"][0]["prefix"] = 0
    change_ops(draft, lambda ops: [replace(ops[0], prefix_length=5), *ops[1:]])
