"""JSON whose text is kept: each value knows where it stands, so that one can be replaced, cut
out or put in while every other byte stays as it is.

The syntax is RFC 8259's, with what RFC 7493 (I-JSON) adds: UTF-8 without a byte order mark, no
key twice in one object, no unpaired surrogates, no number beyond a double.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

MAX_BYTES = 32 << 20
MAX_DEPTH = 64
MAX_VALUES = 1 << 18
_MAX_NUMBER = 400

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][+-]?[0-9]++)?")
_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile("|".join(_WORDS))
_FIRST_INDENT = re.compile(r"\{\r?\n([ \t]+)")
_INDENT = re.compile(r"[ \t]*")


@dataclass(frozen=True, slots=True)
class Node:
    """A value: its first character, the one behind its last, and what it is. `key` is where its
    own key begins, in an object."""

    start: int
    end: int
    content: dict[str, Node] | list[Node] | str | float | bool | None
    key: int = -1

    @property
    def plain(self) -> Any:
        """The value as the json module gives it."""
        if isinstance(self.content, dict):
            return {key: node.plain for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain for node in self.content]
        return self.content


@dataclass(frozen=True, slots=True)
class Edit:
    """Characters `start` to `end` give way to `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Whole:
    """In what `merged` takes: an object that replaces the one that is there."""

    value: Any


def scan(data: bytes, what: str) -> tuple[str, Node]:
    """The text of `data`, which `what` names in messages, and its value.

    Raises:
        HostileInput: too large or too deep, or not such JSON; says line and column.
    """
    if len(data) > MAX_BYTES:
        raise HostileInput(f"{what}: {len(data)} bytes are no stream document")
    # Values cost far more memory than their text does, so they are counted before they are made.
    if sum(data.count(opener) for opener in (b",", b"[", b"{")) > MAX_VALUES:
        raise HostileInput(f"{what}: more than {MAX_VALUES} values are no stream document")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise HostileInput(f"{what}: not JSON: begins with a byte order mark; save it as plain UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise HostileInput(f"{what}: not JSON: byte {error.start} is not UTF-8") from None
    return text, _Scanner(text, what).document()


class _Scanner:
    """Reads values from `here` on; each method returns with `here` behind what it read."""

    def __init__(self, text: str, what: str) -> None:
        self._text, self._what, self._here = text, what, 0

    def document(self) -> Node:
        node = self._value(1)
        self._skip_space()
        if self._here < len(self._text):
            self._refuse("something stands behind the end")
        return node

    def _value(self, depth: int, key: int = -1) -> Node:
        self._skip_space()
        start, first = self._here, self._text[self._here : self._here + 1]
        content: Any
        if first and first in "{[":
            if depth > MAX_DEPTH:
                self._refuse(f"nested deeper than {MAX_DEPTH}")
            self._here += 1
            content = self._object(depth) if first == "{" else self._array(depth)
        elif first == '"':
            content = self._string()
        else:
            content = self._scalar()
        return Node(start, self._here, content, key)

    def _object(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        if self._is_next("}"):
            return found
        while True:
            self._skip_space()
            at = self._here
            name = self._string()
            if name in found:
                self._refuse(f"key {name!r:.80} stands twice in one object", at)
            self._expect(":")
            found[name] = self._value(depth + 1, at)
            if self._is_next("}"):
                return found
            self._expect(",", " or }")

    def _array(self, depth: int) -> list[Node]:
        found: list[Node] = []
        if self._is_next("]"):
            return found
        while True:
            found.append(self._value(depth + 1))
            if self._is_next("]"):
                return found
            self._expect(",", " or ]")

    def _string(self) -> str:
        match = _STRING.match(self._text, self._here)
        if match is None:
            self._refuse("no valid string" if self._text.startswith('"', self._here) else "no string")
        token = match[0]
        value: str = token[1:-1]
        if "\\" in token:
            value = json.loads(token)
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                self._refuse("half of a surrogate pair")
        self._here = match.end()
        return value

    def _scalar(self) -> float | bool | None:
        if word := _WORD.match(self._text, self._here):
            self._here = word.end()
            return _WORDS[word[0]]
        match = _NUMBER.match(self._text, self._here)
        if match is None:
            self._refuse("no value")
        if match.end() - match.start() > _MAX_NUMBER:
            self._refuse(f"a number of more than {_MAX_NUMBER} characters")
        value = float(match[0]) if match[1] or match[2] else int(match[0])
        if math.isinf(value) if isinstance(value, float) else False:
            self._refuse("a number beyond what a double holds")
        self._here = match.end()
        return value

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._here)
        assert match is not None
        self._here = match.end()

    def _is_next(self, mark: str) -> bool:
        self._skip_space()
        found = self._text.startswith(mark, self._here)
        self._here += found
        return found

    def _expect(self, mark: str, other: str = "") -> None:
        if not self._is_next(mark):
            self._refuse(f"no {mark}{other}")

    def _refuse(self, problem: str, at: int | None = None) -> NoReturn:
        at = self._here if at is None else at
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        raise HostileInput(f"{self._what}: not JSON: line {line}, column {column}: {problem}")


def spliced(text: str, edits: Iterable[Edit]) -> str:
    """`text` with its edits, which do not overlap; those of one place stay in their order."""
    parts, here = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        parts += [text[here : edit.start], edit.text]
        here = edit.end
    return "".join([*parts, text[here:]])


def replaced(node: Node, value: str) -> list[Edit]:
    """The edit that makes a string of a value: none where it is that string already."""
    return [] if node.content == value else [Edit(node.start, node.end, _dumps(value, None))]


def cut(node: Node, names: Collection[str]) -> list[Edit]:
    """The edits that take members out of an object, each with its comma and its line."""
    assert isinstance(node.content, dict)
    members = list(node.content.items())
    kept = [number for number, (name, _) in enumerate(members) if name not in names]
    if not kept:
        return [Edit(node.start, node.end, "{}")]
    edits = []
    if kept[0]:
        edits.append(Edit(members[0][1].key, members[kept[0]][1].key, ""))
    for number in range(kept[0] + 1, len(members)):
        name, member = members[number]
        if name in names:
            edits.append(Edit(members[number - 1][1].end, member.end, ""))
    return edits


def merged(text: str, top: Node, wanted: Mapping[str, Any]) -> list[Edit]:
    """The edits that put `wanted` into the object `top`: objects member by member (but those in
    Whole), other values in place of what is there. New members are written as the text around
    them is, between their neighbours where the keys are sorted, else at the end."""
    match = _FIRST_INDENT.match(text, top.start)
    return _merged(text, top, wanted, match[1] if match else None)


def _merged(text: str, node: Node, wanted: Mapping[str, Any], unit: str | None) -> list[Edit]:
    assert isinstance(node.content, dict)
    edits: list[Edit] = []
    new = {}
    for key, value in wanted.items():
        there = node.content.get(key)
        if there is None:
            new[key] = value
        elif isinstance(value, dict) and isinstance(there.content, dict):
            edits += _merged(text, there, value, unit)
        elif there.plain != _bare(value):
            edits.append(Edit(there.start, there.end, _dumps(value, unit, _line_indent(text, there.start))))
    return edits + _inserted(text, node, new, unit)


def _inserted(text: str, node: Node, new: Mapping[str, Any], unit: str | None) -> list[Edit]:
    assert isinstance(node.content, dict)
    outer = _line_indent(text, node.start)
    if not new:
        return []
    if not node.content:
        return [Edit(node.start, node.end, _dumps(dict(new), unit, outer))]
    members = list(node.content)
    nodes = list(node.content.values())
    gap, is_sorted = text[node.start + 1 : nodes[0].key], members == sorted(members)
    edits = []
    for key in sorted(new):
        inner = outer + unit if unit else ""
        member = f"{_dumps(key, None)}: {_dumps(new[key], unit, inner)}"
        at = bisect(members, key) if is_sorted else len(nodes)
        if at < len(nodes):
            edits.append(Edit(nodes[at].key, nodes[at].key, f"{member},{gap}"))
        else:
            edits.append(Edit(nodes[-1].end, nodes[-1].end, f",{gap}{member}"))
    return edits


def _line_indent(text: str, at: int) -> str:
    match = _INDENT.match(text, text.rfind("\n", 0, at) + 1)
    assert match is not None
    return match[0]


def _dumps(value: Any, unit: str | None, indent: str = "") -> str:
    text = json.dumps(_bare(value), indent=unit, sort_keys=True, ensure_ascii=False)
    return text.replace("\n", f"\n{indent}")


def _bare(value: Any) -> Any:
    """A value without the Whole around some of its objects."""
    if isinstance(value, Whole):
        return _bare(value.value)
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items()}
    return value
