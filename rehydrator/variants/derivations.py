"""The table of derivations and platforms.yaml: pydantic at the door, plain values inward."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rehydrator.core.errors import UsageError
from rehydrator.metadata.names import ARCHES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_FILE = 4 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([1-9][0-9]{0,17})([KMGT]?)\Z")
_SECTOR = 512

# Flags of `qemu-img convert` and their values; nothing that names a file, as a bare word would.
_ARGUMENTS = re.compile(r"(-[cW] |-[oSm] [a-z0-9_]+(=[A-Za-z0-9_.+]+)?(,[a-z0-9_]+(=[A-Za-z0-9_.+]+)?)* )*\Z")
_NAMES_A_FILE = ("backing_", "data_file", "encrypt")
_KernelArgument = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", max_length=1024)]
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=1024)]
_GuestPath = Annotated[str, Field(pattern=r"^(/\.?[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]*)+$", max_length=512)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
_Arch = Annotated[str, Field(pattern=f"^({'|'.join(ARCHES)})$")]
_Extension = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.]{0,31}$")]

# The extension of the image form (coreos-assembler's names).
_EXTENSIONS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vpc": "vhd", "vhdx": "vhdx"}
_WRAPPED = {"ova": "ova", "powervs-ova": "ova", "gcp-tar": "tar", "ociarchive": "ociarchive"}


_M = TypeVar("_M", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class _Stanza(_Model):
    arches: list[_Arch] = list(ARCHES)
    format: Literal["raw", "qcow2", "vmdk", "vpc", "vhdx"]
    arguments: list[str] = []
    wrap: Literal["ova", "gcp-tar", "powervs-ova", "ociarchive"] | None = None
    template: Annotated[str, Field(min_length=1)] | None = None
    values: dict[str, _Line] = {}
    extension: _Extension | None = None
    compress: Literal["xz", "gzip", "gzip9", "zip", "zstd", "none"] = "none"
    size: str | int = "cloud"
    sectors: Literal[512, 4096] = 512
    stamp: _KernelArgument | None = None
    kernel_arguments: list[_KernelArgument] = Field([], alias="kernel-arguments")
    grub_commands: list[_Line] = Field([], alias="grub-commands")
    files: dict[_GuestPath, Annotated[str, Field(max_length=1 << 16)]] = {}
    needs: dict[str, str] = {}


class _Table(_Model):
    cloud_size: str | int = Field(alias="cloud-size")
    defaults: dict[str, Any] = {}
    platforms: dict[_Name, dict[str, Any] | None]


class _Platform(_Model):
    model_config = ConfigDict(extra="ignore", frozen=True)
    grub_commands: list[_Line] | None = None
    kernel_arguments: list[_KernelArgument] | None = None


@dataclass(frozen=True, slots=True)
class Derivation:
    """How one platform's file is derived. `size` is the virtual size in bytes, None where the
    base is not enlarged; `sectors` the size in bytes of those that the base's partition table
    counts; `needs` says per architecture what cannot be done here.
    """

    platform: str
    arches: tuple[str, ...]
    format: str
    arguments: tuple[str, ...]
    wrap: str
    template: str
    values: Mapping[str, str]
    extension: str
    compress: str
    size: int | None
    sectors: int
    stamp: str
    kernel_arguments: tuple[str, ...]
    grub_commands: tuple[str, ...]
    files: Mapping[str, str]
    needs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Console:
    """What platforms.yaml says of one platform."""

    kernel_arguments: tuple[str, ...] = ()
    grub_commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Consoles:
    """One architecture's part of platforms.yaml; `document` is what /boot/coreos/platforms.json
    holds of it."""

    platforms: Mapping[str, Console] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)


def load_derivations(more: Path | None = None) -> dict[str, Derivation]:
    """The shipped table, with the stanzas of a user's file laid over it.

    Raises:
        UsageError: the file has a member or a value that is not known; says which.
    """
    shipped = resources.files(__package__).joinpath("derivations.yaml").read_text(encoding="utf-8")
    table = _parse_yaml(shipped, "derivations.yaml")
    what = "derivations.yaml"
    if more:
        what = str(more)
        table = _laid_over(table, _mapping(read_yaml(more), what))
    checked = _validated(_Table, table, what)
    cloud = parse_size(checked.cloud_size, f"{what}: cloud-size")
    found = {}
    for name, stanza in checked.platforms.items():
        if stanza is not None:
            whole = {key: value for key, value in {**checked.defaults, **stanza}.items() if value is not None}
            place = f"{what}: platforms.{name}"
            found[name] = _derivation(name, _validated(_Stanza, whole, place), cloud, place)
    return found


def load_platforms(path: Path, arch: str) -> Consoles:
    """An architecture's part of a platforms.yaml (fedora-coreos-config's format: architecture ->
    platform -> grub_commands, kernel_arguments); empty where it has none.

    Raises:
        UsageError: it is not in that format; says where.
    """
    table = _mapping(read_yaml(path), str(path))
    unknown = sorted(set(map(str, table)) - set(ARCHES))
    if unknown:
        raise UsageError(f"{path}: {unknown[0]!r} is no architecture; there are {', '.join(ARCHES)}")
    part = _mapping(_or_empty(table.get(arch)), f"{path}: {arch}")
    found = {}
    for name, value in part.items():
        place = f"{path}: {arch}.{name}"
        each = _validated(_Platform, _mapping(_or_empty(value), place), place)
        found[str(name)] = Console(tuple(each.kernel_arguments or ()), tuple(each.grub_commands or ()))
    return Consoles(found, part)


def read_yaml(path: Path) -> Any:
    """The value of a small YAML file; UsageError where it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise UsageError(f"{path}: more than {MAX_FILE} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    return _parse_yaml(text, str(path))


def parse_size(size: str | int, what: str) -> int:
    """Bytes of "10G", "64M" or a number, a multiple of 512."""
    found = _SIZE.match(str(size))
    if found is None:
        raise UsageError(f"{what}: {size!r} is no size; write bytes, or 512M, 10G")
    value = int(found[1]) * _UNITS[found[2]]
    if value % _SECTOR:
        raise UsageError(f"{what}: {value} is no multiple of {_SECTOR} bytes")
    return value


class _Loader(yaml.SafeLoader):
    """YAML without what makes small files large: more than a handful of aliases."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > 100:
                raise yaml.YAMLError("more than 100 aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, what: str) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{what}: not YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader:
            loader.dispose()


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what}: a mapping is expected here, this is {type(value).__name__}")
    return value


def _or_empty(value: Any) -> Any:
    """YAML has null where nothing stands behind a key."""
    return {} if value is None else value


def _laid_over(table: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`more` over `table`, member by member in `defaults` and in each platform."""
    found = {**table, **more}
    if isinstance(more.get("defaults"), dict):
        found["defaults"] = {**table["defaults"], **more["defaults"]}
    if isinstance(more.get("platforms"), dict):
        known = table["platforms"]
        found["platforms"] = known | {
            name: {**(known.get(name) or {}), **stanza} if isinstance(stanza, dict) else stanza
            for name, stanza in more["platforms"].items()
        }
    return found


def _validated(model: type[_M], value: Any, what: str) -> _M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{what}: {where}: {first['msg']}") from None


def _derivation(name: str, stanza: _Stanza, cloud: int, what: str) -> Derivation:
    if stanza.wrap in {"ova", "powervs-ova"} and not stanza.template:
        raise UsageError(f"{what}: template: an ova needs the name of an OVF template")
    joined = "".join(f"{argument} " for argument in stanza.arguments)
    if not _ARGUMENTS.match(joined) or any(option in joined for option in _NAMES_A_FILE):
        raise UsageError(
            f"{what}: arguments: {joined.strip()!r}: -c, -W, -o OPTIONS, -S SIZE and -m N are known"
        )
    size = {"cloud": cloud, "base": None}.get(str(stanza.size), -1)
    return Derivation(
        platform=name,
        arches=tuple(stanza.arches),
        format=stanza.format,
        arguments=tuple(stanza.arguments),
        wrap=stanza.wrap or "",
        template=stanza.template or "",
        values=stanza.values,
        extension=stanza.extension or _WRAPPED.get(stanza.wrap or "", _EXTENSIONS[stanza.format]),
        compress=stanza.compress,
        size=parse_size(stanza.size, f"{what}: size") if size == -1 else size,
        sectors=stanza.sectors,
        stamp=stanza.stamp or "",
        kernel_arguments=tuple(stanza.kernel_arguments),
        grub_commands=tuple(stanza.grub_commands),
        files=stanza.files,
        needs=stanza.needs,
    )
