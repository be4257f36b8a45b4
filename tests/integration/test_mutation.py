"""Damage: small signed bundles are damaged in hundreds of places, and every file asked for.

Plain damage changes files of the OCI layout or of the bare bundle. Sealed damage changes what is
inside and computes every digest above it anew, signature included, so that it reaches the parsers.
Whatever happens: a file has its final name only with the SHA-256 that the (signed) bundle.json
promises, every refusal is one of ours, and time and memory stay bounded.
"""

from __future__ import annotations

import copy
import faulthandler
import gzip
import hashlib
import json
import lzma
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from rehydrator.bundle.reader import HeldChunks
from rehydrator.bundle.rehydrate import Options
from rehydrator.cli.common import trusted
from rehydrator.core.errors import HostileInput, NotInBundle, RehydratorError
from rehydrator.core.ops import Copy, Decode, Rules, Series, SizeTable, Stream, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.core.recipe import decode_chunk, encode_chunk
from rehydrator.engine import Machine, OpsSpace
from rehydrator.oci.reference import open_bundle, parse
from rehydrator.oci.signature import keygen, load_private_key, sign
from tests.conftest import rehydrated
from tests.vectors.draft import Draft, DraftFrame, canonical, read_tree, write_tree
from tests.vectors.siblings import disk_bytes, make_published, make_siblings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.store.files import Files

# What a thread dies of reaches the user as a traceback.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

ROOT = Path(__file__).resolve().parents[2]
Tree = dict[str, bytes]
Dice = random.Random

PLAIN, SEALED, LAYERS = 220, 220, 60
STREAMS = 160
BATCHES = 4
SECONDS, MEBIBYTES = 20, 512

INTERESTING: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 256, 511, 4096, 65535, 65536, (1 << 31) - 1, 1 << 32, (1 << 60) - 1, 1 << 60,
    (1 << 63) - 1, 1 << 64, 10**25, True, None, "", "x", "../x", "a/b", "\x00", "é", "zlib-ng", [], {}, [0],
)  # fmt: skip
OPERANDS = (0, 1, 2, 511, 4096, 65535, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 60, (1 << 63) - 1)


@dataclass(frozen=True)
class Original:
    """The bundle before any damage: as an OCI layout, and as a tree of files."""

    work: Path
    layout: Tree
    tree: Tree
    sha256: dict[str, str]
    key: Path

    def signed(self, tree: Tree) -> Tree:
        """The tree with a signature that fits."""
        [name] = [name for name in self.tree if name.startswith("signatures/")]
        private = load_private_key(self.key.with_suffix(".key"), lambda: b"")
        return {**tree, name: sign(tree["bundle.json"], private)}


@dataclass
class Tally:
    """What came of the damage: cases refused on opening, artifacts by exit code, 0 for right ones."""

    refused: int = 0
    codes: dict[int, int] = field(default_factory=dict)

    def count(self, code: int) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1


class MemoryFiles:
    """A bundle's files in memory."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def open(self, name: str) -> Reader:
        if name not in self._tree:
            raise NotInBundle(name)
        return BytesReader(self._tree[name])

    def names(self) -> list[str]:
        return sorted(self._tree)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """About 10 MiB of images of every format, built and signed by the command line, level 1."""
    work = tmp_path_factory.mktemp("mutation")
    make_siblings(work / "release", 1)
    return built(work)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Published files around two disks of 128 KiB: .xz of two blocks, .gz, a signature."""
    work = tmp_path_factory.mktemp("streams")
    work.joinpath("release").mkdir()
    make_published(work / "release", disk_bytes(1)[: 128 << 10])
    return built(work)


def built(work: Path) -> Original:
    """The bundle of work/release, built and signed by the command line."""
    keygen(str(work / "test"), None)
    build = ["build", str(work / "release"), "-o", f"oci:{work}/image:it", "--key", str(work / "test.key")]
    made = rehydrator(*build, "--runtime", "none", "--level", "1")
    assert made.returncode == 0, made.stderr
    with open_bundle(parse(f"oci:{work}/image:it"), work) as files:
        tree = {name: _whole(files.open(name)) for name in files.names()}
    release = {path.name: path.read_bytes() for path in (work / "release").iterdir()}
    release |= {name[:-3]: lzma.decompress(data) for name, data in release.items() if name.endswith(".xz")}
    release |= {name[:-3]: gzip.decompress(data) for name, data in release.items() if name.endswith(".gz")}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in release.items()}
    return Original(work, read_tree(work / "image"), tree, sha256, work / "test.pub")


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends everything, with a traceback, where a test hangs."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def rehydrator(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "rehydrator", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def _whole(reader: Reader) -> bytes:
    return reader.pread(0, reader.size)


# --- what must hold


def ask_for_everything(files: Files, key: Path | None, promised: dict[str, str] | None, tally: Tally) -> None:
    """Rehydrate every file; `promised` is what must come out, else what bundle.json says."""
    try:
        bundle = trusted(files, key, Path(tempfile.gettempdir()))
    except RehydratorError:
        tally.refused += 1
        return
    with tempfile.TemporaryDirectory(dir=_fast()) as directory:
        for output in bundle.manifest.outputs():
            tally.count(_ask(bundle, output, Path(directory), promised))


def _ask(bundle: Bundle, output: Output, directory: Path, promised: dict[str, str] | None) -> int:
    target = directory / output.form.name
    try:
        rehydrated(bundle, output, directory, Options(sparse=True))
    except RehydratorError as error:
        assert list(directory.iterdir()) == []
        return error.exit_code
    expected = promised[output.form.name] if promised else output.form.sha256
    assert expected == hashlib.sha256(target.read_bytes()).hexdigest()
    assert [target] == list(directory.iterdir())
    target.unlink()
    return 0


def _fast() -> str | None:
    """Memory for what is written and fsynced thousands of times, where there is some."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run_cases(cases: range, case: Callable[[Dice, Tally], object]) -> Tally:
    """Run each case with dice of its own; the failing case's number is in the assertion."""
    tally = Tally()
    before = reset_peak()
    for number in cases:
        started = time.monotonic()
        try:
            case(random.Random(number), tally)
        except Exception as error:
            raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - started < SECONDS, f"case {number}"
    assert peak() - before < MEBIBYTES << 20
    return tally


def reset_peak() -> int:
    """Begin to measure the peak of resident memory (proc(5), clear_refs); what it is now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The peak of resident memory in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


# --- plain damage


def damaged(dice: Dice, tree: Tree) -> Tree:
    """Damage one file: flipped, cut, extended, removed, or swapped with another."""
    name = dice.choice(sorted(tree))
    data = bytearray(tree[name])
    kind = dice.randrange(6)
    if kind == 0:
        return {other: tree[other] for other in tree if other != name}
    if kind == 1:
        other = dice.choice(sorted(tree))
        return {**tree, name: tree[other], other: tree[name]}
    if kind == 2:
        del data[dice.randrange(len(data) + 1) :]
    elif kind == 3:
        data += dice.randbytes(dice.choice((1, 64, 65540)))
    else:
        flip(dice, data, dice.choice((1, 1, 1, 5, 100)))
    return {**tree, name: bytes(data)}


def flip(dice: Dice, data: bytearray, times: int) -> None:
    for _ in range(times if data else 0):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_plain_damage(original: Original, batch: int) -> None:
    """Damage under the signature: what comes out is the original, or nothing."""

    def case(dice: Dice, tally: Tally) -> None:
        if dice.randrange(2):
            tree = damaged(dice, original.tree)
            same = tree.get("bundle.json") == original.tree["bundle.json"]
            unsigned = dice.randrange(2)
            key = None if unsigned else original.key
            promised = original.sha256 if same or key else None
            ask_for_everything(MemoryFiles(tree), key, promised, tally)
        else:
            ask_layout(damaged(dice, original.layout), original, tally)

    tally = run_cases(range(batch, PLAIN, BATCHES), case)
    assert tally.refused > 0
    assert {0, 5} <= tally.codes.keys()


def ask_layout(layout: Tree, original: Original, tally: Tally) -> None:
    """Write an OCI layout, open it as the command line does, and ask for everything."""
    with tempfile.TemporaryDirectory(dir=_fast()) as directory:
        write_tree(Path(directory) / "image", layout)
        with ExitStack() as stack:
            try:
                opening = open_bundle(parse(f"oci:{directory}/image:it"), Path(directory))
                files = stack.enter_context(opening)
            except RehydratorError:
                tally.refused += 1
                return
            ask_for_everything(files, original.key, original.sha256, tally)


# --- sealed damage


def change_document(dice: Dice, draft: Draft) -> None:
    """Another value somewhere in bundle.json, or none, or one twice, or two swapped."""
    places = list(_places(draft.document))
    holder, key = dice.choice(places)
    kind = dice.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 2:
        other, at = dice.choice(places)
        other[at], holder[key] = copy.deepcopy(holder[key]), copy.deepcopy(other[at])
    elif kind < 6 and type(holder[key]) is int:
        holder[key] += dice.choice((-1, 1, 2, 512, -512, 1 << 32))
    else:
        holder[key] = dice.choice(INTERESTING)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        if key != "how":
            yield value, key
            if isinstance(value[key], dict | list):
                yield from _places(value[key])


def change_chunk(dice: Dice, draft: Draft) -> None:
    """Other bytes in the plain bytes of a recipe chunk."""
    frame = _frame(dice, draft, 1)
    data = bytearray(_plain(frame))
    kind, at = dice.randrange(4), dice.randrange(len(data))
    if kind == 0:
        data.insert(at, dice.randrange(256))
    elif kind == 1:
        del data[at : at + dice.choice((1, 8, 100))]
    else:
        flip(dice, data, dice.choice((1, 1, 4)))
    _store(dice, frame, bytes(data))


def change_op(dice: Dice, draft: Draft) -> None:
    """One operand of one op is something else; half of the time the length is not."""
    frame = _frame(dice, draft, 1)
    ops = decode_chunk(_plain(frame))
    at = dice.randrange(len(ops))
    names = [name for name in ops[at].__slots__ if name not in {"endian", "width"}]
    name = dice.choice(names if dice.randrange(2) else [each for each in names if each != "length"])
    value = dice.choice((*OPERANDS, max(0, getattr(ops[at], name) + dice.choice((-1, 1, 512, -512)))))
    changed: dict[str, Any] = {name: value}
    ops[at] = replace(ops[at], **changed)
    if name == "length" and (not ops[at].length or ops[at].length % getattr(ops[at], "width", 1)):
        return
    _store(dice, frame, encode_chunk(ops))


def change_record(dice: Dice, draft: Draft) -> None:
    """One field of one index record."""
    frame = _frame(dice, draft, dice.randrange(2))
    name, most = dice.choice(
        (("kind", 8), ("codec", 8), ("planes", 8), ("start", 64), ("offset", 64), ("size", 32), ("plain", 32))
    )
    near = (getattr(frame, name) or 0) + dice.choice((-1, 1))
    value = dice.choice((near, 0, 1, 2, 3, 4, 8, (1 << most) - 1, dice.randrange(1 << most)))
    setattr(frame, name, value % (1 << most))


def change_stored(dice: Dice, draft: Draft) -> None:
    """Other bytes in what is stored of a frame, compressed or not."""
    frame = _frame(dice, draft, dice.randrange(2))
    data = bytearray(frame.stored)
    if dice.randrange(4):
        flip(dice, data, dice.choice((1, 3)))
    else:
        data = data[: dice.randrange(1, len(data) + 1)] + dice.randbytes(dice.choice((0, 1, 20)))
    frame.stored = bytes(data)


def change_plain(dice: Dice, draft: Draft) -> None:
    """Other plain bytes in a frame, most often a table of sizes."""
    frames = [frame for pack in draft.packs.values() for frame in pack if frame.kind == 0]
    tables = [frame for frame in frames if frame.planes > 1]
    frame = dice.choice(tables or frames) if dice.randrange(4) else dice.choice(frames)
    data = bytearray(_plain(frame))
    flip(dice, data, dice.choice((1, 2, 50)))
    _store(dice, frame, bytes(data))


def change_order(dice: Dice, draft: Draft) -> None:
    """Frames swapped, dropped or repeated; or the packs of two groups."""
    name, other = dice.choice(sorted(draft.packs)), dice.choice(sorted(draft.packs))
    frames = draft.packs[name]
    kind = dice.randrange(4)
    if kind == 0 or not frames:
        draft.packs[name], draft.packs[other] = draft.packs[other], frames
        return
    at = dice.randrange(len(frames))
    if kind == 1:
        del frames[at]
    elif kind == 2:
        frames.append(copy.copy(frames[at]))
    else:
        dice.shuffle(frames)


def _frame(dice: Dice, draft: Draft, kind: int) -> DraftFrame:
    found = [frame for name in sorted(draft.packs) for frame in draft.packs[name] if frame.kind == kind]
    return dice.choice(found)


def _plain(frame: DraftFrame) -> bytes:
    """The decoded bytes, still in planes."""
    return zstd.decompress(frame.stored) if frame.codec else frame.stored


def _store(dice: Dice, frame: DraftFrame, plain: bytes) -> None:
    frame.codec = dice.randrange(2)
    frame.stored = zstd.compress(plain) if frame.codec else plain
    frame.plain = len(plain)


CHANGES = (
    change_document, change_document, change_document, change_chunk, change_op, change_op, change_record,
    change_stored, change_plain, change_order,
)  # fmt: skip


def sealed(dice: Dice, original: Original) -> Tree:
    """A change inside, and everything above it computed anew."""
    draft = Draft.of(original.tree)
    change = dice.choice(CHANGES)
    if change is change_document:
        tree = draft.tree()
        change(dice, draft)
        return original.signed({**tree, "bundle.json": canonical(draft.document)})
    change(dice, draft)
    return original.signed(draft.tree())


@pytest.mark.parametrize("batch", range(BATCHES))
def test_sealed_damage(original: Original, batch: int) -> None:
    """Damage that is pinned and signed: a file is what bundle.json promises, or is not there."""

    def case(dice: Dice, tally: Tally) -> None:
        ask_for_everything(MemoryFiles(sealed(dice, original)), original.key, None, tally)

    tally = run_cases(range(1000 + batch, 1000 + SEALED, BATCHES), case)
    assert tally.refused > 0
    assert {0, 5, 8} <= tally.codes.keys()


def test_plain_damage_of_streams(streams: Original) -> None:
    """Damage under the signature of published forms: they are the original, or nothing."""

    def case(dice: Dice, tally: Tally) -> None:
        tree = damaged(dice, streams.tree)
        ask_for_everything(MemoryFiles(tree), streams.key, streams.sha256, tally)

    tally = run_cases(range(3000, 3000 + STREAMS // 4), case)
    assert tally.refused > 0
    assert {0, 5} <= tally.codes.keys()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_sealed_damage_of_streams(streams: Original, batch: int) -> None:
    """Stream rules, their parameters and ops that are pinned and signed: a file is what bundle.json
    promises, or is not there; what no encoder gives back is malformed."""

    def case(dice: Dice, tally: Tally) -> None:
        draft = Draft.of(streams.tree)
        change = dice.choice((change_stream, change_stream, change_stream_op, *CHANGES))
        change(dice, draft)
        ask_for_everything(MemoryFiles(streams.signed(resealed(draft))), streams.key, None, tally)

    tally = run_cases(range(4000 + batch, 4000 + STREAMS, BATCHES), case)
    assert tally.refused > 0
    assert {0, 5, 8} <= tally.codes.keys()


def change_stream(dice: Dice, draft: Draft) -> None:
    """Another number, name or list in what bundle.json says of streams; half of the time the
    known answers say the same."""
    rules = draft.document["rules"]["streams"]
    rule = dice.choice(rules)
    answers = [each for each in draft.document["known_answers"] if each["params"] == rule["params"]]
    spaces = [space for space in draft.document["spaces"] if "streams" in space]
    kind = dice.randrange(5)
    if kind == 0:
        dice.choice(spaces)["streams"] = dice.choice(([], [0], [1], [0, 1], [1, 0], [5], None, 0, [0, 0]))
    elif kind == 1:
        dice.choice(spaces)["inputs"] = sorted(dice.sample(range(len(draft.document["spaces"])), 2))
    elif kind == 2:
        rule["input"] = dice.randrange(len(draft.document["spaces"]) + 1)
    else:
        name = dice.choice(sorted(rule["params"]))
        value = dice.choice((-1, 0, 1, 2, 5, 9, 10, 4095, 4096, 1 << 16, 1 << 20, (1 << 31) - 1))
        codec = dice.choice(
            (rule["codec"], rule["codec"], "lzma2", "deflate.zlib", "bzip2", "deflate.gzip", "zlib")
        )
        for each in (rule, *answers) if dice.randrange(2) else (rule,):
            each["codec"] = codec
            each["params"] = {**each["params"], name: value}


def change_stream_op(dice: Dice, draft: Draft) -> None:
    """Another operand of a Stream; where it is the length, the op behind makes up for it."""
    every = [frame for name in sorted(draft.packs) for frame in draft.packs[name] if frame.kind == 1]
    frames = [frame for frame in every if any(isinstance(op, Stream) for op in decode_chunk(_plain(frame)))]
    frame = dice.choice(frames)
    ops = decode_chunk(_plain(frame))
    at = dice.choice([at for at, op in enumerate(ops[:-1]) if isinstance(op, Stream)])
    name = dice.choice(("length", "rule", "offset", "plain"))
    by = dice.choice((-512, -1, 1, 2, 512))
    changed: dict[str, Any] = {name: max(0, getattr(ops[at], name) + by)}
    if name != "length" and not dice.randrange(3):
        changed = {name: dice.choice(OPERANDS)}
    if name == "length" and ops[at + 1].length > by:
        ops[at + 1] = replace(ops[at + 1], length=ops[at + 1].length - by)
    ops[at] = replace(ops[at], **changed)
    _store(dice, frame, encode_chunk(ops))


def resealed(draft: Draft) -> Tree:
    """The draft with all digests right, where what they stand in is still of the right shape."""
    try:
        return draft.tree()
    except (AttributeError, KeyError, TypeError, ValueError):
        return {"bundle.json": canonical(draft.document)}


def reseal_layout(dice: Dice, layout: Tree) -> Tree:
    """Damage one layer, and pin it anew in manifest and index."""
    index = json.loads(layout["index.json"])
    manifest_name = _blob(index["manifests"][0])
    manifest = json.loads(layout[manifest_name])
    stated = dice.choice(manifest["layers"])
    data = bytearray(layout[_blob(stated)])
    kind = dice.randrange(4)
    at = dice.randrange(min(len(data), 3000)) if dice.randrange(2) else dice.randrange(len(data))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at:at] = dice.randbytes(dice.choice((1, 512)))
    else:
        for _ in range(dice.choice((1, 3))):
            data[min(at + dice.randrange(600), len(data) - 1)] = dice.choice(
                (0, 0x37, 0xFF, dice.randrange(256))
            )
    changed = {_pin(stated, bytes(data)): bytes(data)}
    raw = canonical(manifest)
    changed[_pin(index["manifests"][0], raw)] = raw
    return {**layout, **changed, "index.json": canonical(index)}


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _pin(descriptor: dict[str, Any], data: bytes) -> str:
    descriptor.update(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
    return _blob(descriptor)


def test_sealed_layers(original: Original) -> None:
    """Damaged layers with right digests in the image: gzip, tar and the digests inside decide."""

    def case(dice: Dice, tally: Tally) -> None:
        ask_layout(reseal_layout(dice, original.layout), original, tally)

    tally = run_cases(range(2000, 2000 + LAYERS), case)
    assert tally.refused > 0
    assert 5 in tally.codes


# --- recipes that would take all memory


def hoard(draft: Draft, ops: list[Any], frames: list[bytes], decodes: list[Any]) -> Tree:
    """A bundle whose one artifact is made by `ops` over a pack of `frames`, which are 64 MiB each."""
    packed = [DraftFrame(0, 1, 1, k << 26, stored, 1 << 26) for k, stored in enumerate(frames)]
    chunks: list[DraftFrame] = []
    size = 0
    for at in range(0, len(ops), 4096):
        plain = encode_chunk(ops[at : at + 4096])
        chunks.append(DraftFrame(1, 1, 1, size, zstd.compress(plain), len(plain)))
        size += sum(op.length for op in ops[at : at + 4096])
    document = draft.document
    place = {"first": len(packed), "count": len(chunks)}
    document["packs"] = [{"file": "packs/0.pack"}]
    document["spaces"] = [
        {"pack": 0, "size": len(packed) << 26},
        {"pack": 0, "size": size, "chunks": place, "inputs": [0]},
    ]
    document["rules"] = {"tables": [], "offsets": [], "encodes": [], "decodes": decodes}
    document["known_answers"] = []
    artifact = document["releases"][0]["artifacts"][0]
    artifact["forms"]["image"].update(space=1, size=size, data=0)
    document["releases"][0]["artifacts"] = [artifact]
    return Draft(document, {"packs/0.pack": packed + chunks}, draft.documents).tree()


def test_pieces_do_not_keep_their_frames(original: Original) -> None:
    """A byte, then 5,000, of each of 20 frames of 64 MiB: memory stays far below their sum."""
    frame = zstd.compress(bytes(1 << 26))
    ops = [Copy(1, 0, (k % 20 << 26) + k) for k in range(20)] + [Copy(5000, 0, k << 26) for k in range(20)]
    tally = run_cases(
        range(1), lambda _, tally: _ask_hoard(hoard(Draft.of(original.tree), ops, [frame] * 20, []), tally)
    )
    assert tally.codes == {5: 1}


def test_pieces_are_joined(original: Original) -> None:
    """20,000 copies of one byte come as five pieces, not as 20,000 objects of 200 bytes."""
    ops = [Copy(1, 0, k * 7) for k in range(20_000)]
    tree = hoard(Draft.of(original.tree), ops, [zstd.compress(bytes(1 << 26))], [])
    machine = trusted(MemoryFiles(tree), None, Path(tempfile.gettempdir())).machine
    sizes = [len(bytes(machine.read(1, 0, 1))), *(len(piece) for piece in machine.pieces(1, 0, 20_000))]
    assert sizes == [1, 4096, 4096, 4096, 4096, 3616]


def test_series_are_made_in_steps() -> None:
    """4 MiB of one-byte integers do not become four million objects."""
    machine = Machine({0: OpsSpace([Series(4 << 20, 0, 1, 1, "little")])}, Rules())
    before = reset_peak()
    made = machine.read(0, 1, (4 << 20) - 1)
    assert peak() - before < 32 << 20
    assert made == (bytes(range(256)) * (1 << 14))[1:]


def test_held_chunks_are_bounded() -> None:
    """Chunks of all spaces together are forgotten by the number of their ops, oldest first."""
    held, made = HeldChunks(limit=8), []

    def make(key: int) -> tuple[list[Op], list[int]]:
        made.append(key)
        return [zeros(1)] * 4, [0, 1, 2, 3, 4]

    for key in (1, 2, 1, 3, 1, 2):
        held.get((key, 0), partial(make, key))
    assert made == [1, 2, 3, 2]


def test_size_tables_are_bounded() -> None:
    """A table of 2^22 units is summed up in 64 MiB; one unit more, or a sum above 2^60, is refused."""
    tables = (SizeTable(0, 1, 1), SizeTable(1, 1, 1), SizeTable(2, 4, 1 << 23))
    rows = [zeros(1 << 22), zeros((1 << 22) + 1), Series(256, (1 << 32) - 1, 0, 4, "little")]
    machine = Machine({number: OpsSpace([op]) for number, op in enumerate(rows)}, Rules(tables))
    before = reset_peak()
    assert len(machine.unit_ends(0)) == (1 << 22) + 1
    assert peak() - before < 64 << 20
    with pytest.raises(HostileInput, match="a size table of 4194305 bytes"):
        machine.unit_ends(1)
    with pytest.raises(HostileInput, match="a size table whose units are too large"):
        machine.unit_ends(2)


def test_decodes_do_not_stay(original: Original) -> None:
    """A byte of each of many Decodes of 64 MiB: as for frames."""
    bomb = zstd.compress(bytes(1 << 26))
    inner = DraftFrame(0, 0, 1, 0, bomb * 30, len(bomb) * 30)
    ops = [Copy(1, 0, 0)]
    draft = Draft.of(original.tree)
    tree_ops: list[Any] = [Decode(1 << 26, 0, len(bomb) * k, len(bomb)) for k in range(30)]
    tree = hoard(draft, ops, [], [{"codec": "zstd", "params": {}, "input": 0}])
    made = Draft.of(tree)
    first, second = encode_chunk(tree_ops), encode_chunk([Copy(1, 1, k << 26) for k in range(30)])
    made.packs["packs/0.pack"] = [
        inner,
        DraftFrame(1, 0, 1, 0, first, len(first)),
        DraftFrame(1, 0, 1, 0, second, len(second)),
    ]
    made.document["spaces"] = [
        {"pack": 0, "size": len(bomb) * 30},
        {"pack": 0, "size": 30 << 26, "chunks": {"first": 1, "count": 1}, "inputs": [0]},
        {"pack": 0, "size": 30, "chunks": {"first": 2, "count": 1}, "inputs": [1]},
    ]
    made.document["releases"][0]["artifacts"][0]["forms"]["image"].update(space=2, size=30)
    tally = run_cases(range(1), lambda _, tally: _ask_hoard(made.tree(), tally))
    assert tally.codes == {5: 1}


def _ask_hoard(tree: Tree, tally: Tally) -> None:
    ask_for_everything(MemoryFiles(tree), None, None, tally)


def test_values_are_counted_before_they_are_made() -> None:
    """16 MiB of empty lists are refused before they take 400 MiB."""
    from rehydrator.bundle import manifest

    data = b"[" + b"[]," * ((16 << 20) // 3 - 2) + b"[]]\n"
    before = reset_peak()
    with pytest.raises(HostileInput, match="more than 1048576 values"):
        manifest.decode(data)
    assert peak() - before < 32 << 20


# --- the command line


def _without(tree: Tree, *names: str) -> Tree:
    return {name: data for name, data in tree.items() if name not in names}


def _edited(name: str, edit: Callable[[bytearray], object]) -> Callable[[Original], Tree]:
    def change(original: Original) -> Tree:
        data = bytearray(original.tree[name])
        edit(data)
        return {**original.tree, name: bytes(data)}

    return change


def _resealed(edit: Callable[[Draft], object]) -> Callable[[Original], Tree]:
    def change(original: Original) -> Tree:
        draft = Draft.of(original.tree)
        tree = draft.tree()
        edit(draft)
        again = {**tree, "bundle.json": canonical(draft.document)}
        return original.signed(again)

    return change


def _set(*path: Any) -> Callable[[Draft], object]:
    def change(draft: Draft) -> None:
        holder: Any = draft.document
        for step in path[:-2]:
            holder = holder[step]
        holder[path[-2]] = path[-1]

    return change


def _signatures(original: Original) -> list[str]:
    return [name for name in original.tree if name.startswith("signatures/")]


def _other_key(original: Original) -> Tree:
    prefix = original.work / "other"
    if not prefix.with_suffix(".key").exists():
        keygen(str(prefix), None)
    private = load_private_key(prefix.with_suffix(".key"), lambda: b"")
    [name] = _signatures(original)
    return {**original.tree, name: sign(original.tree["bundle.json"], private)}


def _cut(data: bytearray) -> None:
    del data[-1:]


def _flip_last(data: bytearray) -> None:
    data[-1] ^= 1


def _flip_first(data: bytearray) -> None:
    data[0] ^= 1


ARTIFACT = ("releases", 0, "artifacts", 0)
ALL = ("--all",)
CANONICAL = ("--file", "metal.raw")
COMMANDS: dict[str, tuple[int, Callable[[Original], Tree], tuple[str, ...]]] = {
    "undamaged": (0, lambda original: original.tree, ALL),
    "another file beside": (0, lambda original: {**original.tree, "new/file": b"x"}, ALL),
    "another time, signed": (0, _resealed(_set(*ARTIFACT, "mtime", 7)), ALL),
    "no such disk": (4, lambda original: original.tree, ("--disk", "nowhere")),
    "no bundle.json": (4, lambda original: _without(original.tree, "bundle.json"), ALL),
    "pack missing": (5, lambda original: _without(original.tree, "packs/0.pack"), ALL),
    "pack cut": (5, _edited("packs/0.pack", _cut), ALL),
    "pack extended": (5, _edited("packs/0.pack", lambda data: data.append(0)), ALL),
    "frame flipped": (5, _edited("packs/0.pack", _flip_first), CANONICAL),
    "index flipped": (5, _edited("packs/0.pack", _flip_last), CANONICAL),
    "promise wrong, signed": (5, _resealed(_set(*ARTIFACT, "forms", "image", "sha256", "0" * 64)), ALL),
    "packs swapped": (
        5,
        lambda o: {**o.tree, "packs/0.pack": o.tree["packs/1.pack"], "packs/1.pack": o.tree["packs/0.pack"]},
        ALL,
    ),
    "signature missing": (6, lambda original: _without(original.tree, *_signatures(original)), ALL),
    "signature of another": (7, _other_key, ALL),
    "bundle.json flipped": (7, _edited("bundle.json", _flip_first), ALL),
    "version 2, signed": (8, _resealed(_set("version", 2)), ALL),
    "feature, signed": (8, _resealed(_set("requires", ["x"])), ALL),
    "name with slash, signed": (8, _resealed(_set(*ARTIFACT, "forms", "image", "name", "../x")), ALL),
    "space too deep, signed": (8, _resealed(_set("spaces", 1, "inputs", [5])), ALL),
    "known answer, signed": (
        10,
        _resealed(
            lambda draft: [each.update(sha256="0" * 64) for each in draft.document["known_answers"]]
        ),
        ("--file", "nutanix.qcow2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line(original: Original, tmp_path: Path, name: str) -> None:
    """The program ends with the documented exit code, and leaves nothing that is wrong."""
    code, change, wanted = COMMANDS[name]
    write_tree(tmp_path / "bundle", change(original))
    trust = ("--bundle", f"dir:{tmp_path}/bundle", "--key", str(original.key))
    done = rehydrator("rehydrate", str(tmp_path / "out"), *trust, *wanted)
    assert code == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(code) == ("\nrehydrator: " in f"\n{done.stderr}")
    left = {path.name: path for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else {}
    for file, path in left.items():
        assert original.sha256[file] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert code or set(original.sha256) == set(left)
    shutil.rmtree(tmp_path / "bundle")
