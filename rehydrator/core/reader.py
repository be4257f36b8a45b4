"""`Reader`: random access to a known number of bytes. Files, disks, packs, recipes and
HTTP blobs are all readers, so everything above composes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reader(Protocol):
    """Random access to `size` bytes. `pread` is safe to call from several threads."""

    @property
    def size(self) -> int: ...

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            HostileInput: the span leaves [0, size), or the bytes underneath are malformed.
        """
        ...


@runtime_checkable
class SparseReader(Reader, Protocol):
    """A reader that knows where its zeros are."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        """Spans (offset, length), ascending and disjoint, outside of which all bytes are zero."""
        ...


def data_spans(reader: Reader) -> Iterator[tuple[int, int]]:
    """The reader's data spans; the whole where it does not know them."""
    if isinstance(reader, SparseReader):
        yield from reader.data_spans()
    elif reader.size:
        yield 0, reader.size


def check_span(offset: int, length: int, size: int, what: str) -> None:
    """Raise HostileInput unless [offset, offset+length) lies in [0, size)."""
    if offset < 0 or length < 0 or offset + length > size:
        raise HostileInput(f"{what}: bytes {offset}+{length} lie outside of its {size} bytes")


class BytesReader:
    """A reader over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, "memory")
        return self._data[offset : offset + length]


class WindowReader:
    """The bytes [offset, offset+size) of another reader, numbered from zero."""

    def __init__(self, base: Reader, offset: int, size: int, what: str = "window") -> None:
        check_span(offset, size, base.size, what)
        self._base, self._offset, self._what = base, offset, what
        self.size = size

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, self._what)
        return self._base.pread(self._offset + offset, length)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        end = self._offset + self.size
        for start, length in data_spans(self._base):
            low, high = max(start, self._offset), min(start + length, end)
            if low < high:
                yield low - self._offset, high - low
