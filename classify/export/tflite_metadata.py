"""Google's metadata of a TFLite model: what the libraries for phones read.

A TFLite file is a FlatBuffer. Its entry ``TFLITE_METADATA`` names a buffer that holds another one,
of the schema ``metadata_schema.fbs`` (TFLite Support and MediaPipe Tasks share it): here that the
input is an RGB image whose pixels are taken as they are, and that ``labels.txt``, one of the files
in the zip at the end of the model, names the output's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LABELS_NAME = "labels.txt"
_ENTRY = "TFLITE_METADATA"
_IDENTIFIER, _PARSER_VERSION = b"M001", "1.0.0"
_RGB, _DESCRIPTIONS, _TENSOR_AXIS_LABELS = 1, 1, 2
_IMAGE_PROPERTIES, _NORMALIZATION_OPTIONS = 2, 1

Slot = tuple[int, str, Any]
"""A slot of a table: its number in the schema, the kind of the value, and the value."""


def with_metadata(model: bytes, *, image_size: int, license_text: str, other_file: str) -> bytes:
    """Return a TFLite model with the metadata of an image classifier.

    ``other_file`` is what else the zip holds, besides the labels.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = bytearray(_metadata(image_size, license_text, other_file))
    entry.name, entry.buffer = _ENTRY, len(content.buffers)
    content.buffers.append(buffer)
    content.metadata = [*(content.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _metadata(image_size: int, license_text: str, other_file: str) -> bytes:
    """Return the FlatBuffer ``ModelMetadata``; slots have the numbers of the schema."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    size = _table(builder, (0, "uint32", image_size), (1, "uint32", image_size))
    image = _table(builder, (0, "int8", _RGB), (1, "offset", size))
    content = _table(builder, (0, "uint8", _IMAGE_PROPERTIES), (1, "offset", image))
    as_they_are = _table(
        builder, (0, "offset", _floats(builder, [0.0])), (1, "offset", _floats(builder, [1.0]))
    )
    unit = _table(builder, (0, "uint8", _NORMALIZATION_OPTIONS), (1, "offset", as_they_are))
    images = _tensor(
        builder,
        "image",
        "RGB pixels, 0 to 255, resized to the input's size",
        (3, "offset", content),
        (4, "offset", _offsets(builder, [unit])),
    )
    labels = _file(builder, LABELS_NAME, "names of the classes", _TENSOR_AXIS_LABELS)
    probabilities = _tensor(
        builder, "probability", "of each class", (6, "offset", _offsets(builder, [labels]))
    )
    graph = _table(
        builder,
        (2, "offset", _offsets(builder, [images])),
        (3, "offset", _offsets(builder, [probabilities])),
    )
    other = _file(builder, other_file, "how it was made", _DESCRIPTIONS)
    whole = _table(
        builder,
        (0, "text", "image classifier"),
        (3, "offset", _offsets(builder, [graph])),
        (5, "text", license_text),
        (6, "offset", _offsets(builder, [other])),
        (7, "text", _PARSER_VERSION),
    )
    builder.Finish(whole, _IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, name: str, description: str, *more: Slot) -> int:
    """Write a ``TensorMetadata``."""
    return _table(builder, (0, "text", name), (1, "text", description), *more)


def _file(builder: Any, name: str, description: str, kind: int) -> int:
    """Write an ``AssociatedFile``."""
    return _table(builder, (0, "text", name), (1, "text", description), (2, "int8", kind))


def _table(builder: Any, *slots: Slot) -> int:
    """Write a table, and return its offset; texts go before it, since tables do not nest."""
    texts = {number: builder.CreateString(value) for number, kind, value in slots if kind == "text"}
    adders: dict[str, Callable[[int, Any, int], None]] = {
        "text": builder.PrependUOffsetTRelativeSlot,
        "offset": builder.PrependUOffsetTRelativeSlot,
        "int8": builder.PrependInt8Slot,
        "uint8": builder.PrependUint8Slot,
        "uint32": builder.PrependUint32Slot,
    }
    builder.StartObject(max(number for number, _, _ in slots) + 1)
    for number, kind, value in slots:
        adders[kind](number, texts.get(number, value), 0)
    offset: int = builder.EndObject()
    return offset


def _offsets(builder: Any, items: Sequence[int]) -> int:
    """Write a vector of tables."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    offset: int = builder.EndVector()
    return offset


def _floats(builder: Any, items: Sequence[float]) -> int:
    """Write a vector of float32."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependFloat32(item)
    offset: int = builder.EndVector()
    return offset
