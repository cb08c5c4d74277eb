"""Protocol Buffers' wire format: enough to find a field of a message, or to add one.

So the metadata of an ONNX file is read without the package ``onnx``, and before any runtime sees
the file. See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, where it starts, and what it holds.

    ``value`` is the bytes of a field that has a length, else empty.
    """

    number: int
    start: int
    value: memoryview


def fields(data: bytes | memoryview) -> Iterator[Field]:
    """Yield the fields of a message, in order.

    Raises
    ------
    ValueError
        The bytes are no message.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        first, at = _extent(view, at, tag & 7)
        if at > len(view) or not tag >> 3:
            raise ValueError(f"no field of a message at byte {start:,}")
        yield Field(tag >> 3, start, view[first:at])


def length_delimited(number: int, value: bytes) -> bytes:
    """Return a field of bytes or text, or of a message that is encoded."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(value)) + value


def _extent(view: memoryview, at: int, kind: int) -> tuple[int, int]:
    """Return where the value at ``at`` starts and ends; a number has no bytes of its own."""
    if kind == _BYTES:
        length, at = _varint(view, at)
        return at, at + length
    if kind == _VARINT:
        end = _varint(view, at)[1]
    elif kind in (_FIXED64, _FIXED32):
        end = at + (8 if kind == _FIXED64 else 4)
    else:
        raise ValueError(f"a field of kind {kind} at byte {at:,}")
    return end, end


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number that is at ``at``, and where the next thing is."""
    number = 0
    for index, byte in enumerate(view[at : at + _MOST_VARINT_BYTES]):
        number |= (byte & 127) << 7 * index
        if byte < 128:  # noqa: PLR2004 (the highest bit says that more follows)
            return number, at + index + 1
    raise ValueError(f"no number at byte {at:,}")


def _as_varint(number: int) -> bytes:
    """Return a number of 0 or more, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:  # noqa: PLR2004
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
