"""The bytes of an MRD 2 stream: its items one by one, each as soon as it is there, bounded in size.

`mrd.BinaryMrdReader` reads 64 KiB ahead, so that an image would wait for lines of the slices after it. Here the
package's serialisers read from the stream itself.

Source: the yardl binary encoding (https://microsoft.github.io/yardl/reference/binary), `mrd.binary`.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np

from larmor.storage.objects.errors import InputError

LARGEST_HEADER = 2**24
"""Bytes of the header."""
LARGEST_ITEM = 2**26
"""Bytes of an acquisition or a waveform."""
_VARINT_BYTES = 10


class Sink(Protocol):
    """A binary file without a buffer."""

    def write(self, content: memoryview, /) -> int: ...


class ItemReader:
    """Reads the header and the items of `stream`.

    Raises `InputError` for other bytes than an MRD 2 stream of the installed package's version, for a stream that ends
    in the middle, and for items that are too large or of a kind that is no measurement.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._source = _Source(stream)
        self._kinds = _kinds()

    def header(self) -> Any:
        """The `mrd.Header`, None if the stream has none."""
        from mrd import binary

        start = preamble()
        self._source.budget = LARGEST_HEADER
        if self._source.take(len(start), "its beginning") != start:
            raise InputError("standard input is no MRD 2 stream of a version that the installed mrd-python reads")
        with_header = self._source.read_byte()
        return _decoded("header", lambda: binary.HeaderSerializer().read(self._source) if with_header else None)

    def acquisitions(self) -> Iterator[Any]:
        """The `mrd.Acquisition`s up to the end of the stream; waveforms are passed over."""
        from mrd import binary

        readers: dict[str, Any] = {
            "Acquisition": binary.AcquisitionSerializer(),
            "WaveformUint32": binary.WaveformSerializer(_Count()),
        }
        while count := self._source.read_unsigned_varint():
            for _ in range(count):
                self._source.budget = LARGEST_ITEM
                number = self._source.read_byte()
                kind = self._kinds[number] if number < len(self._kinds) else f"item {number}"
                if kind not in readers:
                    raise InputError(f"the stream holds {kind}; send acquisitions of k-space")
                item = _decoded(kind, lambda kind=kind: readers[kind].read(self._source))
                if kind == "Acquisition":
                    yield item
            self._source.budget = LARGEST_ITEM


class ItemWriter:
    """Writes images to `stream`, which holds nothing back; `end` says that the stream is whole.

    Raises `OSError` if nobody reads it.
    """

    def __init__(self, stream: Sink, header: Any) -> None:
        self._stream = stream
        self._write(_stream_of(header, [])[: -len(_END)])

    def write(self, image: Any) -> None:
        """Write an `mrd.Image` of float32."""
        import mrd

        item = _stream_of(None, [mrd.StreamItem.ImageFloat(image)])
        self._write(item[len(preamble()) + len(_NO_HEADER) : -len(_END)])

    def end(self) -> None:
        self._write(_END)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:  # a file without a buffer may take a part
            left = left[self._stream.write(left) :]


_NO_HEADER, _END = b"\0", b"\0"


def preamble() -> bytes:
    """What every stream of the installed version begins with: magic bytes, version and schema."""
    return _stream_of(None, [])[: -len(_NO_HEADER + _END)]


def _stream_of(header: Any, items: list[Any]) -> bytes:
    import mrd

    content = io.BytesIO()
    with mrd.BinaryMrdWriter(content) as writer:
        writer.write_header(header)
        writer.write_data(items)
    return content.getvalue()


def _kinds() -> list[str]:
    """The names of the items, in the order of their numbers."""
    import mrd

    (union,) = (kind for kind in json.loads(mrd.BinaryMrdReader.schema)["types"] if kind["name"] == "StreamItem")
    return [case["tag"] for case in union["type"]]


def _decoded(what: str, read: Any) -> Any:
    try:
        return read()
    except InputError:
        raise
    except (ValueError, OverflowError, MemoryError, IndexError, TypeError, struct.error) as error:
        raise InputError(f"the stream holds a broken {what} ({error}); send it again") from error


class _Source:
    """What the package's serialisers read from; at most `budget` bytes before it is set again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.budget = LARGEST_HEADER

    def take(self, count: int, what: str = "an item") -> bytes:
        if not 0 <= count <= self.budget:
            raise InputError(f"{what} of the stream announces {count} bytes; at most {self.budget} are taken")
        self.budget -= count
        content = self._stream.read(count)
        if len(content) < count:
            raise InputError(f"the stream ends in the middle of {what}; send it whole")
        return content

    def read(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size))

    def read_byte(self) -> int:
        return self.take(1)[0]

    def read_unsigned_varint(self) -> int:
        result = 0
        for place in range(_VARINT_BYTES):
            byte = self.read_byte()
            result |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return result
        raise InputError("the stream holds a number of more than 64 bits; send an MRD 2 stream")

    def read_signed_varint(self) -> int:
        number = self.read_unsigned_varint()
        return (number >> 1) ^ -(number & 1)

    def read_view(self, count: int) -> memoryview:
        return memoryview(self.take(count))

    def read_bytearray(self, count: int) -> bytearray:
        return bytearray(self.take(count))


class _Count:
    """A sample of a waveform, for the serialiser of its array."""

    def overall_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint32)

    def is_trivially_serializable(self) -> bool:
        return False

    def read_numpy(self, source: _Source) -> np.uint32:
        return np.uint32(source.read_unsigned_varint())
