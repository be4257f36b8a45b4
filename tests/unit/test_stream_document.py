"""A stream document's text under edits: what stays, what goes, where new files stand."""

from __future__ import annotations

import time

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.metadata.document import Document, File, FileKey, NewFile

QEMU = FileKey("x86_64", "qemu", "qcow2.xz")
METAL = FileKey("x86_64", "metal", "raw.xz")
KERNEL = FileKey("x86_64", "metal", "pxe", "kernel")
ARM = FileKey("aarch64", "qemu", "qcow2.xz")
TEXT = """{ "stream":"s", "x": 1.50,
 "architectures": {
  "x86_64": {"images": {"aws": {}}, "artifacts": {
    "qemu": {"formats": {"qcow2.xz": {"disk":
      {"x":[1], "location": "https:\\/\\/h/q%20.xz", "signature" : null, "sha256": "AA"}}}, "release": "1"},
    "metal": {"release": null, "formats": {"raw.xz": {"disk": {"location": "m", "signature": "m.sig"}},
              "pxe": {"kernel": {"location": "k", "size": 7}}}}
  }},
  "aarch64": {"artifacts": {"qemu": {"formats": {"qcow2.xz": {"disk": {"location": "a"}}}}}, "images": {}}
 }}"""


def parsed(text: str = TEXT) -> Document:
    return Document.parse(text.encode(), "x")


def test_files() -> None:
    """Files in the document's order; missing, empty and null are the same; names are unquoted."""
    document = parsed()
    assert [file.key for file in document.files] == [QEMU, METAL, KERNEL, ARM]
    assert document.files[0] == File(QEMU, "https://h/q%20.xz", "", "aa", "", "1", "q .xz")
    assert document.files[2].size == 7
    assert document.members(KERNEL) == {"location": "k", "size": 7}
    assert document.data == TEXT.encode()


def test_relocated() -> None:
    """Only the tokens that change are other bytes; absent members stay absent."""
    moved = parsed().relocated({QEMU: ("new", "sig"), METAL: ("m", None), KERNEL: ("k2", "k2.sig")})
    expected = TEXT.replace('"https:\\/\\/h/q%20.xz"', '"new"').replace(
        '"signature" : null', '"signature" : "sig"'
    )
    assert moved.data.decode() == expected.replace('"k"', '"k2"')


def test_relocated_unknown() -> None:
    """A file that is not there cannot move."""
    with pytest.raises(KeyError):
        parsed().relocated({FileKey("x86_64", "qemu", "raw"): ("a", None)})


def test_only() -> None:
    """What loses its last file is cut with its comma; the rest is the same text."""
    text = parsed().only([METAL]).data.decode()
    start, middle = TEXT.index('"qemu"'), TEXT.index('"metal"')
    expected = TEXT[:start] + TEXT[middle:]
    expected = expected.replace(',\n              "pxe": {"kernel": {"location": "k", "size": 7}}', "")
    assert text == expected[: expected.index(',\n  "aarch64"')] + "\n }}"


def test_only_nothing() -> None:
    """Without any file no architecture stays."""
    assert parsed().only([]).value == {"stream": "s", "x": 1.5, "architectures": {}}


def test_only_of_many() -> None:
    """A document may have tens of thousands of files: 20,000 take less than 10 seconds (1 s
    measured; each file compared with each other would take minutes)."""
    names = ", ".join(
        f'"p{number}": {{"formats": {{"f": {{"a": {{"location": "a"}}}}}}}}' for number in range(20_000)
    )
    document = parsed(f'{{"stream":"s","architectures":{{"x":{{"artifacts":{{{names}}}}}}}}}')
    kept = [file.key for file in document.files[::2]]
    started = time.monotonic()
    assert [file.key for file in document.only(kept).files] == kept
    assert time.monotonic() - started < 10


def test_updated() -> None:
    """New files stand between their neighbours, spelt as the text around them; a platform of
    another release gives way as a whole."""
    old = Document.new("s").updated(
        [
            NewFile(QEMU, "1", {"location": "q", "sha256": "aa"}),
            NewFile(METAL, "1", {"location": "m"}),
        ],
        last_modified="2020-01-01T00:00:00Z",
        generator="g",
    )
    new = old.updated(
        [NewFile(ARM, "2", {"location": "a"}), NewFile(QEMU._replace(format="raw"), "2", {"location": "r"})]
    )
    assert (
        new.data.decode()
        == """{
    "architectures": {
        "aarch64": {
            "artifacts": {
                "qemu": {
                    "formats": {
                        "qcow2.xz": {
                            "disk": {
                                "location": "a"
                            }
                        }
                    },
                    "release": "2"
                }
            }
        },
        "x86_64": {
            "artifacts": {
                "metal": {
                    "formats": {
                        "raw.xz": {
                            "disk": {
                                "location": "m"
                            }
                        }
                    },
                    "release": "1"
                },
                "qemu": {
                    "formats": {
                        "raw": {
                            "disk": {
                                "location": "r"
                            }
                        }
                    },
                    "release": "2"
                }
            }
        }
    },
    "metadata": {
        "generator": "g",
        "last-modified": "2020-01-01T00:00:00Z"
    },
    "stream": "s"
}
"""
    )


def test_updated_one_line() -> None:
    """A document on one line stays on one line, whose order is kept."""
    document = parsed('{"stream":"s","architectures":{"x86_64":{"artifacts":null,"z":1}}}')
    found = document.updated([NewFile(QEMU, "1", {"location": "q"})])
    artifacts = '{"qemu": {"formats": {"qcow2.xz": {"disk": {"location": "q"}}}, "release": "1"}}'
    expected = f'{{"stream":"s","architectures":{{"x86_64":{{"artifacts":{artifacts},"z":1}}}}}}'
    assert found.data.decode() == expected


@pytest.mark.parametrize(
    "file",
    [
        NewFile(QEMU, "1", {"location": ""}),
        NewFile(QEMU, "1", {"location": "a/.."}),
        NewFile(QEMU, "1", {"location": "a\ud800"}),
        NewFile(QEMU, "1/2", {"location": "a"}),
        NewFile(FileKey("x 86", "qemu", "raw"), "1", {"location": "a"}),
        NewFile(QEMU, "1", {"location": "a", "size": -1}),
    ],
)
def test_updated_refuses(file: NewFile) -> None:
    """A file that no document could hold is refused."""
    with pytest.raises(HostileInput):
        Document.new("s").updated([file])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "column 65: nested deeper than 64"),
        ("[" + "1," * (1 << 18) + "1]", "more than 262144 values"),
        ("9" * 401, "a number of more than 400 characters"),
        ('{"a":1 "b":2}', "column 8: no , or }"),
        ("[1,]", "column 4: no value"),
        ('{"a":1,}', "column 8: no string"),
        ("'a'", "no value"),
        ('"a\nb"', "no valid string"),
        ('"\\x"', "no valid string"),
        ("01", "something stands behind"),
        ("1.", "something stands behind"),
        ("-", "no value"),
        ("", "line 1, column 1: no value"),
        ('{"stream":"s","architectures":{"a":5}}', "a: is not an object"),
        ('{"stream":"s","architectures":{"a":{"artifacts":[]}}}', "a.artifacts: is not an object"),
        ('{"stream":"s","architectures":{"a":{"artifacts":{"b":null}}}}', "a.artifacts.b: is not an object"),
    ],
)
def test_refused(text: str, said: str) -> None:
    """What is refused is said with its place."""
    with pytest.raises(HostileInput, match=f"^x: .*{said}"):
        parsed(text)
