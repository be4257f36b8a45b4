"""The tools that are compared: what each does to store a release and to give a file back.

A row is shell text that runs in the work directory. In it, `release/` is the release, `stored/NAME/`
holds what the tool stores (all of it counts), `prepared/NAME/` what it wants for storing more,
`scratch/` what may be thrown away at any time, and

    {canonical}     the canonical qcow2
    {file} {name}   the file that is stored or wanted, and its name
    {platform}      its platform
    {level}         zstd's level: 19; with --quick a fast one
    {window}        a power of two that spans the canonical qcow2, bytes

`obtain` starts from the stored form alone and writes the file to standard output, or, where it
`writes`, as scratch/back.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = "stored/floor/canonical.zst"
PIPELINE = f"zstd -dcq --long=27 {FLOOR}"
FLOOR_COMMAND = f"zstd -q -{{level}} --long=27 -T0 {{canonical}} -o {FLOOR}"

# Chunks of 64 KiB on average: a changed page costs what a chunk costs, and borg's own 2 MiB are many.
# Level 10: at 19 one file of this release takes many minutes, for sizes that barely differ.
_CREATE = "borg create --compression zstd,10 --chunker-params 10,23,16,4095 stored/borg::{name} {file}"

_BASE = f"zstd -dq --long=27 {FLOOR} -o scratch/canonical\n"


@dataclass(frozen=True)
class Peer:
    """One tool. `start` stores the canonical qcow2 (or prepares for deltas against it), `add` a sibling.

    `on_floor`: the canonical qcow2 is stored as the floor is, and counts. `cumulative`: one store
    that grows; it cannot go on in the middle.
    """

    name: str
    title: str
    package: str
    start: str
    add: str
    obtain: str
    on_floor: bool = True
    cumulative: bool = False
    writes: bool = False


PEERS = (
    Peer(
        "rdiff",
        "rdiff + zstd",
        "rdiff",
        start="rdiff signature {canonical} prepared/rdiff/signature",
        add="rdiff delta prepared/rdiff/signature {file}"
        " | zstd -q -{level} --long=27 -T0 -o stored/rdiff/{name}.zst",
        obtain=_BASE + "zstd -dcq --long=27 stored/rdiff/{name}.zst | rdiff patch scratch/canonical",
    ),
    Peer(
        "xdelta3",
        "xdelta3",
        "xdelta3",
        start="",
        # -D and -R: files are taken and given back as they are, compressed or not.
        add="xdelta3 -e -D -q -9 -S lzma -B {window} -s {canonical} {file} stored/xdelta3/{name}.vcdiff",
        obtain=_BASE + "xdelta3 -d -R -q -c -B {window} -s scratch/canonical stored/xdelta3/{name}.vcdiff",
    ),
    Peer(
        "patch-from",
        "zstd --patch-from",
        "zstd",
        start="",
        # Level 9, for the same reason: with a window of 1 GiB level 19 takes minutes a file.
        add="zstd -q -9 --long=31 --patch-from={canonical} {file} -o stored/patch-from/{name}.zst",
        obtain=_BASE
        + "zstd -dcq --long=31 --memory=2048MB --patch-from=scratch/canonical stored/patch-from/{name}.zst",
    ),
    Peer(
        "casync",
        "casync",
        "casync",
        start="casync make --store=stored/casync/default.castr stored/casync/{name}.caibx {file}",
        add="casync make --store=stored/casync/default.castr stored/casync/{name}.caibx {file}",
        obtain="casync extract --store=stored/casync/default.castr stored/casync/{name}.caibx scratch/back",
        on_floor=False,
        cumulative=True,
        writes=True,
    ),
    Peer(
        "borg",
        "borg",
        "borgbackup",
        start="borg init --encryption=none stored/borg\n" + _CREATE,
        add=_CREATE,
        obtain="borg extract --stdout stored/borg::{name}",
        on_floor=False,
        cumulative=True,
    ),
)

REHYDRATOR = "rehydrator"
BUILD = (
    "rehydrator build release -o oci:stored/rehydrator:bench --runtime none --level {level} "
    "--canonical {canonical_name}"
)
REHYDRATE = "rehydrator rehydrate scratch/back --bundle oci:stored/rehydrator:bench --disk {platform}"
TO_PIPE = "rehydrator rehydrate - --bundle oci:stored/rehydrator:bench --disk {platform} > scratch/back"

PACKAGES = (
    "zstd",
    *(peer.package for peer in PEERS),
    "qemu-utils",
    "coreutils",
    "rsync",
    "xz-utils",
    "gzip",
    "zip",
)
