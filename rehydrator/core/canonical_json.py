"""Canonical JSON: the one spelling of whatever is hashed or signed, and a strict reader.

Written: UTF-8, keys sorted by code point, no white space, no floats, non-ASCII as is, one
final newline. Read: size, depth and number of values capped, duplicate keys, floats, NaN,
integers of more than 20 digits and unpaired surrogates refused (bundle/FORMAT.md, section 3).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from rehydrator.core.errors import HostileInput

Json = dict[str, "Json"] | list["Json"] | str | int | bool | None

MAX_DEPTH = 32
MAX_VALUES = 1 << 20
_MAX_DIGITS = 20
_OPENERS = (b",", b"[", b"{")


def dumps(value: Json) -> bytes:
    """The canonical bytes of `value`.

    Raises:
        ValueError: a float or another type that canonical JSON does not have.
    """
    _check_types(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def loads(data: bytes, what: str, limit: int) -> Json:
    """The value in `data`; `what` names it in messages, `limit` is its largest size in bytes.

    Raises:
        HostileInput: too large, not JSON, not strict, too deep.
    """
    if len(data) > limit:
        raise HostileInput(f"{what}: {len(data)} bytes, above the limit of {limit}")
    # Each value costs 60 to 100 bytes of memory, so they are counted before they are made.
    if sum(data.count(opener) for opener in _OPENERS) > MAX_VALUES:
        raise HostileInput(f"{what}: more than {MAX_VALUES} values")
    try:
        text = data.decode()
        value: Json = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
        )
        _check_depth(value, what)
    except (ValueError, RecursionError) as error:
        raise HostileInput(f"{what}: not valid JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r:.80} stands twice in one object")
    return result


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("an integer of more than 20 digits")
    return int(digits)


def _refuse_float(text: str) -> NoReturn:
    raise ValueError(f"{text:.40} is not an integer")


def _check_types(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key that is not a string: {key!r}")
            _check_types(item)
    elif isinstance(value, list):
        for item in value:
            _check_types(item)
    elif value is not None and not isinstance(value, str | int):
        raise ValueError(f"canonical JSON has no {type(value).__name__}")


def _check_depth(value: Json, what: str) -> None:
    """Also encodes every string, which fails (ValueError) for unpaired surrogates."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Json] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                "".join(item).encode()
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise HostileInput(f"{what}: nested deeper than {MAX_DEPTH}")
