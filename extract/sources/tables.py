"""A table of image files: CSV or TSV with the columns ``path,label[,split][,group]``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import SourceError
from extract.sources.base import SourceOptions
from extract.sources.files import FileSource, ImageFile
from extract.sources.listing import SPLIT_NAMES

_REQUIRED = ("path", "label")
_OPTIONAL = ("split", "group")
_DELIMITERS = (",", "\t", ";")
_SEVERAL = "|"
"""Between the labels of an image that has several."""

_LIST_SEPARATORS = (";", ",")


@dataclass(frozen=True)
class Line:
    """One line of a table: its number in the file, from 1, and its cells by column."""

    number: int
    cells: dict[str, str]


def open_table(text: str, options: SourceOptions) -> FileSource:
    """List the files of a table; paths are relative to the folder that it is in.

    Raises
    ------
    SourceError
        It cannot be read; a column is missing; a cell that must not be is empty; an image has
        several labels; none of the files is there.
    """
    path = Path(text)
    lines = _read_lines(path, options.format)
    if not lines:
        raise SourceError(f"{path}: no lines below the header")
    _check_cells(path, lines)
    _check_labels(path, lines)
    files = [_image_file(path, line) for line in lines]
    return FileSource(text, files, options)


def _read_lines(path: Path, table_format: str) -> list[Line]:
    """Read the table below its header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            delimiter = "\t" if table_format == "tsv" else guess_delimiter(header)
            stream.seek(0)
            return list(_lines(path, csv.reader(stream, delimiter=delimiter, strict=True)))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: save it as 'CSV UTF-8'") from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a table: {error}") from error


def guess_delimiter(header: str) -> str:
    """Return what is between the columns: what the header has most of."""
    return max(_DELIMITERS, key=header.count)


def _lines(path: Path, reader: Iterator[list[str]]) -> Iterator[Line]:
    """Yield the lines of a table that are not empty, with their cells by column."""
    columns = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise SourceError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: a header with "
            f"{','.join(_REQUIRED)}[,{'][,'.join(_OPTIONAL)}] is expected"
        )
    repeated = [name for name in (*_REQUIRED, *_OPTIONAL) if columns.count(name) > 1]
    if repeated:
        raise SourceError(f"{path} has the column {repeated[0]!r} twice: one is expected")
    wanted = [i for i, name in enumerate(columns) if name in (*_REQUIRED, *_OPTIONAL)]
    for number, cells in enumerate(reader, start=2):
        if len(cells) not in (0, len(columns)):
            raise SourceError(
                f"{path}, line {number}: {len(cells)} cells where the header has {len(columns)}"
            )
        if cells:
            yield Line(number, {columns[i]: cells[i].strip() for i in wanted})


def _check_cells(path: Path, lines: Sequence[Line]) -> None:
    """Raise :class:`SourceError` for an empty cell or an unknown split."""
    for line in lines:
        for column, cell in line.cells.items():
            if not cell:
                what = "images without a label are not supported yet" if column == "label" else ""
                raise SourceError(f"{path}, line {line.number}: no {column}; {what}".rstrip("; "))
        split = line.cells.get("split", "train")
        if split.lower() not in SPLIT_NAMES:
            raise SourceError(
                f"{path}, line {line.number}: split {split!r}, where train, val or test is expected"
            )


def _check_labels(path: Path, lines: Sequence[Line]) -> None:
    """Raise :class:`SourceError` where an image has several labels, in whichever way."""
    labels = {line.cells["label"] for line in lines}
    seen: dict[tuple[str, str], Line] = {}
    for line in lines:
        label = line.cells["label"]
        if _is_several(label, labels):
            raise SourceError(
                f"{path}, line {line.number}: several labels, {label!r}, where one is expected: "
                "they are not supported yet"
            )
        key = (line.cells["path"], line.cells.get("split", "").lower())
        first = seen.setdefault(key, line)
        if first is not line:
            raise SourceError(
                f"{path}, line {line.number}: {key[0]} again, after line {first.number}, with "
                f"label {label!r} after {first.cells['label']!r}: one line an image is expected"
            )


def _is_several(label: str, labels: set[str]) -> bool:
    """Return whether a label is a list: with ``|``, or of what are labels by themselves."""
    return _SEVERAL in label or any(
        separator in label and {part.strip() for part in label.split(separator)} <= labels
        for separator in _LIST_SEPARATORS
    )


def _image_file(table: Path, line: Line) -> ImageFile:
    split = line.cells.get("split")
    return ImageFile(
        path=table.parent / line.cells["path"],
        id=line.cells["path"],
        label=line.cells["label"],
        split=None if split is None else SPLIT_NAMES[split.lower()],
        group=line.cells.get("group"),
    )
