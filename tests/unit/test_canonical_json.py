"""Canonical JSON has one spelling, and its reader takes nothing else than what it names."""

from __future__ import annotations

from typing import Any

import pytest

from rehydrator.core.canonical_json import MAX_DEPTH, MAX_VALUES, dumps, loads
from rehydrator.core.errors import HostileInput


def read(data: bytes, limit: int = 1 << 24) -> Any:
    return loads(data, "doc", limit)


def test_spelling() -> None:
    """Keys by code point, no white space, UTF-8 as it is, one final newline."""
    value: Any = {"b": [1, None, True], "a": "é\N{SNOWMAN}\n", "Z": {"": -5}}
    data = dumps(value)
    assert data == '{"Z":{"":-5},"a":"é\N{SNOWMAN}\\n","b":[1,null,true]}\n'.encode()
    assert read(data) == value


@pytest.mark.parametrize("value", [1.5, {"a": float("nan")}, [b"x"], {1: 2}, {"a": {"b": (1,)}}])
def test_what_it_does_not_have(value: Any) -> None:
    """Floats, bytes, tuples and keys that are no strings are not written."""
    with pytest.raises(ValueError, match=r"canonical JSON|string"):
        dumps(value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"x":{"a":1,"b":2,"a":1}}', "twice"),
        (b"1.0", "not an integer"),
        (b"1e3", "not an integer"),
        (b"NaN", "not an integer"),
        (b"-Infinity", "not an integer"),
        (b"9" * 21, "20 digits"),
        (b"9" * 10_000, "20 digits"),
        (b'"\\ud800"', "not valid JSON"),
        (b'{"\\udc00":1}', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[" * 50_000 + b"]" * 50_000, "not valid JSON|deeper"),
        (b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), "deeper"),
        (b"[" + b"1," * MAX_VALUES + b"1]", "more than"),
    ],
)
def test_refused(data: bytes, why: str) -> None:
    """Duplicate keys, floats, huge integers, bad text, too deep, too many."""
    with pytest.raises(HostileInput, match=why):
        read(data)


def test_size_and_depth_limits() -> None:
    """Exactly the limit is taken, one more is not; messages say which document."""
    assert read(b"[1]", 3) == [1]
    with pytest.raises(HostileInput, match="doc: 4 bytes"):
        read(b"[1] ", 3)
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert read(deep) is not None
