"""The part of JSON Schema (draft 2020-12) that bundle/schema uses, so that tests need no library."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    "$schema", "$id", "$defs", "$ref", "title", "description", "type", "properties", "required", "items",
    "maxItems", "minimum", "maximum", "pattern", "maxLength", "enum", "const", "allOf", "anyOf",
    "additionalProperties", "closed",
}  # fmt: skip


def violations(value: Any, schema: dict[str, Any], where: str = "$", root: Any = None) -> list[str]:
    """Where `value` does not fit; "closed" (ours) refuses keys that are not named."""
    root = root or schema
    assert schema.keys() <= _KNOWN, schema.keys() - _KNOWN
    found: list[str] = []
    if "$ref" in schema:
        found += violations(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], where, root)
    for each in schema.get("allOf", ()):
        found += violations(value, each, where, root)
    if "anyOf" in schema and all(violations(value, each, where, root) for each in schema["anyOf"]):
        found.append(f"{where}: none of the choices")
    if "type" in schema and not _is(value, schema["type"]):
        return [*found, f"{where}: not of type {schema['type']}"]
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        found.append(f"{where}: not {schema['const']!r}")
    if "enum" in schema and not any(value == each and type(value) is type(each) for each in schema["enum"]):
        found.append(f"{where}: none of {schema['enum']}")
    if isinstance(value, dict):
        found += _members(value, schema, where, root)
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            found.append(f"{where}: too many items")
        for number, item in enumerate(value):
            found += violations(item, schema.get("items", {}), f"{where}[{number}]", root)
    elif isinstance(value, str):
        wrong = len(value) > schema.get("maxLength", len(value))
        if wrong or not re.search(schema.get("pattern", ""), value):
            found.append(f"{where}: {value!r:.40} does not fit")
    elif isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value} is out of range")
    return found


def _members(value: dict[str, Any], schema: dict[str, Any], where: str, root: Any) -> list[str]:
    known = schema.get("properties", {})
    found = [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
    if schema.get("closed") and known:
        found += [f"{where}: {key} is not in the schema" for key in value if key not in known]
    for key, item in value.items():
        found += violations(
            item, known.get(key, schema.get("additionalProperties", {})), f"{where}.{key}", root
        )
    return found


def _is(value: Any, kind: str | list[str]) -> bool:
    kinds = [kind] if isinstance(kind, str) else kind
    number = [each for each in kinds if isinstance(value, _TYPES[each])]
    return bool(number) and not (isinstance(value, bool) and "boolean" not in kinds)
