"""What the page of `report` draws, from numbers made for it."""

from __future__ import annotations

import re
from typing import Any

from rehydrator.bundle.provenance import CLASSES
from rehydrator.cli.report_map import maps
from rehydrator.cli.report_markup import shares
from rehydrator.cli.report_page import MEANINGS, page

GIB, COLUMN = 1 << 30, 10_000
OWN = CLASSES.index("own")


def origins(**counts: int) -> dict[str, int]:
    """Bytes by class."""
    return dict.fromkeys(CLASSES, 0) | counts


def form(name: str, *, seconds: float = 0.0, **counts: int) -> dict[str, Any]:
    """One form of a file."""
    return {
        "name": name,
        "size": sum(counts.values()),
        "sha256": "0" * 64,
        "available": True,
        "encoders": [],
        "memory": 0,
        "seconds": seconds,
        "origins": origins(**counts),
    }


def a_file(name: str, adds: int = 500, **forms: dict[str, Any]) -> dict[str, Any]:
    """A file of a release; its platform is its name."""
    image = forms.setdefault("image", form(name, canonical=GIB))
    facts = {"platform": name, "arch": "x86_64", "format": "raw", "role": "disk", "canonical": False}
    return {
        **facts,
        "file": name,
        "size": image["size"],
        "virtual_size": GIB,
        "adds": adds,
        "forms": forms,
        "how": {"rung": "explained", "format": "raw"},
    }


def a_pack(size: int, **kept_for: Any) -> dict[str, Any]:
    """A pack that is all data."""
    rest = {"recipes": 0, "index": 0, "plain": 2 * size, "frames": 1, "sha256": "0" * 64}
    return {"file": "packs/0.pack", "size": size, "data": size, "kept_for": kept_for, **rest}


def a_map(*rows: tuple[list[int], list[int]]) -> dict[str, Any]:
    """Three columns of data, and a run of zeros of 1 GiB before the last; `rows` has places of files
    and the bytes that they read of each column of data."""
    size = COLUMN
    columns = [
        [0, size, False, size],
        [size, 2 * size, False, size],
        [2 * size, 2 * size + GIB, True, 0],
        [2 * size + GIB, 3 * size + GIB, False, size],
    ]
    own = [0] * OWN + [size] + [0] * (len(CLASSES) - OWN - 1)
    read = [{"files": places, "read": [one, two, 0, last]} for places, (one, two, last) in rows]
    return {"disk": 1, "columns": columns, "origins": [own, own, [0] * len(CLASSES), own], "rows": read}


def found(files: list[dict[str, Any]], packs: list[dict[str, Any]], *maps_: dict[str, Any]) -> dict[str, Any]:
    """All that a page shows."""
    keys = ("published", "images", "data", "added", "shared", "documents", "manifest")
    return {
        "rehydrator": "1",
        "threads": 2,
        "classes": list(CLASSES),
        "bundle": {
            "releases": [{"name": "n", "release": "1", "stream": "s"}],
            "sha256": "0" * 64,
            "signatures": [],
        },
        "totals": {**dict.fromkeys(keys, 0), "files": len(files), "stored": 100, "published": 2700},
        "disks": [{"file": 0, "arch": "x86_64", "size": GIB, "adds": 9, "origins": origins(own=GIB)}],
        "files": files,
        "packs": packs,
        "maps": list(maps_),
    }


def texts(html: str, name: str) -> list[str]:
    """The texts of all elements of a name, without what is inside of them."""
    return re.findall(rf"<{name}[^>]*>([^<]*)</{name}>", html)


FILES = [a_file(name) for name in ("first", "one", "two", "three", "half", "other")]
STRIPS = a_map(
    ([0], [COLUMN, COLUMN, COLUMN]),
    ([1], [COLUMN, COLUMN - 5, COLUMN]),
    ([2], [COLUMN - 300, COLUMN, COLUMN]),
    ([3], [COLUMN, COLUMN, COLUMN - 200]),
    ([4], [COLUMN, 0, COLUMN // 2]),
)


def test_files_with_a_stamp_share_a_strip() -> None:
    """Whatever it is that they have otherwise; the canonical file and one that reads half do not, and
    who reads nothing is named."""
    text = str(maps(found(FILES, [], STRIPS), MEANINGS))
    names = [name for name in re.findall(r'<span class="name">([^<]*)</span>', text) if name]
    assert names == ["The disk itself", "first raw", "3 files", "half raw"]
    assert "all but 5 B to 300 B" in text
    assert "The 3 files: one raw, two raw, three raw." in text
    assert "Nothing of it is read by: other raw." in text


def test_folded_zeros_are_named_with_their_length() -> None:
    """A gap that is drawn as wide as four columns says what it is."""
    assert "1.0 GiB of zeros" in texts(str(maps(found(FILES, [], STRIPS), MEANINGS)), "text")


def test_tables_of_a_map_leave_out_what_is_whole() -> None:
    """A table for each strip that does not read all, of the parts that it does not read all of."""
    text = str(maps(found(FILES, [], STRIPS), MEANINGS))
    assert texts(text, "caption") == [
        "Bytes of the disk&#x27;s data.",
        "Where not all is read by: 3 files.",
        "Where not all is read by: half raw.",
    ]
    assert re.findall(r'<th scope="row" class="number">([^<]*)</th>', text) == [
        *("0", "10,000", f"{2 * COLUMN + GIB:,}"),
        *("10,000", f"{2 * COLUMN + GIB:,}"),
    ]


def test_legends_show_what_occurs() -> None:
    """Classes and shares that no bar has are not explained."""
    text = page(found([a_file("a")], [], a_map(([0], [COLUMN] * 3))))
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    assert [re.findall(r'<rect class="(\w+)"', each) for each in legends] == [
        ["canonical", "own"],
        ["own"],
        ["all", "fold"],
        ["time"],
    ]


def test_widened_parts_are_lower() -> None:
    """4 KiB of 1 GiB is drawn a hundred times too wide, and not as high as the rest; the bar is full."""
    drawn = str(shares(origins(canonical=GIB, own=4096), MEANINGS))
    rects = re.findall(
        r'<rect class="(\w+)" x="[\d.]+%"(?: y="(\d+)%")? width="([\d.]+)%" height="(\d+)%">', drawn
    )
    assert rects == [("canonical", "", "99.6", "100"), ("own", "55", "0.4", "45")]
    text = page(found([a_file("a", image=form("a", canonical=GIB, own=4096))], []))
    assert "half as high" in text
    assert "half as high" not in page(found([a_file("a")], []))


def test_second_bars_are_explained_where_there_are_any() -> None:
    """A file whose published form is stored has one."""
    assert "thinner bar" not in page(found([a_file("a")], []))
    published = form("a.xz", encoded=1000)
    assert "thinner bar" in page(found([a_file("a", published=published)], []))


def test_what_is_shared_is_a_sentence_and_what_files_add_is_on_a_logarithmic_scale() -> None:
    """A thousand times as much is ten more powers of two, not a thousand times the length."""
    packs = [
        a_pack(80, kind="disk", disk=1),
        a_pack(1 << 18, kind="file", file=0),
        a_pack(1 << 8, kind="file", file=1),
    ]
    text = page(found([a_file("a"), a_file("b")], packs))
    assert "<strong>Canonical disk 1</strong> takes 80 B, 80.00 % of all that is stored" in text
    widths = re.findall(r'<rect class="data" x="0.0%" width="([\d.]+)%"', text)
    assert widths == ["83.33", "0.4"]
    added = text[text.index('id="added"') :]
    assert texts(added, "text")[:4] == ["256 B", "4.0 KiB", "64.0 KiB", "1.0 MiB"]


def test_short_times_are_not_said_to_be_none() -> None:
    """What takes less than a tenth of a second takes some of it."""
    text = page(
        found(
            [
                a_file("a", image=form("a", seconds=0.04, own=9)),
                a_file("b", image=form("b", seconds=1.24, own=9)),
            ],
            [],
        )
    )
    assert "&lt; 0.1 s" in text
    assert "1.2 s" in text
    assert "0.0 s" not in text


def test_stored_is_compared_with_what_is_published() -> None:
    """That is what a mirror holds; images come second."""
    assert "stored: 1/27 of what is published" in page(found([a_file("a")], []))


def test_heads_are_the_words_of_the_legend() -> None:
    """The table of bytes has a column for each class."""
    heads = texts(page(found([a_file("a")], [])), "th")
    assert heads[: len(CLASSES) + 2] == ["File", *(MEANINGS[each].capitalize() for each in CLASSES), "Sum"]
