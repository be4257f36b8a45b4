"""The tools that are compared: what each does to store a release and to give a file back.

A row is shell text that runs in the work directory. In it, `release/` is the release, `stored/NAME/`
holds what the tool stores (all of it counts), `prepared/NAME/` what it wants for storing more,
`scratch/` what may be thrown away at any time, and

    {canonical} {canonical_name}    the canonical qcow2
    {file} {name}                   the file that is stored or wanted, and its name
    {level}                         zstd's level: 19; with --quick a fast one
    {window}                        a power of two that spans the canonical qcow2, bytes
    {memory} {patience}             KiB of address space and processor seconds that bsdiff may have
    {most}                          KiB of address space that ostree may have
    {offset} {length}               the range that is read; it begins with byte {begin} (from 1)

`obtain` starts from the stored form alone, and from what `base` has made of it in scratch/, and writes
the file to standard output, or, where it `writes`, as scratch/back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import predecessor

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOR = "stored/floor/canonical.zst"
FLOOR_COMMAND = f"zstd -q -{{level}} --long=27 -T0 {{canonical}} -o {FLOOR}"

_BASE = f"zstd -dq --long=27 {FLOOR} -o scratch/canonical"


@dataclass(frozen=True)
class Peer:
    """One tool. `start` stores the canonical qcow2 (or prepares for deltas against it), `add` a sibling.

    `read` writes the range alone; without it, the file is given back as far as the range's end.
    `row` says for a file's name, and that of the live root file system, what is done instead of `add`
    and `obtain`. `on_floor`: the canonical qcow2 is stored as the floor is, and counts. `cumulative`:
    one store that grows; it cannot go on in the middle.
    """

    name: str
    title: str
    package: str
    start: str
    add: str = ""
    obtain: str = ""
    base: str = ""
    read: str = ""
    row: Callable[[str, str], predecessor.Row] | None = None
    on_floor: bool = True
    cumulative: bool = False
    writes: bool = False

    @property
    def canonical(self) -> str:
        """The canonical qcow2, where `base` has made it."""
        if self.on_floor:
            return "scratch/canonical"
        return "scratch/base" if self.row else ""

    def adding(self, name: str, rootfs: str) -> str:
        """What adds a file of this name."""
        return self.row(name, rootfs).add if self.row else self.add

    def obtaining(self, name: str, rootfs: str) -> str:
        """What gives it back, after `base`."""
        return self.row(name, rootfs).out if self.row else self.obtain


def _borg(name: str, chunker: str) -> Peer:
    # Level 10: at 19 one file of the *os* release takes many minutes, for sizes that barely differ.
    create = f"borg create --compression zstd,10 --chunker-params {chunker} stored/{name}::{{name}} {{file}}"
    return Peer(
        name,
        f"borg, chunks {chunker}",
        "borgbackup",
        start=f"borg init --encryption=none stored/{name}\n{create}",
        add=create,
        obtain=f"borg extract --stdout stored/{name}::{{name}}",
        on_floor=False,
        cumulative=True,
    )


_CASYNC = "casync make --store=stored/casync/default.castr stored/casync/{name}.caibx {file}"
_DESYNC = "desync make -s stored/desync/store stored/desync/{name}.caibx {file}"
_RESTIC = "restic -q --no-cache --repo stored/restic"
_RESTIC_ADD = f"{_RESTIC} backup --compression max --tag {{name}} {{file}}"

# A commit of one file each, named alike, so that ostree looks for what they share; times, owners and
# attributes left out. `prepared/ostree` is the repository that deltas are made in.
_COMMIT = """rm -rf scratch/tree
mkdir scratch/tree
ln {file} scratch/tree/disk
ostree --repo=prepared/ostree commit -b {name} --tree=dir=scratch/tree --no-xattrs \
--owner-uid=0 --owner-gid=0 --timestamp=@0 > stored/ostree/{name}.commit
"""
# It holds a file several times in memory: of one of 192 MiB 582 MiB were measured.
_DELTA = (
    "ulimit -v {most}\nostree --repo=prepared/ostree static-delta generate --inline --min-fallback-size=0"
)
_APPLY = "ostree --repo=scratch/repo static-delta apply-offline stored/ostree"

PEERS = (
    Peer(
        "2021",
        "the 2021 method (rsync batch, `qemu-img`)",
        "rsync",
        start=predecessor.START,
        base=predecessor.BASE,
        row=predecessor.row,
        on_floor=False,
        writes=True,
    ),
    Peer(
        "rdiff",
        "rdiff + zstd",
        "rdiff",
        start="rdiff signature {canonical} prepared/rdiff/signature",
        add="rdiff delta prepared/rdiff/signature {file}"
        " | zstd -q -{level} --long=27 -T0 -o stored/rdiff/{name}.zst",
        base=_BASE,
        obtain="zstd -dcq --long=27 stored/rdiff/{name}.zst | rdiff patch scratch/canonical",
    ),
    Peer(
        "xdelta3",
        "xdelta3",
        "xdelta3",
        start="",
        # -D and -R: files are taken and given back as they are, compressed or not.
        add="xdelta3 -e -D -q -9 -S lzma -B {window} -s {canonical} {file} stored/xdelta3/{name}.vcdiff",
        base=_BASE,
        obtain="xdelta3 -d -R -q -c -B {window} -s scratch/canonical stored/xdelta3/{name}.vcdiff",
    ),
    Peer(
        "patch-from",
        "zstd --patch-from",
        "zstd",
        start="",
        # Level 9, for borg's reason: with a window of 1 GiB level 19 takes minutes a file.
        add="zstd -q -9 --long=31 --patch-from={canonical} {file} -o stored/patch-from/{name}.zst",
        base=_BASE,
        obtain="zstd -dcq --long=31 --memory=2048MB --patch-from=scratch/canonical "
        "stored/patch-from/{name}.zst",
    ),
    Peer(
        "bsdiff",
        "bsdiff",
        "bsdiff",
        start="",
        # 17 times the canonical file, or 9 times that and the sibling: bsdiff(1). Its time is quadratic in
        # runs of zeros.
        add="ulimit -v {memory} -t {patience}\nbsdiff {canonical} {file} stored/bsdiff/{name}.bsdiff",
        base=_BASE,
        obtain="( ulimit -v {memory}\nbspatch scratch/canonical scratch/back stored/bsdiff/{name}.bsdiff )",
        writes=True,
    ),
    Peer(
        "casync",
        "casync",
        "casync",
        start=_CASYNC,
        add=_CASYNC,
        obtain="casync extract --store=stored/casync/default.castr stored/casync/{name}.caibx scratch/back",
        on_floor=False,
        cumulative=True,
        writes=True,
    ),
    Peer(
        "desync",
        "desync",
        "desync",
        start=f"mkdir -p stored/desync/store\n{_DESYNC}",
        add=_DESYNC,
        obtain="desync extract -s stored/desync/store stored/desync/{name}.caibx scratch/back",
        read="desync cat -s stored/desync/store -o {offset} -l {length} stored/desync/{name}.caibx",
        on_floor=False,
        cumulative=True,
        writes=True,
    ),
    # A changed page costs what a chunk costs, and borg's own 2 MiB are many: 64 KiB on average, or all.
    _borg("borg", "10,23,16,4095"),
    _borg("borg-fixed", "fixed,65536"),
    Peer(
        "restic",
        "restic",
        "restic",
        start=f"{_RESTIC} init > scratch/said\n{_RESTIC_ADD}",
        add=_RESTIC_ADD,
        obtain=f"{_RESTIC} dump --tag {{name}} latest /{{file}}",
        on_floor=False,
        cumulative=True,
    ),
    Peer(
        "ostree",
        "ostree static deltas",
        "ostree",
        start=f"ostree --repo=prepared/ostree init --mode=archive\n{_COMMIT}"
        f"{_DELTA} --empty --to={{name}} --filename=stored/ostree/{{name}}.delta",
        add=f"{_COMMIT}{_DELTA} --from={{canonical_name}} --to={{name}} "
        "--filename=stored/ostree/{name}.delta",
        base="ostree --repo=scratch/repo init --mode=bare-user-only\n"
        f"{_APPLY}/{{canonical_name}}.delta > scratch/said",
        obtain=f"[ {{name}} = {{canonical_name}} ] || {_APPLY}/{{name}}.delta > scratch/said\n"
        'ostree --repo=scratch/repo cat "$(cat stored/ostree/{name}.commit)" /disk',
        on_floor=False,
        cumulative=True,
    ),
)

REHYDRATOR = "rehydrator"
BUNDLE = "oci:stored/rehydrator:bench"
BUILD = (
    f"rehydrator build release -o {BUNDLE} --runtime none --level {{level}} --canonical {{canonical_name}}"
)
REHYDRATE = f"rehydrator rehydrate scratch/back --bundle {BUNDLE} --form image --file {{name}}"
TO_PIPE = f"rehydrator rehydrate - --bundle {BUNDLE} --form image --file {{name}}"
REHYDRATE_ALL = f"rehydrator rehydrate scratch/all --bundle {BUNDLE} --form image --all"

# Those of scripts/sid-root; the others are the machine's own.
NEWER = ("desync",)
PACKAGES = (
    "zstd",
    *(peer.package for peer in PEERS),
    "qemu-utils",
    "coreutils",
    "openssl",
    "xz-utils",
    "gzip",
    "zip",
)
