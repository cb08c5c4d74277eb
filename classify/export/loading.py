"""How an exported model is opened: read as data, checked, then described."""

from __future__ import annotations

from pathlib import Path

from classify.export.description import Described
from classify.export.formats import Format, KerasFormat, OnnxFormat, SavedModelFormat
from classify.export.sealing import check_content, foreign, unseal
from classify.export.tflite import TfliteFormat

_BY_SUFFIX: dict[str, Format] = {
    one.suffix: one for one in (KerasFormat(), OnnxFormat(), TfliteFormat())
}


def open_exported(path: Path) -> tuple[Format, Described]:
    """Return the format of an exported model, and what it says of itself; it is safe to load then.

    Raises
    ------
    ModelError
        It is of no known format, was not written by this program, was changed since, or holds more
        than a classifier needs.
    """
    file_format = _format(path)
    said = unseal(path, file_format.description(path))
    check_content(path, said["content"], file_format.content(path))
    file_format.check_safe(path)
    return file_format, Described.of(path, said)


def _format(path: Path) -> Format:
    """Return the format that the name of a file says, or of a folder."""
    if path.is_dir():
        return SavedModelFormat()
    try:
        return _BY_SUFFIX[path.suffix.lower()]
    except KeyError:
        raise foreign(path) from None
