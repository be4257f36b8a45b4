"""What golden vectors are made with: a bundle on its way, and a register of broken ones."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

from rehydrator.core.recipe import decode_chunk, encode_chunk, output_offsets
from tests.vectors.draft import Draft, DraftFrame, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rehydrator.core.ops import Op

Tree = dict[str, bytes]

PACK = "packs/0.pack"
DATA, CHUNK = 0, 1

BROKEN: dict[str, tuple[int, str, Callable[[], Tree]]] = {}
"""Broken bundles by name: exit code of the refusal, what is wrong, and how to make it."""


class Making:
    """A bundle of one pack on its way: space 0 is the pack's, recipes follow."""

    def __init__(self) -> None:
        self.frames: list[DraftFrame] = []
        self.spaces: list[dict[str, Any]] = [{"pack": 0, "size": 0}]
        self.rules: dict[str, list[Any]] = {"tables": [], "offsets": [], "encodes": [], "decodes": []}
        self.answers: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []

    def data(self, plain: bytes, codec: int = 0, stored: bytes | None = None, planes: int = 1) -> int:
        """A data frame; where its bytes lie in space 0."""
        at = self.spaces[0]["size"]
        split = b"".join(plain[plane::planes] for plane in range(planes))
        frame = DraftFrame(DATA, codec, planes, at, split if stored is None else stored, len(plain))
        self.frames.append(frame)
        self.spaces[0]["size"] += len(plain)
        return int(at)

    def recipe(self, inputs: list[int], *chunks: Sequence[Op], streams: list[int] | None = None) -> int:
        """A recipe; its space."""
        first, size = len(self.frames), 0
        for ops in chunks:
            plain = encode_chunk(ops)
            self.frames.append(DraftFrame(CHUNK, 0, 1, size, plain, len(plain)))
            size += output_offsets(ops)[-1]
        place = {"first": first, "count": len(chunks)}
        named = {} if streams is None else {"streams": streams}
        self.spaces.append({"pack": 0, "size": size, "chunks": place, "inputs": inputs, **named})
        return len(self.spaces) - 1

    def artifact(self, name: str, space: int, content: bytes, **more: Any) -> None:
        """An artifact that must come out as `content`."""
        platform, _, extension = name.partition(".")
        self.artifacts.append(
            {
                "platform": platform,
                "arch": "x86_64",
                "format": extension,
                "role": "disk",
                "forms": {"image": _form(name, space, content)},
                "mtime": 1_700_000_000,
                "mode": 0o644,
                "sparse": False,
                "virtual_size": 0,
                "canonical": False,
                "how": {"rung": "explained"},
                **more,
            }
        )

    def form(self, kind: str, name: str, space: int, content: bytes) -> None:
        """Another form of the last artifact, "published" or "signature"."""
        self.artifacts[-1]["forms"][kind] = _form(name, space, content)

    def stream(self, codec: str, params: dict[str, int], source: int) -> int:
        """A stream rule; its number."""
        self.rules.setdefault("streams", []).append({"codec": codec, "params": {**params}, "input": source})
        return len(self.rules["streams"]) - 1

    def answer(self, codec: str, params: dict[str, int], plain: tuple[int, int], packed: bytes) -> None:
        """A known answer about bytes of space 0."""
        place = {"space": 0, "offset": plain[0], "length": plain[1]}
        library = f"{codec} of the vectors"
        self.answers.append(
            {
                "codec": codec,
                "params": {**params},
                "library": library,
                "plain": place,
                "sha256": sha256(packed),
            }
        )

    def _has_prefix(self) -> bool:
        return any(frame.codec == 2 for frame in self.frames)

    def _requires(self) -> set[str]:
        streams = {"streams"} if self.rules.get("streams") else set()
        return streams | ({"prefix"} if self._has_prefix() else set())

    def draft(self) -> Draft:
        """The bundle, with one release."""
        release = {"name": "vector", "stream": "stable", "release": "1", "artifacts": self.artifacts}
        document = {
            "format": "rehydrator-bundle",
            "version": 1,
            "requires": sorted(self._requires()),
            "packs": [{"file": PACK, "prefix": True} if self._has_prefix() else {"file": PACK}],
            "spaces": self.spaces,
            "rules": self.rules,
            "known_answers": self.answers,
            "releases": [{**release, "document": {"file": "streams/vector.json"}}],
        }
        stream = b'{"stream":"stable","architectures":{}}\n'
        return Draft(document, {PACK: self.frames}, {"streams/vector.json": stream})


def _form(name: str, space: int, content: bytes) -> dict[str, Any]:
    size = len(content)
    return {"name": name, "size": size, "sha256": sha256(content), "space": space, "data": size}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zstd_raw(plain: bytes) -> bytes:
    """A zstd frame of one raw block (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    header = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(plain))
    return header + (len(plain) << 3 | 1).to_bytes(3, "little") + plain


def broken(code: int, why: str, base: Callable[[], Draft]) -> Callable[[Any], Any]:
    """Enter a function that damages a draft (sealed afterwards) or gives the damaged tree."""

    def enter(damage: Callable[[Draft], Tree | None]) -> Callable[[Draft], Tree | None]:
        def made() -> Tree:
            draft = base()
            tree = damage(draft)
            return draft.tree() if tree is None else tree

        BROKEN[damage.__name__.replace("_", "-")] = (code, why, made)
        return damage

    return enter


def document(
    code: int, name: str, why: str, change: Callable[[dict[str, Any]], object], base: Callable[[], Draft]
) -> None:
    """Enter a change of bundle.json's value."""

    def damage(draft: Draft) -> Tree:
        tree = draft.tree()
        change(draft.document)
        return tree | {"bundle.json": canonical(draft.document)}

    damage.__name__ = name
    broken(code, why, base)(damage)


def put(*path: Any) -> Callable[[dict[str, Any]], object]:
    """Set the value at a path; the last item is the value."""

    def change(top: Any) -> None:
        for step in path[:-2]:
            top = top[step]
        top[path[-2]] = path[-1]

    return change


def change_ops(draft: Draft, change: Callable[[list[Any]], Sequence[Op]], chunk: int = -1) -> None:
    """Other ops in a recipe's chunk, by default the last one."""
    frame = draft.packs[PACK][chunk]
    frame.stored = encode_chunk(change(decode_chunk(frame.stored)))
    frame.plain = len(frame.stored)
