"""The CSV files of a run as tables of a page."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.report.page import Cell, Table, interval_cells

_DIGITS, _MOST_DECIMALS = 4, 4
_MOST_ROWS = 500
_LOW, _HIGH = "_low", "_high"
_LAST = "hyperparameters"
"""A column of long texts: it would push the figures out of sight."""


@dataclass(frozen=True)
class TextTable:
    """A header of k names and n rows of k texts."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> tuple[str, ...]:
        """Return a column by its name; empty where there is no such column."""
        if name not in self.header:
            return ()
        at = self.header.index(name)
        return tuple(row[at] for row in self.rows)

    def numbers(self, name: str) -> list[float]:
        """Return a column as numbers."""
        return [float(text) for text in self.column(name)]


def read_text_table(path: Path) -> TextTable | None:
    """Read a CSV file that the program wrote; None where there is none, or it is empty."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)]
    return TextTable(rows[0], tuple(rows[1:])) if rows[1:] else None


def as_block(table: TextTable, caption: str) -> Table:
    """Return a table as far as a page can hold it.

    A figure and the ends of its interval, ``x``, ``x_low`` and ``x_high``, are one column.
    """
    shown = TextTable(table.header, table.rows[:_MOST_ROWS])
    names = sorted(_shown_names(table.header), key=_LAST.__eq__)
    columns = [_cells(shown, name) for name in names]
    left = len(table.rows) - len(shown.rows)
    note = f"{left:,} more rows are in the run's folder." if left else ""
    return Table(caption, tuple(map(plain, names)), tuple(zip(*columns, strict=True)), note)


def plain(name: str) -> str:
    """Return a name of the program's as words."""
    return name.replace("_", " ")


def _shown_names(header: Sequence[str]) -> Iterator[str]:
    """Yield the names of columns, but for the ends of intervals."""
    ends = {f"{name}{end}" for name in header for end in (_LOW, _HIGH)}
    return (name for name in header if name not in ends)


def _cells(table: TextTable, name: str) -> list[Cell]:
    """Return a column, with its interval where it has one."""
    texts = table.column(name)
    ends = table.column(name + _LOW), table.column(name + _HIGH)
    if not all(ends):
        return text_cells(texts)
    values = [_interval(*three) for three in zip(ends[0], texts, ends[1], strict=True)]
    return interval_cells(values)


def _interval(*texts: str) -> tuple[float, float, float] | None:
    """Return a figure between the ends of its interval; None where one is lacking."""
    if not all(texts):
        return None
    low, value, high = map(float, texts)
    return low, value, high


def text_cells(texts: Sequence[str]) -> list[Cell]:
    """Return a column of texts as cells; those that are numbers sort as numbers.

    They are rounded, with as many decimals for all, where a few suffice.
    """
    short = [_rounded(text) for text in texts]
    decimals = max((len(text.partition(".")[2]) for text in short if text), default=0)
    is_even = decimals <= _MOST_DECIMALS and not any("e" in text for text in short)
    return [
        Cell(text)
        if not brief
        else Cell(f"{float(text):.{decimals}f}" if is_even else brief, float(text))
        for text, brief in zip(texts, short, strict=True)
    ]


def _rounded(text: str) -> str:
    """Return a number in few digits, a whole one in all; nothing for a text that is none."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return text if text.lstrip("-").isdigit() else f"{number:.{_DIGITS}g}"
